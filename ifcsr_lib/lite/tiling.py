"""nets/tiling.py on numpy arrays; the tests hold the two together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def tiled(
    f: Callable[[np.ndarray], tuple[np.ndarray, ...]],
    x: np.ndarray,
    tile: int,
    overlap: int,
    multiple: int = 1,
    images: int = 1,
) -> tuple[np.ndarray, ...]:
    """f of x (N, C, H, W) by overlapping tiles: see nets.tiling.tiled.

    Raises ValueError where tile or overlap is no multiple of `multiple`.
    """
    if tile % multiple or overlap % multiple:
        raise ValueError(f"tile={tile}, tile_overlap={overlap}; this backbone wants multiples of {multiple}")
    rows, columns = (windows(side, tile, overlap) for side in x.shape[-2:])
    out = tuple(np.zeros_like(x) for _ in range(images))
    for n in range(len(x)):
        for top, u in rows:
            for left, v in columns:
                place = (slice(n, n + 1), slice(None), slice(top, top + len(u)), slice(left, left + len(v)))
                weight = u[:, None] * v
                for whole, part in zip(out, f(x[place]), strict=True):
                    whole[place] += part * weight
    return out


def windows(side: int, tile: int, overlap: int) -> list[tuple[int, np.ndarray]]:
    """(start, weights (min(tile, side),) float32) of the tiles along one axis: see nets.tiling.windows."""
    if side <= tile:
        return [(0, np.ones(side, np.float32))]
    starts = [*range(0, side - tile, tile - overlap), side - tile]
    ramp = np.clip((np.arange(overlap, dtype=np.float32) + 0.5 - overlap / 4) / (overlap / 2), 0, 1)
    ramp = np.sin(ramp * np.float32(np.pi / 2)) ** 2
    weights, total = [], np.zeros(side, np.float32)
    for i, start in enumerate(starts):
        w = np.ones(tile, np.float32)
        if i > 0:
            w[:overlap] = ramp
        if i < len(starts) - 1:
            w[tile - overlap :] *= ramp[::-1]
        weights.append(w)
        total[start : start + tile] += w
    return [(start, w / total[start : start + tile]) for start, w in zip(starts, weights, strict=True)]
