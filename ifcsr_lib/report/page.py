"""results/<profile>/report.html: one file that needs no network."""

from __future__ import annotations

import base64
import html
import io
import math
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from string import Template

import pandas as pd
from PIL import Image

from ..config import ROOT, Config, resolve
from ..errors import one_line
from ..files.results import atomic, processor, provenance, recorded
from .claims import FAILS, HOLDS, NOT_RUN, REPORTED, SHARE, Verdict, judge
from .notebooks import duration, executed
from .reference import BEYOND, COUNTS, NOT_COMPARED, OTHERS, TOLERANCE, WITHIN, Comparison, compare
from .tables import Tables, Unread, check, read, read_all

IMAGE_LIMIT = 150_000  # bytes of an embedded figure, in base64
SLIDER_LIMIT = 6_000_000  # bytes of a slider's page; a larger one is linked
OPEN_ROWS = 12  # longer tables are folded
MARKS = {HOLDS: "good", FAILS: "bad", NOT_RUN: "none", WITHIN: "good", BEYOND: "bad", NOT_COMPARED: "none"}
PAGE = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))


def write(cfg: Config, stems: Iterable[str] = (), reference: str | Path | None = None) -> Path:
    """Write report.html into cfg.results from what is there, and return its path.

    stems: the notebooks to list, such as "02_stage1_fidelity"; one that was not run reads so. reference:
    tables to compare with, None for results/reference/<profile>/tables. What is damaged, or was made with
    other settings, is a sentence in the report. Raises OSError when it cannot be written.
    """
    path = cfg.results / "report.html"
    text = render(cfg, stems, reference)
    with atomic(path) as tmp:
        tmp.write_text(text, encoding="utf-8")
    return path


def render(cfg: Config, stems: Iterable[str] = (), reference: str | Path | None = None) -> str:
    """The report's HTML. See `write`."""
    tables, facts = read_all(cfg.results / "tables", cfg), provenance(cfg)
    verdicts, compared = judge(cfg, tables), compare(cfg, tables, reference)
    counts = {word: sum(v.word == word for v in verdicts) for word in (HOLDS, FAILS, NOT_RUN)}
    return PAGE.substitute(
        profile=text(cfg.profile),
        summary=text(f"{counts[HOLDS]} hold, {counts[FAILS]} do not hold, {counts[NOT_RUN]} not run"),
        comparison=text(overall(compared)),
        claims=claims_table(verdicts, {*tables.frames, *tables.faults}),
        slider=slider(cfg),
        figures="\n".join(figure(p, cfg) for p in sorted((cfg.results / "figures").glob("*.png")))
        or "<p>not run</p>",
        tables="\n".join(one_table(name, tables) for name in sorted({*tables.frames, *tables.faults}))
        or "<p>not run</p>",
        reference=reference_table(compared),
        tolerances=tolerances(),
        reported=reported(cfg, tables),
        run=run_table(cfg, facts),
        notebooks=notebooks_table(cfg, list(stems)),
        packages=grid(
            ["package", "version"], [[k, v or "not installed"] for k, v in facts["packages"].items()]
        ),
    )


def text(value) -> str:
    return html.escape(str(value), quote=True)


def grid(head: list[str], rows: list[list], raw: bool = False, kind: str = "") -> str:
    """An HTML table; the cells are escaped unless `raw`. kind: "data" keeps each row on one line."""
    escape = (lambda cell: str(cell)) if raw else text
    top = "".join(f"<th>{text(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>\n" for row in rows)
    table = f"<thead><tr>{top}</tr></thead><tbody>\n{body}</tbody>"
    return f'<div class="wide {kind}"><table>{table}</table></div>'


def mark(word: str) -> str:
    return f'<span class="{MARKS[word]}">{text(word)}</span>'


def overall(compared: list[Comparison]) -> str:
    """The comparison in one sentence."""
    judged = [c for c in compared if c.word != NOT_COMPARED]
    over = [c.table for c in judged if c.word == BEYOND]
    if not judged:
        return "no table could be compared with the reference"
    if over:
        return f"{len(over)} of {len(judged)} tables are {BEYOND} of another processor: {', '.join(over)}"
    return f"all {len(judged)} compared tables are {WITHIN} of another processor"


