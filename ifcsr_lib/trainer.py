"""How the adapters are trained: stage 1 (E2), stage 2 (E3), and both at once for the ablation.

What surrounds the loop (devices, resume, signals, logs) is in runs/, extra terms of a loss in extras/.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from .config import Config
from .control import blend
from .data import low_quality, uniform
from .loss import FeatureDistance, depth_weights, specialised_loss
from .models import IFCSR, new
from .nets.latents import posterior_noise
from .runs.checkpoint import run_folder
from .runs.memory import float32
from .runs.run import Run


@dataclass
class Step:
    """What an objective made of one batch. loss: scalar with gradient; logs: {name: float} for the history.

    The images, (N, 3, H, W), are there where the objective has them: x_H and x_L in [0, 1], x_fid, x_real and
    their blend x_hat at gamma (N,) with gradients and not clamped. A term from outside (extras/) reads them.
    """

    loss: Tensor
    logs: dict[str, float] = field(default_factory=dict)
    x_H: Tensor | None = None
    x_L: Tensor | None = None
    x_fid: Tensor | None = None
    x_real: Tensor | None = None
    x_hat: Tensor | None = None
    gamma: Tensor | None = None


class Objective:
    """What `train` minimises: a name, modules() to move to the device, trainable() and loss(batch) -> Step.

    trains: the adapters that take gradients. batch: {"x_H": (N, 3, H, W) in [0, 1], "index": (N,) sample
    indices, and "x_L" where the data set has its own}.
    """

    name: str
    trains: tuple[str, ...]

    def __init__(self, model: IFCSR, distance: FeatureDistance):
        self.model, self.distance, self.cfg = model, distance, model.cfg

    def modules(self) -> list[nn.Module]:
        return [self.model, self.distance]

    def trainable(self) -> dict[str, nn.Parameter]:
        return self.model.train_only(*self.trains)

    def loss(self, batch: dict) -> Step:
        raise NotImplementedError

    def inputs(self, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
        """x_H, x_L, and z_L: x_L encoded with noise of the posterior; no gradient."""
        x_H, index, seed = batch["x_H"], batch["index"], self.cfg.seed
        with float32(x_H.device):
            x_L = batch["x_L"] if "x_L" in batch else low_quality(x_H, self.cfg, index)[1]
        with torch.no_grad():
            return x_H, x_L, self.model.encode(x_L, posterior_noise(self.model.vae, x_L, seed, index))

    def gamma(self, batch: dict) -> Tensor:
        """gamma ~ U(0, 1), (N,)."""
        # DECISION D12: drawn for each image, not once per batch
        return uniform(self.cfg.seed, batch["index"]).to(batch["x_H"])

    def weigh(self, x: Tensor, x_H: Tensor, k: float, direction: str) -> Tensor:
        """E4 with the weights of E5 ("fidelity") or E6 ("realism"); a scalar."""
        with float32(x_H.device):
            return specialised_loss(self.distance(x.float(), x_H), depth_weights(k, direction))

    def strip(self, batch: dict) -> Tensor:
        """x_L, blends at gamma 0, 0.25, 0.5, 0.75 and 1, x_H of the first image side by side, (3, H, 7 W)."""
        x_H, x_L, z_L = (x[:1] for x in self.inputs(batch))
        x_fid, x_real = (x.clamp(0, 1) for x in self.model.both(z_L))
        blends = [blend(x_fid, x_real, gamma / 4) for gamma in range(5)]
        return torch.cat([x_L, *blends, x_H], -1)[0].clamp(0, 1)


class Stage1(Objective):
    """E2: theta minimises L_1st(x_fid, x_H), weights decreasing with depth (E5); phi inactive."""

    name = "stage1"
    trains = ("fidelity",)

    def loss(self, batch):
        x_H, x_L, z_L = self.inputs(batch)
        x_fid = self.model.decode(self.model.one_step(z_L, "fidelity"))
        loss = self.weigh(x_fid, x_H, self.cfg.k, "fidelity")
        return Step(loss, x_H=x_H, x_L=x_L, x_fid=x_fid)


class Stage2(Objective):
    """E3: phi minimises E_gamma L_2nd(x_hat, x_H), weights increasing with depth (E6); theta frozen."""

    name = "stage2"
    trains = ("realism",)

    def loss(self, batch):
        x_H, x_L, z_L = self.inputs(batch)
        with torch.no_grad():
            x_fid = self.model.decode(self.model.one_step(z_L, "fidelity"))
        x_real = self.model.decode(self.model.one_step(z_L, "realism"))
        x_hat = blend(x_fid, x_real, gamma := self.gamma(batch))
        loss = self.weigh(x_hat, x_H, self.cfg.k, "realism")
        return Step(loss, x_H=x_H, x_L=x_L, x_fid=x_fid, x_real=x_real, x_hat=x_hat, gamma=gamma)


class Joint(Objective):
    """The ablation's single stage: theta and phi together minimise E_gamma L(x_hat, x_H) with k = 1."""

    name = "joint"
    trains = ("fidelity", "realism")

    def loss(self, batch):
        x_H, x_L, z_L = self.inputs(batch)
        x_fid, x_real = self.model.both(z_L)
        x_hat = blend(x_fid, x_real, gamma := self.gamma(batch))
        loss = self.weigh(x_hat, x_H, 1.0, "fidelity")
        return Step(loss, x_H=x_H, x_L=x_L, x_fid=x_fid, x_real=x_real, x_hat=x_hat, gamma=gamma)


