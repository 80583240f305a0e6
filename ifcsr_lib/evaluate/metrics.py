"""Metrics of the paper through pyiqa, the gamma tables, and the closed form of PSNR along gamma.

Protocol (it reproduces the peers' published scores): 8-bit RGB, no border cropped; PSNR and SSIM on
studio-range luma, Y = (65.481 R + 128.553 G + 24.966 B + 16) / 255, R G B in [0, 1]; LPIPS is the AlexNet
one.

Weights are looked for in $IFCSR_DATA/weights, the torch hub and the Hugging Face cache before any image is
scored. A metric that lacks some reads "not run: needs <file>". Nothing is fetched unless IFCSR_DOWNLOAD=1
(HF_HUB_OFFLINE=1 wins over it), so that no table depends on a network. pyiqa is PolyForm Noncommercial: it is
used here and nowhere else.
"""

from __future__ import annotations

import functools
import math
import numbers
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..config import ROOT, hint, path_setting
from ..errors import one_line, out_of_memory
from ..files.checks import check_pointer
from ..files.images import check_images, labels, list_images, partners, read_image, write_image
from ..files.pixels import EPS, LUMA
from ..files.results import atomic
from .lite import LiteDistance

GAMMAS = tuple(i / 10 for i in range(11))


@dataclass(frozen=True)
class Metric:
    """What a metric is called and needs.

    label: for tables. name, options: in pyiqa (lpips-lite is ours). lower_better. reference: needs hr.
    weights: files under the torch hub folder, under the repository, or hf:repo/file. smallest: least side in
    pixels.
    """

    label: str
    name: str
    lower_better: bool
    reference: bool = False
    options: dict = field(default_factory=dict)
    weights: tuple[str, ...] = ()
    smallest: int = 16


_Y = {"test_y_channel": True, "color_space": "ycbcr"}
_VIT = "hf:timm/vit_base_patch8_224.augreg2_in21k_ft_in1k/model.safetensors"
METRICS: dict[str, Metric] = {
    "psnr": Metric("PSNR (dB)", "psnr", False, True, _Y),
    "ssim": Metric("SSIM", "ssim", False, True, _Y),
    "lpips": Metric("LPIPS", "lpips", True, True, {},
                    ("pyiqa/LPIPS_v0.1_alex-df73285e.pth", "checkpoints/alexnet-owt-7be5be79.pth"), 64),
    # not from the paper: offline, held out of every training; see lite.LiteDistance
    "lpips-lite": Metric("lpips-lite", "lpips-lite", True, True, {}, (), 64),
    "dists": Metric("DISTS", "dists", True, True, {},
                    ("pyiqa/DISTS_weights-f5e65c96.pth", "checkpoints/vgg16-397923af.pth")),
    "niqe": Metric("NIQE", "niqe", True, False, {}, ("pyiqa/niqe_modelparameters.mat",), 192),
    "musiq": Metric("MUSIQ", "musiq", False, False, {}, ("pyiqa/musiq_koniq_ckpt-e95806b9.pth",)),
    # DECISION D22: the paper says MANIQA; the peers' column is pyiqa's PIPAL model, not pyiqa's default KonIQ
    # one
    "maniqa": Metric("MANIQA", "maniqa-pipal", False, False, {}, ("pyiqa/MANIQA_PIPAL-ae6d356b.pth", _VIT)),
    "clipiqa": Metric("CLIPIQA", "clipiqa", False, False, {}, ("clip/RN50.pt",)),
    "fid": Metric("FID", "fid", True, True, {}, ("pyiqa/pt_inception-2015-12-05-6726825d.pth",)),
    # DECISION D23: NIQE's parameters may not ship, so offline a pristine model of ours stands in, never
    # called NIQE
    "niqe-pocket": Metric("niqe-pocket", "niqe", True, False, {}, ("data/pocket/niqe_pocket.mat",), 192),
}  # fmt: skip


def _find(file: str) -> Path | None:
    if file.startswith("hf:"):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(*file[3:].rsplit("/", 1))
        return Path(found) if isinstance(found, str) else None
    own = [folder / "weights" / Path(file).name] if (folder := path_setting("IFCSR_DATA")) else []
    return next((p for p in (*own, Path(torch.hub.get_dir(), file), ROOT / file) if p.is_file()), None)