def claims_table(verdicts: list[Verdict], there: set[str]) -> str:
    """The verdicts under their groups. there: the tables that the report shows, which are linked."""
    out, group = [], None
    for v in verdicts:
        if v.claim.group != group:
            group = v.claim.group
            out.append(f'<tr><th colspan="4">{text(group)}</th></tr>\n')
        link = text(v.claim.table)
        if link in there:
            link = f'<a href="#table-{link}">{link}</a>'
        cells = [text(v.claim.text), mark(v.word), f"{text(v.why)}", f"{text(v.claim.of)} ({link})"]
        out.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n")
    head = "".join(f"<th>{name}</th>" for name in ("claim", "verdict", "because", "asked of"))
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(out)}</tbody></table></div>'
    )


def number(cell) -> str:
    """A cell for people: five significant digits, and text as it is."""
    if isinstance(cell, float):
        return "" if math.isnan(cell) else f"{cell:.5g}"
    return str(cell)


def one_table(name: str, tables: Tables) -> str:
    title = f'<h3 id="table-{text(name)}">{text(name)}.csv</h3>'
    if name in tables.faults:
        return f'{title}<p class="bad">{text(name)}.csv {text(tables.faults[name])}: left out.</p>'
    frame = tables.frames[name]
    body = grid(
        list(frame), [[number(cell) for cell in row] for row in frame.itertuples(index=False)], kind="data"
    )
    opened = " open" if len(frame) <= OPEN_ROWS else ""
    words = f"{len(frame)} rows, written by {text(tables.writers[name])}"
    return f"{title}<details{opened}><summary>{words}</summary>{body}</details>"


def shrink(path: Path, limit: int = IMAGE_LIMIT) -> tuple[str, bytes]:
    """(media type, bytes) of an image file whose base64 has at most `limit` bytes, scaled down where needed.

    A file that fits is taken as it is. Raises OSError or ValueError for one that is no image.
    """
    data, room = path.read_bytes(), limit // 4 * 3
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        kind, image = opened.get_format_mimetype(), opened.convert("RGB")
    if len(data) <= room:
        return kind, data
    scale = min(1.0, 1600 / image.width)
    while True:
        size = [max(1, round(side * scale)) for side in image.size]
        buffer = io.BytesIO()
        image.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=88, subsampling=0)
        if buffer.tell() <= room or size == [1, 1]:
            return "image/jpeg", buffer.getvalue()
        scale *= 0.9


