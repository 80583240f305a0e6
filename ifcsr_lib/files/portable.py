"""Endpoint pairs in one portable file, .ifcsr.zip: lossless PNGs and ifcsr.json. Gamma is chosen later,
without a model.

A zip with stored entries: x_fid.png, x_real.png and, where known, x_L.png of each image, then ifcsr.json with
the format, model, hash, gamma and the sha256 of every part. Any unzip program opens it; the page reads it
without a library.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from numbers import Real
from pathlib import Path

import numpy as np

from . import pixels
from .checks import check_pointer
from .results import atomic

FORMAT = "ifcsr endpoints 1"
PARTS = ("x_fid", "x_real", "x_L")
SUFFIX = ".ifcsr.zip"


def describe(model) -> dict[str, str]:
    """{"model": backbone and profile, "hash": over the backbone's hash and both adapters' weights} of an
    IFCSR or a lite.LiteModel.

    A text is taken as the name of the model, with hash "unknown"; a dict with both keys as it is.
    """
    if model is None or isinstance(model, str):
        return {"model": model or "unknown", "hash": "unknown"}
    if isinstance(model, dict) and {"model", "hash"} <= set(model):
        return {"model": str(model["model"]), "hash": str(model["hash"])}
    if not hasattr(model, "adapter"):
        raise TypeError(
            f"model came as {type(model).__name__}; pass the IFCSR that made the endpoints, or a text"
        )
    digest = hashlib.sha256(model.source["hash"].encode())
    for name in model.adapters:
        for key, p in sorted(model.adapter(name).items()):
            array = p if isinstance(p, np.ndarray) else p.detach().float().cpu().numpy()
            digest.update(key.encode() + array.tobytes())
    backbone = (
        Path(str(model.source["id"])).name
        if Path(str(model.source["id"])).is_absolute()
        else model.source["id"]
    )
    return {
        "model": f"{backbone}, profile {model.cfg.profile}, config {model.cfg.hash}",
        "hash": digest.hexdigest()[:16],
    }


def save(images: dict, path: str | Path, model=None, gamma: float = 0.5, bits: int = 16) -> Path:
    """Write a batch of endpoints, as Endpoints.save does.

    images: {"x_fid", "x_real", "x_L": (N, 3, H, W) in [0, 1]}, arrays or tensors; x_L may be None. model: see
        `describe`.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIX):
        raise ValueError(f"{path}: allowed: a name that ends in {SUFFIX}")
    if bits not in (8, 16):
        raise ValueError(f"bits={bits!r}; allowed: 8 or 16")
    if isinstance(gamma, bool) or not isinstance(gamma, Real) or not 0 <= gamma <= 1:
        raise ValueError(f"gamma={gamma!r}; allowed: a number from 0 (fidelity) to 1 (realism)")
    made, count = describe(model), len(images["x_fid"])
    card = {"format": FORMAT, **made, "gamma": float(gamma), "bits": bits, "images": []}
    with atomic(path) as tmp, zipfile.ZipFile(tmp, "w", zipfile.ZIP_STORED) as file:
        for i in range(count):
            parts = {}
            for part in PARTS:
                if images[part] is None:
                    continue
                name = f"{part}.png" if count == 1 else f"{part}_{i}.png"
                data = pixels.encode_png(_array(images[part][i : i + 1]), bits)
                file.writestr(zipfile.ZipInfo(name), data)  # a fixed date: the same pair gives the same bytes
                parts[part] = {"file": name, "sha256": hashlib.sha256(data).hexdigest()}
            card["images"].append(parts)
        file.writestr(zipfile.ZipInfo("ifcsr.json"), json.dumps(card, indent=1))
    return path


def _array(x) -> np.ndarray:
    """An array as it is, a tensor as float32 array."""
    return x if isinstance(x, np.ndarray) else x.detach().float().cpu().numpy()


def load(path: str | Path | bytes, name: str | None = None) -> tuple[dict, dict]:
    """`read` with torch tensors as images."""
    import torch

    images, made = read(path, name)
    return {part: None if x is None else torch.from_numpy(x) for part, x in images.items()}, made


def read(path: str | Path | bytes, name: str | None = None) -> tuple[dict[str, np.ndarray | None], dict]:
    """({"x_fid", "x_real", "x_L": (N, 3, H, W) in [0, 1], x_L may be None}, {"model", "hash", "gamma",
    "bits"}).

    path: the file, or its bytes with its name for the errors. Errors: see Endpoints.load.
    """
    name = name or (str(path) if not isinstance(path, bytes) else "the file")
    if not isinstance(path, bytes) and not Path(path).is_file():
        raise FileNotFoundError(f"{name} does not exist; pass a file written by ends.save")
    if not isinstance(path, bytes):
        check_pointer(path)
    try:
        with zipfile.ZipFile(io.BytesIO(path) if isinstance(path, bytes) else path) as file:
            return _read(file)
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:
        text = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise ValueError(f"{name} is not a whole {SUFFIX} ({text}); write it again with ends.save") from error


def _read(file: zipfile.ZipFile) -> tuple[dict[str, np.ndarray | None], dict]:
    names = set(file.namelist())
    if "ifcsr.json" not in names:
        raise ValueError("no ifcsr.json in it, so it is no endpoint pair")
    card = json.loads(file.read("ifcsr.json"))
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise ValueError(
            f"format {card.get('format') if isinstance(card, dict) else card!r}; allowed: {FORMAT!r}"
        )
    stacks: dict[str, list] = {part: [] for part in PARTS}
    first = None  # (name, height, width), which all parts have
    for i, parts in enumerate(card["images"]):
        for part in PARTS:
            if part not in parts and part == "x_L":
                continue
            if part not in parts or parts[part]["file"] not in names:
                raise ValueError(f"{part} of image {i} is missing")
            entry = parts[part]
            data = file.read(entry["file"])
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                raise ValueError(f"{entry['file']} is not the one ifcsr.json describes (sha256 differs)")
            x = pixels.decode_image(data, entry["file"]).rgb
            first = first or (entry["file"], *x.shape[2:])
            h, w = x.shape[2:]
            if (h, w) != first[1:]:
                raise ValueError(
                    f"{entry['file']} is {w}x{h} pixels and {first[0]} {first[2]}x{first[1]}; "
                    "allowed: one size"
                )
            stacks[part].append(x)
    if (
        isinstance(card["gamma"], bool)
        or not isinstance(card["gamma"], (int, float))
        or not 0 <= card["gamma"] <= 1
    ):
        raise ValueError(f"gamma={card['gamma']!r}; allowed: 0 to 1")
    if not card["images"] or (stacks["x_L"] and len(stacks["x_L"]) < len(card["images"])):
        raise ValueError("no image in it" if not card["images"] else "x_L is there for some images only")
    made = {key: card[key] for key in ("model", "hash", "gamma", "bits")}
    images = {part: np.concatenate(stacks[part]) if stacks[part] else None for part in PARTS}
    for part in PARTS[:2]:
        pixels.check_images(images[part], part)
    return images, made
