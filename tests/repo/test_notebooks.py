"""House rules of the notebooks, and the tool that keeps them free of output."""

import ast
import importlib.util
import json
import re
from pathlib import Path

import nbformat
import pytest

from ifcsr_lib.config import ROOT

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = (
    "00_start_here",
    "01_degradation",
    "02_stage1_fidelity",
    "03_stage2_realism",
    "04_gamma_sweep",
    "05_ablations",
    "06_explorer",
    "07_control_cost",
    "08_maps_and_bands",
    "09_denoising",
    "10_ghosts_and_more_ends",
)
MACHINE_PATH = re.compile(r"(?<![\w.])(/(home|Users|root|tmp|work|mnt|opt|var|data)/|[A-Za-z]:\\\\?\w)")
notebook = pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)

_spec = importlib.util.spec_from_file_location("strip_notebooks", ROOT / "tools" / "strip_notebooks.py")
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)


def read(path):
    nb = nbformat.read(path, as_version=4)
    return nb, [cell for cell in nb.cells if cell.cell_type == "code"]


def test_all_notebooks_are_there():
    assert set(NAMES) <= {path.stem for path in PATHS}
    assert len({path.name[:2] for path in PATHS}) == len(PATHS), "two notebooks with one number"


@notebook
def test_size(path):
    _, codes = read(path)
    lines = [len(cell.source.splitlines()) for cell in codes]
    assert len(codes) <= 14, f"{len(codes)} code cells; allowed: 14"
    assert max(lines) <= 15, f"cells of {sorted(lines)[-3:]} lines; allowed: 15"
    assert sum(lines) <= 120, f"{sum(lines)} lines of code; allowed: 120"
    widest = max((line for cell in codes for line in cell.source.splitlines()), key=len)
    assert len(widest) <= 110, f"a line of {len(widest)} characters; allowed: 110: {widest}"


@notebook
def test_import_call_show_explain(path):
    """No definitions, magics, shell commands or changes of folder; `ast` refuses % and ! at the start of a
    line.
    """
    _, codes = read(path)
    for cell in codes:
        assert cell.source.strip(), "an empty code cell"
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef), node.name
            name = getattr(node, "attr", getattr(node, "id", ""))
            assert name not in ("chdir", "getcwd", "get_ipython"), f"{name}: use the library's ROOT"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not node.value.startswith(("./", "../")), f"{node.value!r} depends on the folder"


@notebook
def test_skeleton(path):
    nb, codes = read(path)
    title = nb.cells[0]
    assert title.cell_type == "markdown" and title.source.startswith(f"# {path.name[:2]}")
    for word in ("Reads", "Writes", "Time", "Equations"):
        assert f"*{word}*" in title.source, f"the title cell lacks *{word}*"
    last = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    assert "## What to notice" in last and "**Next" in last
    assert nb.metadata.kernelspec.name == "python3"
    assert [cell for cell in codes if "parameters" in cell.metadata.get("tags", [])] == [codes[0]]
    tree = ast.parse(codes[0].source)
    assert all(isinstance(node, ast.Assign) and len(node.targets) == 1 for node in tree.body)
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body}
    assert (
        list(values) == ["profile", "seed", "overrides"]
        and values["profile"] is None
        and not values["overrides"]
    )


@notebook
def test_no_path_of_a_machine_and_no_dead_mention(path):
    nb, _ = read(path)
    for cell in nb.cells:
        text = cell.source + json.dumps(cell.get("outputs", []))
        assert not MACHINE_PATH.search(text), MACHINE_PATH.search(text)
        for name in re.findall(r"\d\d_\w+\.ipynb", cell.source):
            assert (path.parent / name).is_file(), f"mentions {name}, which does not exist"


