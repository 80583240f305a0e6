"""What one photograph costs: both ends in one batch against two whole passes, and how far the arithmetic lets them part.

    python benchmarks/endpoints.py [side of the LQ, default 128] [repeats, default 5]

"batched" is model.endpoints without the colour fix: E, one UNet call and one decode for both. "two passes" restores twice. "in turn"
encodes once and then takes one adapter after the other, which spares peft's sorting of a mixed batch and half of the memory.
"MAC ratio" is what a machine that only multiplies would show: (E + 2U + 2D) / 2 (E + U + D), counted on this backbone.
"""

from __future__ import annotations

import sys
import time

import pandas as pd
import torch
from common import show, together
from torch.utils.flop_counter import FlopCounterMode

import ifcsr_lib as ifcsr
from ifcsr_lib import costs
from ifcsr_lib.images import upsample
from ifcsr_lib.models import ADAPTERS

TINY = {"sides": (16,), "repeats": 1}


def flops(run) -> int:
    """Multiplications and additions of run(), as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@torch.inference_mode()
def mac_ratio(model, x_L) -> float:
    """Batched over two passes, from the networks' own operations on x_L."""
    z = model.encode(x_L)
    e, u, d = flops(lambda: model.encode(x_L)), flops(lambda: model.eps(z, "fidelity")), flops(lambda: model.decode(z))
    return (e + 2 * u + 2 * d) / (2 * (e + u + d))


def table(sides=(64, 128), repeats: int = 5, model=None) -> pd.DataFrame:
    """A row a side of the LQ: seconds of loading, batched and two passes, their ratio, the MAC ratio, peak MB."""
    start = time.perf_counter()
    model = model or ifcsr.load("pocket", device="cpu")
    loaded, rows = time.perf_counter() - start, []
    for side in sides:
        lq = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        x_L = upsample(lq)
        b, m = model.cfg.border, model.multiple
        n = 4 * side + 2 * b + -(4 * side + 2 * b) % m
        padded = torch.nn.functional.pad(x_L, (b, n - 4 * side - b) * 2, mode="reflect")

        def twice(x=padded):
            with torch.inference_mode():
                return [model.restore(x, name).clamp(0, 1) for name in ADAPTERS]

        def in_turn(x=padded):
            with torch.inference_mode():
                z = model.encode(x)
                return [model.decode(model.one_step(z, name)).clamp(0, 1) for name in ADAPTERS]

        runs = {"batched": lambda lq=lq: model.endpoints(lq, colour_fix="none"), "two passes": twice, "in turn": in_turn}
        s = together(runs, repeats)
        rows.append({"LQ": f"{side}x{side}", "load (s)": loaded, **{f"{k} (s)": v for k, v in s.items()},
                     "batched / two passes": s["batched"] / s["two passes"],
                     "in turn / two passes": s["in turn"] / s["two passes"], "MAC ratio": mac_ratio(model, padded),
                     "peak, batched (MB)": costs.peak(runs["batched"]) / 1e6,
                     "peak, two passes (MB)": costs.peak(runs["two passes"]) / 1e6})  # fmt: skip
    return pd.DataFrame(rows).set_index("LQ")


if __name__ == "__main__":
    side, repeats = (int(v) for v in (sys.argv[1:] + ["128", "5"][len(sys.argv) - 1 :]))
    show("endpoints: one batch against two passes", lambda: table((side,), repeats))
