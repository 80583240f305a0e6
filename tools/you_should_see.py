"""Below each cell that draws: what you should see, so that GitHub shows a notebook without its output.

    python tools/you_should_see.py --from results/pocket/executed   keep what the copies of a run show
                                                                    as the reference, then write the cells
    python tools/you_should_see.py                                  write the cells from what is kept
    python tools/you_should_see.py --check                          change nothing; exit 1 when a cell is not
                                                                    as kept, or a picture is missing or large

Kept in results/reference/pocket/seen/<notebook>/: a picture of less than 150 kB for each that a cell showed,
and seen.json, which names the pictures and holds the short tables by the id of their cell. A figure that the
reference holds already, of this run, is named and not kept again: run tools/keep_reference.py before. The
cells are Markdown, tagged `you-should-see`; all else in a notebook stays. Running it twice changes nothing.
"""

from __future__ import annotations

import argparse
import ast
import base64
import json
import os
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
from small_pictures import LIMIT, small

from ifcsr_lib.errors import one_line
from ifcsr_lib.files.results import REFERENCE, atomic, read_json

NOTEBOOKS = ROOT / "notebooks"
KEPT = REFERENCE / "pocket"
TAG = "you-should-see"
WIDTH = 1000  # pixels of the widest picture
ROWS = 16  # of the longest table that is shown
HEAD = "**You should see** (the reference run, profile pocket):"


def seen(cell) -> bool:
    return TAG in cell.metadata.get("tags", [])


def figure_names(source: str) -> list[str | None]:
    """The names that a cell's calls of results.write_figure give, None for one that is no plain text."""
    calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call) and len(n.args) > 1]
    calls = [n for n in calls if getattr(n.func, "attr", "") == "write_figure"]
    calls.sort(key=lambda n: (n.lineno, n.col_offset))
    return [n.args[1].value if isinstance(n.args[1], ast.Constant) else None for n in calls]


def table(text: str) -> list[str]:
    """The Markdown lines of the first HTML table in `text`; [] when there is none, or one of over ROWS rows.

    Rows of the head are merged into one, where a cell over several columns is said in each.
    """
    from bs4 import BeautifulSoup

    found = BeautifulSoup(text, "html.parser").table
    if found is None:
        return []
    grid, heads = {}, 0
    for r, row in enumerate(found.find_all("tr")):
        in_head, c = row.find_parent("thead") is not None, 0
        heads += in_head
        for cell in row.find_all(["th", "td"]):
            while (r, c) in grid:
                c += 1
            words = " ".join(cell.get_text().split()).replace("|", r"\|")
            for down in range(int(cell.get("rowspan", 1))):
                for right in range(int(cell.get("colspan", 1))):
                    grid[r + down, c + right] = "" if down or (right and not in_head) else words
    if not grid:
        return []
    height, width = max(r for r, _ in grid) + 1, max(c for _, c in grid) + 1
    if height - heads > ROWS:
        return []
    rows = [[grid.get((r, c), "") for c in range(width)] for r in range(height)]
    head = [" ".join(filter(None, column)) for column in zip(*rows[:heads])] or [""] * width
    lines = ["| " + " | ".join(row) + " |" for row in [head, *rows[heads:]]]
    return [lines[0], "|" + "---|" * width, *lines[1:]]


def same_figure(one: Path, other: Path, name: str) -> int:
    """The bytes that a figure has in both folders, 0 where they differ or one lacks it."""
    files = [folder / name for folder in (one, other)]
    if not all(path.is_file() for path in files) or files[0].read_bytes() != files[1].read_bytes():
        return 0
    return files[0].stat().st_size


def shown(cell, stem: str, figures: Path, kept: Path) -> tuple[dict, dict[str, bytes]]:
    """({"pictures": [paths below kept], "table": lines}, {path: bytes to keep}) of an executed code cell.

    figures: those of the run; one whose bytes are those of the reference is named and not kept again.
    """
    data = [output.get("data", {}) for output in cell.outputs]
    pictures = [base64.b64decode(d["image/png"]) for d in data if "image/png" in d]
    names, paths, files = figure_names(cell.source), [], {}
    named = names if len(names) == len(pictures) else [None] * len(pictures)
    for number, (picture, name) in enumerate(zip(pictures, named), 1):
        if name and (whole := same_figure(figures, kept / "figures", f"{name}.png")) and whole <= LIMIT:
            paths.append(f"figures/{name}.png")
            continue
        suffix, smaller = small(picture, WIDTH)
        paths.append(f"seen/{stem}/{cell.id}{f'-{number}' if number > 1 else ''}{suffix}")
        files[paths[-1]] = smaller
    tables = [lines for d in data if (lines := table(d.get("text/html", "")))]
    return {"pictures": paths, "table": tables[0] if tables else []}, files


