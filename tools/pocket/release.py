"""Measure the released pocket model beside bicubic, Real-ESRGAN and OSEDiff.

    IFCSR_DATA=FOLDER python tools/pocket/release.py --teacher FILE [--model FOLDER] [--only mild kodak]

Writes results/pocket/tables/release_{autoencoder,mild,kodak_*,realsr*}.csv and figures/release_*.png.
Choose on `kodak` and `mild`; look at `realsr` once per release and log the look in LOG.md. What IFCSR_DATA
lacks is said. Real-ESRGAN's pictures are kept in results/pocket/real_esrgan, so a second call does not run
it again. The strip needs no data.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))
import real_esrgan

import ifcsr_lib as ifcsr
from ifcsr_lib import config, data, degradation, evaluate, figures, images, results

METRICS = ["psnr", "ssim", "lpips-lite", "niqe"]
GAMMAS = tuple(i / 10 for i in range(11))
SHOWN = ("Canon_003", "Nikon_020", "Nikon_044")  # always on the sheet, beside every sixth image


def mild(x_H: Tensor, kind: str, index: int) -> Tensor:
    """A photograph that is hardly damaged, (N, 3, H, W) -> (N, 3, H/4, W/4), rounded to 8 bits."""
    rng = torch.Generator().manual_seed(index)
    if kind == "blur":  # of half an LQ pixel's width
        side = torch.arange(-6, 7) ** 2
        kernel = torch.exp(-(side[:, None] + side[None]) / (2 * 2.0**2))
        x_H = degradation.blur(x_H, (kernel / kernel.sum())[None])
    if kind == "area":
        lq = F.avg_pool2d(x_H, 4)
    else:
        size = x_H.shape[-2] // 4, x_H.shape[-1] // 4
        lq = F.interpolate(x_H, size, mode="bicubic", antialias=True)
    if kind == "noise":  # of two levels
        lq = lq + 2 / 255 * torch.randn(lq.shape, generator=rng)
    if kind == "jpeg":
        lq = degradation.jpeg(lq.clamp(0, 1), 90)
    return (lq.clamp(0, 1) * 255).round() / 255


MILD = ("bicubic", "area", "blur", "noise", "jpeg")


def kodak() -> list[Tensor]:
    """The 24 photographs, sides cut to multiples of four."""
    found = [images.read_image(p).rgb for p in images.list_images(data.user_data("kodak"))]
    return [x[..., : x.shape[-2] // 4 * 4, : x.shape[-1] // 4 * 4] for x in found]


def mild_table(model) -> pd.DataFrame:
    """PSNR, SSIM and lpips-lite of bicubic and both ends on Kodak, one row per (damage, image)."""
    photos, rows = kodak(), {}
    for kind in MILD:
        ends = [model.endpoints(mild(x, kind, i)) for i, x in enumerate(tqdm(photos, desc=kind))]
        parts = {"bicubic": "x_L", "gamma 0": "x_fid", "gamma 1": "x_real"}
        for label, name in parts.items():
            scores = evaluate.score([getattr(e, name) for e in ends], photos, METRICS[:3])
            rows[kind, label] = evaluate.summary(scores)
    return pd.DataFrame(rows).T.rename_axis(["damage", "image"])


def autoencoder_table(model, hr: list[Path]) -> pd.DataFrame:
    """A round trip of the HR images through the autoencoder, beside the HR images themselves."""
    photos = [images.read_image(p).rgb for p in hr]
    with torch.inference_mode():
        device = model.prompt.device
        back = [model.decode(model.encode(x.to(device))).clamp(0, 1).cpu() for x in photos]
    rows = {
        "HR": evaluate.score(photos, metrics=["niqe"]),
        "round trip": evaluate.score(back, photos, METRICS),
    }
    return pd.DataFrame({k: evaluate.summary(v) for k, v in rows.items()}).T.rename_axis("image")


def along_gamma(model, lq: list[Path], hr: list[Path], others: dict[str, list[Path]]):
    """(table, ends): a row for bicubic, each gamma and each of `others`, {label: one picture per pair}."""
    ends = [model.endpoints(images.read_image(p).rgb) for p in tqdm(lq, desc="endpoints")]
    rows = {("bicubic", float("nan")): evaluate.summary(evaluate.score([e.x_L for e in ends], hr, METRICS))}
    for gamma, row in evaluate.sweep(ends, hr, GAMMAS, METRICS, progress=True).iterrows():
        rows["pocket", gamma] = row
    for label, paths in others.items():
        rows[label, float("nan")] = evaluate.summary(evaluate.score(paths, hr, METRICS))
    return pd.DataFrame(rows).T.rename_axis(["model", "gamma"]), ends


def on_published(table_of: dict[str, list], hr: list[Path], published: dict[str, Path]) -> pd.DataFrame:
    """Every label's mean over the images that OSEDiff published, {file name: path}, with its own row."""
    chosen = [i for i, p in enumerate(hr) if p.name in published]
    rows = {
        k: evaluate.score([v[i] for i in chosen], [hr[i] for i in chosen], METRICS)
        for k, v in table_of.items()
    }
    own = [published[hr[i].name] for i in chosen]
    rows["OSEDiff, published"] = evaluate.score(own, [hr[i] for i in chosen], METRICS)
    table = pd.DataFrame({k: evaluate.summary(v) for k, v in rows.items()}).T.rename_axis("model")
    return table.assign(images=len(chosen))


