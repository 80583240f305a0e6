"""One image of the gallery, checked and measured once; its pixels as the PNG files that a page asks for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..control import Endpoints
from ..evaluate.metrics import each_image, read_single
from ..files import portable
from ..files.images import decode_image, encode_png, to_uint8, upsample
from .numbers import measured


@dataclass
class Picture:
    """parts: {label: Endpoints} of one image, (1, 3, H, W) each. hr, x_L: what they are compared with.

    made: {label: {"model", "hash"}}. numbers: {label: see numbers.measured}. curves: {label: {metric: points,
    see Explorer.measure}}. planes: the painted map, None or two (H, W) uint8 arrays, cover and paint; gamma
    of a pixel is ((255 - cover) gamma + paint) / 255.
    """

    name: str
    parts: dict[str, Endpoints]
    hr: Tensor | None
    x_L: Tensor | None
    made: dict[str, dict[str, str]]
    numbers: dict[str, dict]
    curves: dict[str, dict] = field(default_factory=dict)
    planes: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def of(cls, name: str, parts: dict[str, Endpoints], lq=None, hr=None, described=None) -> Picture:
        """lq: (1, 3, H/4, W/4); default: the 4x4 means of x_L. described: {label: {"model", "hash"}}."""
        x_L = next(iter(parts.values())).x_L if lq is None else upsample(lq)
        low = F.avg_pool2d(x_L, 4) if lq is None and x_L is not None else lq
        if x_L is not None:  # the page shows a grey photograph in grey
            parts = {
                k: replace(replace(part, x_L=x_L).grey_as_input(), x_L=part.x_L) for k, part in parts.items()
            }
        made = {label: portable.describe(part.made_by) for label, part in parts.items()} | (described or {})
        numbers = {label: measured(part, hr, low) for label, part in parts.items()}
        return cls(name, parts, hr, x_L, made, numbers, {label: {} for label in parts})

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return tuple(next(iter(self.parts.values())).x_fid.shape[-2:])

    def label(self, label: str | None) -> str:
        """label, or the first one for None. Raises ValueError for one that is not there."""
        if label is None:
            return next(iter(self.parts))
        if label not in self.parts:
            raise ValueError(f"label={label!r}; allowed: {', '.join(map(repr, self.parts))}")
        return label

    def described(self, thumb: bool) -> dict:
        """What the front end has to know of it, without its pixels."""
        h, w = self.size
        panes = [
            {"label": label, **self.made[label], **self.numbers[label], "curves": self.curves[label]}
            for label in self.parts
        ]
        return {
            "name": self.name,
            "width": w,
            "height": h,
            "hr": self.hr is not None,
            "thumb": thumb,
            "x_L": self.x_L is not None,
            "map": self.planes is not None,
            "panes": panes,
        }

    def keys(self, thumb: bool) -> list[str]:
        """Every key of `png` that an exported page needs."""
        keys = [f"{p}/{end}" for p in range(len(self.parts)) for end in ("fid", "real")]
        there = {
            "bicubic": self.x_L is not None,
            "HR": self.hr is not None,
            "map": self.planes is not None,
            "thumb_fid": thumb,
            "thumb_real": thumb,
        }
        return keys + [key for key, yes in there.items() if yes]

    def png(self, key: str, level: int) -> bytes:
        """pane/fid, pane/real, bicubic, HR, map, thumb_fid or thumb_real, in 8 bit. level: of zlib."""
        pane, _, kind = key.rpartition("/")
        if kind == "map" and self.planes is not None:
            return encode_png(torch.from_numpy(np.stack(self.planes)[None]).float() / 255, level=level)
        part = self.parts[list(self.parts)[int(pane or 0)]]
        pictures = {"fid": part.x_fid, "real": part.x_real, "bicubic": self.x_L, "HR": self.hr}
        x = pictures.get(kind.removeprefix("thumb_"))
        if x is None:
            raise KeyError(f"no picture {key} of image {self.name!r}")
        if kind.startswith("thumb_"):
            x = F.interpolate(x, size=thumb_size(*self.size), mode="area")
        return encode_png(x, level=level)

    def gamma_map(self, gamma: float) -> Tensor | None:
        """(1, 1, H, W) in [0, 1]: the painted map over a slider at gamma; None where nothing is painted."""
        if self.planes is None:
            return None
        cover, paint = (torch.from_numpy(plane).float() for plane in self.planes)
        return (((255 - cover) * gamma + paint) / 255)[None, None]

    def paint(self, value: Tensor | None) -> None:
        """A map (1, 1, H, W) holds gamma everywhere, until a brush erases it in the page; None: no map."""
        self.planes = None
        if value is not None:
            paint = to_uint8(value)[0, ..., 0]
            self.planes = (np.full_like(paint, 255), paint)

    def paint_png(self, data: bytes) -> None:
        """The map as a page sends it: a PNG, grey is cover, alpha is paint. Raises ValueError."""
        photo = decode_image(data, "the gamma map")
        h, w = self.size
        if tuple(photo.rgb.shape[-2:]) != (h, w) or photo.alpha is None:
            raise ValueError(f"the gamma map is {tuple(photo.rgb.shape)}; allowed: grey with alpha, {w}x{h}")
        cover, paint = to_uint8(photo.rgb)[0, ..., 0], to_uint8(photo.alpha)[0, ..., 0]
        self.planes = (cover, np.minimum(cover, paint))


def singles(ends) -> list[Endpoints]:
    """Endpoints, or a list of them, as a list of one image each, on the CPU. TypeError, ValueError."""
    parts = list(ends) if isinstance(ends, (list, tuple)) else [ends]
    for part in parts:
        if not isinstance(part, Endpoints):
            kind = type(part).__name__
            raise TypeError(f"ends came as {kind}; pass model.endpoints(lq), or a list of such")
    if not parts:
        raise ValueError("ends is an empty list; pass the Endpoints of at least one image")
    out = []
    for part in parts:
        x_L = None if part.x_L is None else part.x_L.detach().cpu()
        own = Endpoints(part.x_fid.detach().cpu(), part.x_real.detach().cpu(), x_L, part.made_by)
        out += [own[i] for i in range(len(own))]
    return out


def fitting(x, ends: list[Endpoints], name: str, divisor: int) -> list[Tensor | None]:
    """One CPU image of x, or None, for each of ends, of their size divided by `divisor`."""
    if x is None:
        return [None] * len(ends)
    pictures = [read_single(item, name).detach().cpu() for item in each_image(x, name)]
    if len(pictures) != len(ends):
        raise ValueError(f"{name} has {len(pictures)} images and ends {len(ends)}; pass one each")
    for i, (item, one) in enumerate(zip(pictures, ends, strict=True)):
        want = (1, 3, *(s // divisor for s in one.x_fid.shape[-2:]))
        if tuple(item.shape) != want:
            size = "its endpoints' size" + (f" / {divisor}" if divisor > 1 else "")
            raise ValueError(f"{name} of image {i} is {tuple(item.shape)}; allowed: {want}, {size}")
    return pictures


def thumb_size(h: int, w: int, side: int = 96) -> tuple[int, int]:
    scale = min(1.0, side / max(h, w))
    return max(1, round(h * scale)), max(1, round(w * scale))


def with_suffix(path: str | Path, suffix: str) -> Path:
    """path, if it ends in suffix. Raises ValueError."""
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise ValueError(f"{path}: suffix {path.suffix!r}; allowed: {suffix}")
    return path
