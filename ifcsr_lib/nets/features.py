"""The feature networks of the loss: VGG16 as LPIPS has it, and the one of the pocket profile."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ..data import POCKET
from ..files.checks import check_pointer

POCKET_FEATURES = POCKET / "features.safetensors"


class VGG16Features(nn.Module):
    """torchvision's VGG16 up to relu5_3, tapped after relu1_2, 2_2, 3_3, 4_3, 5_3 with LPIPS's input scaling.

    (N, 3, H, W) in [0, 1] -> five maps at strides 1, 2, 4, 8, 16. pretrained=False builds the shape with
    random weights (tests). Raises OSError when the weights cannot be fetched. Source of the constants: LPIPS
    v0.1.
    """

    channels = (64, 128, 256, 512, 512)
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
    path = Path(importlib.util.find_spec("lpips").origin).parent / "weights" / "v0.1" / "vgg.pth"
    state = torch.load(path, map_location="cpu", weights_only=True)
    return [state[f"lin{i}.model.1.weight"].flatten() for i in range(5)]


class PocketFeatures(nn.Module):
    """VGG16 from conv1_1 to pool4: relu1_2, relu2_2, relu3_3, relu4_3 and what block 5 would see, pool4.

    (N, 3, H, W) in [0, 1] -> five maps of `channels` at strides 1, 2, 4, 8, 16. Sides of at least 16 pixels.
    Weights: data/pocket/features.safetensors, the layers of an edge detector that was tuned from ImageNet's
    VGG16 (source and licence: data/README.md). They are not torchvision's, so no distance here is LPIPS.
    widths: channels of the four blocks; tests make narrow ones.
    """

    widths = (64, 128, 256, 512)

    def __init__(self, widths: tuple[int, int, int, int] = widths):
        super().__init__()
        blocks = []
        for a, b, count in zip((3, *widths), widths, (2, 2, 3, 3)):
            sides = itertools.pairwise((a, *(b,) * count))
            blocks.append(
                nn.Sequential(*(m for c, d in sides for m in (nn.Conv2d(c, d, 3, padding=1), nn.ReLU())))
            )
        self.blocks = nn.ModuleList(blocks)
        # DECISION D48: the file ends before block 5; pool4 stands in for relu5_3
        self.channels = (*widths, widths[3])
        self.register_buffer("mean", torch.tensor([104.007, 116.669, 122.679]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        f, maps = 255 * x.flip(1) - self.mean, []  # the file's network wants BGR levels
        for i, block in enumerate(self.blocks):
            f = block(F.max_pool2d(f, 2) if i else f)
            maps.append(f)
        return [*maps, F.max_pool2d(maps[-1], 2)]


def pocket_features() -> tuple[PocketFeatures, list[Tensor]]:
    """The shipped network and its five channel weights. Raises FileNotFoundError when the file is missing."""
    if not POCKET_FEATURES.exists():
        raise FileNotFoundError(
            f"{POCKET_FEATURES} is missing; restore it from git or make it with tools/pocket/features.py"
        )
    check_pointer(POCKET_FEATURES)
    state, net = load_file(POCKET_FEATURES), PocketFeatures()
    lins = [torch.full((c,), w.item()) for c, w in zip(net.channels, state.pop("strength"), strict=True)]
    net.load_state_dict({k: v.float() for k, v in state.items()} | {"mean": net.mean})
    return net, lins


def unit(f: Tensor) -> Tensor:
    """Feature maps (N, C, h, w) divided by their length over channels."""
    return f / (f.square().sum(1, keepdim=True) + 1e-10).sqrt()
