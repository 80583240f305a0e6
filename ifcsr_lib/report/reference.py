"""A run's tables beside the reference's: how far apart, and whether another processor explains it.

Processors round sums in another order. A shipped model's scores move by that alone. What a run trains moves
by more: each optimiser step starts from the last one's rounding. MEASURED is how far the tables of two
machines were apart (46e6a35 in the history, and later runs of the pocket profile); TOLERANCE is at least
about twice that.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..config import Config
from ..files.results import REFERENCE
from .tables import Tables, read_all

# {pattern of columns: (unit, (shipped model: measured, allowed), (trained: measured, allowed))}
TOLERANCE = {
    r"psnr|PSNR range \(dB\)": ("dB", (0.0037, 0.05), (0.28, 0.6)),
    r"ssim": ("", (0.00012, 0.001), (0.0062, 0.02)),
    r"niqe.*": ("", (0.035, 0.15), (0.7, 1.5)),
    r"lpips-lite.*": ("", (None, 0.05), (None, 0.6)),
    r"lpips.*|dists": ("", (None, 0.005), (None, 0.03)),
    r".*levels\)|.*jump|ends apart": ("levels", (None, 0.5), (1.04, 2.5)),
    r"largest / mean|detour": ("", (None, 0.1), (0.07, 0.5)),
    r".*\(px\)": ("px", (0.0033, 0.05), (None, 0.05)),
    r"E1|aligned|held|.*double edges|pixels over .*": ("", (0.0024, 0.01), (None, 0.01)),
}
OTHERS = 0.05  # of the reference: for a column of no known kind
COUNTS = r"calls at .*|optimiser steps"  # alike on every machine
# of the machine, not of the method
CLOCK = r".*\((s|ms|MB|GB/s)\)|.*seconds|E1 pays from N|.* / s|machine|us / pixel"
# no training of the run is in these: they ask the shipped model, or no model
FIXED = r"pairs_bicubic|gamma_released|release_.*|beyond_ghosting_.*|gamma_(realsr|drealsr|div2k_val)"
MACHINE = r"bench_.*|gpu_proof|full_size_cpu"  # tables of times
# columns that name a row even where they hold numbers
NAMES = ("gamma", "seed", "side", "batch", "stage")
WITHIN, BEYOND, NOT_COMPARED = "within the tolerance", "beyond the tolerance", "not compared"


@dataclass(frozen=True)
class Comparison:
    """One table. absolute, relative: the largest differences, in words with row and column; relative is
    None where every reference is 0. tolerance: of the cell that comes nearest to its own, or is furthest
    beyond it.
    """

    table: str
    word: str
    why: str = ""
    rows: int = 0
    absolute: str | None = None
    relative: str | None = None
    tolerance: str | None = None


def compare(cfg: Config, tables: Tables, folder: str | Path | None = None) -> list[Comparison]:
    """Each table that the run or the reference has, in the order of names.

    folder: the reference's tables, None for results/reference/<profile>/tables.
    """
    folder = REFERENCE / cfg.profile / "tables" if folder is None else Path(folder)
    kept = read_all(folder, cfg)
    out = []
    for name in sorted({*tables.frames, *tables.faults, *kept.frames, *kept.faults}):
        why = None
        if re.fullmatch(MACHINE, name):
            why = "times of one machine"
        elif name in tables.faults:
            why = f"this run's {tables.faults[name]}"
        elif name not in tables.frames:
            why = "not run"
        elif name in kept.faults:
            why = f"the reference {kept.faults[name]}"
        elif name not in kept.frames:
            why = "there is no reference"
        if why is None:
            out.append(_compare(name, tables.frames[name], kept.frames[name]))
        else:
            out.append(Comparison(name, NOT_COMPARED, why))
    return out


def allowed(table: str, column: str, value: float) -> float | None:
    """How far a number may be from the reference's `value`; None where a difference says nothing."""
    if re.fullmatch(CLOCK, column):
        return None
    if re.fullmatch(COUNTS, column):
        return 0.0
    for pattern, (_, fixed, trained) in TOLERANCE.items():
        if re.fullmatch(pattern, column):
            return fixed[1] if re.fullmatch(FIXED, table) else trained[1]
    return OTHERS * abs(value)


def _keyed(table: pd.DataFrame, columns: list[str]) -> dict[tuple, dict]:
    """{names of the row, and how many of these came before: {column: cell}}."""
    out, seen = {}, {}
    for row in table.to_dict("records"):
        key = tuple(f"{row[c]:g}" if isinstance(row[c], float) else str(row[c]) for c in columns)
        seen[key] = seen.get(key, -1) + 1
        out[*key, seen[key]] = row
    return out


def _number(cell) -> float | None:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _compare(name: str, run: pd.DataFrame, reference: pd.DataFrame) -> Comparison:
    if missing := [c for c in reference if c not in run]:
        return Comparison(name, NOT_COMPARED, f"this run has no column {missing[0]!r}")
    texts = [c for c in reference if c in NAMES or not pd.api.types.is_numeric_dtype(reference[c])]
    judged = [c for c in reference if c not in texts and not re.fullmatch(CLOCK, c)]
    keys = [c for c in texts if not re.fullmatch(CLOCK, c) and not pd.api.types.is_bool_dtype(reference[c])]
    here, there = _keyed(run, keys), _keyed(reference, keys)
    if both := [key for key in there if key in here]:
        if not judged:
            return Comparison(name, NOT_COMPARED, "it has no numbers but times", len(both))
    else:
        return Comparison(name, NOT_COMPARED, "no row of the reference is in this run")
    cells, words = [], []  # (difference, relative, share of what is allowed, allowed, where)
    for key in both:
        label = ", ".join(key[:-1]) or f"row {key[-1] + 1}"
        for column in judged:
            old, new = _number(there[key][column]), _number(here[key][column])
            if old is None or new is None:
                if old is not new:
                    words.append(f"{column} of {label} reads {here[key][column]!r}")
                continue
            gap, limit = abs(new - old), allowed(name, column, old)
            share = gap / limit if limit else (0.0 if gap == 0 else float("inf"))
            cells.append((gap, gap / abs(old) if old else None, share, limit, f"{column}, {label}"))
    if not cells:
        return Comparison(name, NOT_COMPARED, words[0] if words else "it has no numbers", len(both))
    if len(both) < len(there):
        words.append(f"{len(there) - len(both)} rows of the reference are not in this run")
    if len(both) < len(here):
        words.append(f"{len(here) - len(both)} rows of this run are not in the reference")
    absolute, worst = max(cells, key=lambda c: c[0]), max(cells, key=lambda c: c[2])
    relative = max((c for c in cells if c[1] is not None), key=lambda c: c[1], default=None)
    over = sum(c[2] > 1 for c in cells)
    if over:
        words.insert(0, f"{over} of {len(cells)} numbers; furthest: {worst[4]}")
    return Comparison(
        name,
        BEYOND if over else WITHIN,
        "; ".join(words),
        len(both),
        *(
            (
                f"{absolute[0]:.3g} ({absolute[4]})",
                f"{relative[1]:.2%} ({relative[4]})" if relative else None,
                f"{worst[0]:.3g} of {worst[3]:.3g} ({worst[4]})",
            )
            if absolute[0]
            else ("none", "none", "none")
        ),
    )
