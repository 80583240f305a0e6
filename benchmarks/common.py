"""What the benchmarks share: the machine's name, a median time, and the printed table."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import pandas as pd

from ifcsr_lib.config import ROOT


def machine() -> str:
    """Processor, its count, torch's threads and version, without the host's name."""
    import torch

    from ifcsr_lib.files.results import processor

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{processor()}, {threads}{gpu}, torch {torch.__version__}"


def load() -> str:
    """The machine's load before a benchmark begins: above 0.5 other programs disturb it."""
    return f"load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else "load unknown"


def fresh(*arguments: str) -> subprocess.CompletedProcess:
    """This Python in a new process, which finds ifcsr_lib anywhere; its output is kept."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run([sys.executable, *arguments], env=env, check=True, capture_output=True, text=True)


def seconds(run: Callable, repeats: int = 5) -> float:
    """Median wall time of run() after one call that does not count."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def together(runs: dict[str, Callable], repeats: int = 5) -> dict[str, float]:
    """Median wall time of each, taken in turns, so that a slow moment of the machine meets all of
    them alike.
    """
    times = {name: [] for name in runs}
    for i in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if i:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def show(title: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """Name the machine, make the table, print it, return it."""
    print(f"{title}\nmachine: {machine()}; {load()}")
    table = make()
    print(table.to_string(float_format="{:.4g}".format), flush=True)
    return table
