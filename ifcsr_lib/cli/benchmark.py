"""benchmark: a model scored along gamma on RealSR, DRealSR or DIV2K-val."""

from __future__ import annotations

import argparse
import os
import sys
import warnings

from .options import MODEL, gamma, name_or_path

# torch's launcher without its own traceback: each process has said in its line what went wrong
LAUNCH = """import logging, sys
from torch.distributed import run
logging.disable(logging.CRITICAL)
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
try:
    run.main(sys.argv[1:])
except ChildFailedError as error:
    for rank, failure in sorted(error.failures.items()):
        if failure.exitcode < 0 and failure.exitcode != -15:  # not the launcher's own SIGTERM to the others
            text = "out of memory?" if failure.exitcode == -9 else "see above"
            print(f"error: process {rank} was ended by {failure.signal_name()} ({text})", file=sys.stderr)
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)"""
TEXT = "Score a model on RealSR, DRealSR or DIV2K-val along gamma."
STORY = """\
Endpoints and scores are kept in results/<profile>/endpoints/NAME-<key>/, so that it may be stopped
at any time and goes on when started again; another gamma or metric runs no network. Writes the
means to results/<profile>/tables/. For a model of profile paper they are also shown beside what
the paper reports. Also runs under torchrun or accelerate launch, on several machines too."""
EXAMPLE = "python -m ifcsr_lib benchmark realsr --gammas 0 0.5 1 --metrics psnr ssim niqe --processes 2"


def add(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "name", metavar="NAME", help="realsr, drealsr or div2k_val: NAME/LR and NAME/HR in $IFCSR_DATA"
    )
    p.add_argument("--model", type=name_or_path, default="pocket", help=MODEL)
    p.add_argument("--gammas", nargs="+", type=gamma, metavar="GAMMA", help="default 0 0.1 ... 1")
    p.add_argument(
        "--metrics", nargs="+", metavar="METRIC", help="such as psnr ssim lpips niqe (default: all)"
    )
    p.add_argument("--colour-fix", choices=("none", "adain"), help="default: the model's own setting")
    p.add_argument("--limit", type=int, metavar="N", help="only the first N images, by name")
    p.add_argument(
        "--processes", type=int, default=1, metavar="N", help="share the images among N (one per GPU)"
    )


def run(args: argparse.Namespace) -> int:
    from ..evaluate import benchmark
    from ..evaluate import metrics as evaluate

    rows = benchmark.files(args.name, args.limit)
    gammas, metrics = (
        evaluate.check_gammas(args.gammas or evaluate.GAMMAS),
        evaluate.check_metrics(args.metrics, hr=True),
    )
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

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said below
        means = evaluate.summary(table)
    inputs = [rows[0][1].parent, rows[0][2].parent]
    fix = args.colour_fix or model.cfg.colour_fix
    part = f"_first{len(rows)}" if args.limit else ""
    name = f"{args.name}_{benchmark.key(model)}_{fix}{part}"
    print(f"means of {len(rows)} images, colour fix {fix}\n{means.to_string()}")
    for text in evaluate.left_out(table).values():
        print(text)
    print(f"written: {write_table(means, f'benchmark_{name}', model.cfg, inputs)}")
    if model.cfg.profile == "paper" and not args.limit:
        against = benchmark.compare_reported(table, args.name, model.cfg)
        print(
            against.to_string(index=False) if len(against) else "the paper's numbers of it are not known here"
        )
        if len(against):
            print(f"written: {write_table(against, f'reported_{name}', model.cfg, inputs)}")
    return 0


def _launch(count: int, argv: list[str]) -> int:
    """The same command in `count` processes, through torch's launcher."""
    import subprocess

    import torch

    if torch.cuda.is_available() and count > torch.cuda.device_count():
        raise ValueError(f"--processes {count}; allowed: up to {torch.cuda.device_count()}, one per GPU")
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // count))
    command = [
        sys.executable,
        "-c",
        LAUNCH,
        "--standalone",
        "--nproc_per_node",
        str(count),
        "-m",
        "ifcsr_lib",
        *argv,
    ]
    quiet = {
        "OMP_NUM_THREADS": threads,
        "LOGLEVEL": os.environ.get("LOGLEVEL", "CRITICAL"),
    }  # of the launcher
    code = subprocess.run(command, env={**os.environ, **quiet}, check=False).returncode
    return code if code in (0, 130) else 2