def figure(path: Path, cfg: Config) -> str:
    """A figure with its name, or a sentence that says why it is left out."""
    try:
        check(path, cfg)
        kind, data = shrink(path)
    except Unread as error:
        return f'<p class="bad">{text(path.name)} {text(error)}: left out.</p>'
    except (
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:  # PIL raises all of these
        return (
            f'<p class="bad">{text(path.name)} cannot be read ({text(one_line(error)[:200])}): left out.</p>'
        )
    name = text(path.stem)
    source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return f'<figure><img src="{source}" alt="{name}" loading="lazy"><figcaption>{name}</figcaption></figure>'


def explorer_link(path: Path) -> str:
    return f'<a href="explorer/{text(path.name)}">{text(path.name)}</a>'


def slider(cfg: Config) -> str:
    """The exported page of notebook 06, playable inside the report."""
    pages = sorted((cfg.results / "explorer").glob("*.html"))
    for path in pages:
        try:
            check(path, cfg)
            if path.stat().st_size > SLIDER_LIMIT:
                return f"<p>{explorer_link(path)}: too large to be put in here.</p>"
            page = path.read_text(encoding="utf-8")
        except Unread:
            continue
        except (OSError, ValueError) as error:
            return f'<p class="bad">{text(path.name)} cannot be read ({text(one_line(error)[:200])}).</p>'
        return (
            f'<iframe title="slider" sandbox="allow-scripts allow-downloads" srcdoc="{text(page)}">'
            "</iframe>\n"
            f"<p>The same by itself: {explorer_link(path)}</p>"
        )
    if pages:
        return "<p>not run: the pages in explorer/ were made with other settings, or changed since</p>"
    return "<p>not run: needs notebook 06</p>"


def reference_table(compared: list[Comparison]) -> str:
    rows = []
    for c in sorted(compared, key=lambda c: c.word == NOT_COMPARED):
        cells = [c.absolute, c.relative, c.tolerance, c.why]
        rows.append([text(c.table), mark(c.word), *(text("" if cell is None else cell) for cell in cells)])
    head = [
        "table",
        "verdict",
        "largest difference",
        "largest relative one",
        "nearest to its tolerance",
        "notes",
    ]
    return grid(head, rows, raw=True) if rows else "<p>no tables</p>"


def tolerances() -> str:
    """TOLERANCE in words."""
    rows = []
    for pattern, (unit, *kinds) in TOLERANCE.items():
        cells = []
        for measured, limit in kinds:
            seen = "not measured" if measured is None else f"measured {measured:g}"
            cells.append(f"{limit:g} {unit}".strip() + f" ({seen})")
        rows.append([pattern.replace("\\", "").replace(".*", "*").replace("|", ", "), *cells])
    rows.append([COUNTS.replace(".*", "*").replace("|", ", "), "0", "0"])
    rows.append(["other numbers", *[f"{OTHERS:.0%} of the reference"] * 2])
    rows.append(["times, memory", *["not judged"] * 2])
    return grid(["columns", "shipped model, or no model", "trained in the run"], rows)


def reported(cfg: Config, tables: Tables) -> str:
    """The paper's numbers beside the measured ones: paper scale alone."""
    if cfg.profile != "paper":
        words = f"needs profile paper. Profile {cfg.profile} is another model at another scale"
        return f"<p>not run: {text(words)}, whose numbers stand in no table with the paper's.</p>"
    try:
        known = read(ROOT / "data" / "paper" / "reported.csv")
        known = known[(known["method"] == "IFCSR") & known["gamma"].notna()]
        parts = [
            f"<h3>{text(name)}</h3>"
            + reported_rows(known[known["benchmark"] == name], tables.frames.get(f"reported_{folder}"))
            for folder, name in REPORTED.items()
        ]
    except (OSError, ValueError, KeyError) as error:
        return f'<p class="bad">reported.csv {text(one_line(error)[:200])}</p>'
    return f"<p>Difference: measured minus reported. Reached means within {SHARE:.0%}.</p>" + "\n".join(parts)


def reported_rows(known: pd.DataFrame, measured: pd.DataFrame | None) -> str:
    found = {}
    if measured is not None and {"gamma", "metric", "measured"} <= set(measured):
        for row in measured.to_dict("records"):
            found[f"{row['gamma']}", row["metric"]] = row["measured"]
    rows = []
    for row in known.to_dict("records"):
        value, own = row["value"], found.get((f"{row['gamma']}", row["metric"]), "not run")
        try:
            gap = f"{float(own) - float(value):+.4f}"
        except ValueError:
            gap = ""
        rows.append([f"{row['gamma']:g}", row["metric"], number(value), number(own), gap, row["source"]])
    return grid(["gamma", "metric", "reported", "measured", "difference", "source"], rows)


def machine() -> str:
    """Processor, how many of them, and memory, without the host's name."""
    memory = ""
    if hasattr(os, "sysconf") and {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(os.sysconf_names):
        memory = f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"
    return f"{processor()}, {os.cpu_count()} processors{memory}, {platform.system()}"


def run_table(cfg: Config, facts: dict) -> str:
    usual = recorded(resolve(cfg.profile, cfg.seed))
    changed = {k: v for k, v in recorded(cfg).items() if usual[k] != v}
    commit = facts["commit"] or "not a checkout"
    rows = [
        ["profile", cfg.profile],
        ["seed", cfg.seed],
        ["config", cfg.hash],
        [
            "settings that differ from the profile's",
            ", ".join(f"{k}={v!r}" for k, v in changed.items()) or "none",
        ],
        ["machine", f"{machine()}; torch on {facts['device']}"],
        ["commit", commit + (", with local changes" if facts["dirty"] else "")],
        ["written", facts["time"]],
    ]
    return grid(["", ""], rows)


def notebooks_table(cfg: Config, stems: list[str]) -> str:
    """Each notebook with its minutes, as far as its copy is of these settings."""
    found, rows, total = executed(cfg.results / "executed"), [], 0.0
    for stem in dict.fromkeys([*stems, *found]):
        one = found.get(stem)
        if one is None:
            rows.append([stem, "not run", ""])
        elif not same_run(cfg, one.parameters):
            rows.append([stem, "not run with these settings", ""])
        else:
            rows.append([stem, duration(one.seconds), one.ended[:19].replace("T", " ")])
            total += one.seconds
    if total:
        rows.append(["together", duration(total), ""])
    return grid(["notebook", "time", "ended (UTC)"], rows)


def same_run(cfg: Config, parameters: dict) -> bool:
    """Whether an executed copy's parameters give this Config's results."""
    try:
        given = (parameters.get(name) for name in ("profile", "seed", "overrides"))
        return resolve(*given).hash == cfg.hash
    except (ValueError, TypeError):
        return False