def learning_rate(cfg: Config, step: int, steps: int) -> float:
    """Rate at `step` of `steps`: constant, or a cosine from lr to lr / 100 after 2 % of warm-up."""
    if cfg.schedule == "constant":
        return cfg.lr
    warm = max(1, steps // 50)
    fall = 0.505 + 0.495 * math.cos(math.pi * step / steps)
    return cfg.lr * fall * min(1.0, (step + 1) / warm)


def train(
    objective,
    samples,
    cfg: Config,
    folder: str | Path,
    steps: int,
    on_step: Callable[[dict], None] | None = None,
    workers: int | None = None,
) -> list[dict]:
    """Minimise objective.loss over `steps` steps with AdamW; continue from folder/last.pt if it is there.

    A step sees cfg.batch x cfg.gradient_accumulation x processes images. With cfg.ema the trained weights end
    as their average.

    objective: an Objective, or anything with its four names. samples: samples[i] -> dict of tensors and
        strings
        for sample index i >= 0 (an endless stream; see data.Crops).
    folder: receives last.pt (trained weights, optimiser, generators, position, history) every
        cfg.checkpoint_every steps, run.json, and log/ for TensorBoard when cfg.log_every is set.
    on_step: called with {"step", "steps", "loss", "lr", "seconds", ...} after every step, in the main process
        only. workers: processes that read samples, default cfg.workers.
    Returns the history, one dict per step. Raises FloatingPointError on a loss or gradient that is not
    finite, ValueError when last.pt belongs to another run, ChildProcessError when a worker died, OSError when
    the
    disk is full. SIGTERM ends the run after the step in progress with a checkpoint and SystemExit(143).
    """
    with Run(objective, samples, cfg, folder, steps, on_step, workers) as run:
        for step, batches in run:
            for batch in batches:
                run.backward(run.forward(batch))
            run.update(learning_rate(cfg, step, steps))
    return run.history


def fit(cfg: Config, recipe: str, samples, distance: FeatureDistance, steps: int, on_step=None) -> IFCSR:
    """Train a new model by a recipe of the ablation, with 2 x `steps` optimiser steps whichever it is.

    recipe: "joint" (single stage, baseline loss) or "two stages" (E2 then E3 with cfg.k; k = 1 is the
    baseline loss).
    """
    stages = {"joint": [(Joint, 2 * steps)], "two stages": [(Stage1, steps), (Stage2, steps)]}
    if recipe not in stages:
        raise ValueError(f"recipe={recipe!r}; allowed: {', '.join(map(repr, stages))}")
    model = new(cfg)
    for stage, count in stages[recipe]:
        train(
            stage(model, distance), samples, cfg, run_folder(model, f"ablation-{stage.name}"), count, on_step
        )
    return model
