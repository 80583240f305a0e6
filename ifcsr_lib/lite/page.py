"""The page of explorer.Explorer without torch and without a widget: the slider over given endpoints."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np

from ..explorer import page
from ..files import pixels
from ..files.results import atomic
from .model import Pair


class Page:
    """One page over the endpoints of one or more images of one size.

    ends: Pair. made: {"model", "hash"}. gamma: where the slider starts, in [0, 1]. names: one per image.
    lq: the low-resolution inputs (N, 3, H/4, W/4) float32 in [0, 1]; default the 4x4 means of x_L.
    """

    def __init__(self, ends: Pair, made: dict, gamma: float, names: list[str], lq: np.ndarray | None = None):
        self.gamma, self.images, self.pictures = float(gamma), [], {}
        many = len(names) > 1
        for i, name in enumerate(names):
            one = slice(i, i + 1)
            x_fid, x_real, x_L = (None if x is None else x[one] for x in (ends.x_fid, ends.x_real, ends.x_L))
            low = None if lq is None else lq[one]
            if low is not None:
                x_L = pixels.upsample(low)
            elif x_L is not None:
                low = shrunk(x_L, x_L.shape[2] // 4, x_L.shape[3] // 4)
            if x_L is not None and pixels.is_grey(x_L).all():
                x_fid, x_real = pixels.to_grey(x_fid), pixels.to_grey(x_real)
            h, w = x_fid.shape[2:]
            pictures = {"0/fid": x_fid, "0/real": x_real, "bicubic": x_L}
            if many:
                pictures |= {f"thumb_{k}": _thumb(x) for k, x in (("fid", x_fid), ("real", x_real))}
            for key, x in pictures.items():
                if x is not None:
                    self.pictures[f"{i}/{key}"] = base64.b64encode(pixels.encode_png(x)).decode()
            difference = 255 * float(np.abs(x_real - x_fid).mean(dtype=np.float64))
            numbers = {
                "difference": difference,
                "errors": None,
                "consistency": _consistency(x_fid, x_real, low),
            }
            pane = {"label": "", "model": made["model"], "hash": made["hash"], **numbers, "curves": {}}
            about = {
                "name": name,
                "width": w,
                "height": h,
                "hr": False,
                "thumb": many,
                "x_L": x_L is not None,
            }
            self.images.append({**about, "map": False, "panes": [pane]})

    def save_html(self, path: str | Path) -> Path:
        """Write the page, as Explorer.save_html does; whole or not at all."""
        count, presets = len(self.images), list(page.PRESETS)
        spec = {"images": self.images, "presets": presets, "eps": pixels.EPS, "software": page.SOFTWARE}
        state = {"gammas": (self.gamma,) * count, "same_gamma": count > 1, "index": 0, "view": (0.5, 0.5, 0)}
        with atomic(path) as tmp:
            tmp.write_text(page.html(spec, state, self.pictures), encoding="utf-8")
        return Path(path)


def shrunk(x: np.ndarray, h: int, w: int) -> np.ndarray:
    """(N, C, H, W) -> (N, C, h, w): the mean of the pixels under each new one, float32."""
    rows, columns = (_means(side, new) for side, new in ((x.shape[2], h), (x.shape[3], w)))
    return (rows @ x @ columns.T).astype(np.float32)


def _means(side: int, new: int) -> np.ndarray:
    """(new, side) with rows that sum to 1; torch's area interpolation."""
    out = np.zeros((new, side), np.float32)
    for i in range(new):
        start, end = i * side // new, -((-(i + 1) * side) // new)
        out[i, start:end] = 1 / (end - start)
    return out


def _thumb(x: np.ndarray, side: int = 96) -> np.ndarray:
    h, w = x.shape[2:]
    scale = min(1.0, side / max(h, w))
    return shrunk(x, max(1, round(h * scale)), max(1, round(w * scale)))


def _consistency(x_fid: np.ndarray, x_real: np.ndarray, low: np.ndarray | None) -> list[float] | None:
    """explorer.numbers.measured's "consistency" of one image."""
    if low is None or min(low.shape[2:]) < 16:
        return None
    luma = np.array(pixels.LUMA)
    y, *ends = (
        np.einsum("c,chw->hw", luma, x[0].astype(np.float64))
        for x in (low, *(shrunk(x, *low.shape[2:]) for x in (x_fid, x_real)))
    )
    e_f, e_r = (x - y for x in ends)
    return [float(v.mean()) for v in (e_f * e_f, e_r * e_r, e_f * e_r)]
