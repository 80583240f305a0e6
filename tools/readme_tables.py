"""Write the tables between markers in README.md and docs/**/*.md, from results/reference and the code.

    python tools/readme_tables.py            write the tables; running it twice changes nothing
    python tools/readme_tables.py --check    change nothing; exit 1 and print a diff of what is out of date
    python tools/readme_tables.py --count    first count the recipes' memory and operations (minutes),
                                             into results/paper, and keep that as the reference

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; TABLES lists the names. Everything else is
left alone. "decisions" keeps its text: a row without a tag in the code is removed, a new tag gets a row that
says TODO.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import difflib
import io
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
import count_lines

COST = "training_cost"
MARKED = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
TRANSCRIPTS = (("1x H100", "80 GB"), ("1x 24 GB", "24 GB"), ("8x A100", "80 GB"))
# recipe, how it is set, the card whose hours are shown
RECIPE_ROWS = (
    ("80 GB", "batch 4, compiled", " (without compile)", "one H100"),
    ("24 GB", "batch 2, twice per step", "", "an RTX 4090"),
    ("12 GB", "batch 1, four times per step, gradients checkpointed", "", "an RTX 4070"),
)


def pages() -> list[Path]:
    """README.md and every page below docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def read(name: str, profile: str = "pocket") -> list[dict[str, str]]:
    """The rows of results/reference/<profile>/tables/<name>.csv."""
    path = ROOT / "results" / "reference" / profile / "tables" / f"{name}.csv"
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def row(*cells) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def head(*cells) -> list[str]:
    return [row(*cells).replace("|  |", "| |"), "|" + "---|" * len(cells)]


def show(rows: list[dict], columns: dict[str, tuple[str, str]]) -> list[str]:
    """A table of rows with {column: (its head, format of its numbers; "" for text)}; an empty cell is
    "-".
    """

    def cell(text: str, form: str) -> str:
        try:
            return format(float(text), form) if form else text or "-"
        except ValueError:
            return text or "-"

    if lacking := [key for key in columns if rows and key not in rows[0]]:
        raise ValueError(f"a table has no column {lacking[0]!r}; keep it anew (keep_reference.py)")
    return [
        *head(*(name for name, _ in columns.values())),
        *(row(*(cell(r[key], form) for key, (_, form) in columns.items())) for r in rows),
    ]


