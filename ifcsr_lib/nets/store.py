"""Saved models: one safetensors file per adapter, and ifcsr.json, which says what they belong to."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..config import Config, resolve_model
from ..data import POCKET
from ..files.checks import check_card, check_pointer
from ..files.results import atomic, sha256
from .backbone import locate, read_safetensors

SHIPPED = {"pocket": POCKET / "adapters"}


class Saved:
    """What IFCSR inherits to be saved and filled. It uses its cfg, source, provenance, adapters and lora."""

    def save_adapter(self, name: str, path: str | Path) -> Path:
        """Write one adapter as safetensors in the diffusers/peft LoRA layout (`unet.` keys, LoRA settings
        inside).
        """
        config = self.unet.peft_config[name]
        lora = {k: v for k, v in config.to_dict().items() if isinstance(v, (int, float, str, bool))}
        lora["target_modules"] = sorted(config.target_modules)
        settings = json.dumps({f"unet.{k}": v for k, v in lora.items()}, sort_keys=True)
        tensors = {k: p.detach().float().cpu().contiguous() for k, p in self.adapter(name).items()}
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = _ordered(save(tensors, {"format": "pt", "lora_adapter_metadata": settings}))
        with atomic(path) as tmp:
            tmp.write_bytes(data)
        return path

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Read an adapter written by `save_adapter`. Refuses pickles, and missing, extra or misshaped keys by
        name.
        """
        self.fill_adapter(name, read_safetensors(Path(path)), path)

    def fill_adapter(self, name: str, new: dict[str, Tensor], path: str | Path = "the adapter") -> None:
        """Copy these tensors, {key in the saved file: tensor}, into an adapter; `path` is for the errors."""
        own = self.adapter(name)
        missing, extra = sorted(set(own) - set(new)), sorted(set(new) - set(own))
        if missing or extra:
            raise ValueError(
                f"{path} does not fit this backbone: {len(missing)} keys missing {missing[:2]}, {len(extra)} "
                f"keys unknown {extra[:2]}. Load it on the backbone it was trained on (see ifcsr.json beside "
                "it)."
            )
        for key, p in own.items():
            if p.shape != new[key].shape:
                raise ValueError(
                    f"{path}: {key} has shape {tuple(new[key].shape)}, this model wants {tuple(p.shape)}; "
                    f"its rank is {self.cfg.rank}, set the override rank to the file's"
                )
            if not new[key].isfinite().all():
                raise ValueError(f"{path}: {key} holds NaN or infinity; the file is damaged, get it again")
        with torch.no_grad():
            for key, p in own.items():
                p.copy_(new[key])

    def save(self, folder: str | Path, provenance: dict | None = None) -> Path:
        """Write fidelity.safetensors, realism.safetensors and, last, ifcsr.json.

        ifcsr.json holds the backbone, hashes, Config.model and the provenance.

        provenance: results.provenance of the training; None keeps what this model was loaded with, else its
            Config.
        """
        folder = Path(folder)
        files = {name: self.save_adapter(name, folder / f"{name}.safetensors") for name in self.adapters}
        card = {
            "format": "ifcsr 2",
            "backbone": self.source,
            "model": self.cfg.model,
            "adapters": {name: {"file": p.name, "sha256": sha256(p)} for name, p in files.items()},
            "provenance": provenance or self.provenance,
        }
        with atomic(folder / "ifcsr.json") as tmp:
            Path(tmp).write_text(json.dumps(card, indent=1, sort_keys=True) + "\n")
        return folder

    def fill(self, folder: Path, card: dict) -> None:
        """Read the adapters that `card`, the ifcsr.json in folder, describes. Raises ValueError when the
        backbone or a file is another one than it says.
        """
        source = card["backbone"]
        if "config" in card:
            self.provenance = {"config": card["config"], "hash": card.get("config_hash")}
        self.provenance = card.get("provenance") or self.provenance
        if self.source["hash"] != source["hash"]:
            here, there = self.source["files"], source.get("files", {})
            changed = [name for name in there if there[name] != here.get(name)]
            raise ValueError(
                f"{folder} was trained on backbone {source['id']} with hash {source['hash']}; "
                f"{self.cfg.backbone} here has {self.source['hash']}"
                f"{', ' + changed[0] + ' differs' if changed else ''}. Get that backbone, or train the "
                "adapters again on this one."
            )
        for name in self.adapters:
            path = folder / Path(card["adapters"][name]["file"]).name
            safe = path.exists() and path.suffix == ".safetensors"
            if safe and sha256(path) != card["adapters"][name]["sha256"]:
                raise ValueError(
                    f"{path} is not the file that ifcsr.json describes (sha256 differs); get it again"
                )
            self.load_adapter(name, path)


def _ordered(data: bytes) -> bytes:
    """The bytes of a safetensors file with its metadata sorted; the package writes it in an order of chance.

    The format: 8 bytes of length, little-endian; a header in JSON, filled to a multiple of 8 with blanks; the
    tensors (https://huggingface.co/docs/safetensors, "Format").
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def find(name: str | Path) -> Path:
    """The folder of "pocket" (shipped), of a path, or of a hub id. ValueError for "pocket-texture"."""
    if name == "pocket-texture":
        raise ValueError('the model "pocket-texture" was removed from this kit; use "pocket"')
    return SHIPPED[name] if name in SHIPPED else locate(str(name))


def read_card(folder: Path, backbone: str | None = None) -> tuple[Config, dict] | None:
    """Config of the saved model in folder, and its ifcsr.json; None where there is none.

    backbone: where the backbone is now, if not where it was. Reads "ifcsr 1" as well, which had the whole
    Config of its time. Raises ValueError for a damaged file and for a kind of model that was removed.
    """
    path = folder / "ifcsr.json"
    if not path.exists():
        return None
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        check_pointer(path)
        raise ValueError(f"{path} is damaged ({error}); get it again") from error
    check_card(card, path)
    settings = card["model"] if "model" in card else card["config"]
    if settings.get("grain") or "grain" in card["adapters"] or (folder / "grain.safetensors").exists():
        raise ValueError(
            f"{folder} has layers on pixels (grain) behind its realism end, a kind of model that was removed "
            'from this kit; use "pocket", or a model trained without them'
        )
    try:
        return resolve_model(settings | ({"backbone": str(backbone)} if backbone else {})), card
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or of another version of this kit: {error}") from error
