"""Real-ESRGAN's second-order x4 degradation in batched tensors: a clean photo in, a realistic low-quality one
out.

blur 1, resize 1, noise 1, JPEG 1, blur 2 (or not), resize 2, noise 2, then by a coin {resize 3 + sinc, JPEG
2} or {JPEG 2, resize 3 + sinc}, 8 bits. The clean photo is not sharpened. Source: Wang et al., Real-ESRGAN
(ICCVW 2021). `draw_plan` draws every parameter of one image, `apply_plan` runs the stages, `degrade` does
both for a batch.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Generator, Tensor

from .files.images import check_images

KERNEL_SIZE = 21  # every kernel is padded to this
KERNELS = {
    "iso": 0.45,
    "aniso": 0.25,
    "general iso": 0.12,
    "general aniso": 0.03,
    "plateau iso": 0.12,
    "plateau aniso": 0.03,
}
MODES = ("area", "bilinear", "bicubic")
STAGES = (
    "blur 1",
    "resize 1",
    "noise 1",
    "JPEG 1",
    "blur 2",
    "resize 2",
    "noise 2",
    "resize 3 + sinc",
    "JPEG 2",
    "8 bits",
)


@dataclass(frozen=True)
class Round:
    """What one blur, resize, noise, JPEG round draws from; pairs are the limits of a uniform draw."""

    p_blur: float  # probability that there is a blur
    sigma: tuple[float, float]  # of the blur, pixels
    p_resize: tuple[float, float, float]  # up, down, keep
    # down from U(low, 1), up from U(1, high); round 2: relative to 1/4 of the input
    scale: tuple[float, float]
    gaussian: tuple[float, float]  # standard deviation, 8-bit levels
    poisson: tuple[float, float]  # factor on the shot noise
    quality: tuple[float, float]  # of the JPEG file, 1 to 100
    p_sinc: float = 0.1  # probability that the blur is a sinc, else one of KERNELS
    p_gaussian: float = 0.5  # else Poisson
    p_grey: float = 0.4  # one noise for the three channels


@dataclass(frozen=True)
class Preset:
    """Both rounds and the last stage."""

    first: Round
    second: Round
    p_last_sinc: float = 0.8
    p_jpeg_last: float = 0.5


PRESETS = {
    "x4plus": Preset(
        Round(1.0, (0.2, 3.0), (0.2, 0.7, 0.1), (0.15, 1.5), (1, 30), (0.05, 3.0), (30, 95)),
        Round(0.8, (0.2, 1.5), (0.3, 0.4, 0.3), (0.3, 1.2), (1, 25), (0.05, 2.5), (30, 95)),
    ),
    "light": Preset(
        Round(1.0, (0.2, 3.0), (0.2, 0.7, 0.1), (0.3, 1.5), (1, 15), (0.05, 2.0), (60, 95)),
        Round(0.5, (0.2, 1.5), (0.3, 0.4, 0.3), (0.6, 1.2), (1, 12), (0.05, 1.0), (60, 100)),
    ),
    # ours: what a lens does to a photograph that was kept well, which the other two never leave free of noise
    # or JPEG
    "camera": Preset(
        Round(1.0, (0.2, 3.0), (0.0, 0.5, 0.5), (0.5, 1.0), (0.1, 2.0), (0.01, 0.1), (95, 100)),
        Round(0.2, (0.2, 1.5), (0.0, 0.5, 0.5), (0.6, 1.0), (0.1, 2.0), (0.01, 0.1), (92, 100)),
        p_last_sinc=0.2,
    ),
}


@dataclass(frozen=True)
class RoundDraw:
    """What one round drew for one image; the fields of `Round` made definite."""

    blur: str  # "none", "sinc" or a name of KERNELS
    kernel: Tensor | None  # (21, 21)
    scale: float
    mode: str
    noise: str  # "gaussian" or "poisson"
    strength: float  # sigma in 8-bit levels, or the Poisson factor
    grey: bool
    quality: float


@dataclass(frozen=True)
class Plan:
    """Every parameter of one image's degradation."""

    first: RoundDraw
    second: RoundDraw
    last_mode: str
    last_kernel: Tensor | None  # (21, 21), the sinc
    jpeg_last: bool


