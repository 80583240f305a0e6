"""protocol: OSEDiff's published scores, recomputed."""

from __future__ import annotations

import argparse

TEXT = "Recompute OSEDiff's published scores and show the largest difference per metric."
STORY = """\
Needs realsr/HR, realsr/osediff and realsr/osediff_published_metrics.csv in $IFCSR_DATA
(data/README.md). Every column whose weights are there is computed, the others read "not run"."""
EXAMPLE = "IFCSR_DATA=~/sr-data python -m ifcsr_lib protocol"


def add(p: argparse.ArgumentParser) -> None:
    """No arguments."""


def run(args: argparse.Namespace) -> int:
    from ..evaluate.benchmark import protocol

    print(protocol().to_string(float_format="{:.6g}".format, na_rep=""))
    return 0
