"""One gamma per Laplacian band, coarse to fine. Imports nothing of this package: `endpoints.blend` stands on
it.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def check_pair(x_fid: Tensor, x_real: Tensor) -> None:
    """Raise TypeError or ValueError unless both endpoints are tensors of one shape."""
    for name, x in (("x_fid", x_fid), ("x_real", x_real)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} came as {type(x).__name__}; pass both endpoints, images (N, 3, H, W)")
    if x_fid.shape != x_real.shape:
        raise ValueError(
            f"endpoints differ in shape: {tuple(x_fid.shape)} and {tuple(x_real.shape)}; use one image's"
        )


def bands(x: Tensor, n: int) -> list[Tensor]:
    """Split (N, C, H, W) into n Laplacian bands of the full size, coarse to fine; their sum is x.

    Band n-1 holds what halving the size loses, band n-2 what halving it once more loses, and so on; band 0 is
    the rest (Burt and Adelson, 1983; the halving filter is (1 3 3 1) / 8, the doubling one linear). Sides of
    2^n pixels or more.
    """
    _check_bands(n, x)
    levels = [x]
    for _ in range(n - 1):
        size = [(s + 1) // 2 for s in levels[-1].shape[2:]]
        levels.append(F.interpolate(levels[-1], size=size, mode="bilinear", antialias=True))
    lows = [x]  # x without its k finest bands, at full size
    for k in range(1, n):
        low = levels[k]
        for finer in reversed(levels[:k]):
            low = F.interpolate(low, size=finer.shape[2:], mode="bilinear")
        lows.append(low)
    return [lows[-1], *(a - b for a, b in zip(lows[-2::-1], lows[:0:-1], strict=True))]


def blend_bands(x_fid: Tensor, x_real: Tensor, gamma: Sequence[float]) -> Tensor:
    """E1 with a gamma of its own for each Laplacian band: x_fid + sum_b gamma_b B_b(x_real - x_fid).

    gamma: floats in [0, 1], coarse to fine: [0, 0, 1] keeps the structure of x_fid and takes fine texture
    from x_real. Equal values give E1, so that all 0 and all 1 return the endpoints bit for bit. Different
    values can overshoot, and are then clamped to [0, 1].
    """
    check_pair(x_fid, x_real)
    for g in gamma:
        if isinstance(g, bool) or not isinstance(g, numbers.Real):
            raise TypeError(
                f"gamma={gamma!r} holds a {type(g).__name__}; pass one float per band, coarse to fine"
            )
        if not 0 <= g <= 1:
            raise ValueError(f"gamma={gamma!r}; allowed in each band: 0 (fidelity) to 1 (realism)")
    _check_bands(len(gamma), x_fid)
    x = torch.lerp(x_fid, x_real, torch.tensor(float(gamma[-1]), dtype=torch.float32).to(x_fid))
    if len(set(gamma)) == 1:
        return x
    for g, band in zip(gamma, bands(x_real - x_fid, len(gamma)), strict=True):
        x = x + (g - gamma[-1]) * band
    # bands of two images in [0, 1] may add up to values outside, which E1 never does
    return x.clamp(0, 1)


def _check_bands(n: int, x: Tensor) -> None:
    most = int(math.log2(min(x.shape[2:])))
    if not 1 <= n <= most:
        raise ValueError(
            f"{n} bands of a {x.shape[3]}x{x.shape[2]} image; allowed: 1 to {most}, one gamma for each, "
            "coarse to fine, such as [0.2, 0.5, 0.9]"
        )
