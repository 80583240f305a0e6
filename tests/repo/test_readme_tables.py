"""The tables of README and docs are those of results and code; the tool that writes them; how large the
method and the README may be.
"""

import importlib
import re

import pytest

from ifcsr_lib.config import ROOT


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("readme_tables")


def test_every_table_is_up_to_date(tool, capsys):
    assert tool.main(["--check"]) == 0, capsys.readouterr().out + "run python tools/readme_tables.py"


def test_the_decisions_are_those_of_the_code(tool):
    """A row that the tool had to add says TODO until a person has written it; no tag has two rows."""
    text = "".join(path.read_text(encoding="utf-8") for path in tool.pages())
    for tag in tool.tags():
        assert text.count(f"\n| {tag} |") == 1, f"{tag}: run python tools/readme_tables.py"
    assert "| TODO |" not in text, "a decision without its reason"


def test_all_pages_are_looked_at(tool, tmp_path, monkeypatch, capsys):
    """README.md, and docs/ with its subfolders; one page out of date is enough to fail."""
    monkeypatch.setattr(tool, "pages", lambda pages=tool.pages: [*pages(), tmp_path / "late.md"])
    assert tool.pages()[0] == ROOT / "README.md" and ROOT / "docs" / "decisions.md" in tool.pages()
    (tmp_path / "late.md").write_text("<!-- table: lines -->\nold\n<!-- end -->\n")
    assert tool.main(["--check"]) == 1 and "late.md" in capsys.readouterr().out


def test_every_table_is_on_one_page(tool):
    """A table that no page shows is code for nobody; one on two pages is read twice."""
    text = "".join(path.read_text(encoding="utf-8") for path in tool.pages())
    assert {name: text.count(f"<!-- table: {name} -->") for name in tool.TABLES} == dict.fromkeys(
        tool.TABLES, 1
    )


def test_equations_are_where_readme_says():
    """Each row E1 to E7 names functions of the library, and the file that each is in."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (E\d) \|.*$", text, re.MULTILINE)
    assert rows == [f"E{i}" for i in range(1, 8)]
    for line in re.findall(r"^\| E\d \|.*$", text, re.MULTILINE):
        names = re.findall(r"\[`([\w.]+)`\]\(([\w/.]+)\)", line)
        assert names, line
        for name, path in names:
            module, *parts = name.split(".")
            thing = importlib.import_module(f"ifcsr_lib.{module}")
            for part in parts:
                thing = getattr(thing, part)
            assert thing.__module__ == path.removesuffix(".py").replace("/", "."), name


def test_readme_stays_one_page():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").count("\n")
    assert lines <= 150, f"README.md has {lines} lines; allowed: 150. Details go to docs/"


def test_cells_of_a_table(tool):
    rows = [{"a": "1.26", "b": "x"}, {"a": "", "b": "2"}]
    assert tool.show(rows, {"a": ("A", ".1f"), "b": ("B", "")})[2:] == ["| 1.3 | x |", "| - | 2 |"]


def test_widths_are_means_over_the_seeds(tool, monkeypatch):
    rows = [
        {"recipe": r, "seed": s, "|x|": v} for r, s, v in [("a", "0", "1"), ("a", "1", "3"), ("b", "0", "5")]
    ]
    monkeypatch.setattr(tool, "read", lambda name: rows)
    out = tool.ablation(None)
    assert out[2:] == ["| a | 2.00 (1.00 to 3.00) |", "| b | 5.00 (5.00 to 5.00) |"]
    assert r"\|x\|: mean of 2 seeds" in out[0]


def test_a_table_is_written_once_and_checked(tool, tmp_path, capsys):
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- table: realsr -->\nold\n<!-- end -->\nafter\n")
    assert tool.main([str(path), "--check"]) == 1 and "-old" in capsys.readouterr().out
    assert "old" in path.read_text()
    assert tool.main([str(path)]) == 0
    once = path.read_text()
    assert (
        once.startswith("before\n")
        and once.endswith("\nafter\n")
        and "| bicubic | - | 27.15 |" in once
        and "old" not in once
    )
    assert tool.main([str(path)]) == 0 and tool.main([str(path), "--check"]) == 0 and path.read_text() == once


@pytest.mark.parametrize(
    "text, error",
    [
        ("<!-- table: realsrr -->\n<!-- end -->", "'realsrr' is unknown; allowed: expect, realsr"),
        ("<!-- table: realsr -->\n", "has no `<!-- end -->`"),
        ("<!-- table: realsr -->\n<!-- table: lines -->\n<!-- end -->", "holds another one"),
    ],
)
def test_bad_markers_are_named(tool, tmp_path, capsys, text, error):
    (tmp_path / "page.md").write_text(text)
    assert tool.main([str(tmp_path / "page.md")]) == 1 and error in capsys.readouterr().err
    assert (tmp_path / "page.md").read_text() == text


def test_decisions_keep_their_text(tool):
    """Rows are kept as they are written, those without a tag go, tags without a row get one."""
    out = tool.decisions(
        "| | choice | why |\n|---|---|---|\n| D1 | my text | my reason |\n| D999 | gone | gone |"
    )
    assert "| D1 | my text | my reason |" in out and not [line for line in out if "D999" in line]
    assert (
        len(out) == 2 + len(tool.tags())
        and sum(line.endswith("| TODO |") for line in out) == len(tool.tags()) - 1
    )


def test_lines_of_code(tool):
    source = '"""Doc."""\n\nx = 1  # why\n\n\ndef f():\n    """Doc\n    string."""\n'
    source += "    # no\n    return (\n        x)\n"
    assert tool.count_lines.code_lines(source) == 4


def test_the_method_stays_readable(tool):
    lines, _ = tool.count_lines.count(tool.count_lines.METHOD)
    assert lines <= 500, f"{', '.join(tool.count_lines.METHOD)} have {lines} lines; allowed: 500"


def named_tests(page: str) -> list[list[str]]:
    """The names in the last column of each row of the tables of page that have a column "Test"."""
    rows, inside = [], False
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif cells[-1] == "Test":
            inside = True
        elif inside and set(cells[-1]) - {"-"}:
            rows.append(re.findall(r"`(\w+)`", cells[-1]))
    return rows


def test_every_test_that_a_table_names_exists():
    """The kinds of faults in docs/troubleshooting.md: each row has a test, and it is defined once or more."""
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"^def (test_\w+)\(", sources, re.MULTILINE))
    rows = named_tests((ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"))
    assert len(rows) > 40 and all(rows), "a row without a test"
    assert not (lost := {name for row in rows for name in row} - defined), lost
    page = "| a | Test |\n|---|---|\n| x | `test_a`, `test_b` |\n| y | none |\n\n| a |\n|---|\n| `z` |\n"
    assert named_tests(page) == [["test_a", "test_b"], []]
