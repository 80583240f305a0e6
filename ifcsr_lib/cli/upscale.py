"""upscale: one photo, or every photo of a folder, four times as large."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import sys
from pathlib import Path

from .. import __version__
from ..errors import explain
from ..files.checks import check_pointer, oddity, printable
from .options import (
    MODEL,
    add_backend,
    add_tile,
    backend,
    gamma,
    given_path,
    less_memory,
    load_model,
    name_or_path,
    set_tile,
)

TEXT = "Upscale a photo, or every photo of a folder, four times."
STORY = """\
Reads PNG, JPEG, WebP, TIFF and BMP, and AVIF and HEIC where the installed Pillow or pillow-heif
can: grey, palette, CMYK, 8 or 16 bit, turned as EXIF says, the first of several frames or pages.
Writes four times the width and height: grey as grey, all else as RGB. Alpha and 16 bit are kept
where the format has them, as are the colour profile, dpi, and of EXIF the date, the camera and
more, but not the place; JPEG and BMP show transparent photos on white. A file that cannot be read
is reported and skipped, and the exit code is then 1. A run over a folder that was stopped goes on
where it was, when it is started again with the same settings (OUT/.ifcsr-upscale.jsonl tells).
Photos of one stem keep their suffix in the name: photo.jpg.png and photo.png.png. Needs no network
with the pocket model; the same input always gives the same output of one backend, and the two
differ by one level of 255 at most."""
EXAMPLE = "python -m ifcsr_lib upscale holiday/ holiday_x4/ --gamma 0.5"
SUFFIXES = ("png", "jpg", "webp", "tif", "bmp")  # of --format; any suffix of images.FORMATS may end OUT

JOURNAL = ".ifcsr-upscale.jsonl"
LONGEST_NAME = 255  # bytes, of the file systems of all systems


def add(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "source",
        metavar="IN",
        type=given_path,
        help="an image file, or a folder (its subfolders are left out)",
    )
    p.add_argument(
        "target",
        metavar="OUT",
        type=given_path,
        help="a folder; for one photo also a file name such as out.png",
    )
    p.add_argument("--gamma", type=gamma, default=0.5, help="0 = fidelity ... 1 = realism (default 0.5)")
    p.add_argument("--model", type=name_or_path, default="pocket", help=MODEL)
    p.add_argument(
        "--format", choices=SUFFIXES, help="of the written files (default png, or the suffix of OUT)"
    )
    p.add_argument(
        "--overwrite", action="store_true", help="replace files in OUT that exist (never IN itself)"
    )
    add_tile(p)
    add_backend(p)
    p.add_argument("--gps", action="store_true", help="keep where a photo was taken (default: left out)")


def made_here(source: Path, target: Path) -> set[Path]:
    """The outputs that earlier runs of `upscale` left in IN, where IN is OUT too: no photos of the user's."""
    from ..files import journal
    from ..files.results import sha256

    if not (source.is_dir() and target.is_dir() and os.path.samefile(source, target)):
        return set()
    records = {source / name: record for name, record in journal.read(source / JOURNAL).items()}
    return {p for p, record in records.items() if p.is_file() and sha256(p) == record.get("sha256")}


def check_place(path: Path) -> None:
    """Raise ValueError where the output `path` cannot lie: its folder is none, its name is too long."""
    for folder in path.parents:
        if os.path.lexists(folder):
            if not folder.is_dir():
                what = oddity(folder) or "a file"
                raise ValueError(
                    f"{folder} is {what}, not a folder; pass a folder for OUT, or a name such as out.png"
                )
            break
    if (odd := oddity(path)) and not path.is_symlink():
        raise ValueError(f"{path} is {odd}, which is never replaced; choose another name")
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise ValueError(
            f"{path.name[:40]}... would be a name of {len(os.fsencode(path.name))} bytes; allowed: "
            f"{LONGEST_NAME}. Give its photo a shorter name"
        )


def output_files(source: Path, target: Path, kind: str | None = None, without=()) -> dict[Path, Path]:
    """{photo: file to write} for IN and OUT of `upscale`.

    An output has the stem of its photo, or its full name where another photo has the same stem. without:
    files of IN that are no photos. Raises FileNotFoundError or ValueError: missing or empty IN, unknown
    suffix, contradicting kind, a file that is itself an input, or that cannot lie there (`check_place`).
    """
    from ..files.pixels import FORMATS, distinct, list_images

    if odd := oddity(source):
        raise ValueError(f"{source} is {odd}; pass an image file or a folder of images")
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
        photos = [source] if single else [p for p in list_images(source) if p not in without]
        if not photos:
            raise FileNotFoundError(f"{source} has no images but those that upscale made; pass another IN")
        names = distinct(photos, str.casefold)  # photo.jpg and photo.png both live
        jobs = {p: target / f"{name}.{kind or 'png'}" for p, name in zip(photos, names, strict=True)}
    inputs = {os.path.realpath(p) for p in jobs}
    if same := [p for p in jobs.values() if os.path.realpath(p) in inputs]:
        raise ValueError(f"{same[0]} is an input and would be replaced; choose another folder for OUT")
    for path in jobs.values():
        check_place(path)
    return jobs