def missing(metric: str) -> list[str]:
    """Names of the weight files that the metric needs and this machine lacks; [] when it can run.
    No network.
    """
    check_metrics([metric], hr=True)
    lacks = [f for f in METRICS[metric].weights if _find(f) is None]
    return [f[3:] if f.startswith("hf:") else Path(f).name for f in lacks]


def check_metrics(metrics, hr) -> list[str]:
    if isinstance(metrics, str):
        raise TypeError(f"metrics came as the text {metrics!r}; pass a list such as [{metrics!r}]")
    names = (
        [m for m in METRICS if hr is not None or not METRICS[m].reference]
        if metrics is None
        else list(metrics)
    )
    for name in names:
        if name not in METRICS:
            raise ValueError(
                f"metric {name!r} is unknown{hint(name, METRICS)}; allowed: {', '.join(METRICS)}"
            )
        if METRICS[name].reference and hr is None:
            raise ValueError(
                f"metric {name!r} compares with a reference; pass hr, or leave it out of metrics"
            )
    if not names or len(set(names)) < len(names):
        raise ValueError(f"metrics={names}; pass one name or more, each once, of {', '.join(METRICS)}")
    return names


def absent(name: str) -> str | None:
    """The text "not run: needs ..." of a metric whose weights are neither here nor to be fetched,
    else None.
    """
    lacks = missing(name)
    if lacks and (os.environ.get("IFCSR_DOWNLOAD") != "1" or os.environ.get("HF_HUB_OFFLINE") == "1"):
        return f"not run: needs {', '.join(lacks)}"
    return None


def create(name: str, device):
    """The pyiqa metric, or the text "not run: ..."."""
    lacks, metric = missing(name), METRICS[name]
    if text := absent(name):
        return text
    timeout = socket.getdefaulttimeout()
    try:
        for file in filter(None, map(_find, metric.weights)):
            check_pointer(file)
    except ValueError as error:
        return f"not run: {error}"
    try:
        socket.setdefaulttimeout(15)  # torch.hub's download has none of its own and would hang
        path = _find(metric.weights[0]) if metric.name == "niqe" else None
        return _metric(name, str(device or ("cuda" if torch.cuda.is_available() else "cpu")), path)
    except Exception as error:  # noqa: BLE001  a failed download, a damaged file, a missing package
        return f"not run: needs {', '.join(lacks) or metric.name} ({_short(error)})"
    finally:
        socket.setdefaulttimeout(timeout)


@functools.lru_cache(maxsize=16)
def _metric(name: str, device: str, path: Path | None):
    if name == "lpips-lite":
        return LiteDistance().to(device)
    if (name, device) == ("ssim", "cpu"):
        return _ssim
    import pyiqa

    for file in METRICS[name].weights if path is None else ():  # pyiqa looks into the torch hub only
        found, place = _find(file), Path(torch.hub.get_dir(), file)
        if found and not file.startswith("hf:") and not place.is_file():
            with atomic(place) as tmp:
                shutil.copyfile(found, tmp)
    model = {"pretrained_model_path": str(path)} if path else {}
    return pyiqa.create_metric(
        METRICS[name].name, device=torch.device(device), **METRICS[name].options, **model
    )


def _ssim(x: Tensor, y: Tensor) -> float:
    """pyiqa's SSIM of the protocol within 1e-8: Y * 255 rounded, 11 x 11 Gaussian of sigma 1.5, valid
    windows, float64.

    x, y: (1, 3, H, W) in [0, 1], sides of 11 or more. pyiqa convolves in float64 with all 121 taps at once,
    for which torch has no fast kernel on a CPU; two passes of 11 taps are the same window.
    """
    # not skimage.metrics.structural_similarity: it leaves negative terms negative, which puts it up to 0.0055
    # below the scores that OSEDiff published (this function: within 1e-4) and would move every table
    from pyiqa.matlab_utils import fspecial
    from pyiqa.utils.color_util import to_y_channel
    from scipy.ndimage import correlate1d

    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    # pyiqa's window is rounded to float32, so that its sum misses 1 by 6e-9, which variances of 8-bit values
    # feel
    window *= float(fspecial(11, 1.5).double().sum()) ** 0.5 / window.sum()

    def mean(v):
        return correlate1d(correlate1d(v, window, 0)[5:-5], window, 1)[:, 5:-5]

    a, b = (to_y_channel(v, 255, "ycbcr")[0, 0].double().cpu().numpy() for v in (x, y))
    m_a, m_b, c1, c2 = mean(a), mean(b), (0.01 * 255) ** 2, (0.03 * 255) ** 2
    v_a, v_b, v_ab = mean(a * a) - m_a**2, mean(b * b) - m_b**2, mean(a * b) - m_a * m_b
    structure = np.maximum((2 * v_ab + c2) / (v_a + v_b + c2), 0)  # pyiqa clips each at 0
    return float((structure * (2 * m_a * m_b + c1) / (m_a**2 + m_b**2 + c1)).mean())