POCKET_SCORES = {
    "psnr": ("PSNR", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "niqe-pocket": ("niqe-pocket", ".2f"),
    "lpips-lite": ("lpips-lite", ".2f"),
}


REALSR_SCORES = {
    "psnr": ("PSNR", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "lpips-lite": ("lpips-lite", ".2f"),
    "niqe": ("NIQE", ".2f"),
}


def expect(_) -> list[str]:
    """The released model along gamma, with bicubic above."""
    rows = {f"{float(r['gamma']):.1f}": r for r in read("gamma_released")}
    rows = [rows[g] for g in ("0.0", "0.2", "0.5", "0.8", "1.0")]
    bicubic = [r | {"gamma": "bicubic"} for r in read("stage2_heldout") if r["image"] == "bicubic"]
    return show(bicubic + rows, {"gamma": ("gamma", ".1f"), **POCKET_SCORES})


def realsr(_) -> list[str]:
    """The released model on RealSR along gamma, with bicubic and Real-ESRGAN beside."""
    return show(read("release_realsr"), {"model": ("", ""), "gamma": ("gamma", ".1f"), **REALSR_SCORES})


def realsr_published(_) -> list[str]:
    """The same on the images whose outputs OSEDiff's authors published, with theirs beside."""
    rows = read("release_realsr_published")
    return show(rows, {"model": (f"the {float(rows[0]['images']):.0f} images", ""), **REALSR_SCORES})


def kodak(_) -> list[str]:
    """The released model on Kodak, degraded by each preset, with bicubic and Real-ESRGAN beside."""
    rows = [
        r | {"damage": preset}
        for preset in ("camera", "light", "x4plus")
        for r in read(f"release_kodak_{preset}")
        if r["gamma"] in ("", "0", "0.5", "1")
    ]
    names = {"damage": ("damage", ""), "model": ("", ""), "gamma": ("gamma", ".1f")}
    return show(rows, {**names, **REALSR_SCORES})


def mild(_) -> list[str]:
    """The released model on Kodak, hardly damaged."""
    scores = {name: REALSR_SCORES[name] for name in ("psnr", "ssim", "lpips-lite")}
    return show(read("release_mild"), {"damage": ("damage", ""), "image": ("", ""), **scores})


def gpu_steps(_) -> list[str]:
    """Training steps measured on a GPU, and the hours that 30,000 of them take."""
    from ifcsr_lib.config import resolve

    steps = resolve("paper").steps_fidelity
    out = head(
        "measured on one H100: one step, 4 images of 512x512, bf16, not compiled",
        "seconds",
        f"{steps:,} steps",
        "peak of tensors",
    )
    for r in read("gpu_proof", "paper"):
        if r["what"].startswith("stage") and r["compile"] == "no":
            name = f"stage {r['what'][5]}" + ", gradients checkpointed" * (
                r["gradient_checkpointing"] == "True"
            )
            seconds = float(r["seconds"])
            out.append(
                row(
                    name, f"{seconds:.2f}", f"{steps * seconds / 3600:.1f} h", f"{float(r['peak_gb']):.1f} GB"
                )
            )
    return out


def gpu_endpoints(_) -> list[str]:
    """Both endpoints of one image measured on a GPU, in float32."""
    out = head(
        "measured on one H100: both endpoints of one image, float32, not compiled",
        "seconds",
        "peak of tensors",
    )
    rows = [
        r
        for r in read("gpu_proof", "paper")
        if (r["what"], r["precision"], r["compile"]) == ("endpoints", "no", "no")
    ]
    for r in sorted(rows, key=lambda r: int(r["side"])):
        out.append(
            row(f"{r['side']}x{r['side']}", f"{float(r['seconds']):.2f}", f"{float(r['peak_gb']):.1f} GB")
        )
    return out


def gpu_hours(_) -> list[str]:
    """The two stages without checkpointing, as a sentence."""
    from ifcsr_lib.config import resolve

    steps, parts = resolve("paper").steps_fidelity, []
    for r in read("gpu_proof", "paper"):
        if r["what"].startswith("stage") and (r["compile"], r["gradient_checkpointing"]) == ("no", "False"):
            seconds = float(r["seconds"])
            parts.append(f"stage {r['what'][5]} {seconds:.2f} s per step, {steps * seconds / 3600:.1f} h")
    return [
        f"Measured on one H100 with random weights of the true shapes, for {steps:,} steps per stage:",
        f"{'; '.join(parts)} (`python benchmarks/gpu_proof.py`).",
    ]


def trained(_) -> list[str]:
    """The adapters that `make reproduce` trains, along gamma, with bicubic above."""
    bicubic = [r | {"gamma": "bicubic"} for r in read("stage2_heldout") if r["image"] == "bicubic"]
    return show(bicubic + read("gamma_heldout")[::2], {"gamma": ("gamma", ".1f"), **POCKET_SCORES})


def ablation(_) -> list[str]:
    """Each recipe's width: mean and range of several seeds."""
    found = read("ablation_seeds")
    measures = {name: name.replace("|", r"\|") for name in found[0] if name not in ("recipe", "seed")}
    seeds = len({r["seed"] for r in found})
    out = head(
        "recipe", *(f"{label}: mean of {seeds} seeds (lowest to highest)" for label in measures.values())
    )
    for recipe in dict.fromkeys(r["recipe"] for r in found):
        cells = []
        for name in measures:
            x = [float(r[name]) for r in found if r["recipe"] == recipe]
            cells.append(f"{sum(x) / len(x):.2f} ({min(x):.2f} to {max(x):.2f})")
        out.append(row(recipe, *cells))
    return out


def control_cost(_) -> list[str]:
    """What each control strategy costs, as notebook 07 measured it."""
    return show(
        read("control_cost"),
        {
            "strategy": ("strategy", ""),
            "set-up": ("set-up", ""),
            "adjustment": ("each adjustment", ""),
            "set-up (s)": ("set-up, s", ".3f"),
            "adjustment (s)": ("adjustment, s", ".4f"),
            "E1 pays from N": ("image blend is cheaper from N adjustments", ".0f"),
            "optimiser steps": ("optimiser steps behind it", ".0f"),
        },
    )


ENDS = ("psnr", "niqe-pocket", "lpips-lite")  # measured at both ends of a range


def control_range(_) -> list[str]:
    """The two ends of each strategy's range, and how even its path is."""
    points = {}
    for r in read("control_spectrum"):
        points.setdefault(r["strategy"], []).append(r)
    smooth = {r["strategy"]: r for r in read("control_smoothness")}
    rows = []
    for name, values in points.items():
        low, high = values[0], values[-1]
        rows.append(
            {"strategy": name, "largest / mean": "", "detour": ""}
            | {f"low {k}": low[k] for k in ENDS}
            | {f"high {k}": high[k] if len(values) > 1 else "" for k in ENDS}
            | smooth.get(name, {})
        )
    columns = {
        "strategy": ("strategy", ""),
        "low psnr": ("PSNR at 0", ".2f"),
        "high psnr": ("PSNR at 1", ".2f"),
        "low niqe-pocket": ("niqe-pocket at 0", ".2f"),
        "high niqe-pocket": ("niqe-pocket at 1", ".2f"),
        "low lpips-lite": ("lpips-lite at 0", ".2f"),
        "high lpips-lite": ("lpips-lite at 1", ".2f"),
        "largest / mean": ("largest step / mean step", ".2f"),
        "detour": ("path / straight line", ".2f"),
    }
    return show(rows, columns)


def denoising(_) -> list[str]:
    return show(read("denoising"), {"image": ("image", ""), **POCKET_SCORES})


def ghosting(_) -> list[str]:
    """Double edges on real pairs: the blend, the aligned blend, the held gamma."""
    columns = {
        "image": ("photograph", ""),
        "largest (px)": ("largest misalignment, pixels", ".2f"),
        "E1, double edges": ("double edges: E1", ".3f"),
        "aligned, double edges": ("aligned", ".3f"),
        "held, double edges": ("gamma held", ".3f"),
    }
    return show(read("beyond_ghosting_heldout"), columns)


def sizes(_) -> list[str]:
    columns = {
        "LQ": ("low-quality image", ""),
        "endpoints (s)": ("both endpoints, s", ".1f"),
        "peak (MB)": ("peak of tensors, MB", ".0f"),
        "blend (ms)": ("one blend, ms", ".2f"),
    }
    return show(read("bench_size"), columns)


def endpoints_speed(_) -> list[str]:
    columns = {
        "LQ": ("low-quality image", ""),
        "endpoints (s)": ("one after the other, s", ".2f"),
        "batched (s)": ("in one batch, s", ".2f"),
        "two passes (s)": ("two separate passes, s", ".2f"),
        "endpoints / two passes": ("ratio, one after the other", ".2f"),
        "batched / two passes": ("ratio, in one batch", ".2f"),
    }
    return show(read("bench_endpoints"), columns)


def blend_speed(_) -> list[str]:
    columns = {
        "image": ("image", ""),
        "limit (ms)": ("an addition in memory, ms", ".2f"),
        "blend (ms)": ("`ends.blend(gamma)`, ms", ".2f"),
        "into out (ms)": ("`ends.blend(gamma, out)`, ms", ".2f"),
    }
    return show(read("bench_blend"), columns)


def degradation_speed(_) -> list[str]:
    columns = {
        "preset": ("preset", ""),
        "workers": ("workers", ".0f"),
        "program": ("program", ""),
        "images / s": ("images per second", ".1f"),
        "kit is faster by": ("the kit is faster by", ".1f"),
    }
    return show(read("bench_degradation"), columns)


def training_step(_) -> list[str]:
    columns = {"part": ("part", ""), "ms": ("ms", ".0f"), "share": ("share of the step", ".0%")}
    return show(read("bench_training_step"), columns)


def startup(_) -> list[str]:
    columns = {"command": ("command", ""), "seconds": ("seconds", ".2f"), "torch": ("imports torch", "")}
    return show(read("bench_startup"), columns)


def photo(_) -> list[str]:
    columns = {
        "backend": ("backend", ""),
        "command (s)": ("the command, s", ".2f"),
        "one core busy (s)": ("with one core busy, s", ".2f"),
        "busy / idle": ("busy / idle", ".2f"),
        "endpoints (s)": ("both endpoints alone, s", ".2f"),
    }
    return show(read("bench_photo"), columns)


def counted() -> dict[tuple[str, int], dict]:
    """{(recipe, stage): what dry_run.cost gave}, from results/reference/paper/tables/training_cost.csv."""
    out = {}
    for r in read(COST, "paper"):
        recipe, stage = r.pop("recipe"), int(r.pop("stage"))
        out[recipe, stage] = {name: int(value) for name, value in r.items()}
    return out


def recipes(_) -> list[str]:
    """Memory and hours of each recipe as the dry run computes them."""
    from ifcsr_lib import dry_run
    from ifcsr_lib.config import resolve

    out = head(
        "computed: recipe", "settings", "peak of tensors in stage 1, stage 2", "hours of stage 1, stage 2"
    )
    for recipe, settings, note, card in RECIPE_ROWS:
        one = [counted()[recipe, stage] for stage in (1, 2)]
        rate = next(value for name, value in dry_run.CARDS.items() if card.endswith(name))
        hours = [resolve("paper").steps_fidelity * c["operations"] / rate / 3600 for c in one]
        digits = 0 if max(hours) > 20 else 1
        peaks = ", ".join(f"{c['peak'] / 1e9:.1f}" for c in one)
        out.append(
            row(
                recipe,
                settings,
                f"{peaks} GB{note}",
                ", ".join(f"{h:.{digits}f} h" for h in hours) + f" on {card}",
            )
        )
    return out


def transcript(cards: str, recipe: str) -> str:
    """The command of a dry run and what it prints."""
    from ifcsr_lib import dry_run
    from ifcsr_lib.config import RECIPES, resolve

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        dry_run.dry_run(resolve("paper", overrides=RECIPES[recipe]), 1, cards, counted()[recipe, 1])
    command = f'train --profile paper --stage 1 --recipe "{recipe}" --dry-run --cards "{cards}"'
    return f"$ python -m ifcsr_lib {command}\n{printed.getvalue()}"


def dry_runs(_) -> list[str]:
    return "\n\n".join(f"```\n{transcript(*which)}```" for which in TRANSCRIPTS).splitlines()


def lines(_) -> list[str]:
    """How large the method is, and all of the library."""
    (method, code), (_, total) = count_lines.count(count_lines.METHOD), count_lines.count()
    return [
        f"The method is {method:,} lines in three files, {code:,} of them code;",
        f"all of `ifcsr_lib` is {total:,} lines of code (`python tools/count_lines.py`).",
    ]


def tags() -> dict[str, str]:
    """{"D3": the text of its first comment} of every `# DECISION` line in the code."""
    out = {}
    for folder, pattern in (("ifcsr_lib", "*.py"), ("notebooks", "*.ipynb"), ("tools", "*.py")):
        for path in sorted((ROOT / folder).rglob(pattern)):
            for tag, text in re.findall(r"# DECISION (D\d+)\b:? ?(.*)", path.read_text(encoding="utf-8")):
                out.setdefault(tag, text)
    return out


def decisions(old: str) -> list[str]:
    """The rows that are there, without those whose tag is gone, and a row for each new tag."""
    there = {}
    for line in old.splitlines():
        if found := re.match(r"\| (D\d+) \|", line):
            there.setdefault(found[1], line)
    code = tags()
    wanted = sorted(code, key=lambda tag: int(tag[1:]))
    return [*head("", "choice", "why"), *(there.get(tag) or row(tag, code[tag], "TODO") for tag in wanted)]


TABLES = {
    f.__name__.replace("_", "-"): f
    for f in (
        *(expect, realsr, realsr_published, kodak, mild, trained, ablation, denoising),
        *(ghosting, lines, decisions),
        *(recipes, dry_runs, gpu_steps, gpu_endpoints, gpu_hours),
        *(control_cost, control_range),
        *(sizes, endpoints_speed, blend_speed, degradation_speed, training_step, startup, photo),
    )
}


def filled(text: str) -> str:
    """`text` with every marked table as it should be. Raises ValueError for an unknown name or an open
    marker.
    """
    marks = len(re.findall(r"^<!-- table:", text, re.MULTILINE))
    found = MARKED.findall(text)
    if unknown := [name for _, name, *_ in found if name not in TABLES]:
        raise ValueError(f"table {unknown[0]!r} is unknown; allowed: {', '.join(TABLES)}")
    if len(found) != marks or "<!-- table:" in "".join(body for *_, body, _ in found):
        raise ValueError("a `<!-- table: NAME -->` has no `<!-- end -->`, or holds another one")
    return MARKED.sub(lambda m: m[1] + "\n" + "\n".join(TABLES[m[2]](m[3])) + "\n\n" + m[4], text)


def count() -> None:
    """Count every recipe's memory and operations, into results/paper/tables/training_cost.csv; keep it as
    the reference.
    """
    import keep_reference
    import pandas as pd

    from ifcsr_lib import dry_run, results
    from ifcsr_lib.config import RECIPES, resolve

    rows = []
    for recipe, overrides in RECIPES.items():
        for stage in (1, 2):
            rows.append(
                {"recipe": recipe, "stage": stage}
                | dry_run.cost(resolve("paper", overrides=overrides), stage)
            )
            print(rows[-1], flush=True)
    results.write_table(pd.DataFrame(rows), COST, cfg := resolve("paper"))
    print(*keep_reference.keep(cfg.results, results.REFERENCE / "paper", [COST]), sep="\n")


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, help="default: README.md and docs/**/*.md")
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 and show a diff")
    parser.add_argument("--count", action="store_true", help="count the recipes again first (minutes)")
    args = parser.parse_args(argv)
    if args.count:
        count()
    bad = 0
    for path in args.files or pages():
        old = path.read_text(encoding="utf-8")
        try:
            new = filled(old)
        except ValueError as error:
            print(f"{path.name}: {error}", file=sys.stderr)
            bad = 1
            continue
        if new == old:
            continue
        if args.check:
            todo = "run python tools/readme_tables.py"
            diff = difflib.unified_diff(old.splitlines(), new.splitlines(), path.name, todo, n=0, lineterm="")
            print("\n".join(diff))
            bad = 1
        else:
            path.write_text(new, encoding="utf-8")
            print(f"{path.name}: written")
    return bad


if __name__ == "__main__":
    sys.exit(main())
