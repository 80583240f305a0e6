"""Weights for the exported graphs: safetensors read with numpy, and adapters merged into the UNet."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from ..files.checks import check_pointer

_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


def read(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """({key: float32 array}, the metadata) of a .safetensors file of F16, F32 or F64.

    Raises ValueError naming path for a damaged file or another type. Layout: safetensors' README, "Format".
    """
    path = Path(path)
    check_pointer(path)
    data = path.read_bytes()
    try:
        (size,) = struct.unpack_from("<Q", data)
        head = json.loads(data[8 : 8 + size])
        metadata, out = head.pop("__metadata__", {}), {}
        for key, entry in head.items():
            kind, (start, end) = _TYPES[entry["dtype"]], entry["data_offsets"]
            flat = np.frombuffer(data[8 + size + start : 8 + size + end], np.dtype(kind).newbyteorder("<"))
            out[key] = flat.reshape(entry["shape"]).astype(np.float32)
    except (struct.error, ValueError, KeyError, TypeError) as error:
        reason = f"type {error.args[0]}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"{path} is damaged or of a kind that is not read here ({reason}); allowed: safetensors of F16, "
            "F32 or F64. Get it again"
        ) from error
    return out, metadata


def merged(
    weights: dict[str, np.ndarray], adapter: dict[str, np.ndarray], scale: float
) -> dict[str, np.ndarray]:
    """The UNet's weights with a LoRA adapter in them: W + scale B A in each layer that it has.

    weights: {key: array} of the UNet. adapter: {"unet.<layer>.lora_A.weight": (r, in, ...), "...lora_B...":
    (out, r, ...)} of linear layers and convolutions. Raises ValueError for a layer that the UNet lacks.
    """
    out, ending = dict(weights), ".lora_A.weight"
    for key, a in adapter.items():
        if not key.endswith(ending):
            continue
        layer = key.removeprefix("unet.").removesuffix(ending)
        if f"{layer}.weight" not in weights:
            raise ValueError(f"the adapter's layer {layer} is not in the UNet; they are of two models")
        b = adapter[key.replace("lora_A", "lora_B")]
        delta = b.reshape(b.shape[:2]) @ a.reshape(len(a), -1)
        out[f"{layer}.weight"] = weights[f"{layer}.weight"] + np.float32(scale) * delta.reshape(
            weights[f"{layer}.weight"].shape
        )
    return out
