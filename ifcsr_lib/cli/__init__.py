"""The command line: python -m ifcsr_lib COMMAND; --help lists the commands. Heavy imports wait until one needs them.

Exit codes: 0 done; 1 some images failed (each told, the others written); 2 wrong usage or an error that stopped all.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import os
import sys
from pathlib import Path

from .. import __version__
from ..config import PROFILES, RECIPES, Config, resolve

SUFFIXES = ("png", "jpg", "webp", "tif", "bmp")  # of --format; any suffix of images.FORMATS may end OUT


def main(argv: list[str] | None = None) -> int:
    """Run one command (argv without the program name; None takes sys.argv) and return its exit code."""
    args = _parser().parse_args(argv)
    args.argv = sys.argv[1:] if argv is None else list(argv)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("stopped: what was written so far is whole", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        if os.environ.get("IFCSR_DEBUG") == "1":
            raise
        print(f"error: {_line(error)}", file=sys.stderr)
        return 2


def _line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror and not error.filename else str(error)
    return " ".join(text.split())[:600] or type(error).__name__


_MODEL = '"pocket" (default, shipped), a saved folder, or a hub id'


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ifcsr_lib", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="IFCSR: 4x super-resolution of real photographs, with a slider from fidelity (gamma 0) to "
                    "realism (gamma 1).",
        epilog="Each command has its own --help. IFCSR_DEBUG=1 shows tracebacks.")  # fmt: skip
    parser.add_argument("--version", action="version", version=f"ifcsr_lib {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(run, text: str, story: str, example: str) -> argparse.ArgumentParser:
        p = commands.add_parser(run.__name__.strip("_"), help=text, description=f"{text}\n\n{story}",
                                epilog=f"example:\n  {example}",
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
        p.set_defaults(run=run)
        return p

    p = command(_upscale, "Upscale a photo, or every photo of a folder, four times.", _UPSCALE,
                "python -m ifcsr_lib upscale holiday/ holiday_x4/ --gamma 0.5")  # fmt: skip
    p.add_argument("source", metavar="IN", type=Path, help="an image file, or a folder (its subfolders are left out)")
    p.add_argument("target", metavar="OUT", type=Path, help="a folder; for one photo also a file name such as out.png")
    p.add_argument("--gamma", type=_gamma, default=0.5, help="0 = fidelity ... 1 = realism (default 0.5)")
    p.add_argument("--model", default="pocket", help=_MODEL)
    p.add_argument("--format", choices=SUFFIXES, help="of the written files (default png, or the suffix of OUT)")
    p.add_argument("--overwrite", action="store_true", help="replace files in OUT that exist (never IN itself)")
    p.add_argument("--tile", type=int, metavar="PIXELS", help="make outputs of more than PIXELS x PIXELS in tiles of that "
                   "side (default 1024; smaller takes less memory, 0 never)")  # fmt: skip

    p = command(_explore, "Upscale one photo and open a page with the slider.", _EXPLORE,
                "python -m ifcsr_lib explore photo.jpg --out photo.html")  # fmt: skip
    p.add_argument("photo", metavar="PHOTO", type=Path, help='an image file, a pair (*.ifcsr.zip), or "sample"')
    p.add_argument("--model", default="pocket", help=_MODEL)
    p.add_argument("--gamma", type=_gamma, help="where the slider starts (default 0.5, or what the pair says)")
    p.add_argument("--out", type=Path, metavar="HTML", help="the page to write (default PHOTO_explore.html, here)")
    p.add_argument("--no-open", action="store_true", help="write the page, start no browser")

    p = command(_evaluate, "Score images, one row each, and print the means.", _EVALUATE,
                "python -m ifcsr_lib evaluate holiday_x4/ originals/ --metrics psnr ssim --out scores.csv")  # fmt: skip
    p.add_argument("sr", metavar="SR", type=Path, help="the folder of images to score")
    p.add_argument("hr", metavar="HR", type=Path, nargs="?", help="the folder of references with the same file names")
    p.add_argument("--metrics", nargs="+", metavar="NAME", help="such as psnr ssim lpips niqe (default: all)")
    p.add_argument("--out", type=Path, metavar="CSV", help="also write the table there (an older one is replaced)")

    p = command(_data, "Prepare and verify the paper's data sets below $IFCSR_DATA.", _DATA,
                "python -m ifcsr_lib data realsr --from OSEDiff/")  # fmt: skip
    p.add_argument("name", metavar="NAME", nargs="?", help="ffhq, lsdir, realsr, drealsr or div2k_val (default: list all)")
    p.add_argument("--from", dest="sources", nargs="+", metavar="SOURCE", default=[],
                   help="folders, .zip, .tar, .tar.gz or http(s) addresses to prepare it from")  # fmt: skip
    p.add_argument("--shards", type=int, metavar="N", help="also write tar shards of N images each (training sets)")
    p.add_argument("--bad-images", type=float, default=0.01, metavar="SHARE",
                   help="go on without damaged training images up to this share (default 0.01)")  # fmt: skip
    p.add_argument("--quick", action="store_true", help="verify without hashes: names and sizes only")

    p = command(_benchmark, "Score a model on RealSR, DRealSR or DIV2K-val along gamma.", _BENCHMARK,
                "python -m ifcsr_lib benchmark realsr --gammas 0 0.5 1 --metrics psnr ssim niqe --processes 2")  # fmt: skip
    p.add_argument("name", metavar="NAME", help="realsr, drealsr or div2k_val: NAME/LR and NAME/HR in $IFCSR_DATA")
    p.add_argument("--model", default="pocket", help=_MODEL)
    p.add_argument("--gammas", nargs="+", type=_gamma, metavar="GAMMA", help="default 0 0.1 ... 1")
    p.add_argument("--metrics", nargs="+", metavar="METRIC", help="such as psnr ssim lpips niqe (default: all)")
    p.add_argument("--colour-fix", choices=("none", "adain"), help="default: the model's own setting")
    p.add_argument("--limit", type=int, metavar="N", help="only the first N images, by name")
    p.add_argument("--processes", type=int, default=1, metavar="N", help="share the images among N (one a GPU)")

    command(_protocol, "Recompute OSEDiff's published scores and show the largest difference a metric.", _PROTOCOL,
            "IFCSR_DATA=~/sr-data python -m ifcsr_lib protocol")  # fmt: skip

    p = command(_train, "Train stage 1 or 2 as notebooks 02 and 03 do, for runs of hours.", _TRAIN,
                'python -m ifcsr_lib train --profile paper --stage 1 --recipe "24 GB" --dry-run --cards "1x RTX 4090"')  # fmt: skip
    p.add_argument("--stage", type=int, choices=(1, 2), required=True, help="1: the fidelity end, 2: the realism end")
    p.add_argument("--profile", help=f"{', '.join(PROFILES)} (default $IFCSR_PROFILE, else pocket)")
    p.add_argument("--seed", type=int, default=0, help="root of every random choice (default 0)")
    p.add_argument("--recipe", choices=tuple(RECIPES), help="settings for a card's memory; -o goes over them")
    p.add_argument("-o", "--set", nargs="+", type=_setting, metavar="NAME=VALUE", default=[], action="extend",
                   help="override config fields, such as workers=8 log_every=500")  # fmt: skip
    p.add_argument("--dry-run", action="store_true", help="print steps, memory and hours, and start nothing")
    p.add_argument("--cards", default="1x H100", help='of the dry run\'s hours, such as "8x A100" (default "1x H100")')

    p = command(_reproduce, "Run the notebooks in order and write results/<profile>/.", _REPRODUCE,
                "python -m ifcsr_lib reproduce --profile pocket --set k=3.0 --only 02 03")  # fmt: skip
    p.add_argument("--profile", help=f"{', '.join(PROFILES)} (default $IFCSR_PROFILE, else pocket)")
    p.add_argument("--seed", type=int, default=0, help="root of every random choice (default 0)")
    p.add_argument("--set", nargs="+", type=_setting, metavar="NAME=VALUE", default=[], action="extend",
                   help="override config fields, such as k=3.0 preset=light")  # fmt: skip
    p.add_argument("--recipe", choices=tuple(RECIPES), help="settings for a card's memory, as `train` has them; --set goes over them")
    p.add_argument("--only", nargs="+", metavar="NN", help="numbers of the notebooks to run, such as 02 03")

    p = command(_describe, "Print sizes, adapters, backbone and settings of a profile as JSON.", _DESCRIBE,
                "python -m ifcsr_lib describe --profile paper")  # fmt: skip
    p.add_argument("--profile", help=f"{', '.join(PROFILES)} (default $IFCSR_PROFILE, else pocket)")
    p.add_argument("--set", nargs="+", type=_setting, metavar="NAME=VALUE", default=[], action="extend",
                   help="override config fields, such as rank=8 backbone=stabilityai/sd-turbo")  # fmt: skip
    return parser


_UPSCALE = """\
Reads PNG, JPEG, WebP, TIFF and BMP: grey, palette, CMYK, 8 or 16 bit, turned as EXIF says.
Writes RGB of four times the width and height. Alpha (bicubic) and 16 bit are kept where the
format has them, the colour profile too; JPEG and BMP show transparent photos on white. A file
that cannot be read is reported and skipped, and the exit code is then 1. Needs no network with
the pocket model; the same input always gives the same output."""
_EXPLORE = """\
Runs the network once, writes one page that holds both ends and the slider, and opens it in the
browser; the page needs no Python afterwards. A pair written by ends.save (*.ifcsr.zip) needs no
model at all. "sample" is a held-out photo of the installed packages, degraded (preset light)."""
_EVALUATE = """\
Protocol of the paper's peers: 8-bit RGB, no border cropped, PSNR and SSIM on luma. Files are
matched by name without suffix. A metric whose weights are missing reads "not run: needs ...".
Without HR only metrics that need no reference are computed."""
_DATA = """\
Without NAME: every set with its state. With NAME: compares counts, sizes and sha256 with the
manifest, names what is missing, the licence, and where to get or ask for it. --from takes the
files out of what you have and continues where a killed run stopped; nothing is downloaded that
you do not name. Exit code 1 says that the set is not complete."""
_BENCHMARK = """\
Endpoints and scores are kept in results/<profile>/endpoints/NAME-<key>/, so that it may be stopped
at any time and goes on when started again; another gamma or metric runs no network. Writes the
means to results/<profile>/tables/. For a model of profile paper they are also shown beside what
the paper reports. Also runs under torchrun or accelerate launch, on several machines too."""
_PROTOCOL = """\
Needs realsr/HR, realsr/osediff and realsr/osediff_published_metrics.csv in $IFCSR_DATA
(data/README.md). Every column whose weights are there is computed, the others read "not run"."""
_TRAIN = """\
Uses the checkpoint folder of the notebook, so that either goes on where the other stopped: run
the notebook with the same settings afterwards and it finds the training finished. SIGTERM ends
the run after the step in progress, with a checkpoint (exit code 143). Several cards or nodes:
accelerate launch --multi_gpu --num_processes 8 -m ifcsr_lib train ...; each card then takes
`batch` images. --dry-run computes memory and hours without loading anything (half a minute)."""
_REPRODUCE = """\
All notebooks below 90 run one after another with a progress line each; executed copies, tables and
figures go to results/<profile>/ (or $IFCSR_RESULTS). Profile pocket takes minutes on a laptop,
paper needs a GPU for days."""

_DESCRIBE = """\
Parameters of UNet, VAE and one adapter, the number of adapted modules, the backbone with the
sha256 of its files where they are here, the config and its hash. Nothing is downloaded: the
shapes of SD 2.1-base, SD-Turbo and SD 1.5 are known, and the network is built without weights."""


def _gamma(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:  # NaN fails too
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a number from 0 (fidelity) to 1 (realism)")
    return value


def _setting(text: str) -> tuple[str, object]:
    """"k=3.0" -> ("k", 3.0), by the type of the Config field; `resolve` then judges name and value."""
    name, equals, value = text.partition("=")
    kind = {f.name: f.type for f in dataclasses.fields(Config)}.get(name, "str")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}; write NAME=VALUE without spaces, such as k=3.0")
    if kind.startswith("str"):
        return name, None if (kind, value) == ("str | None", "None") else value
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        raise argparse.ArgumentTypeError(f"{text!r}: {name} is a number ({kind}), such as {name}=3") from None


def plan(source: Path, target: Path, kind: str | None = None, overwrite: bool = False) -> dict[Path, Path]:
    """{photo: file to write} for IN and OUT of `upscale`; every reason to refuse is found before a model loads.

    Raises FileNotFoundError or ValueError: missing or empty IN, unknown suffix, contradicting kind, two photos with one
    output name, a file that exists (without overwrite) or that is itself an input.
    """
    from ..files.images import FORMATS, list_images

    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; pass an image file or a folder of images")
    single, suffix = not source.is_dir(), "" if target.is_dir() else target.suffix.lower()
    if not single and (target.is_file() or suffix in FORMATS):
        raise ValueError(f"{source} is a folder and {target} a file; pass a folder for OUT")
    if single and suffix and suffix not in FORMATS:
        raise ValueError(f"{target}: suffix {suffix!r} is unknown; allowed: {' '.join(FORMATS)}, or a folder")
    if single and suffix:
        if kind and FORMATS[suffix] != FORMATS[f".{kind}"]:
            raise ValueError(f"--format {kind} contradicts OUT {target}; leave one of them out")
        jobs = {source: target}
    else:
        photos = [source] if single else list_images(source)
        jobs = {p: target / f"{p.stem}.{kind or 'png'}" for p in photos}
    taken = {}
    for photo, out in jobs.items():
        if (other := taken.setdefault(os.path.normcase(out), photo)) != photo:
            raise ValueError(f"{other.name} and {photo.name} would both become {out}; rename one, or run them apart")
    inputs = {p.resolve() for p in jobs}
    if same := [p for p in jobs.values() if p.resolve() in inputs]:
        raise ValueError(f"{same[0]} is an input and would be replaced; choose another folder for OUT")
    if (old := [p for p in jobs.values() if p.exists()]) and not overwrite:
        raise ValueError(f"{len(old)} of {len(jobs)} outputs exist, {old[0]} first; pass --overwrite or another OUT")
    return jobs


def upscale_folder(model, jobs: dict[Path, Path], gamma: float) -> int:
    """Upscale each photo of jobs = {photo: file to write} at gamma and return how many failed, each told on stderr.

    model: anything whose `endpoints(lq)` gives Endpoints.
    OSError (disk full, no permission) stops the run.
    """
    from tqdm import tqdm

    from ..files.images import check_images, read_image, upsample, write_image

    failed = 0
    for source, target in tqdm(jobs.items(), unit="photo", disable=None):  # no bar when stderr is not a terminal
        try:
            photo = read_image(source)
            check_images(photo.rgb, str(source))
            rgb = model.endpoints(photo.rgb).blend(gamma)
            alpha = None if photo.alpha is None else upsample(photo.alpha, rgb.shape[-1] // photo.alpha.shape[-1])
            write_image(dataclasses.replace(photo, rgb=rgb, alpha=alpha), target)
        except (ValueError, FileNotFoundError, RuntimeError, MemoryError) as error:
            failed += 1
            text = _line(error)
            tqdm.write(f"skipped {'' if str(source) in text else f'{source}: '}{text}", file=sys.stderr)
    return failed


def _upscale(args: argparse.Namespace) -> int:
    jobs = plan(args.source, args.target, args.format, args.overwrite)
    folder = next(iter(jobs.values())).parent
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} is not writable; choose another OUT")
    from ..models import load

    model = load(args.model)
    if args.tile is not None:
        overlap = min(model.cfg.tile_overlap, max(64, args.tile // 256 * 64))
        model.cfg = model.cfg.replace(tile=args.tile, tile_overlap=overlap)
    failed = upscale_folder(model, jobs, args.gamma)
    print(f"{len(jobs) - failed} of {len(jobs)} photos written to {folder} at gamma {args.gamma:g}")
    return 1 if failed else 0


def _explore(args: argparse.Namespace) -> int:
    pair, sample = args.photo.name.endswith(".ifcsr.zip"), str(args.photo) == "sample"
    name = args.photo.name.removesuffix(".ifcsr.zip") if pair else args.photo.stem
    out = args.out or Path(f"{name}_explore.html")
    if out.suffix.lower() != ".html":
        raise ValueError(f"--out {out}; allowed: a name that ends in .html")
    if not sample and not args.photo.is_file():
        raise FileNotFoundError(f'{args.photo} does not exist; pass an image file, a *.ifcsr.zip, or "sample"')
    from ..control import Endpoints
    from ..explorer import Explorer

    if pair:
        ends = Endpoints.load(args.photo)
        names = [name] if len(ends) == 1 else [f"{name} {i}" for i in range(len(ends))]
        explorer = Explorer(ends, names=names, gamma=args.gamma)
    else:
        from ..files.images import check_images, read_image
        from ..models import load

        hr = None
        if sample:
            from ..data import HELDOUT_INDEX, load_photo, photos
            from ..degradation import degrade

            photo = photos("heldout")[0]
            name, hr = photo.name, load_photo(photo)
            lq = degrade(hr, 0, "light", HELDOUT_INDEX)
        else:
            lq = read_image(args.photo).rgb
            check_images(lq, str(args.photo))
        model = load(args.model)
        explorer = Explorer(model.endpoints(lq), lq, hr, names=[name], model=model, gamma=args.gamma)
    explorer.save_html(out)
    print(f"written: {out} ({out.stat().st_size / 1e6:.1f} MB)")
    if not args.no_open:
        import webbrowser

        if not webbrowser.open(out.resolve().as_uri()):
            print("no browser could be started here; open the file in one")
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    if args.out and args.out.suffix != ".csv":
        raise ValueError(f"--out {args.out}; allowed: a name that ends in .csv")
    from ..evaluate import score, summary

    table = score(args.sr, args.hr, args.metrics)
    means = summary(table)
    print(table.to_string(float_format="{:.4f}".format), f"\nmean of {len(table)} images")
    for name, value in means.items():
        better = "lower" if table.attrs["lower_better"][name] else "higher"
        print(f"  {name:12s} {value if isinstance(value, str) else f'{value:.4f}':>10}  ({better} is better)")
    if args.out:
        from ..files.results import atomic

        with atomic(args.out) as temporary:
            table.to_csv(temporary, float_format="%.6f", lineterminator="\n")
        print(f"written: {args.out}")
    return 0


def _data(args: argparse.Namespace) -> int:
    from ..data.sets import DATASETS, State, home, prepare, report, verify, write_shards

    if args.name is None:
        if args.sources or args.shards is not None:
            raise ValueError(f"--from and --shards need NAME; allowed: {', '.join(DATASETS)}")
        there = os.environ.get("IFCSR_DATA")
        print(f"$IFCSR_DATA is {home()}" if there else "$IFCSR_DATA is not set; set it to a folder that may hold the data sets")
        for name, data in DATASETS.items():
            print("\n" + report(verify(name, hashes=False) if there else State(data, None)))
        return 0
    state = prepare(args.name, args.sources, args.bad_images) if args.sources else verify(args.name, not args.quick)
    if args.shards is not None:
        write_shards(args.name, args.shards)
        state = verify(args.name, hashes=False)
    print(report(state))
    return 0 if state.complete else 1


def _benchmark(args: argparse.Namespace) -> int:
    from ..evaluate import benchmark
    from ..evaluate import metrics as evaluate

    rows = benchmark.files(args.name, args.limit)
    gammas, metrics = evaluate.check_gammas(args.gammas or evaluate.GAMMAS), evaluate.check_metrics(args.metrics, hr=True)
    if args.processes < 1:
        raise ValueError(f"--processes {args.processes}; allowed: 1 or more")
    if args.processes > 1 and "RANK" not in os.environ:
        return _launch(args.processes, args.argv)
    rank, *_ = benchmark.processes()  # before load, which puts the model on this process's GPU
    from ..models import load

    model = load(args.model)
    table = benchmark.run(model, args.name, gammas, metrics, args.colour_fix, args.limit, progress=True)
    if rank:
        return 0
    from ..files.results import write_table

    means, inputs = evaluate.summary(table), [rows[0][1].parent, rows[0][2].parent]
    fix = args.colour_fix or model.cfg.colour_fix
    part = f"_first{len(rows)}" if args.limit else ""
    name = f"{args.name}_{benchmark.key(model)}_{fix}{part}"
    print(f"means of {len(rows)} images, colour fix {fix}\n{means.to_string()}")
    print(f"written: {write_table(means, f'benchmark_{name}', model.cfg, inputs)}")
    if model.cfg.profile == "paper" and not args.limit:
        against = benchmark.compare_reported(table, args.name, model.cfg)
        print(against.to_string(index=False) if len(against) else "the paper's numbers of it are not known here")
        if len(against):
            print(f"written: {write_table(against, f'reported_{name}', model.cfg, inputs)}")
    return 0


def _launch(count: int, argv: list[str]) -> int:
    """The same command in `count` processes, through torch's launcher."""
    import subprocess

    import torch

    if torch.cuda.is_available() and count > torch.cuda.device_count():
        raise ValueError(f"--processes {count}; allowed: up to {torch.cuda.device_count()}, one a GPU")
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // count))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count),
               "-m", "ifcsr_lib", *argv]  # fmt: skip
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": threads}, check=False)
    return 2 if done.returncode else 0


