"""JupyterLab itself, headless: the live widget is moved by hand and from Python, shows errors, and leaves a
small notebook.
"""

import json
import time

import nbformat
import numpy as np
import pytest
import torch
from chromium import browser, js, lab, missing, open_notebook, pixels, run_cell, shown, until

from ifcsr_lib.control import Endpoints
from ifcsr_lib.files.images import to_uint8

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
SIDE = 512
CELLS = [
    """import torch, time
from ifcsr_lib.control import Endpoints
from ifcsr_lib.explorer import Explorer
x = [torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(k)) for k in range(2)]
ends = Endpoints(*x)
explorer = Explorer(ends, hr=x[1])
explorer""",
    (
        "print('python has', explorer.gamma, explorer.view[2], None if explorer.gamma_map is None else "
        "explorer.gamma_map.sum().item())"
    ),
    "explorer.gamma, explorer.view = 0.9, (0.25, 0.5, 2)",
    "time.sleep(8); print('slept')",
    "explorer.gamma_map = torch.linspace(0, 1, 512).expand(1, 1, 512, 512)",
    "explorer.observe(lambda change: 1 / 0, 'gamma')",
    "explorer.unobserve_all('gamma'); ends.save('pair.ifcsr.zip', 'stored', gamma=0.125)",
]
WIDGET = "document.querySelector('.ifcsr').ifcsr"


@pytest.fixture(scope="module")
def panel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS])
    nb.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nb, folder / "live.ipynb")
    with lab(folder) as (port, token), browser(1000, 1000) as driver:
        open_notebook(driver, port, token, "live.ipynb")
        run_cell(driver, 0)
        until(
            driver,
            f"const e = document.querySelector('.ifcsr'); if (!e) return false; await {WIDGET}.ready; return "
            "true;",
        )
        driver.folder = folder
        yield driver


@pytest.fixture(scope="module")
def ends():
    return Endpoints(
        *(torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(k)) for k in range(2))
    )


def python_has(driver) -> list[str]:
    run_cell(driver, 1)
    said = js(
        driver,
        "const cell = jupyterapp.shell.currentWidget.content.widgets[1].model; return "
        "JSON.stringify(cell.outputs.toJSON());",
    )
    return json.loads(said)[0]["text"].split()[2:]


def is_e1(driver, ends, gamma):
    apart = np.abs(pixels(driver, SIDE, SIDE, where=WIDGET).astype(int) - to_uint8(ends.blend(gamma))[0])
    assert apart.max() <= 1


def message(driver):
    return js(driver, "return document.querySelector('.ifcsr-message').textContent;")


def test_moved_by_hand(panel, ends):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    slider = panel.find_element(By.CSS_SELECTOR, ".ifcsr-gamma")
    js(panel, "document.querySelector('.ifcsr-gamma').scrollIntoView({block: 'center'});")
    slider.send_keys(Keys.HOME)
    is_e1(panel, ends, 0.0)
    ActionChains(panel).click_and_hold(slider).move_by_offset(60, 0).release().perform()
    gamma = js(panel, f"return {WIDGET}.gamma;")
    assert 0.5 < gamma < 0.9
    is_e1(panel, ends, gamma)
    time.sleep(0.5)  # the page tells Python at most every 80 ms
    assert float(python_has(panel)[0]) == gamma


def test_moved_from_python(panel, ends):
    run_cell(panel, 2)
    until(panel, f"return {WIDGET}.gamma === 0.9 && {WIDGET}.state.view[2] === 2;", 10)
    is_e1(panel, ends, 0.9)
    assert shown(panel, WIDGET)[1]["spot"]["zoom"] == 2
    js(panel, f"{WIDGET}.setView(0.5, 0.5, 0); {WIDGET}.setGamma(0.25);")
    time.sleep(0.5)
    assert python_has(panel)[:2] == ["0.25", "0"]


def test_no_move_waits_for_the_kernel(panel, ends):
    """The kernel is asleep for 8 s; three moves meanwhile are painted at once and arrive in Python
    afterwards.
    """
    run_cell(panel, 3, wait=False)
    for gamma in (0.1, 0.5, 0.7):
        took = js(
            panel,
            f"const t = performance.now(); {WIDGET}.setGamma(args[0]); return performance.now() - t;",
            gamma,
        )
        is_e1(panel, ends, gamma)
        assert took < 500
    slept = (
        "const cell = jupyterapp.shell.currentWidget.content.widgets[3];"
        "return JSON.stringify(cell.model.outputs.toJSON()).includes('slept');"
    )
    assert not js(panel, slept), "the kernel was not asleep any more: the test would prove nothing"
    until(panel, slept, 20)
    time.sleep(0.5)
    assert python_has(panel)[0] == "0.7"


def test_map_from_python_and_back(panel, ends):
    run_cell(panel, 4)
    until(panel, f"return {WIDGET}.map !== null;", 10)
    ramp = torch.linspace(0, 1, SIDE).mul(255).round().div(255).expand(1, 1, SIDE, SIDE)
    is_e1(panel, ends, ramp)
    assert float(python_has(panel)[2]) == pytest.approx(ramp.sum().item(), rel=1e-4)
    js(panel, "document.querySelector('[aria-label=\"clear the gamma map\"]').click();")
    time.sleep(1)
    assert python_has(panel)[2] == "None"


def test_errors_of_callbacks_are_shown(panel):
    run_cell(panel, 5)
    js(panel, f"{WIDGET}.setGamma(0.33);")
    until(
        panel,
        "return document.querySelector('.ifcsr-message').textContent.includes('ZeroDivisionError');",
        10,
    )
    run_cell(panel, 6)
    js(panel, f"{WIDGET}.setGamma(0.34);")
    until(panel, "return document.querySelector('.ifcsr-message').textContent === '';", 10)


def test_a_pair_opens_in_the_widget(panel, ends):
    from selenium.webdriver.common.by import By

    panel.find_element(By.CSS_SELECTOR, ".ifcsr input[accept='.zip']").send_keys(
        str(panel.folder / "pair.ifcsr.zip")
    )
    until(panel, f"return {WIDGET}.state.index === 1;", 20)
    js(panel, f"await {WIDGET}.ready;")
    assert js(panel, f"return {WIDGET}.gamma;") == 0.125 and message(panel) == ""
    is_e1(panel, ends, 0.125)


def test_saved_notebook_is_small(panel):
    """Widget state is saved (a setting of JupyterLab); with two pairs of 512x512 noise, 1.5 MB each way, it
    holds text only.
    """
    js(panel, "await jupyterapp.commands.execute('docmanager:save');")
    time.sleep(0.5)
    text = (panel.folder / "live.ipynb").read_text(encoding="utf-8")
    state = json.loads(text)["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    assert any("_esm" in part["state"] for part in state.values()), (
        "no widget state was saved: the test would prove nothing"
    )
    assert len(text) < 200_000
