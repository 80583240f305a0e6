"""How near `auto_gamma` without a reference comes to the PSNR-best gamma of each image, and what that costs in dB.

python benchmarks/auto_gamma.py kodak      the table that chose auto.TOLERANCE: 24 photographs, presets x4plus and light
python benchmarks/auto_gamma.py realsr     the validation: the 100 pairs, nothing chosen on them
Both need IFCSR_DATA (data/README.md). Writes results/pocket/tables/auto_gamma_<set>.csv: a row a way to choose gamma.
Tables are made with the shipped adapters, minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import sys
import time

import pandas as pd
import torch
from tqdm import tqdm

import ifcsr_lib as ifcsr
from ifcsr_lib import auto, config, data, evaluate, images, results
from ifcsr_lib.degradation import degrade

TOLERANCES = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2)
FIXED = (0.0, 0.1, 0.2, 0.3, 0.5)


def items(name: str, cfg, limit: int | None):
    """Yield (LQ, HR) pairs of a set, (1, 3, h, w) and (1, 3, 4h, 4w), and the folders read."""
    folder = data.user_data(name)
    if folder is None:
        raise FileNotFoundError(f"{name} is not there: set IFCSR_DATA to a folder with {name}/ (data/README.md)")
    if name == "realsr":
        return [tuple(images.read_image(p).rgb for p in pair) for _, *pair in data.pairs(folder)[:limit]], [
            folder / "LR",
            folder / "HR",
        ]
    pairs = []
    for i, path in enumerate(images.list_images(folder)[:limit]):
        x_H = images.read_image(path).rgb[..., :512, :512]
        pairs += [(degrade(x_H, cfg.seed, p, data.HELDOUT_INDEX + i), x_H) for p in ("x4plus", "light")]
    return pairs, [folder]


def table(model, pairs) -> pd.DataFrame:
    """A row a way to choose gamma: its mean, its mean distance to and correlation with the best, the dB it loses."""
    chosen, lost = {}, {}
    for lq, hr in tqdm(pairs, disable=None):
        ends = model.endpoints(lq)
        best = float(evaluate.best_gamma(ends, hr))
        ways = {"PSNR-best": best} | {f"auto, tolerance {t:g}": float(auto.auto_gamma(ends, t)) for t in TOLERANCES}
        ways |= {f"fixed {g:g}": g for g in FIXED}
        psnr = {g: evaluate.psnr_curve(ends, hr, [g])["psnr"].iloc[0] for g in {*ways.values()}}
        for way, g in ways.items():
            chosen.setdefault(way, []).append(g)
            lost.setdefault(way, []).append(psnr[best] - psnr[g])
    chosen, lost = pd.DataFrame(chosen), pd.DataFrame(lost)
    best = chosen["PSNR-best"]
    rows = {"gamma": chosen.mean(), "distance to best": chosen.sub(best, axis=0).abs().mean(),
            "correlation with best": chosen.loc[:, chosen.nunique() > 1].corrwith(best), "PSNR lost (dB)": lost.mean(),
            "PSNR lost, worst (dB)": lost.max()}  # fmt: skip
    return pd.DataFrame(rows).reindex(chosen.columns).assign(images=len(best)).rename_axis("way")


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=("kodak", "realsr"))
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--limit", type=int, help="first images only; then nothing is written")
    args = parser.parse_args(argv)
    cfg, start = config.resolve("pocket"), time.perf_counter()
    pairs, folders = items(args.set, cfg, args.limit)
    with torch.inference_mode():
        out = table(ifcsr.load(args.model, device="cpu"), pairs)
    print(out.round(3).to_string())
    if args.limit is None:
        path = results.write_table(out, f"auto_gamma_{args.set}", cfg, folders, time.perf_counter() - start)
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
