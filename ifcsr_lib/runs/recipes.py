"""The notebooks' two stages as one call each, for runs of hours (`python -m ifcsr_lib train`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState

from ..config import Config
from ..data import training_crops
from ..extras.terms import stage2
from ..files.results import provenance, require, write_sidecar
from ..loss import feature_distance
from ..models import ADAPTERS, new
from ..trainer import Stage1, train
from .checkpoint import run_folder


def run_stage(cfg: Config, stage: int, on_step: Callable[[dict], None] | None = None) -> Path:
    """Train stage 1 or 2 as notebooks 02 and 03 do, with their checkpoint folders, and save what they save.

    Stage 1 writes results/<profile>/adapters/fidelity.safetensors; stage 2 reads it and writes
    realism.safetensors and ifcsr.json. The notebook, run afterwards with the same settings, finds the
    training finished and draws its figures.
    Returns the file. Raises what `train` and results.require raise.
    """
    began, model, adapters = time.perf_counter(), new(cfg), cfg.results / "adapters"
    name, fidelity = ADAPTERS[stage - 1], adapters / "fidelity.safetensors"
    if stage == 2:
        model.load_adapter("fidelity", require(fidelity, cfg, "02"))
    objective = (Stage1, stage2)[stage - 1](model, feature_distance(cfg))
    steps = cfg.steps_fidelity if stage == 1 else cfg.steps_realism
    train(objective, training_crops(cfg), cfg, run_folder(model, f"stage{stage}"), steps, on_step)
    path, seconds = adapters / f"{name}.safetensors", time.perf_counter() - began
    if PartialState().is_main_process:
        inputs = [fidelity] if stage == 2 else []
        model.save_adapter(name, path)
        write_sidecar(path, cfg, inputs=inputs, seconds=seconds)
        if stage == 2:
            model.save(adapters, provenance(cfg, inputs=inputs, seconds=seconds))
            write_sidecar(adapters, cfg, seconds=seconds)
    PartialState().wait_for_everyone()
    return path
