"""Cost against image size: `endpoints` and a blend for square LQ images from 64 to 1024 pixels a side.

    python benchmarks/size.py

A size that would need more than the free memory, judged by the rows before it, reads "not run".
"""

from __future__ import annotations

import os
import time

import pandas as pd
import torch
from common import seconds, show

import ifcsr_lib as ifcsr
from ifcsr_lib import costs

TINY = {"sides": (16, 32), "repeats": 1}


def free_memory() -> float:
    """Bytes that are free, infinite where the system does not tell."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return float("inf")


def table(sides=(64, 128, 256, 512, 1024), repeats: int = 3, model=None) -> pd.DataFrame:
    """A row per side of the LQ: seconds, microseconds per output pixel and that against the first row, peak
    MB, blend ms.
    """
    model = model or ifcsr.load("pocket", device="cpu")
    rows, each = [], 0.0
    for side in sides:
        pixels, row = (4 * side) ** 2, {"LQ": f"{side}x{side}"}
        rows.append(row)
        if each * pixels > 0.8 * free_memory():
            row["note"] = (
                f"not run: wants {each * pixels / 1e9:.1f} GB, {free_memory() / 1e9:.1f} GB are free"
            )
            continue
        lq = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        made, start = [], time.perf_counter()
        top = costs.peak(lambda lq=lq, made=made: made.append(model.endpoints(lq)))
        s, ends = time.perf_counter() - start, made.pop()  # once is enough where it takes a minute
        each = max(each, top / pixels)
        if s < 20:
            s = seconds(lambda lq=lq: model.endpoints(lq), repeats)
        row |= {
            "endpoints (s)": s,
            "us / pixel": 1e6 * s / pixels,
            "against the first": 1e6 * s / pixels / rows[0].get("us / pixel", 1e6 * s / pixels),
            "peak (MB)": top / 1e6,
            "blend (ms)": 1e3 * seconds(lambda ends=ends: ends.blend(0.3), repeats),
            "note": "",
        }
    return pd.DataFrame(rows).set_index("LQ")


if __name__ == "__main__":
    show("cost against size", table)
