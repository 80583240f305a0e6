"""What one photograph costs: both endpoints against two whole passes, and the ratio that the arithmetic alone
would give.

    python benchmarks/endpoints.py [side of the LQ, default 128] [repeats, default 5]

"endpoints" is model.endpoints without the colour fix: on a CPU it encodes once and takes one adapter after
the other, on a GPU both in one batch. "batched" is E, one UNet call and one decode for both, on whatever this
runs; "two passes" restores twice. "MAC ratio" is what a machine that only multiplies would show: (E + 2U +
2D) / 2 (E + U + D), counted on this backbone.
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
from ifcsr_lib.files.images import upsample
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
    e, u, d = (
        flops(lambda: model.encode(x_L)),
        flops(lambda: model.eps(z, "fidelity")),
        flops(lambda: model.decode(z)),
    )
    return (e + 2 * u + 2 * d) / (2 * (e + u + d))


def table(sides=(64, 128), repeats: int = 5, model=None) -> pd.DataFrame:
    """A row per side of the LQ: seconds of loading and of each method, ratios to two passes, the MAC ratio,
    peak MB.
    """
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
                return [model.decode(model.one_step(model.encode(x), name)).clamp(0, 1) for name in ADAPTERS]

        def batched(x=padded):
            with torch.inference_mode():
                z = model.encode(x)
                return model.decode(model.one_step(torch.cat([z, z]), list(ADAPTERS))).clamp(0, 1)

        runs = {
            "endpoints": lambda lq=lq: model.endpoints(lq, colour_fix="none"),
            "batched": batched,
            "two passes": twice,
        }
        s = together(runs, repeats)
        rows.append(
            {
                "LQ": f"{side}x{side}",
                "load (s)": loaded,
                **{f"{k} (s)": v for k, v in s.items()},
                **{f"{k} / two passes": s[k] / s["two passes"] for k in ("endpoints", "batched")},
                "MAC ratio": mac_ratio(model, padded),
                **{f"peak, {k} (MB)": costs.peak(run) / 1e6 for k, run in runs.items()},
            }
        )
    return pd.DataFrame(rows).set_index("LQ")


if __name__ == "__main__":
    side, repeats = (int(v) for v in (sys.argv[1:] + ["128", "5"][len(sys.argv) - 1 :]))
    show("endpoints: encoding once against two passes", lambda: table((side,), repeats))
