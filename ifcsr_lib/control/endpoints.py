"""The slider: blending two endpoint images in pixels (E1). No network is called anywhere in this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..files import portable
from ..files.images import check_images, is_grey, to_grey
from .bands import blend_bands, check_pair


def blend(
    x_fid: Tensor, x_real: Tensor, gamma: float | Tensor | Sequence[float], out: Tensor | None = None
) -> Tensor:
    """Mix the endpoint images in pixel space: (1 - gamma) x_fid + gamma x_real (E1); no network is evaluated.

    x_fid, x_real: (N, 3, H, W), RGB in [0, 1].
    gamma: a float (of numpy too), (N,) for one value per image, or (N, 1, H, W) for a map (`maps` makes
        some); in [0, 1], 0 = fidelity, 1 = realism. Gradients flow to a tensor that asks for them, from
        endpoints made in inference mode too; those are copied for it. A list or tuple of floats is one gamma
        per Laplacian band, coarse to fine: `bands.blend_bands`.
    out: where to write, of an endpoint's size and type. Saves time when one pair is blended many times: fresh
        memory for a large image takes longer than the blend (benchmarks/blend.py). Must not be an endpoint
        itself.
    Returns (N, 3, H, W). gamma 0 and 1 return the endpoints bit for bit. Raises ValueError or TypeError
    otherwise.
    """
    check_pair(x_fid, x_real)
    if out is not None:
        if (out.shape, out.dtype, out.device) != (x_fid.shape, x_fid.dtype, x_fid.device):
            raise ValueError(
                f"out is {tuple(out.shape)}, {out.dtype} on {out.device}; the endpoints are "
                f"{tuple(x_fid.shape)}, {x_fid.dtype} on {x_fid.device}; use torch.empty_like(x_fid)"
            )
        if out.data_ptr() in (x_fid.data_ptr(), x_real.data_ptr()):
            raise ValueError(
                "out is an endpoint, which the blend would overwrite; use torch.empty_like(x_fid)"
            )
    if isinstance(gamma, (list, tuple)):
        x = blend_bands(x_fid, x_real, gamma)
        return x if out is None else out.copy_(x)
    g = check_gamma(gamma, x_fid).to(x_fid)
    if g.requires_grad and torch.is_grad_enabled():
        if out is not None:
            raise ValueError(
                "gamma asks for a gradient, which out does not keep; leave out away, or detach gamma"
            )
        # what autograd remembers must not come from inference mode; a copy made here does not
        x_fid, x_real = (x.clone() if x.is_inference() else x for x in (x_fid, x_real))
    return torch.lerp(x_fid, x_real, g, out=out)


def check_gamma(gamma: float | Tensor, like: Tensor) -> Tensor:
    """gamma as a tensor that broadcasts against `like` (N, 3, H, W); errors name the value that is not
    allowed.
    """
    if isinstance(gamma, (str, bool)) or not isinstance(gamma, (Real, Tensor)):
        raise TypeError(
            f"gamma came as {type(gamma).__name__}; pass a float, an (N,) or an (N, 1, H, W) tensor, or a "
            "list with one float per band"
        )
    g = torch.as_tensor(gamma, dtype=torch.float32)
    n, _, h, w = like.shape
    if g.ndim == 1 and len(g) == n:
        g = g.view(n, 1, 1, 1)
    elif g.ndim and (g.ndim != 4 or g.shape[0] not in (1, n) or g.shape[1:] != (1, h, w)):
        raise ValueError(f"gamma has shape {tuple(g.shape)}; allowed: a float, ({n},) or ({n}, 1, {h}, {w})")
    if not bool(((g >= 0) & (g <= 1)).all()):  # NaN fails both
        bad = g[~((g >= 0) & (g <= 1))].flatten()[0].item()
        raise ValueError(f"gamma={bad}; allowed: 0 (fidelity) to 1 (realism)")
    return g


def adain(x: Tensor, x_L: Tensor) -> Tensor:
    """Give each colour channel of x the mean and standard deviation it has in x_L, then clamp; (N, 3, H, W)
    both.

    The colour fix of both peers. Source: adaptive instance normalisation on pixels, as StableSR and PiSA-SR
    apply it.
    """
    mean, std = (f(x, dim=(2, 3), keepdim=True) for f in (torch.mean, torch.std))
    mean_L, std_L = (f(x_L, dim=(2, 3), keepdim=True) for f in (torch.mean, torch.std))
    return ((x - mean) / (std + 1e-5) * std_L + mean_L).clamp(0, 1)


@dataclass(frozen=True)
class Endpoints:
    """The two endpoints of the slider for a batch of images, and x_L, the bicubic x4 of the input.

    x_fid, x_real, x_L: (N, 3, H, W) float32 RGB in [0, 1].
    made_by: what a file of endpoints says of them, {"model", "hash", "gamma", "bits"}; None when they come
    from a model. Here only sizes are compared. ManyEndpoints, align and from_disagreement also refuse
    endpoints of different photographs.
    """

    x_fid: Tensor
    x_real: Tensor
    x_L: Tensor | None = None
    made_by: dict | None = field(default=None, compare=False)

    def __post_init__(self):
        for name in ("x_fid", "x_real"):
            check_images(getattr(self, name), name)
        if self.x_fid.shape != self.x_real.shape:
            raise ValueError(
                f"endpoints differ in shape: {tuple(self.x_fid.shape)} and {tuple(self.x_real.shape)}"
            )
        if self.x_L is not None and self.x_L.shape != self.x_fid.shape:
            raise ValueError(
                f"x_L has shape {tuple(self.x_L.shape)}, the endpoints {tuple(self.x_fid.shape)}; pass the "
                "input enlarged to their size (images.upsample), or None"
            )

    def __len__(self) -> int:
        return len(self.x_fid)

    def __getitem__(self, i: int) -> Endpoints:
        """The i-th image's endpoints, still batched (1, 3, H, W)."""
        one = slice(i, i + 1) if i != -1 else slice(-1, None)
        return Endpoints(
            self.x_fid[one], self.x_real[one], None if self.x_L is None else self.x_L[one], self.made_by
        )

    def blend(self, gamma: float | Tensor | Sequence[float], out: Tensor | None = None) -> Tensor:
        """E1 at gamma: see `blend`."""
        return blend(self.x_fid, self.x_real, gamma, out)

    def colour_fixed(self) -> Endpoints:
        """Both endpoints after `adain` against x_L; blending stays E1 of the fixed endpoints."""
        if self.x_L is None:
            raise ValueError(
                "these endpoints carry no x_L, which the colour fix needs; make them with model.endpoints"
            )
        return replace(self, x_fid=adain(self.x_fid, self.x_L), x_real=adain(self.x_real, self.x_L))

    def grey_as_input(self) -> Endpoints:
        """The endpoints of grey photographs as grey: of each image whose x_L has R = G = B, their luma.

        A network trained on colour answers a grey photograph with tints that nobody photographed. Other
        images, and all without x_L, stay as they are. Blending stays E1 of the grey endpoints.
        """
        if self.x_L is None or not bool((grey := is_grey(self.x_L)).any()):
            return self
        which = grey.view(-1, 1, 1, 1).to(self.x_fid.device)
        x_fid, x_real = (torch.where(which, to_grey(x), x) for x in (self.x_fid, self.x_real))
        return replace(self, x_fid=x_fid, x_real=x_real)

    def save(self, path: str | Path, model=None, gamma: float = 0.5, bits: int = 16) -> Path:
        """Write one portable file, *.ifcsr.zip: the endpoints (and x_L) as PNG and ifcsr.json; whole or not
        at all.

        model: the IFCSR that made them, or a text; its name and hash go into the file. gamma: where a slider
            starts.
        bits: 16 keeps each value within 0.5 / 65535, so that an 8-bit result differs by a level at rounding
            ties at most; 8 within 0.5 / 255, about a quarter of the size.
        Endpoints of a grey photograph are written grey, see `grey_as_input`. Raises ValueError or OSError
        naming path.
        """
        ends = self.grey_as_input()
        images = {name: getattr(ends, name) for name in portable.PARTS}
        return portable.save(images, path, self.made_by if model is None else model, gamma, bits)

    @classmethod
    def load(cls, path: str | Path | bytes, name: str | None = None) -> Endpoints:
        """Read what `save` wrote. path: the file, or its bytes with its name for the errors.

        Raises FileNotFoundError, or ValueError naming what is damaged, foreign or missing.
        """
        images, made = portable.load(path, name)
        return cls(**images, made_by=made)


