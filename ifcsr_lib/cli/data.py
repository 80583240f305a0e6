"""data: the paper's data sets below $IFCSR_DATA, prepared and verified."""

from __future__ import annotations

import argparse

from ..config import path_setting
from .options import name_or_path

TEXT = "Prepare and verify the paper's data sets below $IFCSR_DATA."
STORY = """\
Without NAME: every set with its state. With NAME: compares counts, sizes and sha256 with the
manifest, names what is missing, the licence, and where to get or ask for it. --from takes the
files out of what you have and continues where a killed run stopped; nothing is downloaded that
you do not name. Exit code 1 says that the set is not complete."""
EXAMPLE = "python -m ifcsr_lib data realsr --from OSEDiff/"


def add(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        help="ffhq, lsdir, realsr, drealsr or div2k_val (default: list all)",
    )
    p.add_argument(
        "--from",
        dest="sources",
        nargs="+",
        type=name_or_path,
        metavar="SOURCE",
        default=[],
        help="folders, .zip, .tar, .tar.gz or http(s) addresses to prepare it from",
    )
    p.add_argument(
        "--shards", type=int, metavar="N", help="also write tar shards of N images each (training sets)"
    )
    p.add_argument(
        "--bad-images",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="go on without damaged training images up to this share (default 0.01)",
    )
    p.add_argument("--quick", action="store_true", help="verify without hashes: names and sizes only")


def run(args: argparse.Namespace) -> int:
    from ..data.sets import DATASETS, State, home, prepare, report, verify, write_shards

    if args.name is None:
        if args.sources or args.shards is not None:
            raise ValueError(f"--from and --shards need NAME; allowed: {', '.join(DATASETS)}")
        there = path_setting("IFCSR_DATA")
        print(
            f"$IFCSR_DATA is {home()}"
            if there
            else "$IFCSR_DATA is not set; set it to a folder that may hold the data sets"
        )
        for name, data in DATASETS.items():
            print("\n" + report(verify(name, hashes=False) if there else State(data, None)))
        return 0
    state = (
        prepare(args.name, args.sources, args.bad_images)
        if args.sources
        else verify(args.name, not args.quick)
    )
    if args.shards is not None:
        write_shards(args.name, args.shards)
        state = verify(args.name, hashes=False)
    print(report(state))
    return 0 if state.complete else 1
