"""What each way to control costs and gives: passes, time, memory, break-even, spectrum and smoothness of its
path.

Every function takes strategies of compare/strategies.py, already made for one model, and computes what it
returns in this process.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..evaluate import score, summary

COUNTS = (1, 2, 5, 10, 50)
MACS = {"encode": 558, "unet": 402, "decode": 1257}  # G at 512x512, SD 2.1-base, counted on the meta device


def passes(strategy, lq: Tensor) -> tuple[Counter, Counter]:
    """(passes of setup, passes of one adjustment), Counters of encode, unet and decode, as they
    happen on lq.
    """
    strategy.setup(lq)
    first = Counter(strategy.calls)
    strategy.adjust(0.5)
    return first, strategy.calls - first


def formula(calls: Counter) -> str:
    """Counter(unet=2, encode=1) as "E + 2U"; "0" when empty."""
    terms = [f"{n if n > 1 else ''}{k[0].upper()}" for k in ("encode", "unet", "decode") if (n := calls[k])]
    return " + ".join(terms) or "0"


def macs(calls: Counter) -> int:
    """G multiply-adds of these passes for one 512x512 image on SD 2.1-base."""
    return sum(MACS[k] * n for k, n in calls.items())


def break_even(setup: float, adjust: float, other_setup: float, other_adjust: float) -> int | None:
    """The least number N of adjustments, 1 or more, from which setup + N adjust is at most the other's; None:
    never.

    Any unit, the same for all four. N is the least from which it stays so: None also when adjust is the
    larger.
    """
    if adjust > other_adjust or (adjust == other_adjust and setup > other_setup):
        return None
    if setup + adjust <= other_setup + other_adjust:
        return 1
    return math.ceil((setup - other_setup) / (other_adjust - adjust))


def measure(strategies: Mapping, lq: Tensor, counts: tuple[int, ...] = COUNTS) -> pd.DataFrame:
    """The cost table, a row a strategy: passes, seconds of setup, of an adjustment (medians), of setup and N
    adjustments, and MB.

    strategies: {name: strategy}. They are timed in turns, so that a slow moment of the machine meets all of
    them alike. calls at N: the network passes of setup and max(counts) adjustments, counted. N = n (s): the
    median setup and the first n adjustments of one run of max(counts). kept (MB): what the strategy holds
    between adjustments, with x_L; peak (MB): the most that setup or an adjustment adds on top of what was
    there before it.
    """
    if not counts or min(counts) < 1:
        raise ValueError(f"counts={counts}; allowed: one number of adjustments or more, each 1 or more")
    calls = {name: passes(way, lq) for name, way in strategies.items()}
    setups, each = ({name: [] for name in strategies} for _ in range(2))
    work = [
        (setups, 5, lambda way, n: way.setup(lq)),
        (each, max(counts), lambda way, n: way.adjust((n + 1) % 11 / 10)),
    ]
    for times, repeats, run in work:
        for n in range(repeats):
            for name, way in strategies.items():
                start = _now()
                run(way, n)
                times[name].append(_now() - start)
    rows = {}
    for name, way in strategies.items():
        setup = statistics.median(setups[name])
        rows[name] = {
            "set-up": formula(calls[name][0]),
            "adjustment": formula(calls[name][1]),
            "set-up (s)": setup,
            "adjustment (s)": statistics.median(each[name]),
            **{f"N = {n} (s)": setup + sum(each[name][:n]) for n in counts},
            f"calls at N = {max(counts)}": sum(way.calls.values()),
            "kept (MB)": kept(way) / 1e6,
            "peak of set-up (MB)": peak(lambda way=way: way.setup(lq)) / 1e6,
            "peak of adjustment (MB)": peak(lambda way=way: way.adjust(0.5)) / 1e6,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("strategy")


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def kept(strategy) -> int:
    """Bytes of the tensors that a strategy holds; a storage that several share counts once."""
    held = list(vars(strategy).values())
    held += [v for thing in held if hasattr(thing, "x_fid") for v in vars(thing).values()]
    return sum(
        {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in held
            if isinstance(t, Tensor)
        }.values()
    )


def peak(run: Callable) -> int:
    """Bytes that tensors occupy at most while run() runs, beyond what they did before; from torch's own
    allocations.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise it tells the terminal of every start and stop
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    steps = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    return int(max(steps, default=0))


def spectrum(strategy, lq: list[Tensor], hr: list, values, metrics: list[str], names=None) -> pd.DataFrame:
    """Mean scores along the values (index "gamma"), as evaluate.sweep has them for the image blend.

    lq: single images (1, 3, h, w); hr: their references, images or paths. One row for a strategy without
        control.
    """
    values = list(values) if strategy.controls else [0.0]
    images = {v: [] for v in values}
    for x in lq:
        strategy.setup(x)
        for v in values:
            images[v].append(strategy.adjust(v))
    table = pd.DataFrame({v: summary(score(x, hr, metrics, names)) for v, x in images.items()}).T.rename_axis(
        "gamma"
    )
    return table.infer_objects()


def path(strategy, lq: Tensor, steps: int = 20) -> dict:
    """How evenly a slider moves the picture: jumps between neighbours of steps + 1 values, RMS in 8-bit
    levels.

    largest jump, mean jump, their ratio (1: even), the distance of the ends, and detour, the path's length
    over it (1: straight).
    """
    strategy.setup(lq)
    first = last = strategy.adjust(0.0)
    jumps = []
    for i in range(1, steps + 1):
        now = strategy.adjust(i / steps)
        jumps.append(_rms(now - last))
        last = now
    mean, ends = sum(jumps) / steps, _rms(last - first)
    return {
        "largest jump": max(jumps),
        "mean jump": mean,
        "largest / mean": max(jumps) / mean if mean else math.nan,
        "ends apart": ends,
        "detour": sum(jumps) / ends if ends else math.nan,
    }


def _rms(x: Tensor) -> float:
    return 255 * x.square().mean().sqrt().item()
