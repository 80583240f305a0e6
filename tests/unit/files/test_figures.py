"""Figures in a real kernel: each cell shows its own, whichever was drawn first."""

import subprocess
import sys

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from ifcsr_lib import figures
from ifcsr_lib.config import ROOT

FIRST = {
    "losses": 'fig = figures.losses([{"step": i, "loss": 1 / i} for i in range(1, 9)], "training")',
    "gamma_curves": 'fig = figures.gamma_curves(table, ["psnr"])',
    "spectrum": 'fig = figures.spectrum({"run": table}, "psnr", ["niqe"])',
    "bars": 'fig = figures.bars({"a": torch.rand(2), "b": torch.rand(2)}, ["x", "y"], "height")',
    "pictures": 'fig = figures.pictures({"a": torch.rand(3, 16, 16)})',
}
IMPORTS = """import pandas as pd
import torch

from ifcsr_lib import figures

table = pd.DataFrame({"psnr": [3.0, 2.0], "niqe": [2.0, 1.0]}, index=pd.Index([0.0, 1.0], name="gamma"))"""


def images(cell) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


@pytest.mark.parametrize("first", ["losses", "pictures"])
def test_every_cell_shows_its_figure(first, tmp_path):
    order = [first, *(name for name in FIRST if name != first)]
    plain = "import matplotlib.pyplot as plt\nplt.plot([1, 2]);"
    cells = [new_code_cell(text) for text in (IMPORTS, *(FIRST[name] for name in order), plain, "1 + 1")]
    book = new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    nbformat.validate(book)
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = dict(zip(("imports", *order, "plain", "none"), map(images, book.cells), strict=True))
    assert shown == {"imports": 0, **dict.fromkeys(order, 1), "plain": 1, "none": 0}


def test_bars_show_each_number_above_its_own_tick():
    fig = figures.bars({"a": torch.tensor([1.0, 2.0]), "b": [3, 4]}, ["x", "y"], "height")
    (ax,) = fig.axes
    first, second = ([(b.get_center()[0], b.get_height()) for b in row] for row in ax.containers)
    plt.close(fig)
    assert [h for _, h in first] == [1, 2] and [h for _, h in second] == [3, 4]
    for (a, _), (b, _), tick in zip(first, second, ax.get_xticks(), strict=True):
        assert a < tick < b and a + b == pytest.approx(2 * tick)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["x", "y"]
    with pytest.raises(ValueError, match="'a' has 1 numbers and there are 2 ticks"):
        figures.bars({"a": [1.0]}, ["x", "y"], "height")


def test_style_ends_with_the_block_and_loading_the_library_opens_no_window():
    code = (
        "import matplotlib; matplotlib.use('Agg'); import matplotlib.pyplot as plt; from ifcsr_lib import "
        "figures;before = plt.rcParams['axes.grid'], plt.isinteractive(), "
        "len(plt.get_fignums());figures.losses([{'step': 1, 'loss': 1.0}], 'x'); plt.close('all');assert "
        "(plt.rcParams['axes.grid'], plt.isinteractive(), len(plt.get_fignums())) == before"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_method_has_one_colour_and_no_other_of_a_figure_has_it():
    from ifcsr_lib import control, figures

    names = [*control.strategies(), *figures.RECIPES]
    assert len({figures.colour(name) for name in names}) == len(names)
    assert figures.colour("my own") == figures.colour("my own")
