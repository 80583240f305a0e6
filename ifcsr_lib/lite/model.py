"""A shipped model on ONNX Runtime: both endpoints from one encoding, as models.IFCSR makes them.

The release tool tools/pocket/export_onnx.py writes the graphs, without weights, and export.json, which names
the files that they belong to. The weights are those of the shipped model itself.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config import ADAPTERS, POCKET, Config, resolve_model
from ..errors import one_line, out_of_memory
from ..files import pixels
from ..files.checks import check_card
from ..files.results import read_json, sha256
from . import weights
from .tiling import tiled

SHIPPED = {"pocket": POCKET}
FORMAT = "ifcsr onnx 1"
GRAPHS = ("encoder", "unet", "decoder")
WEIGHTS = (
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "empty_prompt.safetensors",
    "adapters/ifcsr.json",
    *(f"adapters/{name}.safetensors" for name in ADAPTERS),
)
AGAIN = "python tools/pocket/export_onnx.py exports it again"


@dataclass(frozen=True)
class Pair:
    """Endpoints as arrays (N, 3, H, W), float32 in [0, 1]; x_L: the bicubic x4 of the input, or None."""

    x_fid: np.ndarray
    x_real: np.ndarray
    x_L: np.ndarray | None = None

    def blend(self, gamma: float) -> np.ndarray:
        """(1 - gamma) x_fid + gamma x_real (E1); 0 and 1 give the endpoints bit for bit; else ValueError."""
        if not 0 <= gamma <= 1:  # NaN fails too
            raise ValueError(f"gamma={gamma}; allowed: 0 (fidelity) to 1 (realism)")
        g, step = np.float32(gamma), self.x_real - self.x_fid
        # the two forms of torch.lerp
        return self.x_fid + g * step if g < 0.5 else self.x_real - step * (1 - g)


def missing(name: str) -> str:
    """Why the model `name` cannot run on ONNX Runtime here, in one line; "" where it can."""
    if name not in SHIPPED:
        return f"only shipped models ({', '.join(SHIPPED)}) are exported to ONNX, {name!r} is not"
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed; pip install onnxruntime brings it"
    return stale(name)


def stale(name: str) -> str:
    """Why the export of the shipped model `name` does not belong to its weights; "" where it does, and for a
    model that is not shipped.
    """
    return stale_in(SHIPPED[name]) if name in SHIPPED else ""


def stale_in(folder: Path) -> str:
    """`stale` of the model in a folder such as data/pocket."""
    card_path = folder / "onnx" / "export.json"
    if not card_path.is_file():
        return f"{card_path} is missing; {AGAIN}"
    card = read_json(card_path)
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        return f"{card_path} is of another version of this kit; {AGAIN}"
    for kind, names in (("weights", WEIGHTS), ("graphs", tuple(f"onnx/{name}.onnx" for name in GRAPHS))):
        for name in names:
            path = folder / name
            if not path.is_file():
                return f"{path} is missing; get it again"
            if sha256(path) != card.get(kind, {}).get(name):
                return f"the ONNX export is stale: {path} is not the file it was made from; {AGAIN}"
    return ""


def load(name: str = "pocket", threads: int | None = None) -> LiteModel:
    """The shipped model `name`. threads: CPU threads; None takes $OMP_NUM_THREADS, else all cores.

    Raises ValueError with `missing`'s reason.
    """
    if reason := missing(name):
        raise ValueError(reason)
    return LiteModel(SHIPPED[name], threads)


class LiteModel:
    """f_theta and f_phi of a folder such as data/pocket with its export; for `endpoints` alone.

    cfg: the saved model's Config. source: its backbone. files: the module that reads and writes what it
    takes. Raises ValueError for damaged files.
    """

    files = pixels

    def __init__(self, folder: Path, threads: int | None = None):
        path = folder / "adapters" / "ifcsr.json"
        self.card = read_json(path)
        check_card(self.card, path)
        self.cfg: Config = resolve_model(self.card["model"])
        self.source, self.adapters = self.card["backbone"], ADAPTERS
        about = read_json(folder / "onnx" / "export.json")
        self.vae_factor, self.multiple = about["vae_factor"], about["multiple"]
        unet, _ = weights.read(folder / "unet" / "diffusion_pytorch_model.safetensors")
        vae, _ = weights.read(folder / "vae" / "diffusion_pytorch_model.safetensors")
        prompt, _ = weights.read(folder / "empty_prompt.safetensors")
        self._lora = {
            name: weights.read(folder / "adapters" / Path(self.card["adapters"][name]["file"]).name)[0]
            for name in ADAPTERS
        }
        vae = {f"vae.{key}": x for key, x in vae.items()}
        self._encode, self._decode = (
            _Graph(folder / "onnx" / f"{part}.onnx", about["initializers"][part], vae, threads)
            for part in ("encoder", "decoder")
        )
        scale = self.cfg.lora_alpha / self.cfg.rank
        self._steps = []
        for name in ADAPTERS:
            own = {f"unet.{k}": x for k, x in weights.merged(unet, self._lora[name], scale).items()} | prompt
            graph = _Graph(folder / "onnx" / "unet.onnx", about["initializers"]["unet"], own, threads)
            self._steps.append(graph)

    def adapter(self, name: str) -> dict[str, np.ndarray]:
        """The LoRA weights of "fidelity" or "realism", {key in the saved file: float32 array}."""
        return self._lora[name]

    def both(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """x_fid, x_real of padded images (N, 3, H, W), sides multiples of `multiple`; not clamped."""
        z = self._encode(x)
        return tuple(self._decode(step(z)) for step in self._steps)

    def endpoints(self, lq: np.ndarray, colour_fix: str | None = None) -> Pair:
        """models.IFCSR.endpoints on arrays: lq (N, 3, h, w) float32 RGB in [0, 1], sides at least 16.

        colour_fix: "none" or "adain"; None takes cfg.colour_fix. Each value is within 1/255 of torch's.
        Raises TypeError or ValueError.
        """
        pixels.check_images(lq, "lq")
        cfg = self.cfg
        fix = cfg.replace(colour_fix=colour_fix or cfg.colour_fix).colour_fix
        x_L = pixels.upsample(lq, cfg.scale)
        h, w = x_L.shape[-2:]
        large = 0 < cfg.tile**2 < h * w
        b, m = cfg.border, self.multiple
        padded = np.pad(
            x_L, ((0, 0), (0, 0), (b, b + -(h + 2 * b) % m), (b, b + -(w + 2 * b) % m)), mode="reflect"
        )
        if large:
            images = tiled(self.both, padded, cfg.tile, cfg.tile_overlap, m, images=2)
        else:
            images = self.both(padded)
        del padded
        ends = [np.clip(x[..., b : b + h, b : b + w], 0, 1) for x in images]
        del images
        grey = pixels.is_grey(x_L)
        if grey.any():
            ends = [np.where(grey[:, None, None, None], pixels.to_grey(x), x) for x in ends]
        if fix == "adain":
            ends = [adain(x, x_L) for x in ends]
        return Pair(*ends, x_L)


def adain(x: np.ndarray, x_L: np.ndarray) -> np.ndarray:
    """control.adain on arrays (N, 3, H, W): each channel gets x_L's mean and standard deviation; clamped."""
    (mean, std), (mean_L, std_L) = (_moments(image) for image in (x, x_L))
    return np.clip((x - mean) / (std + np.float32(1e-5)) * std_L + mean_L, 0, 1)


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (N - 1 in the denominator, as torch) of each channel, float32."""
    mean, std = (
        f(x, (2, 3), np.float64, keepdims=True) for f in (np.mean, lambda *a, **k: np.std(*a, ddof=1, **k))
    )
    return mean.astype(np.float32), std.astype(np.float32)


class _Graph:
    """One exported graph as a session; called with an array (N, C, h, w)."""

    def __init__(self, path: Path, names: list[str], tensors: dict, threads: int | None):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        wanted = threads or int(os.environ.get("OMP_NUM_THREADS") or 0)
        options.intra_op_num_threads = wanted
        # threads that spin while they wait cost more than they bring where another program runs
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if lacks := [name for name in names if name not in tensors]:
            raise ValueError(f"{path} wants {lacks[0]}, which the weights lack; {AGAIN}")
        self._values = [onnxruntime.OrtValue.ortvalue_from_numpy(tensors[name]) for name in names]
        options.add_external_initializers(list(names), self._values)
        self._session = onnxruntime.InferenceSession(
            path.read_bytes(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, x: np.ndarray) -> np.ndarray:
        try:
            return self._session.run(None, {"x": np.ascontiguousarray(x)})[0]
        except Exception as error:
            if out_of_memory(str(error)):  # ONNX Runtime has no kind of its own for it
                raise MemoryError(one_line(error)) from error
            raise
