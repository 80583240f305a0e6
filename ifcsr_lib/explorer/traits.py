"""The types of Explorer's traits: each judges a value by itself and says what is allowed.

traitlets' Float, Int and Tuple would do the same with its TraitError, which is neither a TypeError nor a
ValueError and does not say what is allowed.
"""

from __future__ import annotations

from numbers import Integral, Real

import torch
import traitlets

from .numbers import fraction


class Gamma(traitlets.TraitType):
    """A number in [0, 1]."""

    def validate(self, obj, value) -> float:
        return fraction(value, self.name)


class Gammas(traitlets.TraitType):
    """One number in [0, 1] per image of the explorer."""

    def validate(self, obj, value) -> tuple[float, ...]:
        count = len(obj.pictures)
        if not isinstance(value, (tuple, list)) or len(value) != count:
            raise ValueError(f"{self.name}={value!r}; allowed: {count} numbers from 0 to 1, one per image")
        return tuple(fraction(g, "gamma") for g in value)


class Index(traitlets.TraitType):
    """The number of an image of the explorer."""

    def validate(self, obj, value) -> int:
        last = len(obj.pictures) - 1
        if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= value <= last:
            raise ValueError(f"{self.name}={value!r}; allowed: 0 to {last}")
        return int(value)


class View(traitlets.TraitType):
    """(x, y, zoom): the centre as fractions, screen pixels per image pixel (0 fits the window)."""

    def validate(self, obj, value) -> tuple[float, float, float]:
        if not isinstance(value, (tuple, list)) or len(value) != 3:
            allowed = "(x, y, zoom), x and y from 0 to 1, zoom from 0 (fit) to 32"
            raise ValueError(f"{self.name}={value!r}; allowed: {allowed}")
        x, y, zoom = value
        if isinstance(zoom, bool) or not isinstance(zoom, Real) or not 0 <= zoom <= 32:
            allowed = "0 (fit) to 32 screen pixels per image pixel"
            raise ValueError(f"{self.name} zoom={zoom!r}; allowed: {allowed}")
        return fraction(x, f"{self.name} x"), fraction(y, f"{self.name} y"), zoom


class GammaMap(traitlets.TraitType):
    """None, or H x W numbers in [0, 1]; kept as (1, 1, H, W) in steps of 1/255, as in the page."""

    allow_none = True

    def validate(self, obj, value) -> torch.Tensor:
        if obj.following:  # it was made here, from planes of 8 bit
            return value
        x, (h, w) = torch.as_tensor(value).detach().cpu().float(), obj.pictures[obj.index].size
        if x.numel() != h * w or tuple(x.shape[-2:]) != (h, w):
            allowed = f"(1, 1, {h}, {w}), the size of the image"
            raise ValueError(f"{self.name} has shape {tuple(x.shape)}; allowed: {allowed}")
        if not bool(((x >= 0) & (x <= 1)).all()):  # NaN fails too
            raise ValueError(f"{self.name} spans [{x.min().item():g}, {x.max().item():g}]; allowed: 0 to 1")
        return x.reshape(1, 1, h, w).mul(255).round().div(255)
