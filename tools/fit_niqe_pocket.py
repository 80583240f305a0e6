"""Fit data/pocket/niqe_pocket.mat, the pristine model of the metric niqe-pocket, and measure how it follows
real NIQE.

    python tools/fit_niqe_pocket.py FOLDER     # about 6 minutes on 2 cores

FOLDER holds photos/ (JPEG and manifest.csv: file, source, licence, sha256), realsr/{LR,HR,osediff} and
weights/niqe_modelparameters.mat. The photographs give 36 means and a 36x36 covariance; no picture is kept.
"""

import argparse
import importlib.metadata
import os
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.io
import torch
from tqdm import tqdm

from ifcsr_lib.config import ROOT
from ifcsr_lib.evaluate import metrics as evaluate
from ifcsr_lib.files.images import check_images, read_image, upsample
from ifcsr_lib.files.results import atomic, sha256, sidecar, write_json

FLAT = 0.1  # largest share of flat 8x8 blocks in a photograph; charts, drawings and screenshots have more


def flat_share(x) -> float:
    """Share of 8x8 blocks of (1, 3, H, W) whose luma deviates by less than .35 levels of 255: sensor noise
    does not.
    """
    y = (x * 255 * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1)
    h, w = (side // 8 * 8 for side in y.shape[1:])
    blocks = y[0, :h, :w].reshape(h // 8, 8, w // 8, 8)
    return (blocks.std((1, 3), correction=0) < 0.35).float().mean().item()


def sharp_features(x, sharpness: float = 0.75) -> np.ndarray:
    """(1, 3, H, W) in [0, 1] -> (blocks, 36): NIQE's features of the image's sharp 96x96 blocks, by pyiqa's
    functions.

    As in Mittal et al. 2013, a block is sharp when its mean local deviation exceeds `sharpness` times the
    image's largest. Raises ValueError for sides under 96 pixels.
    """
    from pyiqa.archs.func_util import normalize_img_with_gauss
    from pyiqa.archs.niqe_arch import compute_feature
    from pyiqa.matlab_utils import blockproc, fspecial, imfilter, imresize
    from pyiqa.utils.color_util import to_y_channel

    check_images(x, "photo", 96)
    h, w = (side // 96 * 96 for side in x.shape[2:])
    # rounded levels, as pyiqa's niqe
    y = to_y_channel((x[..., :h, :w] * 255).round() / 255, 255, "yiq").double()
    kernel = fspecial(7, 7 / 6, 1).float()
    mean, square = (imfilter(v, kernel, padding="replicate") for v in (y.float(), y.float() ** 2))
    deviation = (square - mean * mean).abs().sqrt()
    sharp = blockproc(deviation, [96, 96], lambda block, _: block.mean((1, 2, 3), keepdim=True))[0].flatten()
    half = imresize(y / 255, scale=0.5, antialiasing=True) * 255
    scales = [
        blockproc(
            normalize_img_with_gauss(v, padding="replicate"),
            [size, size],
            lambda block, _: compute_feature(block),
        )[0]
        for v, size in ((y, 96), (half, 48))
    ]
    features = torch.cat(scales, -1)[sharp > sharpness * sharp.max()]
    return features[features.isfinite().all(-1)].numpy()


def fit(files, path, sharpness: float = 0.75) -> dict:
    """Fit mean and covariance of the sharp blocks of photographs; write the .mat that pyiqa's niqe reads,
    atomically.

    Returns {file name: number of blocks}. Raises ValueError with fewer than 37 blocks (the covariance needs
    them).
    """
    features = {
        Path(f).name: sharp_features(read_image(f).rgb, sharpness) for f in tqdm(list(files), desc="fit")
    }
    rows = np.concatenate([np.empty((0, 36)), *features.values()])
    if len(rows) < 37:
        raise ValueError(
            f"{len(rows)} sharp blocks in {len(features)} images; pass photographs with 37 or more"
        )
    with atomic(path) as tmp:
        model = {"mu_prisparam": rows.mean(0)[None], "cov_prisparam": np.cov(rows, rowvar=False)}
        scipy.io.savemat(tmp, model)
    return {name: len(f) for name, f in features.items()}


def agreement(folder: Path) -> dict:
    """Pearson and Spearman correlation of niqe-pocket with NIQE, and both means, on three groups and all of
    them.
    """
    names = [p.name for p in evaluate.list_images(folder / "realsr" / "osediff")]
    everything = [p.name for p in evaluate.list_images(folder / "realsr" / "HR")]
    groups = {
        "osediff, 34 images": [folder / "realsr" / "osediff" / n for n in names],
        "LR bicubic x4, 100 images": [
            upsample(read_image(folder / "realsr" / "LR" / n).rgb) for n in everything
        ],
        "HR, 100 images": [folder / "realsr" / "HR" / n for n in everything],
    }
    tables = {
        group: evaluate.score(images, metrics=["niqe", "niqe-pocket"]) for group, images in groups.items()
    }
    out = {}
    for group, df in {**tables, "all, 234 images": pd.concat(tables.values())}.items():
        a, b = df["niqe"], df["niqe-pocket"]
        out[group] = {
            "pearson": a.corr(b),
            "spearman": a.corr(b, "spearman"),
            "mean_niqe": a.mean(),
            "mean_niqe_pocket": b.mean(),
        }
        out[group] = {k: round(float(v), 4) for k, v in out[group].items()}
        print(f"{group:26}", out[group], flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "pocket" / "niqe_pocket.mat")
    args = parser.parse_args()
    manifest = pd.read_csv(args.folder / "photos" / "manifest.csv").set_index("file")
    paths = [args.folder / "photos" / name for name in manifest.index]
    if changed := [p.name for p in paths if sha256(p) != manifest.loc[p.name, "sha256"]]:
        parser.error(f"{len(changed)} photos differ from manifest.csv: {changed[:3]}")
    kept = [p for p in paths if flat_share(read_image(p).rgb) <= FLAT]
    blocks = fit(kept, args.out)
    os.environ["IFCSR_DATA"] = str(args.folder)
    photos = [
        {"file": n, "blocks": k, **manifest.loc[n, ["source", "licence", "sha256"]]}
        for n, k in blocks.items()
    ]
    record = {
        "what": "pristine model for pyiqa's niqe, fitted by this project: niqe-pocket, not NIQE",
        "sha256": sha256(args.out),
        "written_by": {"tools/fit_niqe_pocket.py": sha256(__file__)},
        "packages": {p: importlib.metadata.version(p) for p in ("pyiqa", "torch", "numpy", "scipy")},
        "settings": {"sharpness": 0.75, "block": 96, "largest share of flat 8x8 blocks": FLAT},
        "blocks": sum(blocks.values()),
        "left out as graphics or flat": sorted({p.name for p in paths} - set(blocks)),
        "agreement with NIQE on RealSR": agreement(args.folder),
        "licences": manifest.loc[list(blocks), "licence"].value_counts().to_dict(),
        "photos": photos,
    }
    write_json(record, sidecar(args.out))
    print(f"{len(kept)} of {len(paths)} photos, {record['blocks']} blocks -> {args.out}")


if __name__ == "__main__":
    main()
