"""Numbers of a pair of endpoints: measured once, then in closed form at any gamma."""

from __future__ import annotations

import math
from numbers import Real
from types import SimpleNamespace

import torch.nn.functional as F
from torch import Tensor

from ..control import Endpoints
from ..evaluate.metrics import EPS, luma_errors


def fraction(value, name: str) -> float:
    """value as a float, if it is a number from 0 to 1. Raises TypeError or ValueError naming `name`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} came as {type(value).__name__} {value!r}; pass a number from 0 to 1")
    if not 0 <= value <= 1:  # NaN fails too
        meaning = " (0 fidelity, 1 realism)" if name == "gamma" else ""
        raise ValueError(f"{name}={value!r}; allowed: 0 to 1{meaning}")
    return float(value)


def measured(part: Endpoints, hr: Tensor | None, low: Tensor | None) -> dict:
    """What the page and `at` have to know of one image's endpoints, (1, 3, H, W) in [0, 1].

    "difference": mean |x_real - x_fid| in levels of 255. "errors": [E_f, E_r, C] against hr (1, 3, H, W), C =
    mean(e_f e_r) and e the error in Y. "consistency": the same of the 4x4 means against low (1, 3, H/4, W/4);
    None where there is no hr, no low, or low has a side under 16.
    """
    errors = consistency = None
    if hr is not None:
        errors = luma_errors(part, [hr])[0][:, 0].tolist()
    if low is not None and min(low.shape[-2:]) >= 16:
        small = SimpleNamespace(x_fid=F.avg_pool2d(part.x_fid, 4), x_real=F.avg_pool2d(part.x_real, 4))
        consistency = luma_errors(small, [low])[0][:, 0].tolist()
    difference = 255 * (part.x_real - part.x_fid).abs().mean().item()
    return {"difference": difference, "errors": errors, "consistency": consistency}


def psnr(errors: list[float], gamma: float) -> float:
    """PSNR (dB) at gamma from [E_f, E_r, C]: MSE = (1-g)^2 E_f + g^2 E_r + 2 g (1-g) C."""
    e_f, e_r, c = errors
    return -10 * math.log10((1 - gamma) ** 2 * e_f + gamma**2 * e_r + 2 * gamma * (1 - gamma) * c + EPS)


def best_gamma(errors: list[float]) -> float:
    """The gamma of highest PSNR; 0 where the endpoints have the same luma and every gamma scores alike."""
    e_f, e_r, c = errors
    width = e_f + e_r - 2 * c
    return min(max((e_f - c) / width, 0.0), 1.0) if width > 1e-15 else 0.0


def at(known: dict, gamma: float) -> dict[str, float]:
    """The numbers of `measured` at gamma, see Explorer.numbers."""
    out = {"gamma": gamma, "difference": known["difference"]}
    if known["errors"] is not None:
        best = best_gamma(known["errors"])
        out |= {"psnr": psnr(known["errors"], gamma), "best_gamma": best}
        out["best_psnr"] = psnr(known["errors"], best)
    if known["consistency"] is not None:
        out["consistency"] = psnr(known["consistency"], gamma)
    return out