def strip_rows(model) -> dict[str, tuple]:
    """figures.sheet's rows of one held-out photograph: a damage that people meet, and a hard one."""
    x_H, rows = data.load_photo(next(p for p in data.photos("heldout") if p.name == "china")), {}
    for label, preset in (("light damage", "light"), ("hard damage (x4plus)", "x4plus")):
        rows[label] = model.endpoints(degradation.degrade(x_H, 0, preset, 0)), {"HR": x_H}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, help="the wheel, or its .bin; for kodak and realsr")
    parser.add_argument("--model", default="pocket", help="a saved model; default: the shipped one")
    parts = ("strip", "autoencoder", "mild", "kodak", "realsr")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    args = parser.parse_args()
    if not args.teacher and {"kodak", "realsr"} & {*args.only}:
        parser.error("kodak and realsr stand beside Real-ESRGAN: pass --teacher FILE, or --only without them")
    cfg, model = config.resolve("pocket"), ifcsr.load(args.model)
    keep, realsr = cfg.results / "real_esrgan", data.user_data("realsr")
    osediff = realsr / "osediff" if realsr and (realsr / "osediff").is_dir() else None
    inputs = [config.POCKET, *filter(None, [args.teacher])]
    inputs += [Path(args.model)] if args.model != "pocket" else []

    def write(table: pd.DataFrame, name: str) -> None:
        results.write_table(table, f"release_{name}", cfg, inputs=inputs)
        print(f"{name}\n{table.round(4).to_string()}", flush=True)

    if "strip" in args.only:
        results.write_figure(figures.sheet(strip_rows(model)), "release_strip", cfg, inputs=inputs)
    if "autoencoder" in args.only and realsr:
        write(autoencoder_table(model, images.list_images(realsr / "HR")), "autoencoder")
    if "mild" in args.only and data.user_data("kodak"):
        write(mild_table(model), "mild")
    if "kodak" in args.only and data.user_data("kodak"):
        for preset in ("x4plus", "light", "camera"):
            files = images.list_images(data.user_data("kodak"))
            made = data.write_pairs(cfg.replace(heldout_preset=preset), files, f"pairs_kodak_{preset}", 768)
            _, lq, hr = zip(*data.pairs(made))
            table, _ = along_gamma(
                model, lq, hr, {"Real-ESRGAN": real_esrgan.upscaled(args.teacher, lq, keep / preset)}
            )
            write(table, f"kodak_{preset}")
    if "realsr" in args.only and realsr:
        names, lq, hr = zip(*data.pairs(realsr))
        teacher = real_esrgan.upscaled(args.teacher, lq, keep / "realsr")
        table, ends = along_gamma(model, lq, hr, {"Real-ESRGAN": teacher})
        write(table, "realsr")
        every = {"bicubic": [e.x_L for e in ends]}
        every |= {f"pocket, gamma {g:g}": [e.blend(g) for e in ends] for g in (0.0, 0.5, 1.0)}
        if osediff:
            published = {p.name: p for p in images.list_images(osediff)}
            every["Real-ESRGAN"] = list(teacher)
            write(on_published(every, list(hr), published), "realsr_published")
        chosen = [i for i, n in enumerate(names) if i % 6 == 0 or n.startswith(SHOWN)]
        rows = {}
        for i in chosen:
            beside = {"Real-ESRGAN": teacher[i], "HR": hr[i]}
            rows[names[i]] = ends[i], {k: images.read_image(path).rgb for k, path in beside.items()}
        sheet = figures.sheet(rows, side=256, size=2.56)
        results.write_figure(sheet, "release_sheet_realsr", cfg, dpi=100, inputs=inputs)
    there = {"autoencoder": realsr, "mild": data.user_data("kodak"), "kodak": data.user_data("kodak")}
    there |= {"realsr": realsr, "strip": True}
    lacking = [n for n in args.only if not there[n]]
    lacking += ["OSEDiff's row"] if "realsr" in args.only and realsr and not osediff else []
    print("not run:", ", ".join(lacking) or "nothing")


if __name__ == "__main__":
    main()
