"""One training loop for every objective of the kit, with atomic checkpoints and exact resume.

An objective has `name`, `modules()` (what to move to the device), `trainable()` -> {name: Parameter} and
`loss(batch)` -> (scalar tensor, {name: float}). The method's three stand below the loop.
Started by `accelerate launch` or `torchrun` the loop runs in every process, on one device each.
All randomness of a step follows from (seed, sample index), so the position alone restores the stream: a
resumed run ends bit for bit where an uninterrupted one ends, and the number of processes or workers changes
no sample.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader, default_collate

from .config import Config
from .control import blend
from .data import low_quality, normal, training_crops, uniform
from .files.results import atomic, provenance, recorded, require, sha256, write_sidecar
from .loss import FeatureDistance, depth_weights, feature_distance, specialised_loss
from .models import ADAPTERS, IFCSR, new
from .nets.latents import has_posterior


def learning_rate(cfg: Config, step: int, steps: int) -> float:
    """Rate at `step` of `steps`: constant, or a cosine from lr to lr / 100 after a warm-up of 2 %
    of the run.
    """
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

    samples: samples[i] -> dict of tensors and strings for sample index i >= 0 (an endless stream; see
        data.Crops).
    folder: receives last.pt (trained weights, optimiser, generators, position, history) every
        cfg.checkpoint_every steps, and log/ for TensorBoard when cfg.log_every is set.
    on_step: called with {"step", "steps", "loss", "lr", "seconds", ...} after every step, in the main process
        only.
    workers: processes that read samples, default cfg.workers.
    Returns the history, a dict a step. Raises FloatingPointError on a loss or gradient that is not finite,
    ValueError when last.pt belongs to another run, ChildProcessError when a worker died, OSError when the
    disk is full. SIGTERM ends the run after the step in progress with a checkpoint and SystemExit(143).
    """
    # precision is `precision`'s below, so that one Python process can train in both
    accelerator = Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available())
    for module in objective.modules():
        # a sixth less time a step on two CPU cores
        module.to(accelerator.device, memory_format=torch.channels_last)
    with speed_and_memory(objective, cfg), _told_to_stop() as told:
        return _steps(objective, samples, cfg, Path(folder), steps, on_step, workers, accelerator, told)


