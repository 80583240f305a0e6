"""The depth-weighted specialised loss (E4-E6) and the feature networks it measures with."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Config
from .data import POCKET

L = 5  # DECISION D1: l = 0 is the pixel MSE and l = 1..5 the five LPIPS layers, so that k = 1 is "LPIPS + MSE"
POCKET_FEATURES = POCKET / "features.safetensors"


def depth_weights(k: float, direction: str) -> Tensor:
    """The weights w_l / sum w, l = 0..L (E4): "fidelity" is k^(L-l) (E5), "realism" is k^(l-1) (E6).

    k: at least 1; k = 1 is uniform. Returns (L+1,), float64, summing to 1; the two directions mirror each other.
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
        """x_hat, x_H: (N, 3, H, W), RGB, [0, 1] (x_hat may overshoot). Returns (L+1,), each the mean over the batch."""
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


class Discriminator(nn.Module):
    """The judge of cfg.adversarial (not from the paper): a patch network on pixels, 41 of them wide, every layer but the
    last divided by its largest singular value.

    (N, 3, H, W) in [0, 1] -> logits (N, 1, ~H/8, ~W/8), above 0 for what looks like a photograph. It stays near a coin's
    loss for hundreds of steps, which phi can follow; judges that see more win in tens of steps and teach nothing
    (results/pocket/LOG.md). Source of the ideas: PatchGAN (Isola et al. 2017), spectral normalisation (Miyato et al. 2018).
    """

    def __init__(self, width: int = 32):
        super().__init__()
        widths = (3, width, 2 * width, 3 * width, 4 * width)
        layers = [_Bounded(a, b, 4, 2 if i else 1, 1) for i, (a, b) in enumerate(itertools.pairwise(widths))]
        self.pixels = nn.Sequential(
            *itertools.chain.from_iterable((layer, nn.LeakyReLU(0.2)) for layer in layers), nn.Conv2d(widths[-1], 1, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.pixels(2 * x - 1)


class _Bounded(nn.Conv2d):
    """A convolution by its weight over the weight's largest singular value, from twenty power iterations (a state between
    steps, as torch's spectral_norm keeps, would be one more thing to resume)."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight.flatten(1)
        with torch.no_grad():
            v = w.sum(0)
            for _ in range(20):
                u = F.normalize(w @ v, dim=0)
                v = F.normalize(w.mT @ u, dim=0)
        return self._conv_forward(x, self.weight / (u @ w @ v), self.bias)


def hinge(net: Discriminator, fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """(loss of the image's maker, loss of the discriminator), means over the logits; each trains its own side only."""
    net.requires_grad_(False)
    maker = -net(fake).mean()
    net.requires_grad_(True)
    return maker, F.relu(1 - net(real)).mean() + F.relu(1 + net(fake.detach())).mean()


def score_distillation(z: Tensor, wanted: Tensor, own: Tensor) -> Tensor:
    """mean of 1/2 (z - sg[z - g])^2 with g = (own - wanted) / mean|z - wanted|, whose gradient is g / size; not from the paper.

    z: (N, C, h, w) latents that take the gradient; wanted, own: what two noise predictions make of them, without noise.
    Source: the weighting of DMD, as OSEDiff (VSD) and PiSA-SR (CSD) use it.
    """
    with torch.no_grad():
        g = (own - wanted) / (z - wanted).abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-6)
    return 0.5 * F.mse_loss(z, (z - g).detach())


def texture_distance(x: Tensor, x_H: Tensor) -> Tensor:
    """mean |log e(x) - log e(x_H)|, e the local energy of fine structure; a scalar, not from the paper.

    x, x_H: (N, 3, H, W), RGB, [0, 1] (x may overshoot); gradients flow to x only. Sides of at least 20 pixels. e is the root mean
    square, in windows of 8 x 8 pixels every 4, of each of the eight 3 x 3 DCT filters that see no constant, on luma and two
    opponent colours, at full and half size, with one 8-bit level added in squares; and of the full size's three taps 4 pixels
    apart, along rows and along columns, which answer to a pattern with a decoder's period and to little else. Where a texture
    went is no part of e: an error at every pixel is least for the mean of all textures that are possible, which is flat; this
    one is least for their median strength.
    Source of the idea: Laws' texture energy (1980), and comparing statistics of patches in place of pixels, EnhanceNet
    (Sajjadi et al. 2017).
    """
    with torch.no_grad():
        wanted = _texture_energy(x_H)
    return torch.stack([F.l1_loss(e, w) for e, w in zip(_texture_energy(x), wanted, strict=True)]).mean()


def coarse(x: Tensor, cell: int) -> Tensor:
    """What cells of `cell` x `cell` pixels (an even number) can hold of x (N, 3, H, W): means over cell, then 2 pixels a side.
    Nothing is left of a pattern that repeats from cell to cell but its mean."""
    window = torch.ones(cell + 1).to(x) / cell
    window[[0, -1]] /= 2
    return F.conv2d(F.pad(x, (cell // 2,) * 4, mode="reflect"), (window[:, None] * window).expand(3, 1, -1, -1), groups=3)


def lattice_share(x: Tensor, cell: int) -> Tensor:
    """How much of x's fine structure repeats from cell to cell: sum P^2 / sum (x - coarse(x))^2; a scalar from 0 to 1, not from
    the paper.

    x: (N, 3, H, W), sides of at least 8 cells of `cell` pixels. P: the mean cell of each window of 8 x 8 cells. A pattern with
    the period of the cells has 1, white noise 1/64.
    """
    side = 8 * cell
    h, w = x.shape[-2] // side * side, x.shape[-1] // side * side
    fine = (x - coarse(x, cell))[..., :h, :w].reshape(len(x), 3, h // side, 8, cell, w // side, 8, cell)
    return fine.mean((3, 6)).square().mean() / fine.square().mean().clamp_min(1e-8)


def _texture_energy(x: Tensor) -> list[Tensor]:
    x = _opponent(x)
    full, half = _fine_structure(x), _fine_structure(F.avg_pool2d(x, 2))
    taps = torch.full((24, 1, 1, 3), 3**-0.5).to(x)
    combs = [F.conv2d(full, t, groups=24, dilation=4) for t in (taps, taps.mT)]
    return [0.5 * (F.avg_pool2d(r.square(), 8, 4) + 1 / 255**2).log() for r in (full, *combs, half)]


def _opponent(x: Tensor) -> Tensor:
    """RGB (N, 3, H, W) -> luma and two opponent colours, each a unit vector of RGB."""
    return torch.einsum("oc,nchw->nohw", F.normalize(torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]]), dim=1).to(x), x)


def _fine_structure(x: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 24, H - 2, W - 2): the eight 3 x 3 DCT filters that see no constant, on each channel."""
    i = torch.arange(3.0)
    dct = F.normalize(torch.cos((2 * i + 1) * i[:, None] * (torch.pi / 6)), dim=1)  # rows: constant, slope, curve
    bank = torch.einsum("uy,vx->uvyx", dct, dct).flatten(0, 1)[1:].unsqueeze(1).repeat(3, 1, 1, 1).to(x)  # (24, 1, 3, 3)
    return F.conv2d(x, bank, groups=3)


class PocketFeatures(nn.Module):
    """A five-stage VGG-shaped network: two 3x3 convolutions and ReLU a stage, 2x2 max pooling between stages, and on each
    stage a 1x1 head that predicts what its teacher sees there.

    (N, 3, H, W) in [0, 1] -> five maps of `channels` at strides 1, 2, 4, 8, 16. Sides of at least 16 pixels.
    Weights: data/pocket/features.safetensors, distilled in notebooks/90_pocket_backbone.ipynb (pocket.Distil).
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
                f"VGG16 weights cannot be fetched ({e}). Go online once, put {VGG16_Weights.IMAGENET1K_V1.url} into "
                "torch's hub cache (torch.hub.get_dir()/checkpoints), or use the override features='pocket'."
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
        raise FileNotFoundError(f"{POCKET_FEATURES} is missing; restore it from git or run notebooks/90_pocket_backbone")
    state = load_file(POCKET_FEATURES)
    net = PocketFeatures()
    lins = [state.pop(f"lin{i}") for i in range(L)]
    net.load_state_dict({k: v.float() for k, v in state.items()})
    return FeatureDistance(net, lins)
