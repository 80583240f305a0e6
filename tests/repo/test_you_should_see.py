"""The cells of the notebooks that show what you should see, and the tool that keeps and writes them."""

import base64
import importlib
import io

import nbformat
import numpy as np
import pytest
from PIL import Image

from ifcsr_lib.config import ROOT

TABLE = """<table><thead>
<tr><th></th><th colspan="2">PSNR</th></tr><tr><th>recipe</th><th>min</th><th>max</th></tr></thead>
<tbody><tr><th rowspan="2">a</th><td>1</td><td>|2|</td></tr><tr><td>3</td><td>4</td></tr></tbody></table>"""
DRAW = 'results.write_figure(figures.loss({"a": 1}), "loss", cfg)'


def png(side: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype="uint8")
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def tool(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    tool = importlib.import_module("you_should_see")
    monkeypatch.setattr(tool, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(tool, "KEPT", tmp_path / "reference" / "pocket")
    return tool


@pytest.fixture
def run(tool, tmp_path):
    """A notebook with four cells, and its executed copy, whose figure is kept as the reference."""
    new = nbformat.v4
    nb = new.new_notebook()
    nb.cells = [new.new_markdown_cell("# Title"), *(new.new_code_cell(c) for c in ("a", DRAW, "b", "c"))]
    for i, cell in enumerate(nb.cells):
        cell.id = f"00-{i}"
    tool.NOTEBOOKS.mkdir()
    (tool.NOTEBOOKS / "00_a.ipynb").write_text(nbformat.writes(nb) + "\n", encoding="utf-8")
    large, little = png(600), png(20)
    pictures = {1: [large, little], 2: [little]}
    for i, several in pictures.items():
        data = [{"image/png": base64.b64encode(one).decode()} for one in several]
        nb.cells[i].outputs = [new.new_output("display_data", data=one) for one in data]
    nb.cells[3].outputs = [new.new_output("display_data", data={"text/html": TABLE})]
    nb.cells.insert(1, new.new_code_cell("profile = 'pocket'"))
    nb.metadata["papermill"] = {"parameters": {"profile": "pocket"}}
    folder = tmp_path / "pocket" / "executed"
    for figures in (folder.parent / "figures", tool.KEPT / "figures"):
        figures.mkdir(parents=True)
        (figures / "loss.png").write_bytes(little)
    folder.mkdir()
    nbformat.write(nb, folder / "00_a.ipynb")
    return folder


def cells(tool):
    return nbformat.read(tool.NOTEBOOKS / "00_a.ipynb", as_version=4).cells


def test_the_notebooks_are_as_kept(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    assert importlib.import_module("you_should_see").main(["--check"]) == 0, capsys.readouterr().err


def test_pictures_and_tables_are_kept_and_shown_below_their_cells(tool, run, capsys):
    assert tool.main(["--from", str(run)]) == 0 and tool.main(["--check"]) == 0
    shown = cells(tool)
    names = [cell.id for cell in shown]
    assert names == ["00-0", "00-1", "00-1-seen", "00-2", "00-2-seen", "00-3", "00-3-seen", "00-4"]
    assert all(cell.metadata == {"tags": ["you-should-see"]} for cell in shown if tool.seen(cell))
    up = "../reference/pocket"
    assert f"({up}/seen/00_a/00-1.jpg)" in shown[2].source
    assert f"({up}/seen/00_a/00-1-2.png)" in shown[2].source
    assert f"({up}/figures/loss.png)" in shown[4].source
    table = ["| recipe | PSNR min | PSNR max |", "|---|---|---|", r"| a | 1 | \|2\| |", "|  | 3 | 4 |"]
    assert shown[6].source.endswith("\n\n" + "\n".join(table))
    kept = sorted((tool.KEPT / "seen" / "00_a").iterdir())
    assert [path.name for path in kept] == ["00-1-2.png", "00-1.jpg", "seen.json"]
    assert all(path.stat().st_size <= 150_000 for path in kept)


def test_twice_changes_nothing_and_the_notebook_stays_clean(tool, run, capsys):
    strip = importlib.import_module("strip_notebooks")
    strip.main([str(tool.NOTEBOOKS / "00_a.ipynb")])
    tool.main(["--from", str(run)])
    files = [p for folder in (tool.NOTEBOOKS, tool.KEPT) for p in folder.rglob("*.*")]
    once = [path.stat().st_mtime_ns for path in files]
    capsys.readouterr()
    assert tool.main(["--from", str(run)]) == 0 and "written" not in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in files] == once
    assert strip.main(["--check", str(tool.NOTEBOOKS / "00_a.ipynb")]) == 0


def test_a_figure_of_another_run_is_kept_again(tool, run):
    (tool.KEPT / "figures" / "loss.png").write_bytes(png(21))
    tool.main(["--from", str(run)])
    assert "(../reference/pocket/seen/00_a/00-2.png)" in cells(tool)[4].source


@pytest.mark.parametrize("damage", ["text", "gone", "picture", "large"])
def test_what_is_not_as_kept_is_said(tool, run, damage, capsys):
    tool.main(["--from", str(run)])
    nb = nbformat.read(tool.NOTEBOOKS / "00_a.ipynb", as_version=4)
    picture = tool.KEPT / "seen" / "00_a" / "00-1.jpg"
    if damage == "text":
        nb.cells[2].source += "!"
    elif damage == "gone":
        del nb.cells[1]
    elif damage == "picture":
        picture.unlink()
    else:
        picture.write_bytes(bytes(150_001))
    nbformat.write(nb, tool.NOTEBOOKS / "00_a.ipynb")
    before = (tool.NOTEBOOKS / "00_a.ipynb").read_bytes()
    capsys.readouterr()
    assert tool.main(["--check"]) == 1
    said = capsys.readouterr().err
    words = {"text": "not as kept", "gone": "00-1 is gone", "picture": "is missing", "large": "150,001 bytes"}
    assert said.count("\n") == 1 and words[damage] in said
    assert (tool.NOTEBOOKS / "00_a.ipynb").read_bytes() == before
    assert tool.main([]) == (damage in ("picture", "large"))
    if damage == "gone":
        assert not picture.exists() and "00-1-seen" not in [cell.id for cell in cells(tool)]
        assert tool.main(["--check"]) == 0


@pytest.mark.parametrize(
    "damage, words",
    [
        ("none", "run `make reproduce` first"),
        ("profile", "is of profile smoke; allowed: pocket"),
        ("source", "'a2' was not run in this form"),
        ("error", "ended with an error in cell 00-3"),
    ],
)
def test_a_run_that_does_not_fit_is_refused_before_anything_is_kept(tool, run, damage, words, capsys):
    path = run / "00_a.ipynb"
    nb = nbformat.read(path, as_version=4)
    if damage == "profile":
        nb.metadata["papermill"]["parameters"]["profile"] = "smoke"
    elif damage == "source":
        nb.cells[2].source = "a2"
    elif damage == "error":
        nb.cells[4].outputs = [nbformat.v4.new_output("error", ename="E", evalue="e", traceback=[])]
    nbformat.write(nb, path)
    if damage == "none":
        path.unlink()
    assert tool.main(["--from", str(run)]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not (tool.KEPT / "seen").exists()


def test_a_long_table_is_not_shown(tool):
    rows = "".join(f"<tr><td>{i}</td></tr>" for i in range(17))
    assert tool.table(f"<table><tbody>{rows}</tbody></table>") == []
    assert tool.table("<p>none</p>") == []


def test_what_was_kept_of_a_notebook_without_pictures_goes(tool, run):
    tool.main(["--from", str(run)])
    tool.write_record("00_a", {}, {}, tool.KEPT)
    assert not (tool.KEPT / "seen" / "00_a").exists()
    assert tool.main(["--check"]) == 1 and tool.main([]) == 0
    assert not any(tool.seen(cell) for cell in cells(tool))
