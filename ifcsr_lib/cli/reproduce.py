"""reproduce: the notebooks in order."""

from __future__ import annotations

import argparse

from .options import add_run_options, config, overrides

TEXT = "Run the notebooks in order and write results/<profile>/ with a report."
STORY = """\
All notebooks below 90 run, two at a time at profile pocket, with progress lines; executed copies, tables
and figures go to results/<profile>/ (or $IFCSR_RESULTS). At the end report.html in there says which claims
hold and how far the tables are from the reference; its path is the last line. Profile pocket takes
minutes on a laptop, paper needs a GPU for days."""
EXAMPLE = "python -m ifcsr_lib reproduce --profile pocket --set k=3.0 --only 02 03"


def add(p: argparse.ArgumentParser) -> None:
    add_run_options(p, "k=3.0 preset=light")
    p.add_argument("--only", nargs="+", metavar="NN", help="numbers of the notebooks to run, such as 02 03")
    p.add_argument(
        "--jobs", type=int, metavar="N", help="notebooks that run at once (default 2, at paper scale 1)"
    )


def run(args: argparse.Namespace) -> int:
    cfg = config(args)
    from ..reproduce import reproduce

    reproduce(profile=cfg.profile, seed=args.seed, overrides=overrides(args), only=args.only, jobs=args.jobs)
    return 0
