"""Benchmarks at scale: endpoints once, each score once, on disk; interruptible, resumable, over several
processes.

results/<profile>/endpoints/<benchmark>-<key>/    key: of backbone, adapters and config
    <image>-<lq>.ifcsr.zip        both endpoints without colour fix, 16 bit; lq, hr: first digits of the
    files' sha256 <image>-<lq>-<hr>.csv         gamma,colour_fix,metric,value: what is known of this image
    set-<all>.csv                 the same for metrics of the whole set (FID)
    scores.csv                    all images: image,gamma,colour_fix,metric,value, and its provenance

A file is complete or not there, and belongs to one process, so a run may be stopped anywhere; started again,
it continues. Another gamma, metric or colour fix runs no network; what has a score is not scored again.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import functools
import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from ..config import Config, hint
from ..control import Endpoints
from ..data import pairs, user_data
from ..errors import one_line
from ..files import portable
from ..files.checks import check_pointer
from ..files.images import list_images, read_image, upsample, write_image
from ..files.results import atomic, sha256, write_bytes
from . import metrics as evaluate
from .metrics import GAMMAS, METRICS

# {folder in $IFCSR_DATA: (name in data/paper/reported.csv, images)}: the paper's three, LR 128 x 128 -> 512 x
# 512
BENCHMARKS = {"realsr": ("RealSR", 100), "drealsr": ("DRealSR", 93), "div2k_val": ("DIV2K-val", 3000)}
_HEAD = ["gamma", "colour_fix", "metric", "value"]


def files(name: str, limit: int | None = None) -> list[tuple[str, Path, Path]]:
    """(image, LR path, HR path) of a benchmark in $IFCSR_DATA, sorted by name; limit: the first so many only.

    Raises ValueError for an unknown name, FileNotFoundError when IFCSR_DATA lacks it.
    """
    if name not in BENCHMARKS:
        raise ValueError(
            f"benchmark {name!r} is unknown{hint(name, BENCHMARKS)}; allowed: {', '.join(BENCHMARKS)}"
        )
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}; allowed: 1 or more images, None for all")
    if (folder := user_data(name)) is None:
        raise FileNotFoundError(
            f"{BENCHMARKS[name][0]} is not here: set IFCSR_DATA to a folder with {name}/LR and "
            f"{name}/HR (see data/README.md)"
        )
    return pairs(folder)[:limit]


def key(model) -> str:
    """12 hex digits that name what made endpoints: backbone's and adapters' weights, and the config less
    colour_fix.
    """
    text = portable.describe(model)["hash"] + model.cfg.replace(colour_fix="none").hash
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def endpoints(model, lq: Path, folder: Path) -> Endpoints:
    """A photograph's endpoints without colour fix (and x_L), read from folder, or made by the model and kept
    there.

    lq: an image file. folder: of this very model (`key`). Raises ValueError naming a damaged file.
    """
    rgb, path = read_image(lq).rgb, Path(folder) / f"{lq.stem}-{sha256(lq)[:12]}{portable.SUFFIX}"
    if not path.is_file():
        made = model.endpoints(rgb, colour_fix="none")
        # DECISION D36: scores are of the endpoints as kept, 16 bit, so that a resumed sweep equals an
        # unbroken one
        Endpoints(made.x_fid, made.x_real).save(path, model)
    try:
        return dataclasses.replace(Endpoints.load(path), x_L=upsample(rgb, model.cfg.scale))
    except ValueError as error:
        raise ValueError(f"{error}. Or delete it: the next run makes it again") from error


def processes():
    """(rank, number of processes, wait): wait() returns when every process has called it; (0, 1, no-op) when
    alone.

    Started by torchrun, accelerate launch or `python -m ifcsr_lib benchmark --processes N`; sets each
    process's GPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return 0, 1, lambda: None
    from accelerate import PartialState

    patient = datetime.timedelta(days=7)  # a process with harder images may be hours behind
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=patient)
    return state.process_index, state.num_processes, state.wait_for_everyone


