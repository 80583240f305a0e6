"""python -m ifcsr_lib, and the console command `ifcsr`: see ifcsr_lib.cli."""

import os
import sys

from .cli import main


def run() -> int:
    """`cli.main`, in which OpenMP's threads sleep while they wait, also in notebooks and processes that it
    starts.

    Left alone they spin, and take the core from whatever else runs. libgomp, which torch's Linux wheels
    carry, reads OMP_WAIT_POLICY once, as it loads: so it is set before torch is imported. A value of the
    user's stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    return main()


if __name__ == "__main__":
    sys.exit(run())
