"""Photographs to patches, benchmark pairs, and the data a user brings through IFCSR_DATA."""

from __future__ import annotations

import csv
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..config import POCKET, Config
from ..files.checks import check_pointer
from ..files.images import labels, list_images, partners, read_image, upsample, write_image
from ..files.results import sha256, write_sidecar
from .patches import cut
from .streams import LazyCrops, training_files

# sample indices of held-out images start here, so that no training crop shares their random numbers
HELDOUT_INDEX = 10**9
MANIFEST = POCKET / "photos.csv"


@dataclass(frozen=True)
class PhotoFile:
    """One row of data/pocket/photos.csv: a photograph that an installed wheel carries."""

    name: str
    path: Path
    split: str
    licence: str


def photos(split: str) -> list[PhotoFile]:
    """The pocket photographs of a split, checked against the manifest's sha256: "train" or "heldout".

    They are in the installed scikit-image and scikit-learn wheels; nothing downloads. Raises
    FileNotFoundError or ValueError naming the package when a file is missing or differs.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split={split!r}; allowed: 'train', 'heldout'")
    out = []
    check_pointer(MANIFEST)
    with open(MANIFEST, newline="", encoding="utf-8") as f:
        for row in csv.DictReader(f):
            if row["split"] != split:
                continue
            found = importlib.util.find_spec(row["package"])
            if found is None or not found.origin:
                raise FileNotFoundError(
                    f"the package {row['package']} is missing, whose {row['file']} is a pocket photograph; "
                    "install the packages of requirements.lock"
                )
            path = Path(found.origin).parent / row["file"]
            if not path.exists():
                raise FileNotFoundError(
                    f"{row['file']} is not in the installed {row['package']}; install the locked one"
                )
            if sha256(path) != row["sha256"]:
                raise ValueError(
                    f"{row['package']}/{row['file']} differs from data/pocket/photos.csv; install the lock"
                )
            out.append(PhotoFile(row["name"], path, row["split"], row["licence"]))
    return out


def load_photo(photo: PhotoFile | Path) -> Tensor:
    """(1, 3, H, W) float32 RGB in [0, 1], cropped at the centre so that H and W are multiples of 16."""
    path = photo.path if isinstance(photo, PhotoFile) else photo
    check_pointer(path)
    x = read_image(path).rgb
    h, w = (s // 16 * 16 for s in x.shape[-2:])
    top, left = (x.shape[-2] - h) // 2, (x.shape[-1] - w) // 2
    return x[..., top : top + h, left : left + w]


def pairs(folder: Path) -> list[tuple[str, Path, Path]]:
    """(name, LR path, HR path) for each file of folder/LR and its partner in folder/HR (images.partners);
    sorted by name.

    name: the stem of the LR file, or its full name where two share a stem. Raises FileNotFoundError or
    ValueError when a side is missing, when files have no partner (the first are named), or when two could be
    the partner.
    """
    low, high = (list_images(Path(folder) / side) for side in ("LR", "HR"))
    found = partners(low, high)
    if odd := sorted(
        {p.name for p in low if p not in found} | {p.name for p in set(high) - set(found.values())}
    ):
        raise ValueError(
            f"{folder}: {len(odd)} files have no partner in LR/HR, first {odd[:3]}; names must match"
        )
    return sorted((name, p, found[p]) for name, p in zip(labels(low), low, strict=True))


def read_pairs(folder: Path) -> tuple[list[str], list[Tensor], list[Tensor]]:
    """(names, LQ, HR) of what `pairs` finds: pictures (1, 3, h, w) and (1, 3, 4 h, 4 w), RGB in [0, 1]."""
    found = pairs(folder)
    lq, hr = ([read_image(row[side]).rgb for row in found] for side in (1, 2))
    return [name for name, *_ in found], lq, hr


def write_pairs(
    cfg: Config, files: list[PhotoFile | Path] | None = None, name: str = "pairs", side: int | None = None
) -> Path:
    """Degrade photographs once: results/<profile>/<name>/{LR,HR}/<photo>.png, with provenance.

    HR is the centre of the photograph, sides of at most `side` (cfg.heldout); LR is its x4 degradation
    (cfg.heldout_preset, cfg.seed, numbered in the order of files). files: default is the held-out
    photographs.
    """
    from ..degradation import degrade

    folder, side = cfg.results / name, side or cfg.heldout
    files = photos("heldout") if files is None else files
    paths = [f.path if isinstance(f, PhotoFile) else Path(f) for f in files]
    names = [
        f.name if isinstance(f, PhotoFile) else name for f, name in zip(files, labels(paths), strict=True)
    ]
    for i, (photo, stem) in enumerate(zip(files, names, strict=True)):
        x = load_photo(photo)
        h, w = (min(s, side) for s in x.shape[-2:])
        top, left = (x.shape[-2] - h) // 2, (x.shape[-1] - w) // 2
        x_H = x[..., top : top + h, left : left + w]
        write_image(x_H, folder / "HR" / f"{stem}.png")
        write_image(
            degrade(x_H, cfg.seed, cfg.heldout_preset, index=HELDOUT_INDEX + i), folder / "LR" / f"{stem}.png"
        )
    write_sidecar(folder, cfg, inputs=paths, kind="pairs")
    return folder


def looks_photographic(image: np.ndarray) -> bool:
    """False for graphics: more than half of the horizontal neighbours are equal. image: (H, W, 3) uint8."""
    return bool((image[:, 1:] == image[:, :-1]).all(-1).mean() <= 0.5)


def load_images(paths: list[Path], minimum: int) -> dict[str, np.ndarray]:
    """{name: (H, W, 3) uint8} of photographs with both sides of at least `minimum` pixels; graphics are left
    out.
    """
    out = {}
    for path in paths:
        check_pointer(path)
        image = (read_image(path).rgb[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        if min(image.shape[:2]) >= minimum and looks_photographic(image):
            out[path.stem if path.stem not in out else str(path)] = image
    if not out:
        raise ValueError(
            f"none of {len(paths)} images is a photograph of at least {minimum} x {minimum} pixels"
        )
    return out


class Crops(Dataset):
    """An endless stream of square crops: crop i is a function of (seed, i) alone, whoever asks for it.

    images: {name: (H, W, 3) uint8}; larger images are sampled more often, in proportion to their area.
    crops[i] -> {"x_H": (3, patch, patch) float32 RGB in [0, 1], "index": i, "name": str}, flipped and turned
    at random.
    """

    def __init__(self, images: dict[str, np.ndarray], patch: int, seed: int):
        small = [f"{n} {i.shape[1]}x{i.shape[0]}" for n, i in images.items() if min(i.shape[:2]) < patch]
        if small:
            raise ValueError(
                f"{len(small)} images are smaller than patch={patch}, first {small[:3]}; leave them out"
            )
        self.names, self.images, self.patch, self.seed = list(images), list(images.values()), patch, seed
        area = np.array([i.shape[0] * i.shape[1] for i in self.images], dtype=np.float64)
        self.chance = area / area.sum()

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, i: int) -> dict:
        rng = np.random.default_rng([self.seed, i])
        n = rng.choice(len(self.images), p=self.chance)
        return {"x_H": cut(self.images[n], self.patch, rng), "index": i, "name": self.names[n]}


def training_crops(cfg: Config) -> Dataset:
    """The crops stages 1 and 2 train on, of cfg.training_set: "shipped", or folders and shards (see
    streams.training_files).

    cfg.reading "memory" gives Crops (photographs decoded at the start, graphics left out), "disk"
    streams.LazyCrops. Worker processes (cfg.workers) degrade them, too.
    """
    return Degraded(_endless_crops(cfg), cfg) if cfg.workers else _endless_crops(cfg)


def _endless_crops(cfg: Config) -> Dataset:
    if cfg.training_set == "shipped":
        return Crops(load_images([p.path for p in photos("train")], cfg.patch), cfg.patch, cfg.seed)
    parts = training_files(cfg.training_set)
    if cfg.reading == "disk":
        return LazyCrops(parts, cfg.patch, cfg.seed, cfg.bad_images)
    paths = [Path(file) for files, _ in parts for file in files]
    if paths[0].suffix == ".tar":
        raise ValueError(
            f"training_set={cfg.training_set!r} are shards and reading='memory'; set reading='disk'"
        )
    return Crops(load_images(paths, cfg.patch), cfg.patch, cfg.seed)


class Degraded(Dataset):
    """Crops with their "x_L" (`low_quality`), made where the crop is read: in the worker processes, beside a
    GPU at work.
    """

    def __init__(self, samples: Dataset, cfg: Config):
        self.samples, self.cfg = samples, cfg

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> dict:
        sample = self.samples[i]
        return {**sample, "x_L": low_quality(sample["x_H"][None], self.cfg, [sample["index"]])[1][0]}


def low_quality(x_H: Tensor, cfg: Config, index) -> tuple[Tensor, Tensor]:
    """Degrade clean patches: (N, 3, H, W) -> lq (N, 3, H/4, W/4) and x_L, its bicubic x4, (N, 3, H, W).

    index: sample index of each image; with cfg.seed it fixes every random choice. cfg.preset "mixed" takes
    degradation.PRESETS in turn; "noise" keeps the size (`degradation.noisy`), and lq and x_L are then equal.
    """
    from ..degradation import PRESETS, degrade, noisy

    index = [int(i) for i in index]
    if cfg.preset == "noise":
        lq = noisy(x_H, cfg.seed, index)
    elif cfg.preset == "mixed":
        presets = [list(PRESETS)[i % len(PRESETS)] for i in index]
        lq = torch.cat(
            [degrade(x, cfg.seed, p, [i]) for x, p, i in zip(x_H.split(1), presets, index, strict=True)]
        )
    else:
        lq = degrade(x_H, seed=cfg.seed, preset=cfg.preset, index=index)
    return lq, upsample(lq, cfg.scale)
