"""How near the slider's arithmetic (E1) comes to what the machine's memory allows.

    python benchmarks/blend.py

A blend reads two images and writes one, so it cannot be faster than an addition into memory that is already
there; that addition is the limit here. "blend" returns fresh memory, which the system first has to hand over
page by page; "into out" writes where it wrote before, as a loop over many values of gamma can.
"""

from __future__ import annotations

import pandas as pd
import torch
from common import show, together

from ifcsr_lib.control import blend

TINY = {"sides": (32, 64), "repeats": 2}


def table(sides=(256, 512, 1024, 2048, 4096), repeats: int = 21) -> pd.DataFrame:
    """A row per side (pixels of the square image): ms, GB/s, and the limit's time as a share of the
    blend's.
    """
    rows = []
    for side in sides:
        a, b, out = (torch.rand(1, 3, side, side) for _ in range(3))
        runs = {
            "limit": lambda a=a, b=b, out=out: torch.add(a, b, out=out),
            "blend": lambda a=a, b=b: blend(a, b, 0.3),
            "into out": lambda a=a, b=b, out=out: blend(a, b, 0.3, out),
        }
        ms = {name: 1e3 * s for name, s in together(runs, repeats).items()}
        moved = 3 * a.numel() * a.element_size()
        rows.append(
            {
                "image": f"{side}x{side}",
                **{f"{name} (ms)": v for name, v in ms.items()},
                "limit (GB/s)": moved / ms["limit"] / 1e6,
                **{f"limit / {name}": ms["limit"] / ms[name] for name in ("blend", "into out")},
            }
        )
    return pd.DataFrame(rows).set_index("image")


if __name__ == "__main__":
    show("blend against the memory bandwidth", table)
