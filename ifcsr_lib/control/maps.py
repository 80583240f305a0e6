"""Gamma in space and in scale: maps (N, 1, H, W) for `ends.blend(map)`, and one gamma per Laplacian band.

A map is a plain tensor; `torch.minimum`, `*` and `1 - map` combine them. Nothing here calls a network.
"""

from __future__ import annotations

import numbers

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from skimage.feature import structure_tensor, structure_tensor_eigenvalues
from torch import Tensor

from ..files.images import check_images
from .bands import bands, blend_bands
from .endpoints import Endpoints, check_same_scene

__all__ = [
    "REC601",
    "bands",
    "blend_bands",
    "from_disagreement",
    "from_mask",
    "from_texture",
    "luma",
    "smooth",
]

REC601 = (0.299, 0.587, 0.114)


def luma(x: Tensor) -> Tensor:
    """(N, 3, H, W) RGB -> (N, 1, H, W), full range: 0.299 R + 0.587 G + 0.114 B."""
    return (x * x.new_tensor(REC601).view(1, 3, 1, 1)).sum(1, keepdim=True)


def smooth(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (N, C, H, W) with sigma pixels, cut off at 4 sigma, reflected at the border."""
    y = gaussian_filter(x.detach().cpu().numpy(), sigma, mode="reflect", axes=(2, 3))
    return torch.from_numpy(y).to(x)


def from_mask(mask: Tensor, inside: float = 1.0, outside: float = 0.0, feather: float = 8.0) -> Tensor:
    """A map from a mask: gamma `inside` where it is 1, `outside` where it is 0, with a soft edge.

    mask: (H, W) or (N, 1, H, W); bool, or float in [0, 1]. feather: sigma of the Gaussian edge in pixels; 0
    keeps it hard. Neighbouring values of the map differ by at most |inside - outside| / (sqrt(2 pi) feather),
    whatever the mask's shape, so a blend changes across the edge by no more than its endpoints do plus that
    times |x_real - x_fid|.
    """
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(
            f"mask came as {kind}; pass a bool tensor, or a float one in [0, 1] (8 bit: divide by 255)"
        )
    m = mask[None, None] if mask.ndim == 2 else mask
    if m.ndim != 4 or m.shape[1] != 1 or not m.numel():
        raise ValueError(f"mask has shape {tuple(mask.shape)}; allowed: (H, W) or (N, 1, H, W)")
    m = m.float()
    if not bool(((m >= 0) & (m <= 1)).all()):  # NaN fails both
        raise ValueError(
            f"mask spans [{m.min().item():.4g}, {m.max().item():.4g}]; allowed: [0, 1] and no NaN"
        )
    _check(inside=inside, outside=outside)
    if not feather >= 0 or feather == float("inf"):
        raise ValueError(f"feather={feather}; allowed: 0 (a hard edge) or more pixels")
    # DECISION D38: a Gaussian feather of 8 pixels, two cells of the LQ: wide enough for no seam, narrow
    # enough for a face
    m = smooth(m, feather) if feather else m
    return _between(m, outside, inside)


def from_texture(
    x: Tensor, low: float = 0.0, high: float = 1.0, half: float = 0.005, sigma: float = 6.0
) -> Tensor:
    """A map that is `low` in flat regions and along single edges and rises towards `high` in texture. No
    learned saliency.

    x: (N, 3, H, W) in [0, 1], best x_L or x_fid. With l the smaller eigenvalue of the structure tensor of
    luma over a Gaussian window of sigma pixels, t = sqrt(l) (luma per pixel) is large only where gradients
    point in several directions, and gamma = low + (high - low) t / (t + half). Source of the tensor:
    Foerstner and Guelch, 1987.
    """
    check_images(x, "x")
    _check(low=low, high=high)
    _positive(half=half, sigma=sigma)
    out = []
    for y in luma(x.detach()).cpu().numpy()[:, 0]:
        small = structure_tensor_eigenvalues(structure_tensor(y, sigma=sigma, mode="reflect"))[1]
        out.append(np.sqrt(np.maximum(small, 0)) / 8)  # skimage's Sobel filter gives 8 times the slope
    t = torch.from_numpy(np.stack(out)[:, None]).to(x)
    # DECISION D39: half = 0.005 per pixel, the median of t over bicubic x_L of Kodak: half of a photograph
    # counts as textured
    return _between(t / (t + half), low, high)


def from_disagreement(
    ends: Endpoints, low: float = 0.0, high: float = 1.0, half: float = 8 / 255, sigma: float = 6.0
) -> Tensor:
    """A map that is `high` where the endpoints agree and falls towards `low` where they differ.

    gamma = low + (high - low) half / (d + half), d the root mean square of the endpoints' luma difference
    over a Gaussian window of sigma pixels; half: the difference at which gamma is in the middle. New texture
    is a difference
    too; for misaligned structures alone see `ghosting`.
    Raises ValueError when the endpoints show different images.
    """
    check_same_scene({"x_fid": ends.x_fid, "x_real": ends.x_real})
    _check(low=low, high=high)
    _positive(half=half, sigma=sigma)
    d = smooth(luma(ends.x_real - ends.x_fid).square(), sigma).clamp(min=0).sqrt()
    return _between(half / (d + half), low, high)


def _between(t: Tensor, low: float, high: float) -> Tensor:
    return (low + (high - low) * t).clamp(min(low, high), max(low, high))


def _check(**gammas: float) -> None:
    for name, value in gammas.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value <= 1:
            raise ValueError(f"{name}={value!r}; allowed: a gamma, 0 (fidelity) to 1 (realism)")


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}={value!r}; allowed: more than 0")