def degrade(
    hq: Tensor, seed: int, preset: str = "x4plus", index: int | Sequence[int] = 0, trace: bool = False
):
    """Make low-quality images, a quarter of the height and width.

    hq: (N, 3, H, W) float32 RGB in [0, 1], any device; H and W multiples of 4, at least 64.
    seed, index: integers >= 0. All randomness of an image comes from its own generator(seed, index), so
        neither the batch around it nor the number of workers changes it. index: one per image, or an integer
        (image i: index + i).
    preset: a name of PRESETS.
    trace: also return every stage, [(name of STAGES, [(3, h, w) per image])]; sizes differ between images,
        and values after a resize may overshoot [0, 1]. The last two stages before "8 bits" swap places by a
        coin.
    Returns lq (N, 3, H/4, W/4) in [0, 1], multiples of 1/255, on hq's device; with trace, (lq, stages).
    Raises TypeError or ValueError for anything else.
    """
    indices = _check(hq, seed, preset, index)
    results = []
    for x, i in zip(hq.detach().split(1), indices, strict=True):
        # DECISION D19: every choice is drawn per image; Real-ESRGAN draws resize, noise kind and order once a
        # batch
        rng = generator(seed, i)
        stages = apply_plan(x, draw_plan(rng, PRESETS[preset]), rng)
        with torch.autocast(hq.device.type, enabled=False):  # half precision would ruin the JPEG's rounding
            results.append({name: out for name, out in stages if trace or name == STAGES[-1]})
    lq = torch.cat([stages[STAGES[-1]] for stages in results])
    return (lq, [(name, [stages[name][0] for stages in results]) for name in STAGES]) if trace else lq


# DECISION D40: denoising is blind over the usual test levels, 15 to 50 of 255; the paper claims transfer
# without a recipe
NOISE_LEVELS = (15.0, 50.0)


def noisy(x_H: Tensor, seed: int, index: Sequence[int]) -> Tensor:
    """The other task: white Gaussian noise on RGB at the same size, then 8 bits. NOT from the paper.

    x_H: (N, 3, H, W) in [0, 1]; seed, index: as in `degrade`, one index an image. Each image's standard
    deviation is drawn from U(NOISE_LEVELS), in 8-bit levels. Returns (N, 3, H, W) in [0, 1].
    """
    check_images(x_H, "x_H")
    out = []
    for x, i in zip(x_H.detach().split(1), index, strict=True):
        rng = generator(seed, i)
        out.append(add_gaussian_noise(x, _uniform(rng, *NOISE_LEVELS), False, rng))
    return torch.cat(out).clamp(0, 1).mul(255).round().div(255)


def generator(seed: int, index: int) -> Generator:
    """The CPU generator of one image: numpy's SeedSequence mixes (seed, index), so neighbours are
    unrelated.
    """
    return Generator().manual_seed(int(np.random.SeedSequence((seed, index)).generate_state(1)[0]))


def draw_plan(rng: Generator, params: Preset) -> Plan:
    """Draw every parameter of one image."""
    sinc = _uniform(rng) < params.p_last_sinc
    return Plan(
        first=_draw_round(rng, params.first),
        second=_draw_round(rng, params.second),
        last_mode=_choice(rng, MODES),
        last_kernel=_sample_sinc(rng, _sample_size(rng), math.pi / 3) if sinc else None,
        jpeg_last=_uniform(rng) < params.p_jpeg_last,
    )


