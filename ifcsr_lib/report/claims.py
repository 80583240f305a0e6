"""What IFCSR claims, and what a run's tables say to each claim. No number of any run stands here."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from ..config import Config
from .tables import Tables, Unread, numbers, rows

HOLDS, FAILS, NOT_RUN = "holds", "does not hold", "not run"
SINGLE, BASELINE, SPECIALISED = (
    "single stage, baseline",
    "two stages, k = 1 (baseline)",
    "two stages, k = 7",
)
WIDTHS = ("PSNR range (dB)", "niqe-pocket range", "lpips-lite range")
APART = "mean |x_real - x_fid| (levels)"
PERCEPTUAL = ("lpips", "dists", "lpips-lite")
OURS = "image blend (IFCSR)"
SHARE = 0.05  # of the reported value: what still counts as reached
TRAINED, SHIPPED = "the model of this run", "the shipped model"
# {folder of a benchmark: its name in data/paper/reported.csv}, as evaluate.benchmark has them, without torch
REPORTED = {"realsr": "RealSR", "drealsr": "DRealSR"}

Check = Callable[[pd.DataFrame], tuple[bool, str]]


@dataclass(frozen=True)
class Claim:
    """group: its heading. table: the CSV that decides. of: the model and pictures. needs: what to run."""

    group: str
    text: str
    table: str
    of: str
    needs: str
    check: Check


@dataclass(frozen=True)
class Verdict:
    """word: HOLDS, FAILS or NOT_RUN; why: the numbers behind it, or what is missing."""

    claim: Claim
    word: str
    why: str


def judge(cfg: Config, tables: Tables) -> list[Verdict]:
    """A verdict for each of `claims(cfg)`, from the tables alone."""
    return [_judge(claim, tables) for claim in claims(cfg, tables)]


def _judge(claim: Claim, tables: Tables) -> Verdict:
    if claim.table in tables.faults:
        return Verdict(claim, NOT_RUN, f"{claim.table}.csv {tables.faults[claim.table]}")
    if claim.table not in tables.frames:
        return Verdict(claim, NOT_RUN, f"needs {claim.needs}")
    try:
        true, why = claim.check(tables.frames[claim.table])
    except Unread as error:
        return Verdict(claim, NOT_RUN, f"{claim.table}.csv {error}")
    return Verdict(claim, HOLDS if true else FAILS, why)


def claims(cfg: Config, tables: Tables) -> list[Claim]:
    """The claims for a profile. A table of a benchmark, or of several seeds, is asked where there is one."""
    there = {*tables.frames, *tables.faults}
    out = [
        Claim(
            "Along gamma",
            "The faithful end is closer to the photograph than bicubic, in PSNR and in SSIM",
            "stage1_heldout",
            f"{TRAINED}, held-out photographs",
            "notebook 02",
            beats_bicubic,
        )
    ]
    sweeps = [("gamma_heldout", f"{TRAINED}, held-out photographs", "notebook 04")]
    if cfg.profile == "pocket":
        sweeps.append(("gamma_released", f"{SHIPPED}, held-out photographs", "notebook 04"))
    for folder, name in {**REPORTED, "div2k_val": "DIV2K-val"}.items():
        if f"gamma_{folder}" in there or cfg.profile == "paper":
            model = SHIPPED if cfg.profile == "pocket" else TRAINED
            needs = f"notebook 04 with IFCSR_DATA, which holds {folder}/"
            sweeps.append((f"gamma_{folder}", f"{model}, {name}", needs))
    along = {
        "PSNR falls along gamma": falls("psnr"),
        "SSIM falls along gamma": falls("ssim"),
        "NIQE falls along gamma": falls("niqe", "niqe-pocket"),
        "The perceptual distance to the photograph is smallest inside (0, 1]": smallest_inside,
    }
    out += [Claim("Along gamma", text, *sweep, check) for text, check in along.items() for sweep in sweeps]

    def ask(group: str, table: str, of: str, needs: str, checks: dict[str, Check]) -> None:
        out.extend(Claim(group, text, table, of, needs, check) for text, check in checks.items())

    table = "ablation_seeds" if "ablation_seeds" in tables.frames else "ablation"
    checks = {
        "A single stage with the baseline loss does not tell its ends apart: they have less than half the "
        "distance of those of two stages with the specialised loss": undivided,
        "Two stages are wider than one, both with the baseline loss": wider(BASELINE, SINGLE),
        "Two stages with the specialised loss are wider than with the baseline loss": wider(
            SPECIALISED, BASELINE
        ),
        "Two stages with the specialised loss are wider than a single stage": wider(SPECIALISED, SINGLE),
    }
    ask("What each ingredient is worth", table, "recipes of one budget", "notebook 05", checks)

    cost, of = "What control costs", "ten strategies on one backbone"
    checks = {
        "Moving the slider calls no network": no_network,
        "Blending pixels costs less than control that runs a network for each move": pays_off,
    }
    ask(cost, "control_cost", of, "notebook 07", checks)
    checks = {"Each step of the slider changes the picture alike, on a straight line": even}
    ask(cost, "control_smoothness", of, "notebook 07", checks)

    checks = {
        "The recipe carries over: the faithful end beats the noisy input in PSNR": beats_noise,
        "The recipe carries over: PSNR and NIQE fall from gamma 0 to 1, and lpips-lite is smallest above "
        "gamma 0": spectrum,
    }
    ask("Another task", "denoising", "denoising, held-out photographs", "notebook 09", checks)

    text = "Where the ends draw an edge at two places, the aligned blend doubles it less, and keeps both ends"
    of = "photographs moved by a known shift"
    ask("Beyond the paper", "beyond_ghosting_known", of, "notebook 10", {text: ghosts})
    for folder, name in REPORTED.items():
        text = f"The paper's scores on {name} are reached, each within {SHARE:.0%}"
        needs = f"profile paper, and notebook 04 with IFCSR_DATA, which holds {folder}/"
        ask("The paper's own scores", f"reported_{folder}", f"{TRAINED}, {name}", needs, {text: reached})
    return out


def beats_bicubic(table: pd.DataFrame) -> tuple[bool, str]:
    bicubic, ours = (rows(table, "image", name) for name in ("bicubic", "stage 1 (gamma 0)"))
    both = [(numbers(ours, m)[0], numbers(bicubic, m)[0]) for m in ("psnr", "ssim")]
    why = f"PSNR {both[0][0]:.2f} against {both[0][1]:.2f} dB, SSIM {both[1][0]:.4f} against {both[1][1]:.4f}"
    return all(a > b for a, b in both), why


def along(table: pd.DataFrame, *columns: str) -> tuple[str, list[tuple[float, float]]]:
    """The first of the columns that is there with numbers, and [(gamma, value)] in the order of gamma."""
    gammas, reason = numbers(table, "gamma"), None
    for column in columns:
        try:
            values = sorted(zip(gammas, numbers(table, column), strict=True))
        except Unread as error:
            reason = reason or error
            continue
        if len(values) < 2:
            raise Unread("has one gamma alone")
        return column, values
    if len(columns) > 1:
        raise Unread(f"has none of {', '.join(columns)} for every gamma")
    raise reason


def falls(*columns: str) -> Check:
    """Whether the first of `columns` that is there falls at every step of gamma."""

    def check(table: pd.DataFrame) -> tuple[bool, str]:
        column, values = along(table, *columns)
        digits = 4 if column == "ssim" else 2
        (g0, first), (g1, last) = values[0], values[-1]
        why = f"{column} {first:.{digits}f} at gamma {g0:g}, {last:.{digits}f} at {g1:g}"
        rises = [(a, b) for a, b in itertools.pairwise(values) if b[1] >= a[1]]
        if rises:
            (a, x), (b, y) = rises[0]
            why += f"; from gamma {a:g} to {b:g} it goes from {x:.{digits}f} to {y:.{digits}f}"
        return not rises, why

    return check


def smallest_inside(table: pd.DataFrame) -> tuple[bool, str]:
    column, values = along(table, *PERCEPTUAL)
    gamma, best = min(values, key=lambda pair: pair[1])
    return gamma > 0, f"{column} {best:.4f} at gamma {gamma:g}, {values[0][1]:.4f} at {values[0][0]:g}"


def seeds(table: pd.DataFrame) -> list[pd.DataFrame]:
    """The table of each seed."""
    numbers(table, "seed")
    return [part for _, part in table.groupby("seed", sort=True)]


def better(column: str, other: str) -> Callable[[float, float], bool]:
    """What a claim asks of two recipes' values a and b in a column; b is that of `other`.

    APART: a is less than half of b. A range: a is above 0 and above b; the sign of the single stage's range
    is chance (its two ends may be swapped) and does not count.
    """
    if column == APART:
        return lambda a, b: a < b / 2
    size = abs if other == SINGLE else float
    return lambda a, b: a > max(0.0, size(b))


def compared(table: pd.DataFrame, columns, one: str, other: str) -> tuple[bool, str]:
    """Whether `better` holds for recipe `one` in every column for every seed; the means in words."""
    parts, words = seeds(table), []
    cells = [
        [(numbers(rows(p, "recipe", one), c)[0], numbers(rows(p, "recipe", other), c)[0]) for c in columns]
        for p in parts
    ]
    for i, column in enumerate(columns):
        a, b = (sum(cell[i][j] for cell in cells) / len(cells) for j in (0, 1))
        words.append(f"{column} {a:.2f} against {b:.2f}")
    asked = [better(c, other) for c in columns]
    true = sum(all(f(a, b) for f, (a, b) in zip(asked, cell, strict=True)) for cell in cells)
    if len(cells) > 1:
        words[-1] += f"; in {true} of {len(cells)} seeds"
    return true == len(cells), ", ".join(words)


def wider(one: str, other: str) -> Check:
    """Whether recipe `one` has the larger range in PSNR and in both measures of realism, for every seed."""
    return lambda table: compared(table, WIDTHS, one, other)


def undivided(table: pd.DataFrame) -> tuple[bool, str]:
    return compared(table, (APART,), SINGLE, SPECIALISED)


def no_network(table: pd.DataFrame) -> tuple[bool, str]:
    own = rows(table, "strategy", OURS)
    for column in ("set-up", "adjustment"):
        if column not in own:
            raise Unread(f"has no column {column!r}")
    setup, moves = (str(own[c].iloc[0]) for c in ("set-up", "adjustment"))
    return moves == "0", f"passes of a move: {moves}; of the set-up: {setup}"


def pays_off(table: pd.DataFrame) -> tuple[bool, str]:
    rows(table, "strategy", OURS)
    for column in ("adjustment", "E1 pays from N"):
        if column not in table:
            raise Unread(f"has no column {column!r}")
    others = table[(table["strategy"] != OURS) & (table["adjustment"].astype(str) != "0")]
    if others.empty:
        raise Unread("has no strategy that runs a network for a move")
    counts = pd.to_numeric(others["E1 pays from N"], errors="coerce")
    if never := list(others["strategy"][counts.isna()]):
        return False, f"never against {', '.join(never)}"
    return True, f"set-up included, from move {int(counts.max())} on against each of {len(counts)} others"


def even(table: pd.DataFrame) -> tuple[bool, str]:
    own = rows(table, "strategy", OURS)
    jump, detour = (numbers(own, c)[0] for c in ("largest / mean", "detour"))
    rest = table[table["strategy"] != OURS]
    why = f"largest step {jump:.2f} times the mean, path {detour:.2f} times the straight line"
    if len(rest):
        low, high = (f(numbers(rest, "largest / mean")) for f in (min, max))
        why += f"; the other strategies {low:.2f} to {high:.2f} times the mean"
    return abs(jump - 1) < 0.01 and abs(detour - 1) < 0.01, why


def beats_noise(table: pd.DataFrame) -> tuple[bool, str]:
    ours, noisy = (numbers(rows(table, "image", n), "psnr")[0] for n in ("gamma 0", "noisy"))
    return ours > noisy, f"{ours:.2f} against {noisy:.2f} dB"


def spectrum(table: pd.DataFrame) -> tuple[bool, str]:
    first, last = (rows(table, "image", name) for name in ("gamma 0", "gamma 1"))
    both = {c: (numbers(first, c)[0], numbers(last, c)[0]) for c in ("psnr", "niqe-pocket")}
    words = [f"{c} {a:.2f} to {b:.2f}" for c, (a, b) in both.items()]
    names = [name for name in table["image"].astype(str) if name.startswith("gamma ")]
    values = {name: numbers(rows(table, "image", name), "lpips-lite")[0] for name in names}
    best = min(values, key=values.get)
    words.append(f"lpips-lite {values[best]:.2f} at {best}, {values['gamma 0']:.2f} at gamma 0")
    return all(a > b for a, b in both.values()) and best != "gamma 0", ", ".join(words)


def ghosts(table: pd.DataFrame) -> tuple[bool, str]:
    plain, aligned = numbers(table, "E1"), numbers(table, "aligned")
    if "ends bit for bit" not in table:
        raise Unread("has no column 'ends bit for bit'")
    less = sum(a < b for a, b in zip(aligned, plain, strict=True))
    exact = all(table["ends bit for bit"].astype(str) == "True")
    why = f"less at {less} of {len(plain)} shifts: mean {sum(aligned) / len(plain):.3f} against "
    why += f"{sum(plain) / len(plain):.3f}; ends bit for bit: {'yes' if exact else 'no'}"
    return less == len(plain) and exact, why


def reached(table: pd.DataFrame) -> tuple[bool, str]:
    measured, reported = numbers(table, "measured"), numbers(table, "reported")
    off = [abs(m - r) / abs(r) for m, r in zip(measured, reported, strict=True) if r]
    if not off:
        raise Unread("has no score to compare")
    why = f"{sum(x <= SHARE for x in off)} of {len(off)} scores; the furthest is {max(off):.1%} away"
    return max(off) <= SHARE, why