def look(copy: Path, path: Path, kept: Path) -> tuple[dict, dict[str, bytes]]:
    """(what seen.json says, {path below kept: bytes}) of an executed copy of the notebook `path`.

    Raises ValueError for a copy of another profile, one that ended with an error, and one whose cells that
    show something are not those of the notebook.
    """
    nb, now = nbformat.read(copy, as_version=4), nbformat.read(path, as_version=4)
    profile = nb.metadata.get("papermill", {}).get("parameters", {}).get("profile")
    if profile != kept.name:
        raise ValueError(f"{copy} is of profile {profile}; allowed: {kept.name}")
    sources, record, files = {cell.id: cell.source for cell in now.cells}, {}, {}
    for cell in (c for c in nb.cells if c.cell_type == "code"):
        if any(output.output_type == "error" for output in cell.outputs):
            raise ValueError(f"{copy} ended with an error in cell {cell.id}: run the notebook again")
        one, own = shown(cell, path.stem, copy.parent.parent / "figures", kept)
        if not (one["pictures"] or one["table"]):
            continue
        if sources.get(cell.id) != cell.source:
            first = cell.source.splitlines()[0]
            raise ValueError(f"{copy}: cell {first!r} was not run in this form: run the notebook again")
        record[cell.id], files = one, files | own
    return record, files


def keep(folder: Path, notebooks: list[Path], kept: Path) -> int:
    """Keep what the executed copies in `folder` show; return how many notebooks had one.

    All are looked at before the first file is written, and files that nothing names any more are removed.
    Raises FileNotFoundError when there are no copies, else as `look`.
    """
    copies = [path for path in notebooks if (folder / path.name).is_file()]
    if not copies:
        raise FileNotFoundError(f"no executed notebooks in {folder}: run `make reproduce` first")
    for path, (record, files) in [(path, look(folder / path.name, path, kept)) for path in copies]:
        write_record(path.stem, record, files, kept)
    return len(copies)


def write_record(stem: str, record: dict, files: dict[str, bytes], kept: Path) -> None:
    """Write seen.json and its pictures where they differ, and remove what seen.json does not name."""
    folder = kept / "seen" / stem
    if record:
        files = files | {f"seen/{stem}/seen.json": (json.dumps(record, indent=1) + "\n").encode()}
    for name, data in files.items():
        if not (kept / name).is_file() or (kept / name).read_bytes() != data:
            with atomic(kept / name) as tmp:
                tmp.write_bytes(data)
    named = {*files, *(name for one in record.values() for name in one["pictures"])}
    for old in sorted(folder.iterdir()) if folder.is_dir() else []:
        if f"seen/{stem}/{old.name}" not in named:
            old.unlink()
    if not record and folder.is_dir():
        folder.rmdir()


def recorded(stem: str, kept: Path) -> dict:
    """{cell id: what it should show} of a notebook, {} when nothing is kept."""
    path = kept / "seen" / stem / "seen.json"
    return read_json(path) if path.is_file() else {}


def with_cells(nb, record: dict, up: str):
    """Put the cells of `record` below theirs, in place of those that were there; return the notebook.

    up: from the notebook's folder to that of the pictures, with slashes.
    """
    cells = []
    for cell in nb.cells:
        if seen(cell):
            continue
        cells.append(cell)
        if one := record.get(cell.id):
            parts = [HEAD, *(f"![what the cell above draws]({up}/{name})" for name in one["pictures"])]
            if one["table"]:
                parts.append("\n".join(one["table"]))
            new = nbformat.v4.new_markdown_cell("\n\n".join(parts), metadata={"tags": [TAG]})
            new.id = f"{cell.id[:58]}-seen"
            cells.append(new)
    nb.cells = cells
    return nb


def faults(nb, record: dict, kept: Path) -> list[str]:
    """What is wrong with a record, in sentences."""
    there = {cell.id for cell in nb.cells}
    out = [f"cell {name} is gone, run python tools/you_should_see.py" for name in record if name not in there]
    for name in (name for one in record.values() for name in one["pictures"]):
        size = (kept / name).stat().st_size if (kept / name).is_file() else None
        if size is None:
            out.append(f"{name} is missing, keep a run again with --from")
        elif size > LIMIT:
            out.append(f"{name} has {size:,} bytes, allowed are {LIMIT:,}: keep a run again with --from")
    return out


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 when something differs")
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FOLDER", help="folder of executed copies"
    )
    args = parser.parse_args(argv)
    if args.check and args.source:
        parser.error("--check changes nothing and --from keeps: choose one")
    notebooks, bad = sorted(NOTEBOOKS.glob("[0-9]*.ipynb")), 0
    if args.source:
        try:
            print(f"{keep(args.source, notebooks, KEPT)} notebooks kept in {KEPT / 'seen'}")
        except (OSError, ValueError, nbformat.ValidationError) as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            return 2
    up = Path(os.path.relpath(KEPT, NOTEBOOKS)).as_posix()
    for path in notebooks:
        text, record = path.read_text(encoding="utf-8"), recorded(path.stem, KEPT)
        nb = nbformat.reads(text, as_version=4)
        there = {cell.id for cell in nb.cells}
        if not args.check and (gone := record.keys() - there):
            record = {name: one for name, one in record.items() if name not in gone}
            write_record(path.stem, record, {}, KEPT)
            print(f"{path.name}: {len(gone)} cells are gone, and so is what was kept of them")
        if wrong := faults(nb, record, KEPT):
            print(f"{path.name}: {'; '.join(wrong)}", file=sys.stderr)
            bad = 1
            continue
        new = nbformat.writes(with_cells(nb, record, up)) + "\n"
        if new == text:
            continue
        if args.check:
            print(f"{path.name}: not as kept; run python tools/you_should_see.py", file=sys.stderr)
            bad = 1
            continue
        with atomic(path) as tmp:
            tmp.write_bytes(new.encode())
        print(f"{path.name}: written")
    return bad


if __name__ == "__main__":
    sys.exit(main())