def apply_plan(x: Tensor, plan: Plan, rng: Generator) -> Iterator[tuple[str, Tensor]]:
    """Run a plan on one image x (1, 3, H, W), yielding (stage, image) after each stage; rng gives the noise
    fields.
    """
    h, w = x.shape[-2:]
    for number, part, base in ((1, plan.first, 1), (2, plan.second, 4)):
        if part.kernel is not None:
            x = blur(x, part.kernel[None])
        yield f"blur {number}", x
        x = resize(x, (int(h / base * part.scale), int(w / base * part.scale)), part.mode)
        yield f"resize {number}", x
        add_noise = add_gaussian_noise if part.noise == "gaussian" else add_poisson_noise
        x = add_noise(x, part.strength, part.grey, rng)
        yield f"noise {number}", x
        if number == 1:
            x = jpeg(x, part.quality)
            yield "JPEG 1", x
    for stage in STAGES[7:9] if plan.jpeg_last else STAGES[8:6:-1]:
        if stage == "JPEG 2":
            x = jpeg(x, plan.second.quality)
        else:
            x = resize(x, (h // 4, w // 4), plan.last_mode)
            x = x if plan.last_kernel is None else blur(x, plan.last_kernel[None])
        yield stage, x
    yield "8 bits", x.clamp(0, 1).mul(255).round().div(255)


def sample_kernel(rng: Generator, params: Round) -> tuple[str, Tensor]:
    """Draw a blur kernel: ("sinc" or a name of KERNELS, (21, 21) float32 which sums to 1).

    Odd size from 7 to 21, zero outside. A sinc's cutoff is U(pi/3, pi) below size 13, else U(pi/5, pi). By a
    coin, beta is U(.5, 1) or U(1, 4) (general), 1 or U(1, 2) (plateau).
    """
    size = _sample_size(rng)
    if _uniform(rng) < params.p_sinc:
        return "sinc", _sample_sinc(rng, size, math.pi / 3 if size < 13 else math.pi / 5)
    kind = _choice(rng, tuple(KERNELS), tuple(KERNELS.values()))
    sigma, angle = _uniform(rng, *params.sigma), 0.0
    sigma2 = sigma
    if kind.endswith("aniso"):
        sigma2, angle = _uniform(rng, *params.sigma), _uniform(rng, -math.pi, math.pi)
    beta = 1.0
    if " " in kind:
        low, high = (0.5, 4.0) if kind.startswith("general") else (1.0, 2.0)
        beta = _uniform(rng, low, 1.0) if _uniform(rng) < 0.5 else _uniform(rng, 1.0, high)
    return kind, bump_kernel(size, (sigma, sigma2), angle, beta, plateau=kind.startswith("plateau"))


def bump_kernel(
    size: int, sigma: tuple[float, float], angle: float = 0.0, beta: float = 1.0, plateau=False
) -> Tensor:
    """A Gaussian and its relatives, (21, 21), sum 1.

    q = (u / sigma[0])^2 + (v / sigma[1])^2, with u and v: x and y turned by angle (radians). exp(-q^beta /
    2), which is Gaussian at beta = 1; the plateau is 1 / (1 + q^beta).
    """
    y, x = _grid(size)
    c, s = math.cos(angle), math.sin(angle)
    q = (((c * x + s * y) / sigma[0]) ** 2 + ((c * y - s * x) / sigma[1]) ** 2) ** beta
    return _pad_kernel(1 / (1 + q) if plateau else np.exp(-q / 2))


def sinc_kernel(size: int, cutoff: float) -> Tensor:
    """The circular low-pass filter, (21, 21), sum 1: cutoff J1(cutoff r) / (2 pi r), cutoff in radians a
    pixel.
    """
    r = np.hypot(*_grid(size))
    r[size // 2, size // 2] = 1e-6  # J1(a) / a -> 1/2
    return _pad_kernel(
        cutoff * torch.special.bessel_j1(torch.from_numpy(cutoff * r)).numpy() / (2 * math.pi * r)
    )


def blur(x: Tensor, kernels: Tensor) -> Tensor:
    """Correlate each image with its own kernel, the border mirrored without repeating the edge pixel.

    x: (N, C, H, W), any side; kernels: (N, k, k), k odd. Computed by FFT: the time does not depend on k.
    """
    h, w = x.shape[-2:]
    k = kernels.shape[-1]
    if kernels.shape != (len(x), k, k) or k % 2 == 0:
        raise ValueError(
            f"kernels came as {tuple(kernels.shape)}; allowed: ({len(x)}, k, k), k odd, one per image"
        )
    p = k // 2
    if p < min(h, w):
        x = F.pad(x, (p, p, p, p), mode="reflect")
    elif p:  # F.pad refuses to mirror more than the image holds
        x = x[..., _mirror(h, p).to(x.device)[:, None], _mirror(w, p).to(x.device)]
    size = (next_fast_len(h + 2 * p, real=True), next_fast_len(w + 2 * p, real=True))
    spectrum = torch.fft.rfft2(kernels.to(x)[:, None], s=size).conj()
    return torch.fft.irfft2(torch.fft.rfft2(x, s=size).mul_(spectrum), s=size)[..., :h, :w].contiguous()


def resize(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Resize (N, C, H, W) to size without antialiasing; mode "area", "bilinear" or "bicubic" (which
    overshoots).
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}; allowed: {', '.join(MODES)}")
    return x if x.shape[-2:] == tuple(size) else F.interpolate(x, size=size, mode=mode)


def add_gaussian_noise(x: Tensor, sigma: float, grey: bool, rng: Generator) -> Tensor:
    """clamp(x + sigma / 255 n), n standard normal, the same for the channels of a pixel when grey; x (N, 3,
    H, W).
    """
    return _normal(x, grey, rng).mul_(sigma / 255).add(x).clamp_(0, 1)


def add_poisson_noise(x: Tensor, factor: float, grey: bool, rng: Generator) -> Tensor:
    """clamp(x + factor (P(v x') / v - x')), P a Poisson draw: shot noise, of variance factor^2 x' / v.

    x: (N, 3, H, W). x' is x rounded to 8 bits, or its luma when grey (one noise for the channels); v is the
    number of distinct values in x' of the image, rounded up to a power of two.
    """
    signal = torch.einsum("c,nchw->nhw", _TO_YCC[0].to(x), x)[:, None] if grey else x
    levels = signal.clamp(0, 1).mul_(255).round_()
    # DECISION D21: the Poisson count is the quantile of a normal draw, read off a table: several times as
    # fast as torch.poisson, one stream on CPU and GPU, and a rounding difference in x cannot shift the draws
    # of later pixels
    place = (
        _normal(levels, False, rng).add_(_Z_MAX).mul_(_Z_BINS / (2 * _Z_MAX)).floor_().clamp_(0, _Z_BINS - 1)
    )
    place = place.add_(levels, alpha=_Z_BINS).int()
    noise = torch.empty_like(levels)
    for i, level in enumerate(levels):
        distinct = int(torch.bincount(level.flatten().int(), minlength=256).count_nonzero())
        table = _poisson_table(2 ** math.ceil(math.log2(distinct))).to(x.device)
        noise[i] = table.index_select(0, place[i].flatten()).view_as(level)
    return noise.mul_(factor).add(x).clamp_(0, 1)


def jpeg(x: Tensor, quality: float | Tensor) -> Tensor:
    """Write and read back a JPEG file (baseline, 4:2:0, the standard's tables), as libjpeg does to within its
    rounding.

    x: (N, 3, H, W), clamped to [0, 1] and rounded to 8 bits first; sides that are no multiples of 16 repeat
        the edge.
    quality: 1 to 100, a number or (N,). Steps are floor((standard s + 50) / 100) within 1 to 255, s = 5000 /
    quality below 50, else 200 - 2 quality. Returns multiples of 1/255.
    """
    # DECISION D20: 8 bits in and out, chroma upsampled by a triangle as in files; DiffJPEG keeps floats,
    # repeats chroma
    n, _, h, w = x.shape
    quality = torch.as_tensor(quality, dtype=torch.float64).cpu().expand(n)
    if not bool(((quality >= 1) & (quality <= 100)).all()):
        raise ValueError(f"quality={quality.tolist()}; allowed: 1 to 100")
    scale = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
    tables = ((_TABLES * scale.view(n, 1, 1, 1) + 50) / 100).floor().clamp_(1, 255).to(x)  # (N, 2, 8, 8)
    pixels = F.pad(x.clamp(0, 1).mul_(255).round_(), (0, -w % 16, 0, -h % 16), mode="replicate")
    ycc = (_TO_YCC.to(x) @ pixels.flatten(2)).view_as(pixels).round_()  # Cb, Cr centred at 0
    luma = _quantise(ycc[:, :1] - 128, tables[:, 0]).add_(128)
    chroma = _quantise(F.avg_pool2d(ycc[:, 1:], 2).round_(), tables[:, 1])
    ycc = torch.cat([luma, F.interpolate(chroma, scale_factor=2, mode="bilinear").round_()], dim=1)
    out = (_TO_RGB.to(x) @ ycc.flatten(2)).view_as(ycc).round_().clamp_(0, 255).div_(255)
    return out[..., :h, :w].contiguous()


_TO_YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
_TO_RGB = torch.tensor([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])
_LUMA = """16 11 10 16 24 40 51 61  12 12 14 19 26 58 60 55  14 13 16 24 40 57 69 56  14 17 22 29 51 87 80 62
    18 22 37 56 68 109 103 77  24 35 55 64 81 104 113 92
    49 64 78 87 103 121 120 101  72 92 95 98 112 100 103 99"""
_CHROMA = "17 18 24 47 99 99 99 99  18 21 26 66 99 99 99 99  24 26 56 99 99 99 99 99  47 66" + 38 * " 99"
_TABLES = torch.tensor([[float(v) for v in text.split()] for text in (_LUMA, _CHROMA)]).double().view(2, 8, 8)
_DCT = torch.tensor(
    [
        [math.sqrt((2 if u else 1) / 8) * math.cos((2 * i + 1) * u * math.pi / 16) for i in range(8)]
        for u in range(8)
    ]
)
_Z_MAX, _Z_BINS = 5.12, 2048


def _quantise(plane: Tensor, table: Tensor) -> Tensor:
    """Round the DCT of the 8x8 blocks of plane (N, C, H, W), 8-bit levels centred at 0, to steps of table (N,
    8, 8).
    """
    n, c, h, w = plane.shape
    dct, steps = _DCT.to(plane), table.view(n, 1, 1, 8, 1, 8)
    rows = dct @ plane.reshape(n, c, h // 8, 8, w)
    blocks = (rows.view(n, c, h // 8, 8, w // 8, 8) @ dct.T).div_(steps).round_().mul_(steps)
    rows = dct.T @ (blocks @ dct).view(n, c, h // 8, 8, w)
    return rows.view(n, c, h, w).round_().clamp_(-128, 127)


@cache
def _poisson_table(v: int) -> Tensor:
    """(256 * _Z_BINS,): noise P / v - level / 255 for each level and each bin of a standard normal draw."""
    rate = torch.arange(256, dtype=torch.float64)[:, None] * (v / 255)
    counts = torch.arange(v + 8 * math.isqrt(v) + 16, dtype=torch.float64)
    cdf = (torch.xlogy(counts, rate) - rate - torch.lgamma(counts + 1)).exp_().cumsum(1)  # (256, counts)
    z = (torch.arange(_Z_BINS, dtype=torch.float64) + 0.5) * (2 * _Z_MAX / _Z_BINS) - _Z_MAX
    draws = torch.searchsorted(cdf, torch.special.ndtr(z).expand(256, -1).contiguous())
    return ((draws - rate) / v).float().flatten()


def _draw_round(rng: Generator, params: Round) -> RoundDraw:
    kind, kernel = sample_kernel(rng, params) if _uniform(rng) < params.p_blur else ("none", None)
    low, high = _choice(rng, ((1, params.scale[1]), (params.scale[0], 1), (1, 1)), params.p_resize)
    noise = "gaussian" if _uniform(rng) < params.p_gaussian else "poisson"
    return RoundDraw(
        blur=kind,
        kernel=kernel,
        scale=_uniform(rng, low, high),
        mode=_choice(rng, MODES),
        noise=noise,
        strength=_uniform(rng, *getattr(params, noise)),
        grey=_uniform(rng) < params.p_grey,
        quality=_uniform(rng, *params.quality),
    )


def _uniform(rng: Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * torch.rand((), generator=rng, dtype=torch.float64).item()


def _choice(rng: Generator, options: Sequence, p: Sequence[float] | None = None):
    u = _uniform(rng)
    edges = accumulate(p or [1 / len(options)] * len(options))
    return next((option for option, edge in zip(options, edges, strict=True) if u < edge), options[-1])


def _normal(x: Tensor, grey: bool, rng: Generator) -> Tensor:
    return torch.randn(len(x), 1 if grey else x.shape[1], *x.shape[2:], generator=rng).to(x.device)


def _sample_size(rng: Generator) -> int:
    return _choice(rng, range(7, KERNEL_SIZE + 1, 2))


def _sample_sinc(rng: Generator, size: int, low: float) -> Tensor:
    return sinc_kernel(size, _uniform(rng, low, math.pi))


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    axis = np.arange(size) - size // 2.0
    return axis[:, None], axis


def _pad_kernel(kernel: np.ndarray) -> Tensor:
    return F.pad(torch.from_numpy(kernel / kernel.sum()), 4 * ((KERNEL_SIZE - len(kernel)) // 2,)).float()


def _mirror(n: int, p: int) -> Tensor:
    i = torch.arange(-p, n + p).remainder(max(2 * n - 2, 1))
    return torch.minimum(i, 2 * n - 2 - i)


def _check(hq: Tensor, seed: int, preset: str, index: int | Sequence[int]) -> list[int]:
    """The index of each image; every error of `degrade`."""
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r} is unknown; allowed: {', '.join(PRESETS)}")
    check_images(hq, "hq", min_side=64)
    n, _, h, w = hq.shape
    if h % 4 or w % 4:
        raise ValueError(f"hq is {w}x{h} pixels; allowed: multiples of 4 on each side. Crop it first")
    try:
        seed = operator.index(seed)
        indices = index if np.iterable(index) else [operator.index(index) + i for i in range(n)]
        indices = [operator.index(i) for i in indices]
    except TypeError:
        raise TypeError(f"seed={seed!r}, index={index!r}; allowed: integers, or one index an image") from None
    if seed < 0 or min(indices, default=0) < 0:
        raise ValueError(f"seed={seed}, index={index}; allowed: 0 or more")
    if len(indices) != n:
        raise ValueError(
            f"index has {len(indices)} entries for {n} images; pass one per image, or one integer"
        )
    return indices
