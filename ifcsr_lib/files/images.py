"""Image files and image tensors. Public images are float32 RGB (N, 3, H, W) in [0, 1], sRGB-like values as
stored. pixels.py does the work on files, for numpy arrays, and needs no torch.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from . import pixels
from .checks import printable
from .pixels import (
    ALPHA,
    FORMATS,
    GREY_MODES,
    OTHERS,
    READ_ONLY,
    Photo,
    check_sides,
    distinct,
    labels,
    left_out,
    list_images,
    on_white,
    partners,
    readable,
)
from .results import atomic

__all__ = [
    "ALPHA",
    "FORMATS",
    "GREY_MODES",
    "OTHERS",
    "READ_ONLY",
    "Photo",
    "bleed",
    "check_images",
    "check_sides",
    "decode_image",
    "distinct",
    "encode_image",
    "encode_png",
    "is_grey",
    "labels",
    "left_out",
    "list_images",
    "of_pil",
    "on_white",
    "partners",
    "printable",
    "read_image",
    "readable",
    "to_grey",
    "to_tensor",
    "to_uint8",
    "upsample",
    "upsample_alpha",
    "write_image",
]


def check_images(x: torch.Tensor, name: str = "lq", min_side: int = 16) -> None:
    """Raise TypeError or ValueError unless x is float32 (N, 3, H, W), finite, in [0, 1] (+-1e-6), sides >=
    min_side.
    """
    _check_type(x, name)
    pixels.check_shape(tuple(x.shape), name, min_side)
    low, high = (v.item() for v in x.detach().aminmax())
    bad = 0 if np.isfinite(low) and np.isfinite(high) else int((~x.isfinite()).sum())
    pixels.check_range(low, high, bad, x.numel(), name)


def _check_type(x: torch.Tensor, name: str) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(
            f"{name} came as {type(x).__name__}; pass a float32 tensor (N, 3, H, W), see images.to_tensor"
        )
    if x.dtype != torch.float32:
        raise TypeError(
            f"{name} came as {x.dtype}; pass float32 in [0, 1] (images.to_tensor scales 8 and 16 bit)"
        )


def to_uint8(x: torch.Tensor) -> np.ndarray:
    """(N, C, H, W) in [0, 1] -> uint8 (N, H, W, C), clamped and rounded to the nearest level; ValueError on
    NaN.
    """
    return pixels.to_uint8(_array(x))


def _array(x: torch.Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy()


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """uint8, uint16 or float (H, W), (H, W, C) or (N, H, W, C) -> float32 (N, C, H, W); integers go to [0,
    1].
    """
    return torch.from_numpy(pixels.to_float(array))


def upsample(lq: torch.Tensor, scale: int = 4) -> torch.Tensor:
    """x_L: (N, C, h, w) -> (N, C, scale h, scale w), bicubic without antialias (a = -0.75), clamped to [0,
    1].
    """
    return F.interpolate(lq, scale_factor=scale, mode="bicubic", align_corners=False).clamp(0, 1)


def upsample_alpha(alpha: torch.Tensor, scale: int = 4) -> torch.Tensor:
    """(N, 1, h, w) -> (N, 1, scale h, scale w), linear: no negative weights, so edges do not ring."""
    return F.interpolate(alpha, scale_factor=scale, mode="bilinear", align_corners=False)


def bleed(rgb: torch.Tensor, alpha: torch.Tensor | None) -> torch.Tensor:
    """rgb (N, 3, H, W) where each pixel of alpha 0 has the colour of the nearest one that can be seen.

    What a file holds under full transparency is arbitrary, mostly black; a network, or a filter, would carry
    it into the edge of what can be seen. alpha: (N, 1, H, W), or None, which changes nothing. An image that
    is transparent everywhere stays as it is.
    """
    if alpha is None:
        return rgb
    return torch.from_numpy(pixels.bleed(_array(rgb), _array(alpha))).to(rgb)


def is_grey(x: torch.Tensor) -> torch.Tensor:
    """(N,) bool: which of the images (N, 3, H, W) have three equal channels everywhere, within 1e-6."""
    return torch.stack([((x[:, 0] - x[:, c]).abs() <= 1e-6).flatten(1).all(1) for c in (1, 2)]).all(0)


def to_grey(x: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) -> the same size, each channel 0.299 R + 0.587 G + 0.114 B (BT.601, as Pillow's "L").

    Pixels that are grey already stay bit for bit.
    """
    r, g, b = x[:, :1], x[:, 1:2], x[:, 2:3]
    return (g + 0.299 * (r - g) + 0.114 * (b - g)).expand_as(x).contiguous()


