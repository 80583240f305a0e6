"""One training loop for every objective of the kit, with atomic checkpoints and exact resume.

An objective has `name`, `modules()` (what to move to the device), `trainable()` -> {name: Parameter} and `loss(batch)` ->
(scalar tensor, {name: float}). The method's three stand below the loop.
All randomness of a step follows from (seed, sample index), so the position alone restores the stream: a resumed run ends
bit for bit where an uninterrupted one ends, and the number of processes or workers changes no sample.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from .config import Config
from .control import blend
from .data import low_quality, normal, uniform
from .loss import Discriminator, FeatureDistance, depth_weights, hinge, specialised_loss
from .models import IFCSR, new
from .results import atomic, sha256


def learning_rate(cfg: Config, step: int, steps: int) -> float:
    """Rate at `step` of `steps`: constant, or a cosine from lr to lr / 100 after a warm-up of 2 % of the run."""
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
    workers: int = 0,
) -> list[dict]:
    """Minimise objective.loss over `steps` steps with AdamW; continue from folder/last.pt if it is there.

    samples: samples[i] -> dict of tensors and strings for sample index i >= 0 (an endless stream; see data.Crops).
    folder: receives last.pt (trained weights, optimiser, generators, position, history) every cfg.checkpoint_every steps.
    on_step: called with {"step", "steps", "loss", "lr", "seconds", ...} after every step, in the main process only.
    Returns the history, a dict a step. Raises FloatingPointError on a loss or gradient that is not finite, and
    ValueError when last.pt belongs to another run.
    """
    accelerator = Accelerator(mixed_precision=cfg.precision, cpu=not torch.cuda.is_available())
    for module in objective.modules():
        module.to(accelerator.device, memory_format=torch.channels_last)  # a sixth less time a step on two CPU cores
    named = objective.trainable()
    wrapped = accelerator.prepare(_Loss(objective)) if accelerator.num_processes > 1 else _Loss(objective)
    optimiser = torch.optim.AdamW(
        named.values(), lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), weight_decay=cfg.weight_decay
    )
    last = Path(folder) / "last.pt"
    start, history = _resume(last, objective, named, optimiser, cfg, steps)
    loader = _loader(samples, start, steps, cfg.batch, accelerator, workers)
    for step, batch in enumerate(loader, start):
        began = time.perf_counter()
        rate = learning_rate(cfg, step, steps)
        for group in optimiser.param_groups:
            group["lr"] = rate
        batch = {k: v.to(accelerator.device) if torch.is_tensor(v) else v for k, v in batch.items()}
        with accelerator.autocast():
            loss, logs = wrapped(batch)
        optimiser.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(list(named.values()), cfg.clip)
        value = accelerator.gather(loss.detach().reshape(1)).mean().item()
        if not (math.isfinite(value) and math.isfinite(norm.item())):
            raise FloatingPointError(
                f"{objective.name}, step {step + 1}: loss {value}, gradient norm {norm.item()}. Images of this batch: "
                f"{', '.join(map(str, batch.get('name', ['unnamed'])))}. Try a lower lr (now {rate:.3g}), "
                f"precision='no' (now {cfg.precision!r}), or look at these images. Last good checkpoint: "
                f"{f'{last.name}, kept' if last.exists() else 'none yet'}."
            )
        optimiser.step()
        row = {"step": step + 1, "loss": value, "lr": rate, "seconds": time.perf_counter() - began, **logs}
        history.append(row)
        if accelerator.is_main_process:
            if (step + 1) % cfg.checkpoint_every == 0 or step + 1 == steps:
                _save(last, objective, named, optimiser, cfg, steps, history)
            if on_step:
                on_step({"steps": steps, "objective": objective.name, **row})
    return history


class _Loss(torch.nn.Module):
    """The objective as a module, which is what DistributedDataParallel can wrap."""

    def __init__(self, objective):
        super().__init__()
        self.objective = objective
        self.trained = torch.nn.ParameterList(objective.trainable().values())

    def forward(self, batch):
        return self.objective.loss(batch)


def _loader(samples, start: int, steps: int, batch: int, accelerator: Accelerator, workers: int) -> DataLoader:
    """Batches of sample indices: step s holds s*B ... (s+1)*B - 1 of the global batch B, split over the processes."""
    world, rank = accelerator.num_processes, accelerator.process_index
    index = [
        [step * batch * world + rank * batch + i for i in range(batch)] for step in range(start, steps)
    ]
    return DataLoader(samples, batch_sampler=index, num_workers=workers)


def _buffers(objective) -> dict[str, torch.Tensor]:
    """What moves beside the weights, such as the state of the judge's spectral normalisation."""
    return {f"{i}.{name}": b for i, m in enumerate(objective.modules()) for name, b in m.named_buffers()}


def _identity(objective, cfg: Config, steps: int) -> dict:
    return {"objective": objective.name, "config": cfg.hash, "steps": steps}


def _save(last: Path, objective, named, optimiser, cfg: Config, steps: int, history: list[dict]) -> None:
    state = {
        "run": _identity(objective, cfg, steps),
        "step": history[-1]["step"],
        "weights": {name: p.detach().cpu() for name, p in named.items()},
        "buffers": {name: b.cpu() for name, b in _buffers(objective).items()},
        "optimiser": optimiser.state_dict(),
        "rng": torch.get_rng_state(),
        "history": history,
    }
    last.parent.mkdir(parents=True, exist_ok=True)
    with atomic(last) as tmp:
        torch.save(state, tmp)