@dataclass(frozen=True)
class ManyEndpoints:
    """Any number of endpoint images of one batch; a point of their simplex is a weighted mean, and no network
    runs.

    images: {name: (N, 3, H, W)}, two or more, float32 RGB in [0, 1]. x_L: their input x4, if known.
    Raises ValueError when sizes differ, when there are fewer than two, or when they show different scenes.
    """

    images: Mapping[str, Tensor]
    x_L: Tensor | None = None

    def __post_init__(self):
        if not isinstance(self.images, Mapping) or len(self.images) < 2:
            count = len(self.images) if isinstance(self.images, Mapping) else type(self.images).__name__
            raise ValueError(f"images came as {count}; pass a dict of two or more, {{name: (N, 3, H, W)}}")
        check_same_scene(dict(self.images) if self.x_L is None else {**self.images, "x_L": self.x_L})

    def blend(self, weights: Mapping[str, float] | Sequence[float] | Tensor) -> Tensor:
        """sum_i w_i x_i with w_i >= 0 and sum_i w_i = 1; a weight of 1 returns that endpoint bit for bit.

        weights: {name: float}, every endpoint named; floats in the order of `images`; or a tensor: (K,), (N,
            K) for one point per image, (N, K, H, W) for maps, K endpoints.
        With two endpoints and (1 - gamma, gamma) this is `blend` at gamma; more endpoints are further calls
        of it.
        """
        w = self._weights(weights)
        (x, *others), total = self.images.values(), w[:, :1]
        for i, other in enumerate(others, 1):
            total = total + w[:, i : i + 1]
            x = blend(
                x,
                other,
                (w[:, i : i + 1] / total.clamp(min=1e-12)).clamp(max=1).expand(len(x), 1, *x.shape[2:]),
            )
        return x

    def _weights(self, weights) -> Tensor:
        """(1 or N, K, 1 or H, 1 or W), checked."""
        names, like = list(self.images), next(iter(self.images.values()))
        if isinstance(weights, Mapping):
            if set(weights) != set(names):
                raise ValueError(
                    f"weights name {sorted(weights)}; pass one for each endpoint of {names}, 0 included"
                )
            weights = [weights[name] for name in names]
        w = torch.as_tensor(weights, dtype=torch.float32, device=like.device)
        n, k, (h, width) = len(like), len(names), like.shape[2:]
        if tuple(w.shape) not in {(k,), (n, k), (1, k, h, width), (n, k, h, width)}:
            raise ValueError(
                f"weights have shape {tuple(w.shape)}; allowed for {names}: ({k},), ({n}, {k}) or "
                f"({n}, {k}, {h}, {width})"
            )
        w = w.reshape(-1, k, 1, 1) if w.ndim < 4 else w
        total = w.sum(1)
        if not bool((w >= 0).all() and ((total - 1).abs() < 1e-5).all()):  # NaN fails too
            raise ValueError(
                f"weights reach down to {w.min().item():.4g} and sum to {total.min().item():.4g} ... "
                f"{total.max().item():.4g}; allowed: 0 or more, sum 1 (divide by the sum)"
            )
        return w