def read_image(path: str | Path) -> Photo:
    """Read a PNG, JPEG, WebP, TIFF, BMP, or of READ_ONLY what `readable` has, as a Photo, turned as its EXIF
    orientation says. The content counts, not the suffix; of several frames or pages the first is read.

    Grey and palette become RGB (Photo.grey tells grey); CMYK becomes sRGB, through its colour profile where
    the file has one. Raises FileNotFoundError, or ValueError naming the file when it is damaged or no such
    image.
    """
    return _of_tensors(pixels.read_image(path))


def decode_image(data: bytes, name: str) -> Photo:
    """`read_image` of a file's bytes; name: for the errors and Photo.name (its last part)."""
    return _of_tensors(pixels.decode_image(data, name))


def of_pil(image: Image.Image) -> Photo:
    """A Photo of a PIL image as it is, not turned; 16-bit grey ("I;16") keeps its bits.

    Raises ValueError for modes that are no photograph's: "F", "I", "LAB".
    """
    return _of_tensors(pixels.of_pil(image))


def _of_tensors(photo: Photo) -> Photo:
    alpha = None if photo.alpha is None else torch.from_numpy(photo.alpha)
    return dataclasses.replace(photo, rgb=torch.from_numpy(photo.rgb), alpha=alpha)


def write_image(
    photo: Photo | torch.Tensor,
    path: str | Path,
    alpha: torch.Tensor | None = None,
    bits: int = 8,
    icc: bytes | None = None,
    gps: bool = False,
) -> Path:
    """Write a Photo, or rgb (1, 3, H, W) with alpha (1, 1, H, W), in the format of the suffix; whole or not
    at all.

    A grey Photo becomes a file of one channel, its luma (of three equal ones in WebP, which has no grey).
    bits 16 is kept in PNG and TIFF and becomes 8, rounded, elsewhere. A profile that does not fit the file's
    channels is left out. EXIF and dpi are kept in all formats but BMP (dpi only) and TIFF of 4 GB; the place
    only with gps. WebP is lossless, JPEG quality 95 4:4:4. Raises ValueError (suffix, shapes, range, a side
    too long for the format) or OSError (folder, disk) naming path.
    """
    path = Path(path)
    if not isinstance(photo, Photo):
        photo = Photo(photo, alpha, bits, path.name, icc)
    data = encode_image(photo, path, gps)
    with atomic(path) as temporary:
        temporary.write_bytes(data)
    return path


def encode_image(photo: Photo, path: Path, gps: bool = False) -> bytes:
    """The bytes that `write_image` writes to path; its ValueErrors."""
    pixels.format_of(path)
    _check_type(photo.rgb, path.name)  # pixels looks at shape and values
    alpha = None if photo.alpha is None else _array(photo.alpha)
    return pixels.encode_image(dataclasses.replace(photo, rgb=_array(photo.rgb), alpha=alpha), path, gps)


def encode_png(x: torch.Tensor, bits: int = 8, texts: dict[str, str] | None = None, level: int = 6) -> bytes:
    """PNG of one image (1, C, H, W) in [0, 1], C 1 to 4, rounded to 8 or 16 bits; texts go into iTXt chunks.

    level: of zlib, 1 fast to 9 small. Raises ValueError on NaN or other bits.
    """
    return pixels.encode_png(_array(x), bits, texts, level)