def _short(error: BaseException) -> str:
    if out_of_memory(error):
        return "out of memory"
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:160]


def each_image(x, what: str) -> list:
    """A batch, a list or a folder as a list of single images or paths, not yet read."""
    if isinstance(x, (str, Path)):
        return list_images(x)
    if isinstance(x, Tensor):
        check_images(x, what)
        return list(x.split(1))
    if not isinstance(x, Iterable):
        raise TypeError(
            f"{what} came as {type(x).__name__}; pass (N, 3, H, W), a list of images or paths, or a folder"
        )
    return list(x)


def read_single(item, what: str) -> Tensor:
    if isinstance(item, (str, Path)):
        check_pointer(item)
        item = read_image(item).rgb
    x = item
    x = x[None] if isinstance(x, Tensor) and x.ndim == 3 else x
    check_images(x, what)
    if len(x) != 1:
        raise ValueError(
            f"{what} has shape {tuple(x.shape)}; pass single images (3, H, W) or (1, 3, H, W) in a list"
        )
    return x


def rounded(item, what: str) -> Tensor:
    """An image (1, 3, H, W) as 8 bit holds it."""
    # DECISION D18: metrics see 8-bit images, rounded (the peers truncate, which darkens by half a level)
    return (read_single(item, what).clamp(0, 1) * 255).round() / 255


def _check_pairs(xs: list, ys: list | None, names: list) -> None:
    """Every error about the images, before long work."""
    if not xs or len(names) != len(xs) or (ys is not None and len(ys) != len(xs)):
        raise ValueError(
            f"{len(xs)} images came with {len(names)} names and {'no' if ys is None else len(ys)} "
            "references (hr); pass at least one image and as many of each"
        )
    for x, y, name in zip(xs, ys or [None] * len(xs), names, strict=True):
        x, y = (
            read_single(x, f"image {name}").shape,
            None if y is None else read_single(y, f"hr of image {name}").shape,
        )
        if y is not None and x != y:
            raise ValueError(f"image {name} is {tuple(x)} and its hr {tuple(y)}; allowed: the same size")


def score(sr, hr=None, metrics=None, names=None, device=None) -> pd.DataFrame:
    """Score images: one row per image (index "image"), one column per metric; df.attrs["lower_better"] is
    {metric: bool}.

    sr, hr: float32 RGB (N, 3, H, W) in [0, 1]; or a list of single images (any sizes) or of paths, read one
        at a time; or a folder. Two folders are matched by full file name, else by a stem that is unique
        (images.partners); hr may hold more.
    metrics: names of METRICS; None takes all, or without hr all that need none.
    names: one per image; by default a path's stem (its full name where two share a stem), else 0 .. N-1.
        device: CUDA if there is one.
    FID is one number of the whole set, repeated in each row. A metric that could not run reads "not run:
    <reason>"; one that is undefined on an image, as NIQE of a flat one, is NaN, with the reason in
    df.attrs["reasons"] = {metric: {image: reason}}.
    Raises ValueError or TypeError: unknown metrics, a missing hr, images of wrong type, shape, size or range.
    """
    metrics, xs, ys = (
        check_metrics(metrics, hr),
        each_image(sr, "sr"),
        None if hr is None else each_image(hr, "hr"),
    )
    if isinstance(sr, (str, Path)) and isinstance(hr, (str, Path)):
        found = partners(xs, ys)
        if lacking := [p.name for p in xs if p not in found]:
            raise ValueError(
                f"{hr} has no reference for {len(lacking)} of {len(xs)} images of {sr}: {lacking[:3]}"
            )
        ys = [found[p] for p in xs]
    if not names:
        stems = iter(labels([Path(x) for x in xs if not isinstance(x, Tensor)]))
        names = [i if isinstance(x, Tensor) else next(stems) for i, x in enumerate(xs)]
    names = list(names)
    _check_pairs(xs, ys, names)
    return _score(xs, ys, {m: create(m, device) for m in metrics}, names)


