"""Ghosting: find structures that are misaligned between the endpoints, measure double edges, and blend
without them.

Where the endpoints disagree on the position of an edge, E1 shows it twice, at reduced height. `align` finds
such places once, by optical flow; afterwards every gamma is a warp and a weighted sum, and no network runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from scipy.signal import resample_poly
from skimage.registration import optical_flow_tvl1
from torch import Tensor

from ..files.images import check_images
from .endpoints import Endpoints, blend, check_gamma, check_same_scene
from .maps import luma, smooth

MAX_SHIFT = 6.0  # pixels; further apart, two structures are not taken for one
# squared luma, the rounding of two 8-bit images: below it nothing is called a difference
NOISE = (0.5 / 255) ** 2


@dataclass(frozen=True)
class Aligned:
    """Endpoints and the displacement between them.

    flow: (N, 2, H, W) float32 pixels (down, right): x_real at p + flow(p) shows what x_fid shows at p. 0
        where no displacement explains the difference, so that new texture is left alone.
    """

    ends: Endpoints
    flow: Tensor

    @cached_property
    def _fine(self) -> tuple[Tensor, Tensor]:
        return _double(self.ends.x_fid), _double(self.ends.x_real)

    @property
    def shift(self) -> Tensor:
        """The misalignment map (N, 1, H, W): length of the flow in pixels, 0 to MAX_SHIFT."""
        return self.flow.square().sum(1, keepdim=True).sqrt()

    def blend(self, gamma: float | Tensor) -> Tensor:
        """A crossfade along the flow: (1 - gamma) x_fid(p - gamma f) + gamma x_real(p + (1 - gamma) f), f =
        flow(p).

        Both endpoints are moved to one position, at gamma of the way between them, so that an edge is drawn
        once. gamma: a float, (N,) or a map (N, 1, H, W). Returns (N, 3, H, W) in [0, 1]; gamma 0 and 1 return
        the endpoints bit for bit, and where the flow is 0 the result is E1.
        """
        (x_fid, x_real, flow), (fine_fid, fine_real) = (
            (self.ends.x_fid, self.ends.x_real, self.flow),
            self._fine,
        )
        g = check_gamma(gamma, x_fid).to(x_fid)
        plain = blend(x_fid, x_real, gamma)
        if bool(((g == 0) | (g == 1)).all()):
            return plain
        moved = torch.lerp(_warp(fine_fid, -g * flow), _warp(fine_real, (1 - g) * flow), g).clamp(0, 1)
        still = (g == 0) | (g == 1) | (flow == 0).all(1, keepdim=True)
        return torch.where(still, plain, moved)

    def held_gamma(self, gamma: float | Tensor) -> Tensor:
        """A map (N, 1, H, W) for `ends.blend`: gamma^(1 + 7 m), m rising from 0 to 1 with a misalignment of 0
        to 1 pixel.

        Where the endpoints are misaligned, it keeps x_fid for most of the range and switches to x_real near
        gamma = 1. 0 and 1 stay 0 and 1, and elsewhere gamma is unchanged. The alternative to `blend` that
        moves no pixel.
        """
        g = check_gamma(gamma, self.ends.x_fid).to(self.ends.x_fid)
        return (g + torch.zeros_like(self.shift)) ** (1 + 7 * smooth(self.shift, 2.0).clamp(0, 1))


def align(ends: Endpoints) -> Aligned:
    """Find the displacement between the endpoints: TV-L1 optical flow on luma, kept only where it helps.

    Source: skimage.registration.optical_flow_tvl1 (Zach, Pock and Bischof, 2007); unlike Lucas-Kanade it also
    follows straight edges. Deterministic; seconds for 512x512 on one CPU core. Raises ValueError for
    endpoints of different images, or smaller than 32 pixels a side.
    """
    check_same_scene({"x_fid": ends.x_fid, "x_real": ends.x_real})
    check_images(ends.x_fid, "x_fid", min_side=32)
    y_fid, y_real = luma(ends.x_fid), luma(ends.x_real)
    flow = torch.zeros(len(ends), 2, *ends.x_fid.shape[2:])
    for i, (a, b) in enumerate(zip(y_fid.cpu().numpy()[:, 0], y_real.cpu().numpy()[:, 0], strict=True)):
        if not np.array_equal(a, b):
            flow[i] = torch.from_numpy(
                np.stack(optical_flow_tvl1(a, b, num_warp=3, num_iter=5, dtype=np.float32))
            )
    flow = torch.nan_to_num(flow).to(ends.x_fid)
    # DECISION D41: flow counts where it takes away more than a quarter of the local difference, fully from a
    # half on; elsewhere the endpoints differ in content, not in position, and moving pixels would bend what
    # is straight
    before = smooth((y_real - y_fid).square(), 2.0)
    after = smooth((_warp(_double(y_real), flow) - y_fid).square(), 2.0)
    trust = ((1 - (after + NOISE) / (before + NOISE)) * 4 - 1).clamp(0, 1)
    trust = trust * (flow.square().sum(1, keepdim=True) <= MAX_SHIFT**2)
    share = smooth(trust, 2.0)
    flow = smooth(flow * trust, 2.0) / share.clamp(min=1e-3) * (2 * share).clamp(max=1)
    # and where the result would draw edges more weakly than E1 all the same (halos, contrast of one endpoint
    # alone), E1 stays
    aligned = Aligned(ends, flow.contiguous())
    plain, moved = (double_edges(x, ends, 0.5, True) for x in (ends.blend(0.5), aligned.blend(0.5)))
    aligned.flow.mul_((2 * smooth((moved < plain).to(flow), 4.0) - 1).clamp(min=0))
    aligned.flow.masked_fill_(aligned.flow.abs().amax(1, keepdim=True) < 0.02, 0)
    return aligned


def double_edges(x: Tensor, ends: Endpoints, gamma: float | Tensor, as_map: bool = False) -> Tensor:
    """Double-edge energy of a result: the share of its endpoints' edge energy that it lacks, (N,) in [0, 1].

    With S a Gaussian window of 4 pixels and grad the gradient of luma,
        D(p) = max(0, S[(1 - gamma) |grad x_fid|^2 + gamma |grad x_real|^2 - |grad x|^2]),
    and the energy is mean D / mean S[(1 - gamma) |grad x_fid|^2 + gamma |grad x_real|^2]. A step of height h
    has energy h^2 / width. Drawn twice, as steps of (1 - gamma) h and gamma h, it lacks the share
    2 gamma (1 - gamma), which is 1/2 at gamma 1/2. For E1 the bracket equals
    gamma (1 - gamma) |grad(x_real - x_fid)|^2 exactly: zero for equal ends, growing with their shift until
    the two copies part. Texture of one endpoint alone counts too, as the crossfade halves it, and so does
    blur: compare the results of one pair, not pairs.

    x: (N, 3, H, W), made from the endpoints at gamma (a float, (N,) or the map that was used). as_map: D as
        (N, 1, H, W) instead.
    """
    check_images(x, "x")
    if x.shape != ends.x_fid.shape:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, its endpoints {tuple(ends.x_fid.shape)}; pass a blend of them"
        )
    g = check_gamma(gamma, x).to(x)
    own = smooth((1 - g) * _edges(ends.x_fid) + g * _edges(ends.x_real), 4.0)
    lacking = (own - smooth(_edges(x), 4.0)).clamp(min=0)
    return lacking if as_map else lacking.mean((1, 2, 3)) / own.mean((1, 2, 3)).clamp(min=NOISE)


def _edges(x: Tensor) -> Tensor:
    """|grad luma|^2 from forward differences, (N, 1, H, W)."""
    y = F.pad(luma(x), (0, 1, 0, 1), mode="replicate")
    return (y[..., :-1, 1:] - y[..., :-1, :-1]).square() + (y[..., 1:, :-1] - y[..., :-1, :-1]).square()


def _double(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, 2 H, 2 W), pixel 2 i lies on pixel i. Bicubic warping of this loses no fine
    detail.
    """
    y = x.detach().cpu().numpy()
    for axis in (2, 3):
        y = resample_poly(y, 2, 1, axis=axis, padtype="reflect").astype(np.float32)
    return torch.from_numpy(y).to(x)


def _warp(fine: Tensor, flow: Tensor) -> Tensor:
    """x at p + flow(p), bicubic; fine: `_double` of x, flow (N, 2, H, W) in pixels of x (down, right)."""
    h, w = flow.shape[2:]
    rows = torch.arange(h, device=fine.device).view(1, h, 1) + flow[:, 0]
    columns = torch.arange(w, device=fine.device).view(1, 1, w) + flow[:, 1]
    grid = torch.stack([(2 * columns + 0.5) / w - 1, (2 * rows + 0.5) / h - 1], -1)
    return F.grid_sample(fine, grid, mode="bicubic", padding_mode="border", align_corners=False)
