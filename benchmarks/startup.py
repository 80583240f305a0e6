"""How long the command line takes to answer, and which commands pay for torch.

python benchmarks/startup.py
"""

from __future__ import annotations

import pandas as pd
from common import fresh, seconds, show

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
    rows = []
    for name in commands:

        def run(name=name, flags=()):
            return fresh(*flags, *COMMANDS[name])

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
