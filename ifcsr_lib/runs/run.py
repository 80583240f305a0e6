"""What happens around the steps of a training: devices and processes, resume, SIGTERM, dead workers, logs."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader, default_collate

from ..config import Config
from .checkpoint import Checkpoint
from .memory import precision, speed_and_memory


class Run:
    """One training, as a context: iterating gives (step, its batches); forward, backward and update do a
    step.

    Started by `accelerate launch` or `torchrun` it is one of several processes, on one device each. All
    randomness of a step follows from (seed, sample index), so that the position alone restores the stream: a
    resumed run ends bit for bit where an uninterrupted one ends, and the number of processes or workers
    changes
    no sample. history: one dict per step. Arguments and errors: trainer.train.
    """

    def __init__(
        self,
        objective,
        samples,
        cfg: Config,
        folder: str | Path,
        steps: int,
        on_step: Callable[[dict], None] | None = None,
        workers: int | None = None,
    ):
        # Accumulation, the loss's share of it and clipping are accelerate's. Mixed precision is not: a Python
        # process may train in both, see `precision`. Nor are checkpoints: ours refuse another run's.
        self.accelerator = Accelerator(
            mixed_precision="no",
            cpu=not torch.cuda.is_available(),
            gradient_accumulation_steps=cfg.gradient_accumulation,
        )
        self.objective, self.samples, self.cfg, self.steps = objective, samples, cfg, steps
        self.folder, self.on_step = Path(folder), on_step
        self.workers = cfg.workers if workers is None else workers
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        self.cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with self.cleanup:  # an error in here undoes what was set up before it
            self._set_up()
            self.cleanup = self.cleanup.pop_all()
        return self

    def _set_up(self) -> None:
        cfg, accelerator = self.cfg, self.accelerator
        for module in self.objective.modules():
            # a sixth less time per step on two CPU cores
            module.to(self.device, memory_format=torch.channels_last)
        self.cleanup.enter_context(speed_and_memory(self.objective, cfg))
        self.told = self.cleanup.enter_context(_told_to_stop())
        self.named = self.objective.trainable()
        loss = _Loss(self.objective)
        self.loss = accelerator.prepare(loss) if accelerator.num_processes > 1 else loss
        self.optimiser = torch.optim.AdamW(
            self.named.values(), lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), weight_decay=cfg.weight_decay
        )
        self.average = EMAModel(list(self.named.values()), decay=cfg.ema) if cfg.ema else None
        # DECISION D32: every card takes cfg.batch images, and the rate stays
        images = cfg.batch * cfg.gradient_accumulation * accelerator.num_processes
        self.checkpoint = Checkpoint(
            self.folder, self.objective, self.named, self.optimiser, self.average, cfg, self.steps, images
        )
        self.start, self.history = self.checkpoint.resume()
        starts = set(accelerator.gather(torch.tensor([self.start], device=self.device)).tolist())
        if len(starts) > 1:
            raise ValueError(
                "the processes found checkpoints of different steps "
                f"({', '.join(map(str, sorted(starts)))}): {self.checkpoint.path} must lie on a disk that "
                "all nodes share (IFCSR_RESULTS)"
            )
        if self.main:
            print(self.checkpoint.story(self.start), flush=True)
        log = cfg.log_every and self.main
        self.log = _Log(self.folder, self.objective, self.samples, cfg, self.start) if log else None
        self.moving = False  # while weights and history do not belong together

    def __iter__(self) -> Iterator[tuple[int, Iterator[dict]]]:
        batches = iter(loader(self.samples, self.start, self.steps, self.cfg, self.accelerator, self.workers))
        for step in range(self.start, self.steps):
            self.began, self.total, self.logs, self.names = time.perf_counter(), 0.0, {}, []
            self.optimiser.zero_grad(set_to_none=True)
            yield step, self._passes(batches)

    def _passes(self, batches: Iterator[dict]) -> Iterator[dict]:
        for _ in range(self.cfg.gradient_accumulation):
            batch = next(batches)
            self.names += batch.get("name", ["unnamed"])
            with self.accelerator.accumulate(self.loss):
                yield {k: v.to(self.device) if torch.is_tensor(v) else v for k, v in batch.items()}

    def forward(self, batch: dict):
        """objective.loss(batch) in the run's precision."""
        with precision(self.cfg, self.device):
            return self.loss(batch)

    def backward(self, step) -> None:
        """Gradients of step.loss, added to those of the step's earlier batches."""
        passes = self.cfg.gradient_accumulation
        self.accelerator.backward(step.loss)
        self.total = self.total + step.loss.detach() / passes
        self.logs = {k: self.logs.get(k, 0.0) + v / passes for k, v in step.logs.items()}

    def update(self, rate: float) -> None:
        """One step of AdamW with clipped gradients at this rate; then history, checkpoint, log and
        on_step.
        """
        cfg, step = self.cfg, len(self.history) + 1
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        norm = self.accelerator.clip_grad_norm_(list(self.named.values()), cfg.clip)
        flags = torch.stack([self.total.float(), torch.tensor(float(bool(self.told)), device=self.device)])
        # one process told to stop stops all
        value, stop = self.accelerator.gather(flags.unsqueeze(0)).mean(0).tolist()
        if not (math.isfinite(value) and math.isfinite(norm.item())):
            raise FloatingPointError(
                f"{self.objective.name}, step {step}: loss {value}, gradient norm {norm.item()}. Images of "
                f"this batch: {', '.join(map(str, self.names))}. Try a lower lr (now {rate:.3g}), "
                f"precision='no' (now {cfg.precision!r}), or look at these images. Last good checkpoint: "
                f"{self._kept('none yet')}."
            )
        self.moving = True
        self.optimiser.step()
        if self.average:
            self.average.step(list(self.named.values()))
        seconds = time.perf_counter() - self.began
        self.history.append({"step": step, "loss": value, "lr": rate, "seconds": seconds, **self.logs})
        self.moving = False
        if self.main:
            if step % cfg.checkpoint_every == 0 or step == self.steps or stop:
                self.checkpoint.save(self.history)
            if self.log:
                self.log(self.history[-1])
            if self.on_step:
                self.on_step({"steps": self.steps, "objective": self.objective.name, **self.history[-1]})
        if stop and step < self.steps:
            raise self._stopped()

    def __exit__(self, kind, error, trace) -> None:
        with self.cleanup:
            if error is None and self.average:
                self.average.copy_to(list(self.named.values()))
            if not isinstance(error, Exception):
                return
            if self.main and self.history and not self.moving and not isinstance(error, FloatingPointError):
                with contextlib.suppress(OSError):  # a full disk may be why we are here
                    self.checkpoint.save(self.history)
            # PyTorch raises this RuntimeError wherever the loop is when a worker dies
            if not isinstance(error, RuntimeError) or "DataLoader worker" not in str(error):
                return
            if self.told:  # whoever ends a job ends its workers too
                raise self._stopped() from None
            raise ChildProcessError(
                f"{self.objective.name}: a process that reads images died after step {len(self.history)} "
                f"({str(error).splitlines()[0].rstrip('.')}), often for lack of memory. "
                f"{self._kept('No checkpoint is kept')}, and the same command goes on from there; if it "
                f"happens again, set fewer workers (now {self.workers})"
            ) from error

    def _kept(self, otherwise: str) -> str:
        return f"{self.checkpoint.path}, kept" if self.checkpoint.path.exists() else otherwise

    def _stopped(self) -> SystemExit:
        if self.main:
            print(
                f"stopped by SIGTERM after step {len(self.history)}; {self.checkpoint.path} holds it, and "
                "the same command goes on from there",
                file=sys.stderr,
            )
        return SystemExit(128 + signal.SIGTERM)


def loader(
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


class _Log:
    """TensorBoard's files in folder/log: loss, rate and seconds of every step, and every cfg.log_every steps
    what objective.strip shows.
    """

    def __init__(self, folder: Path, objective, samples, cfg: Config, start: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder / "log", purge_step=start + 1)
        self.objective, self.cfg = objective, cfg
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