def _score(xs: Iterable, ys: list | None, makers: dict, names: list) -> pd.DataFrame:
    rows, reasons = [], {}
    with tempfile.TemporaryDirectory(prefix="ifcsr-fid-") as folder, torch.no_grad():
        for i, (x, y) in enumerate(zip(xs, ys or [None] * len(names), strict=True)):
            x, y = (None if v is None else rounded(v, "image") for v in (x, y))
            rows.append([score_one(METRICS[m], maker, x, y) for m, maker in makers.items()])
            for m, value in zip(makers, rows[-1], strict=True):
                if m != "fid" and not isinstance(value, str) and math.isnan(value):
                    reasons.setdefault(m, {})[names[i]] = _undefined(x)
            if not isinstance(makers.get("fid", ""), str):
                for side, image in (("sr", x), ("hr", y)):
                    write_image(image, Path(folder, side, f"{i:06d}.png"))
        df = pd.DataFrame(rows, index=pd.Index(names, name="image"), columns=list(makers))
        if not isinstance(makers.get("fid", ""), str):
            df["fid"] = score_fid(makers["fid"], Path(folder), len(df))
    df.attrs["lower_better"] = {m: METRICS[m].lower_better for m in makers}
    df.attrs["reasons"] = reasons
    return df


def _undefined(x: Tensor) -> str:
    flat = bool((x.amax((2, 3)) == x.amin((2, 3))).all())
    return "a picture of one colour has no such statistics" if flat else "the metric is undefined on it"


def score_one(metric: Metric, maker, x: Tensor, y: Tensor | None) -> float | str:
    """A score; NaN where the metric is undefined on the image; "not run: <reason>" where it could not run."""
    if isinstance(maker, str) or metric.name == "fid":
        return maker if isinstance(maker, str) else math.nan
    if min(x.shape[2:]) < metric.smallest:
        return f"not run: image under {metric.smallest} pixels a side"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"cov\(\): degrees of freedom")  # says what NaN says
            value = float(maker(x, y) if metric.reference else maker(x))
    except torch.linalg.LinAlgError:  # a covariance of a flat image
        return math.nan
    except Exception as error:  # noqa: BLE001  one odd image must not end a long run
        return f"not run: {_short(error)}"
    return value if math.isfinite(value) else math.nan


def score_fid(maker, folder: Path, n: int) -> float | str:
    if n < 2:
        return "not run: FID needs 2 images or more"
    try:
        return float(maker(str(folder / "sr"), str(folder / "hr"), num_workers=0, verbose=False))
    except Exception as error:  # noqa: BLE001
        return f"not run: {_short(error)}"


def summary(df: pd.DataFrame, strict: bool = False) -> pd.Series | pd.DataFrame:
    """Means over the images of `score`'s table (a Series) or of `sweep(per_image=True)` (one row per gamma).

    An image without a score of a metric (NaN or "not run: ...") is left out of that metric's mean, at every
    gamma, so that a curve is of the same images; a warning says so in one line, see `left_out`. Where no
    image has a score the mean reads "not run: <reason>". strict: a mean over some images reads "not run: 2 of
    34 images", for where it stands beside means over all of them.
    """
    if not strict:
        for text in left_out(df).values():
            warnings.warn(text, stacklevel=2)
    if "gamma" not in df.index.names:
        return _means(df, strict, df.attrs.get("reasons", {}))
    table = df if strict else _same_images(df)
    out = pd.DataFrame(
        {
            g: _means(part.droplevel("gamma"), strict, df.attrs.get("reasons", {}))
            for g, part in table.groupby(level="gamma", sort=False)
        }
    ).T
    out, out.attrs = out.infer_objects().rename_axis("gamma"), dict(df.attrs)
    return out