def check_same_scene(images: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless all of {name: (N, 3, H, W) in [0, 1]} have one size and, picture by picture,
    one scene.

    Two images a, b, shrunk 16 times (to 8 pixels or more a side), are taken as different scenes when
    var(a - b) > (var a + var b + 2 (24/255)^2) / 5: unrelated images have 1 in place of the 1/5 on average,
    equal ones 0, flat ones with noise little. It finds endpoints that were mixed up, not endpoints that
    disagree.
    """
    (first, a), *others = images.items()
    check_images(a, first)
    for name, b in others:
        check_images(b, name)
        if a.shape != b.shape:
            raise ValueError(
                f"endpoints differ in shape: {first} {tuple(a.shape)} and {name} {tuple(b.shape)}"
            )
    factor = max(1, min(16, min(a.shape[2:]) // 8))
    small = {name: F.avg_pool2d(x, factor) for name, x in images.items()}
    variance = {name: x.var((1, 2, 3)) for name, x in small.items()}
    for name in list(images)[1:]:
        # DECISION D37: the threshold 1/5; on Kodak different photographs have 0.26 or more, and a photograph
        # and its own blurred, noisy, darker copy or one 4 pixels aside 0.03 or less
        limit = (variance[first] + variance[name] + 2 * (24 / 255) ** 2) / 5
        if bool((bad := (small[first] - small[name]).var((1, 2, 3)) > limit).any()):
            raise ValueError(
                f"{first} and {name} show different images (number {int(bad.nonzero()[0])} of "
                f"{len(bad)}); pass the endpoints of one photograph"
            )
