"""Headless Chromium for the tests and the benchmark of the slider: Debian's chromium and chromium-driver,
through selenium.
"""

import base64
import contextlib
import shutil
import tempfile

import numpy as np

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


def missing() -> str:
    """Why no browser can be started, "" when one can."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        return (
            "no chromium with chromedriver: install them (Debian: apt-get install chromium chromium-driver)"
        )
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "no selenium: install the dev extra"
    return ""


@contextlib.contextmanager
def browser(width=1000, height=800, downloads=None, flags=()):
    """A selenium driver of a fresh profile; names resolve to nothing, so only files and 127.0.0.1 are
    reached.
    """
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
            # JupyterLab's current widget is the focused one, and not every headless Chromium focuses its page
            driver.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
            if downloads:
                driver.execute_cdp_cmd(
                    "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)}
                )
            yield driver
        finally:
            driver.quit()


def js(driver, code: str, *args):
    """The value of an async JavaScript body, in which `args` are the arguments; its error becomes a
    RuntimeError.
    """
    done = driver.execute_async_script(
        "const [args, finish] = [[...arguments].slice(0, -1), arguments[arguments.length - 1]];"
        "(async () => {"
        + code
        + "})().then(v => finish([v, null]), e => finish([null, String(e && e.stack || e)]));",
        *args,
    )
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
        driver,
        BYTES + f"const s = {where}.getShown(); return [bytes(s.data), s.width, s.height, s.path, s.spot];",
    )
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4), {
        "path": path,
        "spot": spot,
    }


@contextlib.contextmanager
def lab(folder, theme="JupyterLab Light"):
    """JupyterLab on 127.0.0.1 serving `folder`, its settings in there too, saving widget state; yields (port,
    token).
    """
    import os
    import socket
    import subprocess
    import sys
    import time
    import urllib.request
    from pathlib import Path

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings, token = Path(folder, ".settings"), "test"
    for name, text in {
        "@jupyter-widgets/jupyterlab-manager/plugin": '{"saveState": true}',
        "@jupyterlab/apputils-extension/themes": f'{{"theme": "{theme}"}}',
        "@jupyterlab/apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
    }.items():
        path = settings / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    env = os.environ | {
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTERLAB_WORKSPACES_DIR": str(Path(folder, ".workspaces")),
        "IPYTHONDIR": str(Path(folder, ".ipython")),
        "JUPYTER_RUNTIME_DIR": str(Path(folder, ".runtime")),
    }
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--allow-root",
        f"--IdentityProvider.token={token}",
        "--LabApp.expose_app_in_browser=True",
        f"--ServerApp.root_dir={folder}",
    ]
    with open(Path(folder, ".lab.log"), "w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        try:
            for _ in range(600):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(
                        f"http://127.0.0.1:{port}/api/status?token={token}", timeout=2
                    ).close()
                    break
                time.sleep(0.1)
            else:
                raise RuntimeError(Path(folder, ".lab.log").read_text()[-2000:])
            yield port, token
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


def open_notebook(driver, port, token, name):
    """Open a notebook in JupyterLab, alone on the screen, and wait for its kernel."""
    driver.get(f"http://127.0.0.1:{port}/lab/tree/{name}?token={token}")
    until(
        driver,
        "return window.jupyterapp && jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status "
        "=== 'idle' && jupyterapp.shell.currentWidget.content.widgets.length > 0;",
    )
    js(
        driver,
        "const app = jupyterapp; if "
        "(!document.querySelector('#jp-left-stack').classList.contains('lm-mod-hidden')) await "
        "app.commands.execute('application:toggle-left-area');app.shell.currentWidget.content.mode = "
        "'command'; app.shell.currentWidget.content.activeCellIndex = 0;",
    )


def run_cell(driver, k: int, wait=True) -> None:
    """Run code cell k of the open notebook."""
    js(
        driver,
        "const panel = jupyterapp.shell.currentWidget; panel.content.activeCellIndex = args[0]; "
        "panel.content.deselectAll();const run = jupyterapp.commands.execute('notebook:run-cell'); if "
        "(args[1]) await run;",
        k,
        wait,
    )


def until(driver, code: str, seconds=60):
    """Poll an async JavaScript body until its value is true; returns it."""
    import time

    end = time.monotonic() + seconds
    while True:
        if value := js(driver, code):
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} s: {code}")
        time.sleep(0.1)