def run(
    model,
    name: str,
    gammas=GAMMAS,
    metrics=None,
    colour_fix: str | None = None,
    limit: int | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Score a model on a benchmark: index (gamma, image), one column per metric, as
    evaluate.sweep(per_image=True) gives it.

    model: an IFCSR. name: of BENCHMARKS. gammas, metrics: as in evaluate.sweep. colour_fix: None takes
        model.cfg's.
    limit: only the first images, by name. Several processes (`processes`) share the images; each returns the
    whole table, the same as of one process with as many threads. evaluate.summary(table) has the means. "not
    run: ..." stands where a metric could not run, and is tried again next time. Raises OSError when the first
    process does not find what another one wrote.
    """
    rows, gammas, metrics = (
        files(name, limit),
        evaluate.check_gammas(gammas),
        evaluate.check_metrics(metrics, hr=True),
    )
    fix = model.cfg.replace(colour_fix=colour_fix or model.cfg.colour_fix).colour_fix
    folder = model.cfg.results / "endpoints" / f"{name}-{key(model)}"
    rank, world, wait = processes()
    digests = [(sha256(lq)[:12], sha256(hr)[:12]) for _, lq, hr in rows]
    places = [folder / f"{image}-{a}-{b}.csv" for (image, *_), (a, b) in zip(rows, digests, strict=True)]
    together = folder / f"set-{hashlib.sha256(repr(digests).encode()).hexdigest()[:12]}.csv"
    maker = functools.cache(evaluate.create)  # a metric's network is loaded when a score is lacking
    absent = {m: evaluate.absent(m) for m in metrics}
    ends = functools.partial(_ends, model, folder, fix)

    single = [m for m in metrics if m != "fid" and not absent[m]]
    mine = list(zip(rows, places, strict=True))[rank::world]
    for (image, lq, hr), place in tqdm(mine, desc=name, unit="image", disable=not progress or rank > 0):
        _score_image(image, lq, hr, place, [(g, fix, m) for g in gammas for m in single], ends, maker)
    wait()
    if "fid" in metrics and not absent["fid"]:
        todo = [(g, fix, "fid") for g in gammas[rank::world]]
        _score_set(rows, together, rank, todo, ends, maker)
        wait()

    known = {image: _read(place) for (image, *_), place in zip(rows, places, strict=True)}
    whole = {
        k: v for path in sorted(together.parent.glob(f"{together.stem}*.csv")) for k, v in _read(path).items()
    }
    index = pd.MultiIndex.from_product([gammas, list(known)], names=["gamma", "image"])
    table = pd.DataFrame(
        {
            m: [(whole if m == "fid" else known[i]).get((g, fix, m), absent[m]) for g, i in index]
            for m in metrics
        },
        index,
    )
    table.attrs["lower_better"] = {m: METRICS[m].lower_better for m in metrics}
    if rank == 0:
        _check_whole(known, whole, [(g, fix, m) for g in gammas for m in metrics if not absent[m]], folder)
        _write_all(known | {"(all)": whole}, folder / "scores.csv", model.cfg, rows)
    wait()
    return table


def _ends(model, folder: Path, fix: str, lq: Path) -> Endpoints:
    ends = endpoints(model, lq, folder)
    return ends.colour_fixed() if fix == "adain" else ends


def _score_image(image: str, lq: Path, hr: Path, place: Path, wanted: list, ends, maker) -> None:
    """Add what is wanted, [(gamma, colour fix, metric)], and lacking to the image's file, after
    each gamma.
    """
    known = _read(place)
    todo: dict[float, list] = {}
    for entry in wanted:
        if not isinstance(known.get(entry), float):
            todo.setdefault(entry[0], []).append(entry)
    if not todo:
        return
    pair, y = ends(lq), evaluate.rounded(hr, f"hr of {image}")
    if pair.x_fid.shape != y.shape:
        raise ValueError(
            f"{image}: HR is {tuple(y.shape[2:])} and 4 x LR {tuple(pair.x_fid.shape[2:])}; allowed: the "
            "same size"
        )
    for gamma, entries in todo.items():
        x = evaluate.rounded(pair.blend(gamma), image)
        with torch.no_grad():
            known |= {
                entry: evaluate.score_one(METRICS[entry[2]], maker(entry[2], None), x, y) for entry in entries
            }
        _write(known, place)


def _score_set(rows: list, place: Path, rank: int, wanted: list, ends, maker) -> None:
    """FID at each gamma of `wanted` that no file of the set knows, into this process's own file."""
    known = [_read(path) for path in sorted(place.parent.glob(f"{place.stem}*.csv"))]
    todo = [entry for entry in wanted if not any(isinstance(k.get(entry), float) for k in known)]
    own = place if rank == 0 else place.with_stem(f"{place.stem}-{rank}")
    scores = _read(own)
    with tempfile.TemporaryDirectory(prefix="ifcsr-fid-") as folder:
        fid = maker("fid", None) if todo else ""
        for i, (_, _, hr) in enumerate(rows if todo and not isinstance(fid, str) else ()):
            write_image(evaluate.rounded(hr, hr.name), Path(folder, "hr", f"{i:06d}.png"))
        for entry in todo:
            for i, (image, lq, _) in enumerate(rows if not isinstance(fid, str) else ()):
                x = evaluate.rounded(ends(lq).blend(entry[0]), image)
                write_image(x, Path(folder, "sr", f"{i:06d}.png"))
            scores[entry] = fid if isinstance(fid, str) else evaluate.score_fid(fid, Path(folder), len(rows))
            _write(scores, own)


def _read(path: Path) -> dict[tuple[float, str, str], float | str]:
    """{(gamma, colour fix, metric): a number, or "not run: ..."}; {} without a file."""
    if not path.is_file():
        return {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            head, *lines = csv.reader(file)
            if head != _HEAD:
                raise ValueError(f"columns {head}")
            return {(float(g), fix, m): v if v.startswith("not run") else float(v) for g, fix, m, v in lines}
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, the next run makes it again") from error


def _write(scores: dict, path: Path) -> None:
    with atomic(path) as tmp, open(tmp, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [_HEAD, *([*entry, v] for entry, v in sorted(scores.items()))]
        )


def _check_whole(known: dict, whole: dict, wanted: list, folder: Path) -> None:
    """A metric that cannot run has a text for a score; no score at all is a file that this process does not
    see.
    """
    lacks = [
        i for i, scores in known.items() if any(e not in (whole if e[2] == "fid" else scores) for e in wanted)
    ]
    if lacks:
        raise OSError(
            f"scores of {len(lacks)} of {len(known)} images ({', '.join(map(str, lacks[:3]))}) are missing "
            f"in {folder}; all processes must share this folder: set IFCSR_RESULTS to one on a disk that "
            "every machine sees, and run again"
        )


def _write_all(known: dict, path: Path, cfg: Config, rows: list) -> None:
    table = pd.DataFrame(
        [[image, *entry, v] for image, scores in known.items() for entry, v in sorted(scores.items())],
        columns=["image", *_HEAD],
    )
    text = table.to_csv(index=False, lineterminator="\n")
    write_bytes(text.encode(), path, cfg, [rows[0][1].parent, rows[0][2].parent], None)


def compare_reported(table: pd.DataFrame, name: str, cfg: Config) -> pd.DataFrame:
    """Means of `run`'s table beside what the paper reports: gamma, metric, measured, reported, difference,
    source.

    name: the benchmark. Only what both have; empty where nothing is reported (DIV2K-val). difference:
    measured minus reported, NaN where measured reads "not run". Raises ValueError for another profile than
    paper, and for a part of the benchmark: such means say nothing about the paper's.
    """
    if name not in BENCHMARKS:
        raise ValueError(
            f"benchmark {name!r} is unknown{hint(name, BENCHMARKS)}; allowed: {', '.join(BENCHMARKS)}"
        )
    label, count = BENCHMARKS[name]
    if cfg.profile != "paper":
        raise ValueError(
            f"profile {cfg.profile!r} is another model at another scale, whose numbers share no table with "
            f"reported ones; evaluate.reported({label!r}) shows those by themselves"
        )
    if (n := table.index.get_level_values("image").nunique()) != count:
        raise ValueError(
            f"{n} images came, {label} has {count}: means over other images cannot be compared with the "
            "paper's; run the whole benchmark, without limit"
        )
    reported = (
        evaluate.reported(None)
        .query("benchmark == @label and method == 'IFCSR'")
        .drop(columns=["benchmark", "method"])
    )
    means = evaluate.summary(table, strict=True)
    both = reported[reported["gamma"].isin(means.index) & reported["metric"].isin(means.columns)]
    measured = [means.loc[g, m] for g, m in zip(both["gamma"], both["metric"], strict=True)]
    gap = [np.nan if isinstance(v, str) else v - r for v, r in zip(measured, both["value"], strict=True)]
    both = both.rename(columns={"value": "reported"}).assign(measured=measured, difference=gap)
    columns = ["gamma", "metric", "measured", "reported", "difference", "source"]
    return both[columns].sort_values(["gamma", "metric"], kind="stable").reset_index(drop=True)


def _published(path: Path, images: list[str]) -> pd.DataFrame:
    """OSEDiff's table with small column names, the rows of these images; ValueError for any other file."""
    check_pointer(path)
    try:
        table = pd.read_csv(path).rename(columns=str.lower).set_index("image")
    except (ValueError, KeyError) as error:  # pandas' parser errors are ValueErrors
        raise ValueError(
            f"{path} is no table with a column image ({one_line(error)}); get it again"
        ) from error
    if lacks := [name for name in images if name not in table.index]:
        raise ValueError(f"{path} has no row for {len(lacks)} of {len(images)} images, first {lacks[0]}")
    return table.loc[images]


def protocol(limit: int | None = None) -> pd.DataFrame:
    """OSEDiff's published scores computed again from its published RealSR outputs, every column that has its
    weights.

    Reads $IFCSR_DATA/realsr/{osediff, HR, osediff_published_metrics.csv}; limit: the first images only. One
    row per metric: images, recomputed and published means, and the largest difference of any image, or "not
    run: needs <file>". Raises FileNotFoundError when a part is missing.
    """
    folder = user_data("realsr")
    if (
        folder is None
        or not (folder / "osediff").is_dir()
        or not (folder / "osediff_published_metrics.csv").is_file()
    ):
        raise FileNotFoundError(
            "not run: needs IFCSR_DATA, a folder with realsr/HR, realsr/osediff and "
            "realsr/osediff_published_metrics.csv (data/README.md says where they are)"
        )
    outputs = list_images(folder / "osediff")[:limit]
    published = _published(folder / "osediff_published_metrics.csv", [path.name for path in outputs])
    metrics = [m for m in METRICS if m in published]
    ours = evaluate.score(outputs, [folder / "HR" / path.name for path in outputs], metrics)
    rows = {}
    for m in metrics:
        mean = evaluate.summary(ours[[m]], strict=True)[m]
        worst = (
            mean
            if isinstance(mean, str)
            else float(abs(ours[m].to_numpy(float) - published[m].to_numpy()).max())
        )
        rows[m] = [len(outputs), np.nan if isinstance(mean, str) else mean, published[m].mean(), worst]
    columns = ["images", "recomputed", "published", "largest difference"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("metric")
