"""What every stream of crops stands on: cutting a patch, random numbers by index, and the user's own data
folder.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import path_setting


def user_data(name: str) -> Path | None:
    """$IFCSR_DATA/<name> when it exists, else None. Known names: data/README.md."""
    folder = path_setting("IFCSR_DATA")
    path = folder / name if folder else None
    return path if path and path.exists() else None


def cut(image: np.ndarray, patch: int, rng: np.random.Generator) -> Tensor:
    """(3, patch, patch) float32 in [0, 1]: a crop of (H, W, 3) uint8 at a random place, flipped and turned at
    random.
    """
    top, left = (rng.integers(s - patch + 1) for s in image.shape[:2])
    crop = np.rot90(image[top : top + patch, left : left + patch], rng.integers(4))
    crop = crop[:, ::-1] if rng.integers(2) else crop
    return torch.from_numpy(crop.transpose(2, 0, 1).copy()).float() / 255


def normal(seed: int, index, shape) -> Tensor:
    """(N, *shape) standard normal numbers; image i's are a function of (seed, index[i]) alone."""
    draws = [
        np.random.default_rng([seed, int(i), 2]).standard_normal(tuple(shape), dtype=np.float32)
        for i in index
    ]
    return torch.from_numpy(np.stack(draws)) if draws else torch.empty(0, *shape)


def uniform(seed: int, index) -> Tensor:
    """(N,) numbers in [0, 1); image i's is a function of (seed, index[i]) alone."""
    return torch.tensor(
        [np.random.default_rng([seed, int(i), 3]).random() for i in index], dtype=torch.float32
    )
