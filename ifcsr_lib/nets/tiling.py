"""Large images by overlapping tiles, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def tiled(
    f: Callable[[Tensor], tuple[Tensor, ...]],
    x: Tensor,
    tile: int,
    overlap: int,
    multiple: int = 1,
    images: int = 1,
) -> tuple[Tensor, ...]:
    """f of x (N, C, H, W) by overlapping tiles: `images` tensors of x's shape, on x's device.

    f: (1, C, h, w) -> that many tensors of the same shape, on any device. It is called with one tile of one
    image at a time, h and w at most `tile`, and each result is added with a weight from `windows`. Equal to
    f(x) where f looks no further than a quarter of `overlap`; attention and group norms do, and there the
    overlap joins two slightly different answers smoothly.
    tile, overlap: pixels, multiples of `multiple`, else ValueError.
    """
    if tile % multiple or overlap % multiple:
        raise ValueError(f"tile={tile}, tile_overlap={overlap}; this backbone wants multiples of {multiple}")
    rows, columns = (windows(side, tile, overlap) for side in x.shape[-2:])
    out = tuple(torch.zeros_like(x) for _ in range(images))
    for n in range(len(x)):
        for top, u in rows:
            for left, v in columns:
                place = (slice(n, n + 1), slice(None), slice(top, top + len(u)), slice(left, left + len(v)))
                weight = (u[:, None] * v).to(x)
                for whole, part in zip(out, f(x[place]), strict=True):
                    whole[place].addcmul_(part.to(x), weight)
    return out


def windows(side: int, tile: int, overlap: int) -> list[tuple[int, Tensor]]:
    """(start, weights (min(tile, side),)) of the tiles along one axis; at each pixel the weights sum to 1.

    Where a tile meets a neighbour, its outermost overlap / 4 pixels, which the cut may have changed, weigh
    nothing; a raised cosine follows over overlap / 2. At the image's own border the weight is 1.
    """
    if side <= tile:
        return [(0, torch.ones(side))]
    starts = [*range(0, side - tile, tile - overlap), side - tile]
    ramp = ((torch.arange(overlap) + 0.5 - overlap / 4) / (overlap / 2)).clamp(0, 1)
    ramp = torch.sin(ramp * torch.pi / 2) ** 2
    weights, total = [], torch.zeros(side)
    for i, start in enumerate(starts):
        w = torch.ones(tile)
        if i > 0:
            w[:overlap] = ramp
        if i < len(starts) - 1:
            w[tile - overlap :] *= ramp.flip(0)
        weights.append(w)
        # above 1 where the last tile, moved inwards, meets more than `overlap`
        total[start : start + tile] += w
    return [(start, w / total[start : start + tile]) for start, w in zip(starts, weights, strict=True)]
