"""Executed notebooks as pages of the web site: small pictures, tables, one line for what is left out."""

import base64
import importlib
import io
import re
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from PIL import Image

from ifcsr_lib.config import ROOT

TABLE = """<div><style scoped>a {}</style>
<table border="1" class="dataframe"><tr><td>22.5</td></tr></table></div>"""
WIDGET = "application/vnd.jupyter.widget-view+json"


def png(width: int, height: int, noise: bool) -> bytes:
    rng, buffer = np.random.default_rng(0), io.BytesIO()
    pixels = rng.integers(0, 256, (height, width, 3)) if noise else np.full((height, width, 3), 200)
    Image.fromarray(pixels.astype("uint8")).save(buffer, "PNG")
    return buffer.getvalue()


def copy(path, *outputs, tags=()):
    """An executed notebook in path: a title, a cell with the outputs, and one that says what to see."""
    new = nbformat.v4
    title = "# 02 · A title\n\nA list:\n* one\n\n<details><summary>Answer</summary>\n\n*yes*\n\n</details>"
    cells = [new.new_markdown_cell(title), new.new_code_cell("draw()", outputs=list(outputs))]
    cells.append(new.new_markdown_cell("![seen](../seen.png)", metadata={"tags": ["you-should-see"]}))
    facts = {"parameters": {"profile": "pocket"}, "duration": 125.0, "end_time": "2026-01-01"}
    facts |= {"input_path": "/home/me/kit/notebooks/02_a.ipynb"}
    facts |= {"output_path": "/home/me/out/pocket/executed/.02_a.tmp.ipynb"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new.new_notebook(cells=cells, metadata={"papermill": facts}), path)


def shows(**data):
    return nbformat.v4.new_output("display_data", data={k.replace("__", "/"): v for k, v in data.items()})


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("render_notebooks")


@pytest.fixture
def run(tmp_path):
    """results/pocket of a run: notebook 02, and the page that 06 exported."""
    folder = tmp_path / "pocket"
    (folder / "explorer").mkdir(parents=True)
    (folder / "explorer" / "chelsea_page.html").write_text("<p>slider</p>")
    picture = base64.b64encode(png(1800, 700, noise=True)).decode()
    chart = base64.b64encode(png(300, 200, noise=False)).decode()
    said = "wrote /home/me/kit/data/a and /home/me/out/pocket/b\n"
    copy(
        folder / "executed" / "02_a.ipynb",
        nbformat.v4.new_output("stream", name="stdout", text=said),
        nbformat.v4.new_output("stream", name="stderr", text="a warning"),
        shows(image__png=picture),
        shows(image__png=chart),
        shows(text__html=TABLE, text__plain="22.5"),
        nbformat.v4.new_output("display_data", data={WIDGET: {}, "text/plain": "Explorer(1 images)"}),
        nbformat.v4.new_output("display_data", data={WIDGET: {}, "text/plain": "Explorer(2 images)"}),
        nbformat.v4.new_output("display_data", data={WIDGET: {}, "text/plain": "0%| | 0/240"}),
    )
    return folder


def test_a_page_holds_code_text_table_slider_and_small_pictures(tool, run, tmp_path, capsys):
    out = tmp_path / "out"
    assert tool.main(["--from", str(run), "--to", str(out)]) == 0 and capsys.readouterr().err == ""
    text = (out / "02_a.md").read_text(encoding="utf-8")
    assert text.startswith("# 02 · A title") and "draw()" in text and "A list:\n\n* one" in text
    assert '<details markdown="1">' in text
    assert "<table><tr><td>22.5</td></tr></table>" in text and "<style" not in text
    assert "wrote data/a and results/pocket/b" in text and "/home" not in text
    assert text.count('src="slider.html"') == 1 and (out / "slider.html").read_text() == "<p>slider</p>"
    assert not re.search("a warning|240|seen.png", text)
    names = re.findall(r"!\[[^\]]+\]\((02_a_files/[^)]+)\)", text)
    sizes = [Image.open(out / name).size for name in names]
    assert len(names) == 2 and sizes[1] == (300, 200) and 400 < sizes[0][0] <= tool.WIDTH
    assert all((out / name).stat().st_size <= 150_000 for name in names)
    assert Image.open(out / names[0]).format == "JPEG" and Image.open(out / names[1]).format == "PNG"
    index = (out / "index.md").read_text(encoding="utf-8")
    assert "| [02 · A title](02_a.md) | 2 min |" in index and "slider.html" in index


