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

LEVELS = (0.0, 0.3, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # tolerances of auto_gamma
SHARES = (0.02, 0.05, 0.1, 0.2)  # a rule that was tried and left: d(g) <= (1 + share) d(0)
GRID = [i / 100 for i in range(101)]


def items(name: str, cfg, limit: int | None):
    """The (LQ, HR) pairs of a set, (1, 3, h, w) and (1, 3, 4h, 4w), and the folders read."""
    folder = data.user_data(name)
    if folder is None:
        raise FileNotFoundError(f"{name} is not there: set IFCSR_DATA to a folder with {name}/ (data/README.md)")
    if name == "realsr":
        rows = [[images.read_image(p).rgb for p in paths] for _, *paths in data.pairs(folder)[:limit]]
        return rows, [folder / "LR", folder / "HR"]
    pairs = []
    for i, path in enumerate(images.list_images(folder)[:limit]):
        x_H = images.read_image(path).rgb[..., :512, :512]
        pairs += [(degrade(x_H, cfg.seed, p, data.HELDOUT_INDEX + i), x_H) for p in ("x4plus", "light")]
    return pairs, [folder]


def table(model, pairs) -> pd.DataFrame:
    """A row a way to choose gamma: mean gamma, mean distance to and correlation with the best, dB lost to the best, and
    what the fixed gamma of the same mean (to .01) would lose on the same images."""
    chosen, lost, fixed = [], [], []
    for lq, hr in tqdm(pairs, disable=None):
        ends = model.endpoints(lq)
        a, b, c = auto._quadratic(ends)  # once: auto_gamma would blur again for every tolerance
        d0 = 255 * float(c.sqrt())
        ways = {"PSNR-best": float(auto.auto_gamma(ends, hr))}
        ways |= {f"auto, {t:g} level{'s' * (t != 1)}": float(auto._largest(a, b, t)) for t in LEVELS}
        ways |= {f"share {s:g}": float(auto._largest(a, b, d0 * ((1 + s) ** 2 - 1) ** 0.5)) for s in SHARES}
        curve = evaluate.psnr_curve(ends, hr, sorted({*GRID, *ways.values()}))["psnr"]
        top = curve[ways["PSNR-best"]]
        chosen.append(ways)
        lost.append({way: top - curve[g] for way, g in ways.items()})
        fixed.append({g: top - curve[g] for g in GRID})
    chosen, lost, fixed = (pd.DataFrame(rows) for rows in (chosen, lost, fixed))
    out = pd.DataFrame({"gamma": chosen.mean(), "PSNR lost (dB)": lost.mean(), "worst (dB)": lost.max()})
    out["fixed gamma loses (dB)"] = [fixed[round(g, 2)].mean() for g in out["gamma"]]
    out["distance to best"] = chosen.sub(chosen["PSNR-best"], axis=0).abs().mean()
    out["correlation with best"] = chosen.corrwith(chosen["PSNR-best"])
    return out.assign(images=len(chosen)).rename_axis("way")


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
