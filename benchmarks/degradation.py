"""Throughput of `degrade` against a per-sample reference in numpy, scipy and Pillow
(reference_degradation.py).

    python benchmarks/degradation.py

In this process, with torch's threads; and in two workers of a DataLoader, as a training has them, one thread
each. The reference filters directly, as the original does, or by FFT, which is the fairer rival. All rows see
the same crops; every preset is a block.
"""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import reference_degradation
import torch
from common import show
from torch.utils.data import DataLoader, Dataset

from ifcsr_lib.degradation import degrade

TINY = {"count": 2, "side": 64, "workers": (0,), "presets": ("light",)}


class Degraded(Dataset):
    """Item i: a fixed crop after degradation i, by the kit or by the reference."""

    def __init__(self, who: str, preset: str, count: int, side: int):
        self.who, self.preset, self.count = who, preset, count
        x = torch.rand(1, 3, side // 8, side // 8, generator=torch.Generator().manual_seed(0))
        self.x = torch.nn.functional.interpolate(x, size=(side, side), mode="bicubic").clamp(0, 1)
        self.array = self.x[0].permute(1, 2, 0).double().numpy()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int):
        if self.who == "kit":
            return degrade(self.x, 0, self.preset, i)[0]
        out = reference_degradation.degrade(self.array, (0, i), self.preset, self.who.rpartition(" ")[2])
        return torch.from_numpy(np.ascontiguousarray(out.transpose(2, 0, 1))).float()


def table(count: int = 64, side: int = 512, workers=(0, 2), presets=("x4plus", "light")) -> pd.DataFrame:
    """A row per preset, number of workers and program: images per second, and the kit's as a multiple."""
    rows = []
    for preset in presets:
        for n in workers:
            for who in ("kit", "reference fft", "reference direct"):
                loader = iter(
                    DataLoader(
                        Degraded(who, preset, count + max(1, 4 * n), side), batch_size=None, num_workers=n
                    )
                )
                # tables, plans of transforms, the workers' start and their queue
                for _ in range(max(1, 4 * n)):
                    next(loader)
                start = time.perf_counter()
                got = sum(1 for _ in loader)
                rows.append(
                    {
                        "preset": preset,
                        "workers": n,
                        "program": who,
                        "images / s": got / (time.perf_counter() - start),
                    }
                )
            for row in rows[-3:]:
                row["kit is faster by"] = rows[-3]["images / s"] / row["images / s"]
    return pd.DataFrame(rows).set_index(["preset", "workers", "program"])


if __name__ == "__main__":
    show("degradation, 512x512", table)
