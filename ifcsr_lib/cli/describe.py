"""describe: what a profile builds, as JSON."""

from __future__ import annotations

import argparse
import json

from .options import add_run_options, config

TEXT = "Print sizes, adapters, backbone and settings of a profile as JSON."
STORY = """\
Parameters of UNet, VAE and one adapter, the number of adapted modules, the backbone with the
sha256 of its files where they are here, the config and its hash. Nothing is downloaded: the
shapes of SD 2.1-base, SD-Turbo and SD 1.5 are known, and the network is built without weights."""
EXAMPLE = "python -m ifcsr_lib describe --profile paper"


def add(p: argparse.ArgumentParser) -> None:
    add_run_options(p, "rank=8 backbone=stabilityai/sd-turbo")


def run(args: argparse.Namespace) -> int:
    cfg = config(args)
    from ..models import describe

    print(json.dumps(describe(cfg), indent=1))
    return 0
