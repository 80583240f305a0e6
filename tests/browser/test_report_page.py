"""The report in headless Chromium: the slider inside it plays, and nothing is asked of a network."""

import pytest
from chromium import browser, js, missing, shown
from helpers import rand

from ifcsr_lib import results
from ifcsr_lib.config import resolve
from ifcsr_lib.control import Endpoints
from ifcsr_lib.explorer import Explorer
from ifcsr_lib.report.page import write

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

MOVE = """const slider = document.querySelector("input[type=range]");
slider.value = slider.max * args[0];
slider.dispatchEvent(new Event("input", {bubbles: true}));
await new Promise(done => setTimeout(done, 300));"""


def test_the_slider_in_the_report_plays(tmp_path):
    from selenium.webdriver.common.by import By

    cfg = resolve("smoke")
    page = cfg.results / "explorer" / "one.html"
    page.parent.mkdir(parents=True)
    dark, light = 0.2 * rand(1, 3, 64, 64, seed=0), 0.8 + 0.2 * rand(1, 3, 64, 64, seed=1)
    Explorer(Endpoints(dark, light, dark), names=["one"], model="test").save_html(page)
    results.write_sidecar(page, cfg)
    with browser() as driver:
        driver.execute_cdp_cmd("Network.enable", {})
        driver.get(write(cfg).as_uri())
        assert js(driver, "return performance.getEntriesByType('resource').length;") == 0
        driver.switch_to.frame(driver.find_element(By.TAG_NAME, "iframe"))
        js(driver, "await ifcsr.ready;")
        means = []
        for gamma in (0, 1):
            js(driver, MOVE, gamma)
            means.append(shown(driver)[0][..., :3].mean())
        assert means[1] > means[0] + 100, means
        severe = [line["message"] for line in driver.get_log("browser") if line["level"] == "SEVERE"]
        assert severe == []
