"""Under pytest --nbval the notebooks run at smoke scale and write to a temporary folder, not to results/."""

import os
import re
import tempfile
from pathlib import Path

import nbformat
import pytest

from ifcsr_lib.config import ROOT

HERE = Path(__file__).parent
# a function of figures (the classes there show progress), on a line of its own, not in a loop or a branch
DRAWS = re.compile(r"^(?! ).*(figures\.[a-z]\w*|plt\.subplots)\(", re.MULTILINE)
# one for all: each notebook reads what earlier ones wrote
_results = tempfile.TemporaryDirectory(prefix="ifcsr-nbval-")


def needs(path: Path) -> set[str]:
    """The notebooks that this one's results.require(..., cfg, "01") names, and what those need in turn."""
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    out = set()
    for number in re.findall(r'require\(.*?, "(\d\d)"\s*\)', text, re.DOTALL):
        (other,) = HERE.glob(f"{number}_*.ipynb")
        out |= {other.name} | needs(other)
    return out


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("notebook")


def pytest_collection_finish(session):
    """A notebook run without those it reads from is skipped, with one line that names them."""
    chosen = {}
    for item in session.items:
        if item.path.suffix == ".ipynb" and HERE in item.path.parents:
            chosen.setdefault(item.path, []).append(item)
    names = {path.name for path in chosen}
    for path, cells in chosen.items():
        if lacking := sorted(needs(path) - names):
            first = " ".join(f"notebooks/{name}" for name in [*lacking, path.name])
            why = f"{path.name} reads what {', '.join(lacking)} write; run them too: pytest --nbval {first}"
            for cell in cells:
                cell.add_marker(pytest.mark.skip(reason=why))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    """nbval starts the kernel of a notebook in here, and the kernel inherits the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IFCSR_PROFILE", "smoke")
        patch.setenv("IFCSR_RESULTS", _results.name)
        patch.setenv("IFCSR_NOTEBOOK", item.path.name)
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        patch.setenv("PYTHONHASHSEED", "0")
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """A cell that makes a figure shows it: nbval compares no pictures and would not miss one."""
    result = yield
    if DRAWS.search(item.cell.source) and not any(
        "image/png" in output.get("data", {}) for output in item.test_outputs
    ):
        pytest.fail(f"{item.name} makes a figure, and its output has no picture")
    return result
