"""Headless Chromium for the tests and the benchmark of the slider: Debian's chromium and chromium-driver, through selenium."""

import base64
import contextlib
import shutil
import tempfile

import numpy as np

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--force-color-profile=srgb",
         "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")  # fmt: skip


def missing() -> str:
    """Why no browser can be started, "" when one can."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        return "no chromium with chromedriver: install them (Debian: apt-get install chromium chromium-driver)"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "no selenium: install the dev extra"
    return ""


@contextlib.contextmanager
def browser(width=1000, height=800, downloads=None, flags=()):
    """A selenium driver of a fresh profile; names resolve to nothing, so only files and 127.0.0.1 are reached."""
    from selenium import webdriver

    with tempfile.TemporaryDirectory(prefix="ifcsr-chromium-", ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for flag in (*FLAGS, *flags, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            driver.set_script_timeout(60)
            if downloads:
                driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
            yield driver
        finally:
            driver.quit()


def js(driver, code: str, *args):
    """The value of an async JavaScript body, in which `args` are the arguments; its error becomes a RuntimeError."""
    done = driver.execute_async_script(
        "const [args, finish] = [[...arguments].slice(0, -1), arguments[arguments.length - 1]];"
        "(async () => {" + code + "})().then(v => finish([v, null]), e => finish([null, String(e && e.stack || e)]));", *args)  # fmt: skip
    if done[1]:
        raise RuntimeError(done[1])
    return done[0]


BYTES = """const bytes = data => { let s = ""; for (let i = 0; i < data.length; i += 32768)
  s += String.fromCharCode(...data.subarray(i, i + 32768)); return btoa(s); };"""


def pixels(driver, height: int, width: int, pane=0, where="window.ifcsr") -> np.ndarray:
    """getPixels() as (H, W, 3) uint8; alpha is checked to be 255."""
    text = js(driver, BYTES + f"return bytes({where}.getPixels(args[0]));", pane)
    rgba = np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4)
    assert (rgba[..., 3] == 255).all()
    return rgba[..., :3]


def shown(driver, where="window.ifcsr") -> tuple[np.ndarray, dict]:
    """What is painted on the canvas, (h, w, 4) uint8, and {"path", "spot"}."""
    text, width, height, path, spot = js(
        driver, BYTES + f"const s = {where}.getShown(); return [bytes(s.data), s.width, s.height, s.path, s.spot];")  # fmt: skip
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4), {"path": path, "spot": spot}