def _resume(last: Path, objective, named, optimiser, cfg: Config, steps: int) -> tuple[int, list[dict]]:
    if not last.exists():
        return 0, []
    try:
        state = torch.load(last, map_location="cpu", weights_only=True)
    except Exception as e:
        raise ValueError(f"{last} cannot be read ({e}); delete it to start again") from e
    wanted = _identity(objective, cfg, steps)
    if state["run"] != wanted:
        raise ValueError(f"{last} is of another run: {state['run']}, wanted {wanted}; delete it or use another folder")
    with torch.no_grad():
        for name, p in named.items():
            p.copy_(state["weights"][name])
        for name, b in _buffers(objective).items():
            b.copy_(state["buffers"][name])
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["rng"])
    return state["step"], state["history"]


def run_folder(model: IFCSR, name: str) -> Path:
    """results/<profile>/runs/<name>-<hash>: the hash covers config, backbone and the code that trains, so that a run
    continues its own checkpoint and never another's."""
    here = Path(__file__).parent
    code = [sha256(here / f"{m}.py") for m in ("data", "degradation", "loss", "models", "streams", "trainer")]
    text = " ".join([model.cfg.hash, model.source["hash"], *code])
    return model.cfg.results / "runs" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def fit(cfg: Config, recipe: str, samples, distance: FeatureDistance, steps: int, on_step=None) -> IFCSR:
    """Train a new model by a recipe of the ablation, with 2 x `steps` optimiser steps whichever it is.

    recipe: "joint" (single stage, baseline loss) or "two stages" (E2 then E3 with cfg.k; k = 1 is the baseline loss).
    """
    stages = {"joint": [(Joint, 2 * steps)], "two stages": [(Stage1, steps), (Stage2, steps)]}
    if recipe not in stages:
        raise ValueError(f"recipe={recipe!r}; allowed: {', '.join(map(repr, stages))}")
    model = new(cfg)
    for stage, count in stages[recipe]:
        train(stage(model, distance), samples, cfg, run_folder(model, f"ablation-{stage.name}"), count, on_step)
    return model


class _Stage:
    """What the method's objectives share: the model, the distance, and a batch's x_H, x_L and posterior noise."""

    def __init__(self, model: IFCSR, distance: FeatureDistance):
        self.model, self.distance, self.cfg = model, distance, model.cfg

    def modules(self) -> list[torch.nn.Module]:
        return [self.model, self.distance]

    def inputs(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x_H = batch["x_H"]
        _, x_L = low_quality(x_H, self.cfg, batch["index"])
        factor = self.model.vae_factor
        shape = (self.model.unet.config.in_channels, x_H.shape[-2] // factor, x_H.shape[-1] // factor)
        return x_H, x_L, normal(self.cfg.seed, batch["index"], shape).to(x_H)

    def gamma(self, batch: dict) -> torch.Tensor:
        """gamma ~ U(0, 1), (N,)."""
        # DECISION D12: drawn for each image, not once a batch
        return uniform(self.cfg.seed, batch["index"]).to(batch["x_H"])


class Stage1(_Stage):
    """E2: theta minimises L_1st(x_fid, x_H), weights decreasing with depth (E5); phi inactive."""

    name = "stage1"

    def trainable(self):
        return self.model.train_only("fidelity")

    def loss(self, batch):
        x_H, x_L, noise = self.inputs(batch)
        x_fid = self.model.restore(x_L, "fidelity", noise)
        return specialised_loss(self.distance(x_fid, x_H), depth_weights(self.cfg.k, "fidelity")), {}


class Stage2(_Stage):
    """E3: phi minimises E_gamma L_2nd(x_hat, x_H), weights increasing with depth (E6); theta frozen."""

    name = "stage2"

    def __init__(self, model, distance):
        super().__init__(model, distance)
        self.judge = None
        if self.cfg.adversarial:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.cfg.seed)
                self.judge = Discriminator()

    def modules(self):
        return super().modules() + ([self.judge] if self.judge else [])

    def trainable(self):
        judge = self.judge.named_parameters() if self.judge else ()
        return self.model.train_only("realism") | {f"judge.{name}": p for name, p in judge}

    def loss(self, batch):
        x_H, x_L, noise = self.inputs(batch)
        with torch.no_grad():
            x_fid = self.model.restore(x_L, "fidelity", noise)
        x_real = self.model.restore(x_L, "realism", noise)
        x_hat = blend(x_fid, x_real, self.gamma(batch))
        loss = specialised_loss(self.distance(x_hat, x_H), depth_weights(self.cfg.k, "realism"))
        if self.judge is None:
            return loss, {}
        # not from the paper: x_real alone faces the judge, which has one optimiser with phi and its own loss
        maker, judge = hinge(self.judge, x_real, x_H)
        return loss + self.cfg.adversarial * maker + judge, {"paper": loss.item(), "judge": judge.item()}


class Joint(_Stage):
    """The ablation's single stage: theta and phi together minimise E_gamma L(x_hat, x_H) with the baseline loss."""

    name = "joint"

    def trainable(self):
        return self.model.train_only("fidelity", "realism")

    def loss(self, batch):
        x_H, x_L, noise = self.inputs(batch)
        x_hat = blend(*self.model.restore_both(x_L, noise), self.gamma(batch))
        return specialised_loss(self.distance(x_hat, x_H), depth_weights(1.0, "fidelity")), {}