def _steps(objective, samples, cfg, folder, steps, on_step, workers, accelerator, told) -> list[dict]:
    named = objective.trainable()
    wrapped = accelerator.prepare(_Loss(objective)) if accelerator.num_processes > 1 else _Loss(objective)
    optimiser = torch.optim.AdamW(
        named.values(), lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), weight_decay=cfg.weight_decay
    )
    average = EMAModel(list(named.values()), decay=cfg.ema) if cfg.ema else None
    run = _Checkpoint(
        folder / "last.pt", objective, named, optimiser, average, cfg, steps, _images(cfg, accelerator)
    )
    start, history = run.resume()
    if len(starts := set(accelerator.gather(torch.tensor([start], device=accelerator.device)).tolist())) > 1:
        raise ValueError(
            f"the processes found checkpoints of different steps ({', '.join(map(str, sorted(starts)))}): "
            f"{run.path} must lie on a disk that all nodes share (IFCSR_RESULTS)"
        )
    log = (
        _Log(folder, objective, samples, cfg, start)
        if cfg.log_every and accelerator.is_main_process
        else None
    )
    loader = iter(
        _loader(samples, start, steps, cfg, accelerator, cfg.workers if workers is None else workers)
    )
    main, micro, moving = accelerator.is_main_process, cfg.gradient_accumulation, False
    try:
        for step in range(start, steps):
            began = time.perf_counter()
            rate = learning_rate(cfg, step, steps)
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.zero_grad(set_to_none=True)
            total, logs, names = 0.0, {}, []
            for i in range(micro):
                batch = {
                    k: v.to(accelerator.device) if torch.is_tensor(v) else v for k, v in next(loader).items()
                }
                names += batch.get("name", ["unnamed"])
                # gradients travel between processes once a step, with its last pass
                with contextlib.nullcontext() if i + 1 == micro else accelerator.no_sync(wrapped):
                    with precision(cfg, accelerator.device):
                        loss, extra = wrapped(batch)
                    (loss / micro).backward()
                total = total + loss.detach() / micro
                logs = {k: logs.get(k, 0.0) + v / micro for k, v in extra.items()}
            norm = torch.nn.utils.clip_grad_norm_(list(named.values()), cfg.clip)
            flags = torch.stack([total.float(), torch.tensor(float(bool(told)), device=total.device)])
            # one process told to stop stops all
            value, stop = accelerator.gather(flags.unsqueeze(0)).mean(0).tolist()
            if not (math.isfinite(value) and math.isfinite(norm.item())):
                raise FloatingPointError(
                    f"{objective.name}, step {step + 1}: loss {value}, gradient norm {norm.item()}. Images "
                    f"of this batch: {', '.join(map(str, names))}. Try a lower lr (now {rate:.3g}), "
                    f"precision='no' (now {cfg.precision!r}), or look at these images. Last good checkpoint: "
                    f"{f'{run.path.name}, kept' if run.path.exists() else 'none yet'}."
                )
            moving = True
            optimiser.step()
            if average:
                average.step(list(named.values()))
            history.append(
                {"step": step + 1, "loss": value, "lr": rate, "seconds": time.perf_counter() - began, **logs}
            )
            moving = False
            if main:
                if (step + 1) % cfg.checkpoint_every == 0 or step + 1 == steps or stop:
                    run.save(history)
                if log:
                    log(history[-1])
                if on_step:
                    on_step({"steps": steps, "objective": objective.name, **history[-1]})
            if stop and step + 1 < steps:
                raise _stopped(run.path, step + 1, main)
    except Exception as error:
        if main and history and not moving and not isinstance(error, FloatingPointError):
            with contextlib.suppress(OSError):  # a full disk may be why we are here
                run.save(history)
        # PyTorch raises this RuntimeError wherever the loop is when a worker dies
        if not isinstance(error, RuntimeError) or "DataLoader worker" not in str(error):
            raise
        if told:  # whoever ends a job ends its workers too
            raise _stopped(run.path, len(history), main) from None
        raise ChildProcessError(
            f"{objective.name}: a process that reads images died after step {len(history)} "
            f"({str(error).splitlines()[0].rstrip('.')}), often for lack of memory. "
            f"{run.path if run.path.exists() else 'No checkpoint'} is kept, and the same command goes on "
            f"from there; if it happens again, set fewer workers (now {loader._num_workers})"
        ) from error
    if average:
        average.copy_to(list(named.values()))
    return history


