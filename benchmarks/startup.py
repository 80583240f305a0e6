"""How long the command line takes to answer, and which commands pay for torch.

python benchmarks/startup.py
"""

from __future__ import annotations

import os
import subprocess
import sys

import pandas as pd
from common import seconds, show

from ifcsr_lib.config import ROOT

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import ifcsr_lib": ["-c", "import ifcsr_lib"],
    "ifcsr_lib --help": ["-m", "ifcsr_lib", "--help"],
    "ifcsr_lib upscale --help": ["-m", "ifcsr_lib", "upscale", "--help"],
    "import torch": ["-c", "import torch"],
    'load("pocket")': ["-c", "import ifcsr_lib; ifcsr_lib.load('pocket', device='cpu')"],
}
TINY = {"repeats": 1, "commands": ("python -c pass", "ifcsr_lib --help")}


def table(repeats: int = 5, commands=tuple(COMMANDS)) -> pd.DataFrame:
    """A row per command: median seconds of a fresh process after one to warm the disk, what it adds to a bare
    Python, and whether torch was imported.
    """
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    rows = []
    for name in commands:

        def run(name=name, flags=()):
            return subprocess.run(
                [sys.executable, *flags, *COMMANDS[name]], env=env, check=True, capture_output=True, text=True
            )

        s = seconds(run, repeats)
        imported = any(
            line.rpartition("|")[2].strip() == "torch"
            for line in run(flags=("-X", "importtime")).stderr.splitlines()
        )
        rows.append(
            {
                "command": name,
                "seconds": s,
                "beyond Python": s - rows[0]["seconds"] if rows else 0.0,
                "torch": imported,
            }
        )
    return pd.DataFrame(rows).set_index("command")


if __name__ == "__main__":
    show("start-up", table)