def finished(jobs: dict[Path, Path], settings: dict) -> dict[Path, dict]:
    """{photo: its record}: which of jobs = {photo: output} an earlier run finished with the same settings.

    The journal in the outputs' folder says it; the photo and the output must have the sha256 that they had
    then. Raises ValueError when another output exists, which would be replaced.
    """
    from ..files import journal
    from ..files.results import sha256

    old = {photo: out for photo, out in jobs.items() if out.exists()}
    records = journal.read(next(iter(jobs.values())).parent / JOURNAL)
    done, others = {}, []
    for photo, out in old.items():
        record = records.get(out.name, {})
        same = settings.items() <= record.get("settings", {}).items()
        if same and record.get("photo") == sha256(photo) and record.get("sha256") == sha256(out):
            done[photo] = record
        else:
            others.append(out)
    if others:
        more = "" if not done else f" ({len(done)} more are whole and of the same settings)"
        raise ValueError(
            f"{len(others)} of {len(jobs)} outputs exist and are not known to be of these photos and "
            f"settings, {others[0]} first{more}; pass --overwrite or another OUT"
        )
    return done


def upscale_folder(
    model,
    jobs: dict[Path, Path],
    gamma: float,
    gps: bool = False,
    settings: dict | None = None,
    overwrite: bool = True,
) -> int:
    """Upscale each photo of jobs = {photo: file to write} at gamma; return how many failed, each reported on
    stderr.

    model: anything whose `endpoints(lq)` gives Endpoints, or a lite.LiteModel. gps: keep where the photo was
    taken. settings: what a journal in the outputs' folder says of each output, so that `finished` knows it;
    None keeps no journal. overwrite: False leaves alone, and counts as failed, what another program has put
    there meanwhile.
    OSError at writing (disk full, no permission) stops the run.
    """
    from tqdm import tqdm

    from ..files import journal
    from ..files.results import atomic, sha256

    files = getattr(model, "files", None)
    if files is None:
        from ..files import images as files
    failed = 0
    # no bar when stderr is not a terminal
    for source, target in tqdm(jobs.items(), unit="photo", disable=None):
        photo = None
        try:
            check_pointer(source)
            photo = files.read_image(source)
            for note in photo.notes:
                tqdm.write(f"note: {printable(str(source))}: {note}", file=sys.stderr)
            files.check_images(photo.rgb, str(source))
            scale = getattr(getattr(model, "cfg", None), "scale", 4)
            files.check_sides(photo.rgb.shape[3] * scale, photo.rgb.shape[2] * scale, target)
            # DECISION D24: the network sees the colours that can be seen, continued below transparency
            lq, alpha = files.bleed(photo.rgb, photo.alpha), photo.alpha
            rgb = model.endpoints(lq).blend(gamma)
            rgb = files.to_grey(rgb) if files.is_grey(lq).all() else rgb
            alpha = None if alpha is None else files.upsample_alpha(alpha, rgb.shape[-1] // alpha.shape[-1])
            data = files.encode_image(dataclasses.replace(photo, rgb=rgb, alpha=alpha), target, gps)
            if not overwrite and os.path.exists(target):
                raise ValueError(f"{target} was written by another program meanwhile, and is left as it is")
            if settings is not None:
                hashes = {"photo": sha256(source), "sha256": hashlib.sha256(data).hexdigest()}
                record = {"file": target.name, "settings": settings, **hashes}
                journal.append(target.parent / JOURNAL, record)
            with atomic(target) as temporary:
                temporary.write_bytes(data)
        except Exception as error:
            if photo and isinstance(error, OSError):
                raise  # the next photo could not be written either
            failed += 1
            text = explain(error, less_memory(getattr(getattr(model, "cfg", None), "tile", None)))
            name = printable(str(source))
            tqdm.write(f"skipped {'' if name in text else f'{name}: '}{text}", file=sys.stderr)
    return failed


def run(args: argparse.Namespace) -> int:
    from ..files.pixels import left_out

    own, many = made_here(args.source, args.target), args.source.is_dir()
    jobs = output_files(args.source, args.target, args.format, own)
    if own:
        print(f"left out {len(own)} pictures that upscale made", file=sys.stderr)
    if many and (text := left_out(args.source)):
        print(text, file=sys.stderr)
    settings = {k: getattr(args, k) for k in ("gamma", "model", "tile", "gps")} | {"version": __version__}
    settings["backend"] = backend(args)
    # every reason to refuse is found before a model loads, but other weights in the same place
    done = {} if args.overwrite else finished(jobs, settings)
    folder = next(iter(jobs.values())).parent
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} is not writable; choose another OUT")
    from ..files import portable

    model = load_model(args.model, settings["backend"])
    set_tile(model, args.tile)
    if many:
        settings["weights"] = portable.describe(model)
        other = [p for p, record in done.items() if record["settings"].get("weights") != settings["weights"]]
        if other:
            raise ValueError(
                f"{len(other)} of {len(jobs)} outputs exist and are of other weights of {args.model}, "
                f"{jobs[other[0]]} first; pass --overwrite or another OUT"
            )
    if done:
        text = (
            f"{len(done)} of {len(jobs)} photos were done by an earlier run with the same settings: skipped"
        )
        print(text, file=sys.stderr)
    todo = {photo: out for photo, out in jobs.items() if photo not in done}
    record = settings if many else None
    failed = upscale_folder(model, todo, args.gamma, args.gps, record, args.overwrite)
    where, there = printable(str(folder)), f", {len(done)} were there" if done else ""
    print(f"{len(todo) - failed} of {len(jobs)} photos written to {where} at gamma {args.gamma:g}{there}")
    return 1 if failed else 0