def test_a_failed_or_damaged_copy_is_left_out_with_one_line(tool, run, tmp_path, capsys):
    failed = nbformat.v4.new_output("error", ename="ValueError", evalue="k is\nwrong", traceback=["a", "b"])
    copy(run / "executed" / "03_b.ipynb", failed)
    copy(run / "executed" / "03_b.failed.ipynb", failed)
    (run / "executed" / "04_c.ipynb").write_text("{")
    copy(run / "executed" / "05_d.ipynb", shows(image__png=base64.b64encode(b"none").decode()))
    assert tool.render(run, tmp_path / "out") == ["02_a"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["03_b.ipynb", "04_c.ipynb", "05_d.ipynb"]
    assert "ValueError: k is wrong" in lines[0] and all("make reproduce" in line for line in lines)


def test_without_a_run_the_page_says_how_to_make_one(tool, tmp_path, capsys, monkeypatch):
    """And the slider is the sample's, which `explore` writes."""
    called = []

    def explore(command, **_):
        called.append(command)
        with open(command[-1], "w") as file:
            file.write("<p>sample</p>")
        return type("Done", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr(tool.subprocess, "run", explore)
    assert tool.main(["--from", str(tmp_path / "none"), "--to", str(tmp_path / "out")]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "none") in line and "make reproduce" in line
    assert called[0][1:5] == ["-m", "ifcsr_lib", "explore", "sample"]
    assert (tmp_path / "out" / "slider.html").read_text() == "<p>sample</p>"
    index = (tmp_path / "out" / "index.md").read_text(encoding="utf-8")
    assert "`make reproduce`" in index and "slider.html" in index
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["index.md", "slider.html"]


def test_a_slider_that_cannot_be_made_is_one_line(tool, tmp_path, capsys, monkeypatch):
    done = type("Done", (), {"returncode": 2, "stderr": "error: no\nmodel"})
    monkeypatch.setattr(tool.subprocess, "run", lambda *_, **__: done)
    assert tool.put_slider(tmp_path, tmp_path / "slider.html") == ""
    assert capsys.readouterr().err == "no slider: error: no model\n"
    assert list(tmp_path.iterdir()) == []


def test_pages_of_notebooks_that_are_gone_are_removed(tool, run, tmp_path):
    out = tmp_path / "out"
    tool.render(run, out)
    (run / "executed" / "02_a.ipynb").rename(run / "executed" / "03_a.ipynb")
    (out / "mine.md").touch()
    tool.render(run, out)
    assert sorted(p.name for p in out.glob("*.md")) == ["03_a.md", "index.md", "mine.md"]
    assert not (out / "02_a_files").exists()


def test_a_formula_of_its_own_gets_a_paragraph_and_code_stays(tool):
    text = "so\n$$a\n= b$$\nwhere `c`\n\n```\nx\n* y\n$$z$$\n```"
    assert tool.for_mkdocs(text) == "so\n\n$$a\n= b$$\n\nwhere `c`\n\n```\nx\n* y\n$$z$$\n```"


def test_links_to_a_rendered_notebook_lead_to_its_page(monkeypatch, tmp_path):
    """And its own links are those of the notebook, from the folder notebooks/."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    site = importlib.import_module("docs_site")
    monkeypatch.setattr(site, "RENDERED", tmp_path)
    name = "notebooks/05_ablations.ipynb"
    assert site.place(name) == f"repository/{name}"
    (tmp_path / "05_ablations.md").write_text("[a](../docs/control.md) ![b](05_files/b.png)")
    assert site.place(name) == "notebooks/05_ablations.md" and site.source(site.place(name)) == name
    assert site.linked(name) == ["docs/control.md"]

    class Page:
        class file:
            src_uri = "notebooks/05_ablations.md"

    text = (tmp_path / "05_ablations.md").read_text()
    assert site.on_page_markdown(text, Page, None, None) == "[a](../control.md) ![b](05_files/b.png)"

    config = SimpleNamespace(nav=["a", "b", "c"])
    assert site.on_config(config).nav == ["a", "b", "c"]
    (tmp_path / "index.md").touch()
    pages = ["notebooks/index.md", "notebooks/05_ablations.md"]
    assert site.on_config(config).nav == ["a", "b", {"Notebooks": pages}, "c"]