def left_out(df: pd.DataFrame) -> dict[str, str]:
    """{metric: "niqe: mean of 33 of 34 images, without sky (<reason>)"} of means over some of the images."""
    out, index = {}, df.index.get_level_values("image") if "image" in df.index.names else df.index
    count = index.nunique()
    for m in df:
        reasons = {}
        for image, value in zip(index, df[m], strict=True):
            if isinstance(value, str):
                reasons.setdefault(image, value.removeprefix("not run: "))
            elif pd.isna(value):
                reasons.setdefault(image, df.attrs.get("reasons", {}).get(m, {}).get(image, "no score"))
        if 0 < len(reasons) < count:
            first = "; ".join(f"{image} ({one_line(text)[:80]})" for image, text in list(reasons.items())[:3])
            more = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
            out[m] = f"{m}: mean of {count - len(reasons)} of {count} images, without {first}{more}"
    return out


def _lacks(value) -> bool:
    return isinstance(value, str) or pd.isna(value)


def _means(df: pd.DataFrame, strict: bool, reasons: dict) -> pd.Series:
    means = {}
    for m in df:
        scores = [float(v) for v in df[m] if not _lacks(v)]
        texts = [v for v in df[m] if isinstance(v, str)]
        if len(scores) == len(df) or (scores and not strict):
            means[m] = float(pd.Series(scores).mean())
        elif not scores and len(texts) == len(df):
            means[m] = texts[0]
        elif not scores and not texts and m in reasons:
            means[m] = f"not run: {next(iter(reasons[m].values()))}"
        else:
            means[m] = f"not run: {len(df) - len(scores)} of {len(df)} images"
    return pd.Series(means)


def _same_images(df: pd.DataFrame) -> pd.DataFrame:
    """The table with a metric's images that lack a score at some gamma as NaN at all, where others remain."""
    df = df.copy()
    image = df.index.get_level_values("image")
    for m in df:
        lacking = set(image[[_lacks(v) for v in df[m]]])
        if 0 < len(lacking) < image.nunique():
            df[m] = df[m].where(~image.isin(lacking), np.nan)
    return df


def check_gammas(gammas) -> list[float]:
    values = list(gammas) if isinstance(gammas, Iterable) and not isinstance(gammas, str) else [gammas]
    for g in values:
        if isinstance(g, bool) or not isinstance(g, numbers.Real) or not 0 <= g <= 1:
            shown = float(g) if isinstance(g, np.floating) else g  # numpy 2 writes np.float64(1.5)
            raise ValueError(f"gamma={shown!r}; allowed: numbers from 0 (fidelity) to 1 (realism)")
    values = [float(g) for g in values]
    if not values or len(set(values)) < len(values):
        raise ValueError(f"gammas={values}; pass one or more different numbers in [0, 1]")
    return values


def _parts(ends, hr, names) -> tuple[list, list | None, list]:
    """Endpoints as a list of objects, references as a list of items, names; checked to fit."""
    parts, ys = (
        list(ends) if isinstance(ends, (list, tuple)) else [ends],
        None if hr is None else each_image(hr, "hr"),
    )
    for side in ("x_fid", "x_real"):
        xs = [x for part in parts for x in each_image(getattr(part, side), side)]
        names = list(names or range(len(xs)))
        _check_pairs(xs, ys, names)
    return parts, ys, names


