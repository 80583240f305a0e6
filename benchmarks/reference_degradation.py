"""Real-ESRGAN's second-order degradation one image at a time in numpy, scipy and Pillow: what `degrade` is
measured against.

Written from the published description (Wang et al., ICCVW 2021, and the parameter tables of the released
configurations), with no line shared with ifcsr_lib.degradation. Same order, ranges and probabilities; other
random numbers. Resizing has no antialiasing, as in the original, so it is done by sparse matrices here and
not by Pillow, which always has it.
"""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image
from scipy import ndimage, signal, sparse, special

COMMON = dict(
    kinds=("iso", "aniso", "general iso", "general aniso", "plateau iso", "plateau aniso"),
    kind_p=(0.45, 0.25, 0.12, 0.03, 0.12, 0.03),
    sinc_p=0.1,
    last_sinc_p=0.8,
    gaussian_p=0.5,
    grey_p=0.4,
    rounds=(
        dict(sigma=(0.2, 3.0), up_down_keep=(0.2, 0.7, 0.1)),
        dict(sigma=(0.2, 1.5), up_down_keep=(0.3, 0.4, 0.3)),
    ),
)
PRESETS = {  # for rounds 1 and 2: probability of a blur, scale, sigma, Poisson scale, JPEG quality
    "x4plus": (
        (1.0, (0.15, 1.5), (1, 30), (0.05, 3.0), (30, 95)),
        (0.8, (0.3, 1.2), (1, 25), (0.05, 2.5), (30, 95)),
    ),
    "light": (
        (1.0, (0.3, 1.5), (1, 15), (0.05, 2.0), (60, 95)),
        (0.5, (0.6, 1.2), (1, 12), (0.05, 1.0), (60, 100)),
    ),
}


