"""A photograph by ONNX Runtime and by torch: the command from a fresh process to a written PNG, on idle cores
and with one core kept busy, and both endpoints alone.

    python benchmarks/photo.py

"command": `ifcsr upscale` on a square photograph, median wall time. "one core busy": the same while another
process counts without end. "endpoints": both, without the command, the two backends in turns.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch
from common import fresh, show, together

import ifcsr_lib as ifcsr
from ifcsr_lib import images
from ifcsr_lib.lite import model as lite

BACKENDS = ("onnx", "torch")
TINY = {"side": 16, "repeats": 1, "backends": ("onnx",)}


@contextmanager
def one_core_busy():
    """Another process counts meanwhile."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def table(side: int = 128, repeats: int = 5, backends=BACKENDS) -> pd.DataFrame:
    """A row per backend, and the ratio of two. Columns: command (s), with one core busy (s), how many times
    as long that is, endpoints (s).
    """
    lq = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.png"
        images.write_image(lq, photo)
        runs = {name: _command(name, photo) for name in backends}
        idle = together(runs, repeats)
        with one_core_busy():
            busy = together(runs, repeats)
    ends = together({name: _endpoints(name, lq) for name in backends}, repeats)
    rows = pd.DataFrame({"command (s)": idle, "one core busy (s)": busy, "endpoints (s)": ends})
    rows.insert(2, "busy / idle", rows["one core busy (s)"] / rows["command (s)"])
    if len(backends) == 2:
        rows.loc[" / ".join(backends)] = rows.loc[backends[0]] / rows.loc[backends[1]]
    return rows.rename_axis("backend")


def _endpoints(backend: str, lq: torch.Tensor) -> Callable:
    if backend == "onnx":
        model, x = lite.load(), lq.numpy()
    else:
        model, x = ifcsr.load("pocket", device="cpu"), lq
    return lambda: model.endpoints(x)


def _command(backend: str, photo: Path) -> Callable:
    out = photo.parent / backend

    def run():
        fresh("-m", "ifcsr_lib", "upscale", str(photo), str(out), "--backend", backend)
        for path in out.iterdir():  # what is there is not made again
            path.unlink()

    return run


if __name__ == "__main__":
    show(__doc__.splitlines()[0], table)
