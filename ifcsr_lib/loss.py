"""The depth-weighted specialised loss (E4 to E6). The networks it measures with: nets/features.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Config
from .nets.features import VGG16Features, lpips_lins, pocket_features, unit

# DECISION D1: l = 0 is the pixel MSE and l = 1..5 the five LPIPS layers, so that k = 1 is "LPIPS + MSE"
L = 5


def depth_weights(k: float, direction: str) -> Tensor:
    """The weights w_l / sum w, l = 0..L (E4): "fidelity" is k^(L-l) (E5), "realism" is k^(l-1) (E6).

    k: at least 1; k = 1 is uniform. Returns (L+1,), float64, summing to 1; the two directions mirror each
    other.
    """
    if not k >= 1:
        raise ValueError(f"k={k}; allowed: 1 or more (k = 1 is the LPIPS + MSE baseline)")
    l = torch.arange(L + 1, dtype=torch.float64)
    if direction == "fidelity":
        w = k ** (L - l)
    elif direction == "realism":
        w = k ** (l - 1)
    else:
        raise ValueError(f"direction={direction!r}; allowed: 'fidelity' (E5), 'realism' (E6)")
    return w / w.sum()


class FeatureDistance(nn.Module):
    """D(x_hat, x_H, l) for l = 0..L: pixel MSE, then an LPIPS distance at each of five depths.

    net: module, (N, 3, H, W) in [0, 1] -> five feature maps. lins: five (C_l,) non-negative channel weights.
    Everything is frozen; gradients flow to the images only.
    """

    def __init__(self, net: nn.Module, lins: list[Tensor]):
        super().__init__()
        self.net = net.eval().requires_grad_(False)
        for i, w in enumerate(lins):
            self.register_buffer(f"lin{i}", w.detach().clone().float().view(1, -1, 1, 1))

    def forward(self, x_hat: Tensor, x_H: Tensor) -> Tensor:
        """x_hat, x_H: (N, 3, H, W), RGB, [0, 1] (x_hat may overshoot). Returns (L+1,), means over
        the batch.
        """
        out = [F.mse_loss(2 * x_hat, 2 * x_H)]  # DECISION D13: MSE on the [-1, 1] scale, as both peers
        with torch.no_grad():
            target = self.net(x_H)
        for i, (a, b) in enumerate(zip(self.net(x_hat), target, strict=True)):
            d = (unit(a) - unit(b)).square()  # (N, C, h, w)
            out.append((getattr(self, f"lin{i}") * d).sum(1).mean())
        return torch.stack(out)


def specialised_loss(distances: Tensor, weights: Tensor) -> Tensor:
    """E4: sum_l w_l D_l / sum_l w_l. distances, weights: (L+1,). Returns a scalar."""
    w = weights.to(distances)
    return (w * distances).sum() / w.sum()


def feature_distance(cfg: Config) -> FeatureDistance:
    """The distance of a profile: cfg.features is "vgg16" (LPIPS-VGG) or "pocket" (shipped layers)."""
    if cfg.features == "vgg16":
        return FeatureDistance(VGG16Features(), lpips_lins())
    return FeatureDistance(*pocket_features())