def degrade(x: np.ndarray, seed, preset: str = "x4plus", how: str = "direct") -> np.ndarray:
    """x: (H, W, 3) float in [0, 1], sides multiples of 4 -> (H/4, W/4, 3) in [0, 1], multiples of 1/255.

    how: "direct" filters by the sum over the kernel, as the original does, "fft" by Fourier transform.
    """
    rng, (h, w) = np.random.default_rng(seed), x.shape[:2]
    for number, (blur_p, scale, sigma, poisson, quality) in enumerate(PRESETS[preset]):
        of = COMMON["rounds"][number]
        if rng.random() < blur_p:
            x = filter_(x, any_kernel(rng, of["sigma"]), how)
        way = rng.choice(3, p=of["up_down_keep"])
        factor = (rng.uniform(1, scale[1]), rng.uniform(scale[0], 1), 1.0)[way] / (1, 4)[number]
        x = resize(x, int(h * factor), int(w * factor), rng)
        x = noise(x, sigma, poisson, rng)
        if number == 0:
            x = jpeg(x, rng.uniform(*quality))
    jpeg_first = rng.random() < 0.5
    x = jpeg(x, rng.uniform(*quality)) if jpeg_first else x
    x = resize(x, h // 4, w // 4, rng)
    if rng.random() < COMMON["last_sinc_p"]:
        x = filter_(x, sinc_kernel(size(rng), rng.uniform(math.pi / 3, math.pi)), how)
    x = x if jpeg_first else jpeg(x, rng.uniform(*quality))
    return np.round(x.clip(0, 1) * 255) / 255


def size(rng) -> int:
    return int(rng.choice(range(7, 22, 2)))


def any_kernel(rng, sigma) -> np.ndarray:
    n = size(rng)
    if rng.random() < COMMON["sinc_p"]:
        return sinc_kernel(n, rng.uniform(math.pi / (3 if n < 13 else 5), math.pi))
    kind = rng.choice(COMMON["kinds"], p=COMMON["kind_p"])
    s1, s2, angle = rng.uniform(*sigma), rng.uniform(*sigma), rng.uniform(-math.pi, math.pi)
    s2 = s1 if kind.endswith(" iso") or kind == "iso" else s2
    beta = 1.0
    if " " in kind:
        low, high = (0.5, 4.0) if kind.startswith("general") else (1.0, 2.0)
        beta = rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    inverse = np.linalg.inv(turn @ np.diag([s1**2, s2**2]) @ turn.T)
    axis = np.arange(n) - n // 2
    grid = np.stack(np.meshgrid(axis, axis), -1).astype(float)
    q = np.einsum("hwi,ij,hwj->hw", grid, inverse, grid) ** beta
    return padded(1 / (1 + q) if kind.startswith("plateau") else np.exp(-q / 2))


def sinc_kernel(n: int, cutoff: float) -> np.ndarray:
    y, x = np.mgrid[:n, :n] - (n - 1) / 2
    r = np.hypot(x, y)
    with np.errstate(invalid="ignore", divide="ignore"):
        k = cutoff * special.j1(cutoff * r) / (2 * math.pi * r)
    k[n // 2, n // 2] = cutoff**2 / (4 * math.pi)
    return padded(k)


def padded(k: np.ndarray) -> np.ndarray:
    return np.pad(k / k.sum(), (21 - len(k)) // 2)


def filter_(x: np.ndarray, k: np.ndarray, how: str) -> np.ndarray:
    if how == "direct":
        return np.stack([ndimage.correlate(c, k, mode="mirror") for c in np.moveaxis(x, -1, 0)], -1)
    wide = np.pad(x, ((10, 10), (10, 10), (0, 0)), mode="reflect")
    return signal.fftconvolve(wide, k[::-1, ::-1, None], mode="valid", axes=(0, 1))


def resize(x: np.ndarray, h: int, w: int, rng=None, mode: str | None = None) -> np.ndarray:
    mode = mode or rng.choice(["area", "bilinear", "bicubic"])
    rows, columns = matrix(x.shape[0], h, mode), matrix(x.shape[1], w, mode)
    x = (rows @ x.reshape(x.shape[0], -1)).reshape(h, x.shape[1], -1)
    return (columns @ x.transpose(1, 0, 2).reshape(x.shape[1], -1)).reshape(w, h, -1).transpose(1, 0, 2)


def matrix(n: int, m: int, mode: str) -> sparse.csr_matrix:
    """(m, n): one axis of a resize from n to m pixels."""
    i = np.arange(m)
    if mode == "area":
        start, end = i * n // m, -(-(i + 1) * n // m)
        taps = [(k, np.arange(a, b), 1 / (b - a)) for k, a, b in zip(i, start, end)]
        row, column = (np.concatenate([np.broadcast_to(t[j], t[1].shape) for t in taps]) for j in (0, 1))
        weight = np.concatenate([np.full(len(t[1]), t[2]) for t in taps])
    else:
        at = (i + 0.5) * n / m - 0.5
        at = at.clip(0) if mode == "bilinear" else at
        base, f = np.floor(at).astype(int), at - np.floor(at)
        offsets = (0, 1) if mode == "bilinear" else (-1, 0, 1, 2)
        weight = np.concatenate([1 - f, f] if mode == "bilinear" else [cubic(f - o) for o in offsets])
        row, column = np.tile(i, len(offsets)), np.concatenate([(base + o).clip(0, n - 1) for o in offsets])
    return sparse.csr_matrix((weight, (row, column)), shape=(m, n))


def cubic(d: np.ndarray, a: float = -0.75) -> np.ndarray:
    d = np.abs(d)
    return np.where(d <= 1, (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4))


def noise(x: np.ndarray, sigma, poisson, rng) -> np.ndarray:
    gaussian, grey = rng.random() < COMMON["gaussian_p"], rng.random() < COMMON["grey_p"]
    if gaussian:
        x = x + rng.uniform(*sigma) / 255 * rng.standard_normal((*x.shape[:2], 1 if grey else 3))
    else:
        s = x @ np.array([0.299, 0.587, 0.114]) if grey else x
        s = np.round(s.clip(0, 1) * 255) / 255
        v = 2 ** math.ceil(math.log2(len(np.unique(s))))
        n = rng.poisson(s * v) / v - s
        x = x + rng.uniform(*poisson) * (n[..., None] if grey else n)
    return x.clip(0, 1)


def jpeg(x: np.ndarray, quality: float) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(np.round(x.clip(0, 1) * 255).astype(np.uint8)).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file)).astype(float) / 255