def sweep(
    ends, hr=None, gammas=GAMMAS, metrics=None, per_image=False, names=None, device=None, progress=False
) -> pd.DataFrame:
    """The paper's gamma table: one row per gamma (index), one column per metric, means over the images. Calls
    no model.

    ends: an object with x_fid, x_real (N, 3, H, W) in [0, 1] and blend(gamma) (E1); or a list of such,
        blended one at a time: single images keep memory small and may differ in size. hr, metrics, names,
        device: as in `score`.
    gammas: numbers in [0, 1]. per_image: the long table instead, index (gamma, image). progress: show a bar.
    """
    gammas, metrics, (parts, ys, names) = (
        check_gammas(gammas),
        check_metrics(metrics, hr),
        _parts(ends, hr, names),
    )
    makers = {m: create(m, device) for m in metrics}
    tables = {
        g: _score((x for part in parts for x in part.blend(g).split(1)), ys, makers, names)
        for g in tqdm(gammas, desc="gamma", disable=not progress)
    }
    table = pd.concat(tables, names=["gamma"])
    table.attrs["lower_better"] = {m: METRICS[m].lower_better for m in metrics}
    table.attrs["reasons"] = {
        m: {k: v for part in tables.values() for k, v in part.attrs["reasons"].get(m, {}).items()}
        for m in metrics
        if any(m in part.attrs["reasons"] for part in tables.values())
    }
    return table if per_image else summary(table)


def luma_errors(ends, hr, names=None) -> tuple[np.ndarray, list]:
    """(3, N) float64: E_f, E_r and C = mean(e_f e_r) of each image, e the error in Y; and the names."""
    parts, ys, names = _parts(ends, hr, names)
    pairs = [(f, r) for part in parts for f, r in zip(part.x_fid.split(1), part.x_real.split(1), strict=True)]
    rows = []
    for (f, r), y in zip(pairs, ys, strict=True):
        y, luma = (
            read_single(y, "hr").to(f.device).double(),
            torch.tensor(LUMA, dtype=torch.float64, device=f.device),
        )
        e_f, e_r = (torch.einsum("c,nchw->nhw", luma, x.detach().double() - y) for x in (f, r))
        rows.append([v.mean().item() for v in (e_f * e_f, e_r * e_r, e_f * e_r)])
    return np.array(rows).T, names


def psnr_curve(ends, hr, gammas=GAMMAS, per_image=False, names=None) -> pd.DataFrame:
    """PSNR (dB, Y) on gamma from three numbers per image: MSE = (1-g)^2 E_f + g^2 E_r + 2 g (1-g) C, C =
    mean(e_f e_r).

    Arguments and table as in `sweep`, with the one column psnr. Exact for float images; the 8-bit rounding
    before a measured PSNR adds about 4e-7 to the MSE: 0.002 dB lower at 30 dB, 0.02 dB at 40 dB.
    """
    gammas, ((e_f, e_r, c), names) = check_gammas(gammas), luma_errors(ends, hr, names)
    mse = np.array([(1 - g) ** 2 * e_f + g**2 * e_r + 2 * g * (1 - g) * c for g in gammas])
    index = pd.MultiIndex.from_product([gammas, names], names=["gamma", "image"])
    table = pd.DataFrame({"psnr": -10 * np.log10(mse.ravel() + EPS)}, index=index)
    table.attrs["lower_better"] = {"psnr": False}
    return table if per_image else summary(table)


def best_gamma(ends, hr) -> Tensor:
    """(N,) float32: each image's gamma of highest PSNR, (E_f - C) / (E_f + E_r - 2 C) clipped to [0, 1].

    It fits ends.blend(). 0 where the endpoints have the same luma, so that every gamma scores alike.
    """
    e_f, e_r, c = luma_errors(ends, hr)[0]
    width = e_f + e_r - 2 * c  # mean((e_f - e_r)^2)
    best = np.divide(e_f - c, width, out=np.zeros_like(width), where=width > 1e-15)
    return torch.tensor(best, dtype=torch.float32).clamp(0, 1)


def reported(benchmark: str | None = "RealSR") -> pd.DataFrame:
    """What the paper and its peers report (data/paper/reported.csv): benchmark, method, gamma, metric, value,
    source.

    benchmark: "RealSR", "DRealSR", or None for both. gamma is NaN for methods without one. Never mix with
        pocket tables.
    """
    check_pointer(ROOT / "data" / "paper" / "reported.csv")
    table = pd.read_csv(ROOT / "data" / "paper" / "reported.csv")
    known = sorted(table["benchmark"].unique())
    if benchmark is not None and benchmark not in known:
        raise ValueError(
            f"benchmark {benchmark!r} is unknown{hint(benchmark, known)}; allowed: {', '.join(known)}"
        )
    return table if benchmark is None else table[table["benchmark"] == benchmark].reset_index(drop=True)
