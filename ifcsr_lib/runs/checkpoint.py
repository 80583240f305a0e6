"""The files of a run: last.pt, from which it goes on, and run.json, which says whose it is."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel

from ..config import depends
from ..files.results import atomic, read_json, recorded, write_json

# Raise it by hand when the same settings would train differently: other data order, loss or optimiser. It is
# part of the name of every run's folder, so that no checkpoint of before is continued.
TRAINING_VERSION = 3


def run_folder(model, name: str) -> Path:
    """results/<profile>/runs/<name>-<hash> of an IFCSR's training: the hash covers its config, its backbone
    and TRAINING_VERSION. So a run continues its own checkpoint and never another's.
    """
    text = f"{model.cfg.hash} {model.source['hash']} {TRAINING_VERSION}"
    return model.cfg.results / "runs" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def differences(here: dict, there: dict) -> list[str]:
    """What differs between two records, "k is 3.0, was 7.0", in the order of `here`; nested
    "settings" too.
    """
    pairs = [(k, here.get(k), there.get(k)) for k in here if k != "settings"]
    a, b = here.get("settings", {}), there.get("settings", {})
    pairs += [(k, a[k], b.get(k)) for k in a if k in depends("result")]
    return list(dict.fromkeys(f"{k} is {x!r}, was {y!r}" for k, x, y in pairs if x != y))


class Checkpoint:
    """Everything that a run needs to go on, in folder/last.pt. images: how many a step sees."""

    def __init__(
        self, folder: Path, objective, named: dict, optimiser, average: EMAModel | None, cfg, steps, images
    ):
        self.folder, self.path = Path(folder), Path(folder) / "last.pt"
        self.named, self.optimiser, self.average = named, optimiser, average
        self.run = {
            "objective": objective.name,
            "profile": cfg.profile,
            "config": cfg.hash,
            "steps": steps,
            "images per step": images,
        }
        self.settings = recorded(cfg)
        model = getattr(objective, "model", None)
        self.backbone = model.source["hash"] if model is not None else None

    def save(self, history: list[dict]) -> None:
        """Write last.pt, whole or not at all. Raises OSError, with the reason, when the disk is full."""
        state = {
            "run": self.run,
            "settings": self.settings,
            "step": history[-1]["step"],
            "weights": {name: p.detach().cpu() for name, p in self.named.items()},
            "optimiser": self.optimiser.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "rng": torch.get_rng_state(),
            "history": history,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)  # torch.save to a file loses the reason when a disk is full
        with atomic(self.path) as tmp:
            tmp.write_bytes(buffer.getbuffer())

    def resume(self) -> tuple[int, list[dict]]:
        """Position and history of last.pt, with everything put back; (0, []) when there is none."""
        if not self.path.exists():
            return 0, []
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            there, settings = state["run"], state["settings"]
        except Exception as e:
            raise ValueError(f"{self.path} cannot be read ({e}); delete it to start again") from e
        wanted = self.run
        if state["step"] == wanted["steps"]:  # a finished run may be read by any number of processes
            wanted = {**wanted, "images per step": there.get("images per step")}
        if there != wanted:
            same = there["config"] == wanted["config"]
            here = {k: v for k, v in wanted.items() if k != "config"} | {
                "settings": {} if same else self.settings
            }
            differ = ", ".join(differences(here, there | {"settings": settings}))
            raise ValueError(
                f"{self.path} is of another run: {differ}. Use the settings and the number of processes of "
                "that run, or another folder, or delete it"
            )
        with torch.no_grad():
            for name, p in self.named.items():
                p.copy_(state["weights"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.average:
            self.average.load_state_dict(state["average"])
            self.average.to(next(iter(self.named.values())).device)
        torch.set_rng_state(state["rng"])
        return state["step"], state["history"]

    def story(self, step: int) -> str:
        """One line for the start: from which step the run continues, or why it is a new one.

        Writes run.json, which later runs of the same name compare themselves with.
        """
        name, steps = self.run["objective"], self.run["steps"]
        own = {
            "backbone": self.backbone,
            "training version": TRAINING_VERSION,
            "steps": steps,
            "settings": self.settings,
        }
        if step:
            text = (
                f"is finished after step {step}" if step == steps else f"continues at step {step} of {steps}"
            )
            return f"{name}: {text}, {self.path}"
        kind = self.folder.name.rpartition("-")[0]
        others = [
            p for p in self.folder.parent.glob(f"{kind}-*/run.json") if kind and p.parent != self.folder
        ]
        reason = "no run of this kind is there yet"
        if others:
            last = max(others, key=lambda p: p.stat().st_mtime)
            try:
                reason = ", ".join(differences(own, read_json(last))) or f"{last.parent} holds another one"
            except ValueError:
                reason = f"{last} cannot be read"
        write_json(own, self.folder / "run.json")
        return f"{name}: new run, because {reason}; {self.path}"