def precision(cfg: Config, device: torch.device):
    """The networks' autocast: bf16, or none. Degradation and losses leave it again, see `_float32`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "bf16")


def _float32(device: torch.device):
    # DECISION D31: degradation and distances in float32, since a bf16 image has about as few steps as an
    # 8-bit one has errors
    return torch.autocast(device.type, enabled=False)


@contextlib.contextmanager
def speed_and_memory(objective, cfg: Config):
    """For the time of a training: frozen nets in bf16, checkpointed or compiled as cfg says; afterwards all
    is as it was.
    """
    model, kept = getattr(objective, "model", None), {}
    compiled = [] if model is None or cfg.compile == "no" else [model.unet, model.vae.decoder]
    try:
        if model is not None and cfg.precision == "bf16":
            # DECISION D30: frozen UNet and VAE are held in bf16, 2 GB less and no cast a step; put back
            # afterwards
            lora = {id(p) for name in model.adapters for p in model.adapter(name).values()}
            for p in (*model.unet.parameters(), *model.vae.parameters()):
                if id(p) not in lora:
                    kept[p] = p.data.cpu()
                    p.data = p.data.bfloat16()
        if model is not None and cfg.gradient_checkpointing:
            model.checkpoint_gradients()
        for module in compiled:
            module.compile(backend=cfg.compile)
        yield
    finally:
        for module in compiled:
            module._compiled_call_impl = None
        if model is not None and cfg.gradient_checkpointing:
            model.checkpoint_gradients(False)
        for p, value in kept.items():
            p.data = value.to(p.device)


@contextlib.contextmanager
def _told_to_stop():
    """A list that gets an entry at SIGTERM, instead of the process ending there and then."""
    told: list[int] = []
    # Python lets no other thread handle signals
    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)


def _stopped(path: Path, step: int, main: bool) -> SystemExit:
    if main:
        print(
            f"stopped by SIGTERM after step {step}; {path} holds it, and the same command goes on from there",
            file=sys.stderr,
        )
    return SystemExit(128 + signal.SIGTERM)


class _Log:
    """TensorBoard's files in folder/log: loss, rate and seconds of every step, objective.strip every
    cfg.log_every steps.
    """

    def __init__(self, folder: Path, objective, samples, cfg: Config, start: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer, self.objective, self.cfg = (
            SummaryWriter(folder / "log", purge_step=start + 1),
            objective,
            cfg,
        )
        self.batch = default_collate([samples[0]])  # the same photograph all along

    def __call__(self, row: dict) -> None:
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, row["step"])
        if row["step"] % self.cfg.log_every == 0 and hasattr(self.objective, "strip"):
            device = self.objective.model.prompt.device
            batch = {k: v.to(device) if torch.is_tensor(v) else v for k, v in self.batch.items()}
            with torch.no_grad(), precision(self.cfg, device):
                self.writer.add_image("x_L, gamma 0 to 1, x_H", self.objective.strip(batch), row["step"])
        self.writer.flush()


class _Loss(torch.nn.Module):
    """The objective as a module, which is what DistributedDataParallel can wrap."""

    def __init__(self, objective):
        super().__init__()
        self.objective = objective
        self.trained = torch.nn.ParameterList(objective.trainable().values())

    def forward(self, batch):
        return self.objective.loss(batch)


def _images(cfg: Config, accelerator: Accelerator) -> int:
    # DECISION D32: every card takes cfg.batch images, and the rate stays
    return cfg.batch * cfg.gradient_accumulation * accelerator.num_processes


def _loader(
    samples, start: int, steps: int, cfg: Config, accelerator: Accelerator, workers: int
) -> DataLoader:
    """Batches of sample indices: step s holds s*B ... (s+1)*B - 1 of its B images, split over passes and
    processes.
    """
    each = cfg.batch * accelerator.num_processes
    first = accelerator.process_index * cfg.batch
    passes = range(start * cfg.gradient_accumulation, steps * cfg.gradient_accumulation)
    index = [range(p * each + first, p * each + first + cfg.batch) for p in passes]
    return DataLoader(samples, batch_sampler=index, num_workers=workers)


class _Checkpoint:
    """last.pt: everything a run needs to go on, and whose it is."""

    def __init__(
        self,
        path: Path,
        objective,
        named: dict,
        optimiser,
        average: EMAModel | None,
        cfg: Config,
        steps: int,
        images: int,
    ):
        self.path, self.named, self.optimiser, self.average = path, named, optimiser, average
        self.run = {
            "objective": objective.name,
            "profile": cfg.profile,
            "config": cfg.hash,
            "steps": steps,
            "images a step": images,
        }
        self.settings = recorded(cfg)

    def save(self, history: list[dict]) -> None:
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
            wanted = {**wanted, "images a step": there.get("images a step")}
        if there != wanted:
            pairs = [(k, there.get(k), v) for k, v in wanted.items() if k != "config"]
            pairs += [
                (k, settings.get(k), v)
                for k, v in self.settings.items()
                if there["config"] != wanted["config"]
            ]
            differ = dict.fromkeys(f"{k} {a!r} there and {b!r} here" for k, a, b in pairs if a != b)
            raise ValueError(
                f"{self.path} is of another run: {', '.join(differ)}. Use the settings and the number of "
                "processes of that run, or another folder, or delete it"
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


def run_folder(model: IFCSR, name: str) -> Path:
    """results/<profile>/runs/<name>-<hash>: the hash covers config, backbone and the code that trains, so
    that a run continues its own checkpoint and never another's.
    """
    here = Path(__file__).parent
    files = (
        "nets/backbone",
        "data/crops",
        "data/patches",
        "degradation",
        "loss",
        "models",
        "data/streams",
        "trainer",
    )
    code = [sha256(here / f"{m}.py") for m in files]
    text = " ".join([model.cfg.hash, model.source["hash"], *code])
    return model.cfg.results / "runs" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def run_stage(cfg: Config, stage: int, on_step: Callable[[dict], None] | None = None) -> Path:
    """Train stage 1 or 2 as notebooks 02 and 03 do, with their checkpoint folders, and save what they save.

    Stage 1 writes results/<profile>/adapters/fidelity.safetensors; stage 2 reads it and writes
    realism.safetensors and ifcsr.json. The notebook, run afterwards with the same settings, finds the
    training finished and draws its figures. Returns the file. Raises what `train` and results.require raise.
    """
    began, model, adapters = time.perf_counter(), new(cfg), cfg.results / "adapters"
    name, fidelity = ADAPTERS[stage - 1], adapters / "fidelity.safetensors"
    if stage == 2:
        model.load_adapter("fidelity", require(fidelity, cfg, "02"))
    objective = (Stage1, Stage2)[stage - 1](model, feature_distance(cfg))
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


class _Stage:
    """What the method's objectives share: the model, the distance, and a batch's x_H, x_L and posterior
    noise.
    """

    def __init__(self, model: IFCSR, distance: FeatureDistance):
        self.model, self.distance, self.cfg = model, distance, model.cfg

    def modules(self) -> list[torch.nn.Module]:
        return [self.model, self.distance]

    def inputs(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x_H = batch["x_H"]
        with _float32(x_H.device):
            x_L = batch["x_L"] if "x_L" in batch else low_quality(x_H, self.cfg, batch["index"])[1]
        factor = self.model.vae_factor
        shape = (self.model.unet.config.in_channels, x_H.shape[-2] // factor, x_H.shape[-1] // factor)
        if not has_posterior(self.model.vae):  # `encode` ignores the noise
            return x_H, x_L, x_H.new_zeros(len(x_H), *shape)
        return x_H, x_L, normal(self.cfg.seed, batch["index"], shape).to(x_H)

    def gamma(self, batch: dict) -> torch.Tensor:
        """gamma ~ U(0, 1), (N,)."""
        # DECISION D12: drawn for each image, not once a batch
        return uniform(self.cfg.seed, batch["index"]).to(batch["x_H"])

    def weigh(self, x: torch.Tensor, x_H: torch.Tensor, k: float, direction: str) -> torch.Tensor:
        """E4 with the weights of E5 or E6; a scalar."""
        with _float32(x_H.device):
            return specialised_loss(self.distance(x.float(), x_H), depth_weights(k, direction))

    def strip(self, batch: dict) -> torch.Tensor:
        """x_L, x_fid, three blends, x_real, x_H of the batch's first image beside each other, (3, H, 7 W) in
        [0, 1].
        """
        x_H, x_L, noise = (x[:1] for x in self.inputs(batch))
        x_fid, x_real = (x.float().clamp(0, 1) for x in self.model.restore_both(x_L, noise))
        blends = [blend(x_fid, x_real, gamma) for gamma in (0.0, 0.25, 0.5, 0.75, 1.0)]
        return torch.cat([x_L, *blends, x_H], -1)[0].clamp(0, 1)


class Stage1(_Stage):
    """E2: theta minimises L_1st(x_fid, x_H), weights decreasing with depth (E5); phi inactive."""

    name = "stage1"

    def trainable(self):
        return self.model.train_only("fidelity")

    def loss(self, batch):
        x_H, x_L, noise = self.inputs(batch)
        x_fid = self.model.restore(x_L, "fidelity", noise)
        return self.weigh(x_fid, x_H, self.cfg.k, "fidelity"), {}


class Stage2(_Stage):
    """E3: phi minimises E_gamma L_2nd(x_hat, x_H), weights increasing with depth (E6); theta frozen."""

    name = "stage2"

    def trainable(self):
        return self.model.train_only("realism")

    def loss(self, batch):
        x_H, x_L, noise = self.inputs(batch)
        with torch.no_grad():
            z_L = self.model.encode(x_L, noise)
            x_fid = self.model.decode(self.model.one_step(z_L, "fidelity")).float()
        x_real = self.model.decode(self.model.one_step(z_L, "realism")).float()
        x_hat = blend(x_fid, x_real, self.gamma(batch))
        return self.weigh(x_hat, x_H, self.cfg.k, "realism"), {}


class Joint(_Stage):
    """The ablation's single stage: theta and phi together minimise E_gamma L(x_hat, x_H) with the baseline
    loss.
    """

    name = "joint"

    def trainable(self):
        return self.model.train_only("fidelity", "realism")

    def loss(self, batch):
        x_H, x_L, noise = self.inputs(batch)
        x_hat = blend(*self.model.restore_both(x_L, noise), self.gamma(batch))
        return self.weigh(x_hat, x_H, 1.0, "fidelity"), {}
