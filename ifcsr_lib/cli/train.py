"""train: stage 1 or 2, for runs of hours."""

from __future__ import annotations

import argparse
import os

from .options import add_run_options, config

TEXT = "Train stage 1 or 2 as notebooks 02 and 03 do, for runs of hours."
STORY = """\
Uses the checkpoint folder of the notebook, so that either goes on where the other stopped: run
the notebook with the same settings afterwards and it finds the training finished. SIGTERM ends
the run after the step in progress, with a checkpoint (exit code 143). Several cards or nodes:
accelerate launch --multi_gpu --num_processes 8 -m ifcsr_lib train ...; each card then takes
`batch` images. --dry-run computes memory and hours without loading anything (half a minute)."""
EXAMPLE = (
    'python -m ifcsr_lib train --profile paper --stage 1 --recipe "24 GB" --dry-run --cards "1x RTX 4090"'
)


def add(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--stage",
        type=int,
        choices=(1, 2),
        required=True,
        help="1: the fidelity adapter, 2: the realism adapter",
    )
    add_run_options(p, "workers=8 log_every=500")
    p.add_argument("--dry-run", action="store_true", help="print steps, memory and hours, and start nothing")
    p.add_argument(
        "--cards",
        default="1x H100",
        help='for the hours of the dry run, such as "8x A100" (default "1x H100")',
    )


def run(args: argparse.Namespace) -> int:
    cfg = config(args)
    if args.dry_run:
        from .dry_run import dry_run

        dry_run(cfg, args.stage, args.cards)
        return 0
    from ..runs.recipes import run_stage

    def show(row: dict) -> None:
        if row["step"] % 50 == 0 or row["step"] in (1, row["steps"]):
            left = (row["steps"] - row["step"]) * row["seconds"] / 3600
            print(
                f"{row['objective']} step {row['step']}/{row['steps']} loss {row['loss']:.5f} lr "
                f"{row['lr']:.2g} {row['seconds']:.2f} s, {left:.1f} h to go at this pace",
                flush=True,
            )

    path = run_stage(cfg, args.stage, show)
    if os.environ.get("RANK", "0") == "0":
        print(f"written: {path}")
    return 0
