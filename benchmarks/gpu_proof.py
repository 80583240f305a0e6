"""One optimiser step of each stage and both endpoints on a GPU, with random weights of SD 2.1-base's true
shapes.

python benchmarks/gpu_proof.py [--steps 5] [--batch 4] [--patch 512]
    Writes results/paper/tables/gpu_proof.csv and its record, again after every row: median seconds, peak
    memory, and the part of a step that takes longest. Without a CUDA device it writes nothing and says so.
    `python tools/keep_reference.py gpu_proof --profile paper` keeps it as what the docs show.
    Needs no download: the weights are random, so the numbers are those of any training, and the images mean
    nothing.
python benchmarks/gpu_proof.py --tiny
    The same code on the CPU with a small network and 64 pixels, into $IFCSR_RESULTS: for tests, its numbers
    mean nothing.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from ifcsr_lib import data, loss, models, results, sd21, trainer
from ifcsr_lib.config import Config, resolve
from ifcsr_lib.nets import features
from ifcsr_lib.runs import memory

TINY = dict(
    unet=dict(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
        use_linear_projection=True,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ),
    vae=dict(
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        sample_size=64,
    ),
)


def random_model(cfg: Config, tiny: bool, device: torch.device) -> models.IFCSR:
    """IFCSR on random weights: SD 2.1-base's shapes, or TINY's."""
    torch.manual_seed(0)
    with device:  # a card draws 950 million numbers in no time
        unet = UNet2DConditionModel(**(TINY["unet"] if tiny else sd21.unet_config()))
        vae = AutoencoderKL(**(TINY["vae"] if tiny else sd21.vae_config()))
    prompt = torch.randn(1, 77, unet.config.cross_attention_dim)
    return models.IFCSR(
        cfg, unet, vae, prompt, {"id": "random weights", "revision": None, "hash": "random"}
    ).to(device)


class Parts:
    """Seconds spent in named functions, waited for on the device: where a step's time goes."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, {}

    def watch(self, owner, name: str, label: str) -> None:
        inner = getattr(owner, name)

        def timed(*args, **kwargs):
            start = now(self.device)
            out = inner(*args, **kwargs)
            self.seconds[label] = self.seconds.get(label, 0.0) + now(self.device) - start
            return out

        setattr(owner, name, timed)


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak(device: torch.device, reset: bool = False) -> float:
    """GB of tensors at the peak since the last reset; NaN on a CPU, where PyTorch does not count."""
    if device.type != "cuda":
        return float("nan")
    if reset:
        gc.collect()  # Parts leaves cycles that hold the model before
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.max_memory_allocated(device) / 1e9


def one_stage(cfg: Config, stage, distance, steps: int, tiny: bool, device: torch.device) -> dict:
    """Median time and peak of `steps` optimiser steps after two that warm up; then the parts of one more,
    timed apart.
    """
    rng = np.random.default_rng(0)
    side = cfg.patch + 32
    crops = data.Crops(
        {f"noise{i}": rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for i in range(4)}, cfg.patch, 0
    )
    objective = stage(random_model(cfg, tiny, device), distance)
    peak(device, reset=True)
    with tempfile.TemporaryDirectory() as folder:
        history = trainer.train(objective, crops, cfg.replace(checkpoint_every=10**9), folder, steps + 2)
    out = {"seconds": statistics.median(row["seconds"] for row in history[2:]), "peak_gb": peak(device)}
    parts = Parts(device)
    for name in ("encode", "one_step", "decode"):
        parts.watch(objective.model, name, name)
    parts.watch(objective, "inputs", "degrade")
    parts.watch(objective, "distance", "features")
    batch = torch.utils.data.default_collate([crops[i] for i in range(cfg.batch)])
    batch = {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}
    with memory.speed_and_memory(objective, cfg):
        for _ in range(2):  # the first one compiles
            parts.seconds.clear()
            with memory.precision(cfg, device):
                value = objective.loss(batch).loss
            start = now(device)
            value.backward()
            parts.seconds["backward"] = now(device) - start
    total = sum(parts.seconds.values())
    shares = sorted(parts.seconds.items(), key=lambda item: -item[1])
    return out | {"dominates": ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in shares)}


def endpoints(cfg: Config, side: int, tiny: bool, device: torch.device, repeats: int) -> dict:
    """Both ends of one image of `side` x `side` output pixels, in float32 (what `upscale` does) or in bf16,
    compiled or not.
    """
    model = random_model(cfg, tiny, device)
    lq = torch.rand(1, 3, side // 4, side // 4, generator=torch.Generator().manual_seed(0)).to(device)
    seconds = []
    with memory.speed_and_memory(SimpleNamespace(model=model), cfg), memory.precision(cfg, device):
        peak(device, reset=True)
        for _ in range(repeats + 2):
            start = now(device)
            model.endpoints(lq)
            seconds.append(now(device) - start)
        return {"seconds": statistics.median(seconds[2:]), "peak_gb": peak(device), "dominates": ""}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--patch", type=int, default=512)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(argv)
    if not (torch.cuda.is_available() or args.tiny):
        print("not run: no CUDA device; nothing was written")
        return 0
    started = time.perf_counter()
    device = torch.device("cpu" if args.tiny else "cuda")
    cfg = resolve("smoke", overrides={"batch": 1}) if args.tiny else resolve("paper")
    cfg = cfg if args.tiny else cfg.replace(batch=args.batch, patch=args.patch)
    net = features.PocketFeatures() if args.tiny else features.VGG16Features(pretrained=False)
    lins = [torch.ones(c) for c in net.channels] if args.tiny else features.lpips_lins()
    distance, rows = loss.FeatureDistance(net, lins), []

    def record(what: str, one: Config, side: int, batch: int, work) -> Path:
        head = {
            "what": what,
            "side": side,
            "batch": batch,
            "precision": one.precision,
            "compile": one.compile,
            "gradient_checkpointing": one.gradient_checkpointing,
        }
        try:
            row = work()
        except torch.cuda.OutOfMemoryError:
            row = {"seconds": float("nan"), "peak_gb": float("nan"), "dominates": "out of memory"}
        rows.append(head | row)
        print(rows[-1], flush=True)
        return results.write_table(
            pd.DataFrame(rows), "gpu_proof", cfg, seconds=time.perf_counter() - started
        )

    rounds = [([{}, {"gradient_checkpointing": True}], [{"precision": "no"}, {"precision": "bf16"}])]
    if not args.tiny:  # last, since compiling takes minutes, on a CPU more
        rounds.append(([{"compile": "inductor"}], [{"compile": "inductor", "precision": "no"}]))
    for steps, ends in rounds:
        for stage in (trainer.Stage1, trainer.Stage2):
            for way in steps:
                one = cfg.replace(**way)
                record(
                    f"{stage.name}, one step",
                    one,
                    cfg.patch,
                    cfg.batch,
                    lambda stage=stage, one=one: one_stage(
                        one, stage, distance, args.steps, args.tiny, device
                    ),
                )
        for side in (64, 128) if args.tiny else (512, 1024):
            for way in ends:
                one = cfg.replace(**way)
                path = record(
                    "endpoints",
                    one,
                    side,
                    1,
                    lambda one=one, side=side: endpoints(one, side, args.tiny, device, args.steps),
                )
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