@notebook
def test_output_only_where_nbval_compares_it(path):
    """Without a count nbval compares nothing; kept output is plain text and the same on every machine."""
    _, codes = read(path)
    assert tool.main(["--check", str(path)]) == 0
    for cell in filter(tool.tagged, codes):
        how = (
            "python -m ifcsr_lib reproduce --profile smoke && "
            "python tools/strip_notebooks.py --from results/smoke/executed"
        )
        assert cell.execution_count, (
            f"{cell.source.splitlines()[0]!r} is tagged but has no output to compare: {how}"
        )
        for output in cell.outputs:
            assert output.output_type in ("stream", "execute_result")
            assert set(output.get("data", {"text/plain": ""})) == {"text/plain"}
            assert not re.search(r"0x[0-9a-f]{6,}", json.dumps(output)), "an address"


@pytest.fixture
def messy(tmp_path) -> Path:
    nb = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "my-env", "display_name": "mine"}, "widgets": {"a": 1}}
    )
    out = nbformat.v4.new_output
    kept, lost = (
        nbformat.v4.new_code_cell("print(1)\n1", execution_count=7, metadata={"collapsed": True})
        for _ in "ab"
    )
    for cell in (kept, lost):
        cell.outputs = [
            out("stream", name="stdout", text="1\n"),
            out("stream", name="stderr", text="warning"),
            out("execute_result", data={"text/plain": "1"}, execution_count=7),
        ]
    kept.metadata.tags = [tool.TAG]
    nb.cells = [nbformat.v4.new_markdown_cell("# Größe", metadata={"editable": True}), lost, kept]
    nbformat.write(nb, tmp_path / "00_messy.ipynb")
    return tmp_path / "00_messy.ipynb"


def test_strip_keeps_only_the_compared_output(messy, capsys):
    before = messy.read_bytes()
    assert tool.main(["--check", str(messy)]) == 1 and "not clean" in capsys.readouterr().err
    assert messy.read_bytes() == before
    assert tool.main([str(messy)]) == 0
    nb, (lost, kept) = read(messy)
    assert lost.outputs == [] and lost.execution_count is None and lost.metadata == {}
    assert kept.execution_count == 2 and [o.output_type for o in kept.outputs] == ["stream", "execute_result"]
    assert (
        nb.metadata.kernelspec.name == "python3"
        and "widgets" not in nb.metadata
        and "Größe" in messy.read_text("utf-8")
    )
    once = messy.read_bytes()
    assert (
        tool.main([str(messy)]) == 0
        and tool.main(["--check", str(messy)]) == 0
        and messy.read_bytes() == once
    )
    assert [p.name for p in messy.parent.iterdir()] == [messy.name]


def test_strip_takes_fresh_output_by_cell_id(messy, tmp_path, capsys):
    tool.main([str(messy)])
    run = tmp_path / "executed"
    run.mkdir()
    nb = nbformat.read(messy, as_version=4)
    nb.cells.insert(0, nbformat.v4.new_code_cell("profile = 'smoke'"))  # papermill injects one
    nb.cells[3].outputs[0].text = "2\n"
    nbformat.write(nb, run / messy.name)
    assert tool.main(["--from", str(run), str(messy)]) == 0
    assert read(messy)[1][1].outputs[0].text == "2\n" and read(messy)[1][1].execution_count == 2
    nb.cells[3].source = "print(3)"
    nbformat.write(nb, run / messy.name)
    before = messy.read_bytes()
    capsys.readouterr()
    assert (
        tool.main(["--from", str(run), str(messy)]) == 1
        and "run the notebook again" in capsys.readouterr().err
    )
    assert messy.read_bytes() == before


def test_strip_names_what_it_cannot_read(tmp_path, capsys):
    (tmp_path / "a.ipynb").write_text("{")
    assert tool.main([str(tmp_path / "a.ipynb"), str(tmp_path / "b.ipynb")]) == 1
    err = capsys.readouterr().err
    assert "a.ipynb" in err and "b.ipynb" in err
    with pytest.raises(SystemExit):
        tool.main(["--from", str(tmp_path / "missing")])
