"""The depth-weighted specialised loss (E4-E6) and the feature networks it measures with."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Config
from .data import POCKET

# DECISION D1: l = 0 is the pixel MSE and l = 1..5 the five LPIPS layers, so that k = 1 is "LPIPS + MSE"
L = 5
POCKET_FEATURES = POCKET / "features.safetensors"


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
        """x_hat, x_H: (N, 3, H, W), RGB, [0, 1] (x_hat may overshoot). Returns (L+1,), each the mean over the
        batch.
        """
        out = [F.mse_loss(2 * x_hat, 2 * x_H)]  # DECISION D13: MSE on the [-1, 1] scale, as both peers
        with torch.no_grad():
            target = self.net(x_H)
        for i, (a, b) in enumerate(zip(self.net(x_hat), target, strict=True)):
            d = (_unit(a) - _unit(b)).square()  # (N, C, h, w)
            out.append((getattr(self, f"lin{i}") * d).sum(1).mean())
        return torch.stack(out)


def specialised_loss(distances: Tensor, weights: Tensor) -> Tensor:
    """E4: sum_l w_l D_l / sum_l w_l. distances, weights: (L+1,). Returns a scalar."""
    w = weights.to(distances)
    return (w * distances).sum() / w.sum()


def _unit(f: Tensor) -> Tensor:
    return f / (f.square().sum(1, keepdim=True) + 1e-10).sqrt()


class PocketFeatures(nn.Module):
    """A five-stage VGG-shaped network: two 3x3 convolutions and ReLU a stage, 2x2 max pooling between stages,
    and on each stage a 1x1 head that predicts what its teacher sees there.

    (N, 3, H, W) in [0, 1] -> five maps of `channels` at strides 1, 2, 4, 8, 16. Sides of at least 16 pixels.
    Weights: data/pocket/features.safetensors, distilled in notebooks/90_pocket_backbone.ipynb
    (pocket.Distil).
    """

    trunk = (16, 32, 64, 96, 128)
    channels = (64, 128, 256, 512, 768)

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.Conv2d(b, b, 3, padding=1), nn.ReLU())
            for a, b in itertools.pairwise((3, *self.trunk))
        )
        self.heads = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(self.trunk, self.channels))

    def forward(self, x: Tensor) -> list[Tensor]:
        f, maps = (x - 0.5) / 0.25, []
        for i, (stage, head) in enumerate(zip(self.stages, self.heads)):
            f = stage(F.max_pool2d(f, 2) if i else f)
            maps.append(head(f))
        return maps


class VGG16Features(nn.Module):
    """torchvision's VGG16 up to relu5_3, tapped after relu1_2, 2_2, 3_3, 4_3, 5_3 with LPIPS's input scaling.

    pretrained=False builds the shape with random weights (tests). Source of the constants: LPIPS v0.1.
    """

    ends = (4, 9, 16, 23, 30)

    def __init__(self, pretrained: bool = True):
        super().__init__()
        from torchvision.models import VGG16_Weights, vgg, vgg16

        try:
            if pretrained:
                layers = vgg16(weights=VGG16_Weights.IMAGENET1K_V1).features
            else:
                layers = vgg.make_layers(vgg.cfgs["D"])
        except OSError as e:  # URLError is one
            raise OSError(
                f"VGG16 weights cannot be fetched ({e}). Go online once, put "
                f"{VGG16_Weights.IMAGENET1K_V1.url} into torch's hub cache "
                "(torch.hub.get_dir()/checkpoints), or use the override features='pocket'."
            ) from e
        self.stages = nn.ModuleList(layers[a:b] for a, b in zip((0, *self.ends), self.ends))
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        f, maps = (2 * x - 1 - self.shift) / self.scale, []
        for stage in self.stages:
            f = stage(f)
            maps.append(f)
        return maps


def lpips_lins() -> list[Tensor]:
    """The five LPIPS v0.1 channel weights for VGG16, from the installed lpips package (BSD-2)."""
    import importlib.util

    path = Path(importlib.util.find_spec("lpips").origin).parent / "weights" / "v0.1" / "vgg.pth"
    state = torch.load(path, map_location="cpu", weights_only=True)
    return [state[f"lin{i}.model.1.weight"].flatten() for i in range(L)]


def feature_distance(cfg: Config) -> FeatureDistance:
    """The distance of a profile: cfg.features is "vgg16" (LPIPS-VGG) or "pocket" (the shipped network)."""
    if cfg.features == "vgg16":
        return FeatureDistance(VGG16Features(), lpips_lins())
    from safetensors.torch import load_file

    if not POCKET_FEATURES.exists():
        raise FileNotFoundError(
            f"{POCKET_FEATURES} is missing; restore it from git or run notebooks/90_pocket_backbone"
        )
    state = load_file(POCKET_FEATURES)
    net = PocketFeatures()
    lins = [state.pop(f"lin{i}") for i in range(L)]
    net.load_state_dict({k: v.float() for k, v in state.items()})
    return FeatureDistance(net, lins)
