"""Where the time of a training step of stage 2 goes (E3), part by part, and what the loop adds around the
parts.

    python benchmarks/training_step.py [profile, default pocket]
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from collections import defaultdict

import pandas as pd
import torch
from common import show
from torch.utils.data import default_collate

from ifcsr_lib import config, data, loss, models, trainer
from ifcsr_lib.control import blend

TINY = {"profile": "smoke", "steps": 1}


def table(profile: str = "pocket", steps: int = 8, cfg=None, crops=None, distance=None) -> pd.DataFrame:
    """A row per part: median ms of `steps` steps after one that does not count, and its share of the loop's
    whole step.
    """
    cfg = cfg or config.resolve(profile)
    crops, distance = crops or data.training_crops(cfg), distance or loss.feature_distance(cfg)
    model = models.new(cfg)
    stage, times = trainer.Stage2(model, distance), defaultdict(list)
    for module in stage.modules():
        module.to(memory_format=torch.channels_last)
    weights = list(stage.trainable().values())
    optimiser = torch.optim.AdamW(weights, lr=cfg.lr)
    w = loss.depth_weights(cfg.k, "realism")

    def took(part: str, run):
        start = time.perf_counter()
        out = run()
        times[part].append(1e3 * (time.perf_counter() - start))
        return out

    for step in range(steps + 1):
        batch = took(
            "crops", lambda s=step: default_collate([crops[s * cfg.batch + i] for i in range(cfg.batch)])
        )
        x_H = batch["x_H"]
        _, _, z = took("degradation, noise, encode", lambda b=batch: stage.inputs(b))
        with torch.no_grad():
            z_fid = took("UNet, fidelity, no graph", lambda z=z: model.one_step(z, "fidelity"))
            x_fid = took("decode, fidelity, no graph", lambda z=z_fid: model.decode(z))
        z_real = took("UNet, realism", lambda z=z: model.one_step(z, "realism"))
        x_real = took("decode, realism", lambda z=z_real: model.decode(z))
        x_hat = took("blend", lambda a=x_fid, b=x_real, d=batch: blend(a, b, stage.gamma(d)))
        value = took("distances", lambda x=x_hat, y=x_H: loss.specialised_loss(distance(x, y), w))
        optimiser.zero_grad(set_to_none=True)
        took("backward", value.backward)
        took("clip, AdamW", lambda: (torch.nn.utils.clip_grad_norm_(weights, cfg.clip), optimiser.step()))
    rows = {part: statistics.median(each[1:]) for part, each in times.items()}
    with tempfile.TemporaryDirectory(prefix="ifcsr-bench-") as folder:
        stamps = [time.perf_counter()]
        trainer.train(
            trainer.Stage2(models.new(cfg), distance),
            crops,
            cfg.replace(checkpoint_every=10**6),
            folder,
            steps + 1,
            lambda row: stamps.append(time.perf_counter()),
        )
    whole = statistics.median([1e3 * (b - a) for a, b in itertools.pairwise(stamps[1:])])
    rows |= {"sum of the parts": sum(rows.values()), "whole step in trainer.train": whole}
    out = pd.DataFrame({"ms": rows}).rename_axis("part")
    out["share"] = out["ms"] / whole
    return out


if __name__ == "__main__":
    profile = (sys.argv[1:] + ["pocket"])[0]
    show(f"a training step of stage 2, profile {profile}", lambda: table(profile))
