"""Take the pictures of the slider in docs/ anew: JupyterLab light and dark, the exported page at desktop and
phone width.

    python tools/slider_pictures.py

Needs chromium and chromedriver, as the tests do. The photograph is coffee, degraded with the light preset,
seed 0.
"""

import base64
import sys
import tempfile
import time
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from chromium import browser, js, lab, missing, open_notebook, run_cell, until

import ifcsr_lib as ifcsr
from ifcsr_lib import data, degradation, explorer, results

MAKE = """import ifcsr_lib as ifcsr
from ifcsr_lib import data, degradation
from ifcsr_lib.explorer import Explorer
hr = data.load_photo(data.photos("heldout")[0])
lq = degradation.degrade(hr, 0, "light", data.HELDOUT_INDEX)
model = ifcsr.load("pocket")
ends = model.endpoints(lq)"""
SHOW = 'explorer = Explorer(ends, lq, hr, names=["coffee"], model=model)\nexplorer'
WIPE = """const root = document.querySelector(".ifcsr");
const box = root.querySelector("[aria-label='compare with']");
root.querySelector("details").open = true; box.value = "bicubic"; box.dispatchEvent(new Event("change"));
await new Promise(done => setTimeout(done, 800)); root.querySelector(".ifcsr-stages").scrollIntoView();"""


def picture(driver, name: str, whole=False) -> None:
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": whole})
    with results.atomic(ROOT / "docs" / name) as tmp:
        tmp.write_bytes(base64.b64decode(shot["data"]))
    print(f"docs/{name}")


def in_lab(folder: Path) -> None:
    cells = [nbformat.v4.new_code_cell(c) for c in (MAKE, SHOW, "explorer.gamma = 0.6")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "slider.ipynb")
    for theme, name in (("JupyterLab Light", "slider_lab.png"), ("JupyterLab Dark", "slider_lab_dark.png")):
        with lab(folder, theme) as (port, token), browser(1180, 1000) as driver:
            driver.set_script_timeout(170)
            open_notebook(driver, port, token, "slider.ipynb")
            run_cell(driver, 0)
            run_cell(driver, 1)
            until(
                driver,
                "const e = document.querySelector('.ifcsr'); if (!e) return false; await e.ifcsr.ready; "
                "return true;",
            )
            run_cell(driver, 2)
            js(driver, WIPE)
            time.sleep(1)
            picture(driver, name)


def on_page(folder: Path) -> None:
    hr = data.load_photo(data.photos("heldout")[0])
    lq, model = degradation.degrade(hr, 0, "light", data.HELDOUT_INDEX), ifcsr.load("pocket")
    shown = explorer.Explorer(model.endpoints(lq), lq, hr, names=["coffee"], model=model, gamma=0.6)
    url = shown.save_html(folder / "page.html").as_uri()
    with browser(1200, 1020) as driver:
        driver.get(url)
        js(driver, "await ifcsr.ready;" + WIPE)
        picture(driver, "slider_page.png")
        phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
        driver.get(url)
        js(driver, "await ifcsr.ready; await new Promise(done => setTimeout(done, 500));")
        picture(driver, "slider_phone.png")


if __name__ == "__main__":
    if why := missing():
        sys.exit(why)
    with tempfile.TemporaryDirectory() as place:
        on_page(Path(place))
        in_lab(Path(place))
