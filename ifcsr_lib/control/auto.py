"""Gamma chosen by the machine: the PSNR-best one with a reference, the most realistic faithful one without. No network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .endpoints import Endpoints, check_same_scene
from .maps import smooth

BLURS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)  # sigma in output pixels, tried for "degraded again"
# DECISION D42: one level of an 8-bit LQ. Chosen on Kodak with early pocket weights, where it beat a fixed gamma of the same
# mean and a share of d(0) in its place did not; with later weights neither does (benchmarks/auto_gamma.py)
TOLERANCE = 1.0


def auto_gamma(ends: Endpoints, target: Tensor | float | None = None) -> Tensor:
    """Choose a gamma for each image: (N,) float32 in [0, 1], which fits `ends.blend`.

    target: a reference (N, 3, H, W) in [0, 1]: the gamma of highest PSNR, in closed form (`evaluate.best_gamma`).
        A tolerance, 0 or more 8-bit levels: the largest gamma up to which the result, degraded again, stays near the LQ,
            d(g)^2 <= d(0)^2 + (tolerance / 255)^2 for all g up to gamma.
        None: TOLERANCE.
    d(g) is the root mean square over RGB of B(x_hat) - B_0(x_L) in [0, 1]; B blurs (Gaussian) and shrinks four times, B_0
    shrinks only; the blur, one of BLURS, is the one which brings x_fid nearest to x_L. d(0) then is what fidelity itself
    leaves unexplained, the LQ's noise and JPEG artefacts; squares subtract, so that noise does not widen what is
    allowed. B is linear, so d^2 is a quadratic in gamma and needs no search.
    Raises ValueError when x_L is missing, when ends, x_L and target differ in size or show different images; TypeError.
    """
    if isinstance(target, Tensor):
        check_same_scene({"x_fid": ends.x_fid, "x_real": ends.x_real, "target": target})
        from ..evaluate import best_gamma

        return best_gamma(ends, target)
    tolerance = TOLERANCE if target is None else target
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)):
        raise TypeError(f"target came as {type(target).__name__}; pass a reference (N, 3, H, W), a tolerance, or None")
    if not 0 <= tolerance < float("inf"):
        raise ValueError(f"target={target!r}; allowed: a tolerance of 0 or more levels, a reference, or None")
    return _largest(*_quadratic(ends)[:2], tolerance)


def lq_distance(ends: Endpoints, gamma: Tensor | float) -> Tensor:
    """d(gamma) of `auto_gamma`, (N,): how far the result, degraded again, lies from the LQ. gamma: a float or (N,)."""
    a, b, c = _quadratic(ends)
    g = torch.as_tensor(gamma, dtype=a.dtype)
    return (a * g**2 + 2 * b * g + c).clamp(min=0).sqrt().float()


def _quadratic(ends: Endpoints) -> tuple[Tensor, Tensor, Tensor]:
    """a, b, c (N,) of d(g)^2 = mean (e_f + g (e_r - e_f))^2 = a g^2 + 2 b g + c."""
    e_f, e_r = _residuals(ends)
    d = e_r - e_f
    return tuple(v.mean((1, 2, 3)) for v in (d * d, d * e_f, e_f * e_f))


def _largest(a: Tensor, b: Tensor, tolerance: float) -> Tensor:
    """The largest g in [0, 1] with a g^2 + 2 b g <= (tolerance / 255)^2: the upper root."""
    root = (-b + (b * b + a * (tolerance / 255) ** 2).sqrt()) / a.clamp(min=1e-30)
    return torch.where(a > 1e-12, root, torch.ones_like(a)).clamp(0, 1).float()


def _residuals(ends: Endpoints) -> tuple[Tensor, Tensor]:
    """B(x_fid) - B_0(x_L) and B(x_real) - B_0(x_L), (N, 3, H/4, W/4) float64, with the blur of each image."""
    if ends.x_L is None:
        raise ValueError("these endpoints carry no x_L, which choosing gamma without a reference needs; "
                         "make them with model.endpoints, or pass a reference as target")  # fmt: skip
    check_same_scene({"x_L": ends.x_L, "x_fid": ends.x_fid, "x_real": ends.x_real})
    rows = []
    for x_fid, x_real, x_L in zip(*(x.double().split(1) for x in (ends.x_fid, ends.x_real, ends.x_L)), strict=True):
        seen = _shrink(x_L)
        tried = [_shrink(_blur(x_fid, sigma)) - seen for sigma in BLURS]
        best = min(range(len(BLURS)), key=lambda k: tried[k].square().mean().item())
        rows.append((tried[best], _shrink(_blur(x_real, BLURS[best])) - seen))
    return tuple(torch.cat(side) for side in zip(*rows, strict=True))


def _blur(x: Tensor, sigma: float) -> Tensor:
    return smooth(x, sigma) if sigma else x


def _shrink(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=0.25, mode="bicubic", antialias=True)