def _protocol(args: argparse.Namespace) -> int:
    from ..evaluate.benchmark import protocol

    print(protocol().to_string(float_format="{:.6g}".format, na_rep=""))
    return 0


def _train(args: argparse.Namespace) -> int:
    cfg = resolve(args.profile, args.seed, _settings(args))
    if args.dry_run:
        from .dry_run import dry_run

        dry_run(cfg, args.stage, args.cards)
        return 0
    from ..trainer import run_stage

    def tell(row: dict) -> None:
        if row["step"] % 50 == 0 or row["step"] in (1, row["steps"]):
            left = (row["steps"] - row["step"]) * row["seconds"] / 3600
            print(f"{row['objective']} step {row['step']}/{row['steps']} loss {row['loss']:.5f} lr {row['lr']:.2g} "
                  f"{row['seconds']:.2f} s, {left:.1f} h to go at this pace", flush=True)  # fmt: skip

    path = run_stage(cfg, args.stage, tell)
    if os.environ.get("RANK", "0") == "0":
        print(f"written: {path}")
    return 0


def _settings(args: argparse.Namespace) -> dict:
    """The recipe's settings, --set over them."""
    return {**RECIPES.get(args.recipe, {}), **dict(args.set)}


def _reproduce(args: argparse.Namespace) -> int:
    settings = _settings(args)
    cfg = resolve(args.profile, args.seed, settings)
    from ..reproduce import reproduce

    reproduce(profile=cfg.profile, seed=args.seed, overrides=settings, only=args.only)
    return 0


def _describe(args: argparse.Namespace) -> int:
    cfg = resolve(args.profile, overrides=dict(args.set))
    import json

    from ..models import describe

    print(json.dumps(describe(cfg), indent=1))
    return 0
