"""The exported page in headless Firefox, driven over WebDriver BiDi, so without geckodriver: E1 in pixels,
an opened .ifcsr.zip, an exported PNG, a key. Skipped where no Firefox is installed.
"""

import base64
import contextlib
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import time

import numpy as np
import pytest
from helpers import rand
from PIL import Image

from ifcsr_lib.control import Endpoints
from ifcsr_lib.explorer import Explorer
from ifcsr_lib.files.images import to_uint8

FIREFOX = shutil.which("firefox") or shutil.which("firefox-esr")
websocket = pytest.importorskip("websocket")
pytestmark = pytest.mark.skipif(FIREFOX is None, reason="no firefox: install it (Debian: firefox-esr)")
BYTES = """const bytes = data => {
  let s = ""; for (const b of data) s += String.fromCharCode(b); return btoa(s); };"""


class Firefox:
    """One tab. Messages of level error are kept in `errors`."""

    def __init__(self, address: str):
        self.socket = websocket.create_connection(address, suppress_origin=True, timeout=60)
        self.count, self.errors = itertools.count(1), []
        self.ask("session.new", capabilities={})
        self.tab = {"context": self.ask("browsingContext.create", type="tab")["context"]}
        self.ask("session.subscribe", events=["log.entryAdded"])

    def ask(self, method: str, **params) -> dict:
        number = next(self.count)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while (answer := json.loads(self.socket.recv())).get("id") != number:
            if answer.get("params", {}).get("level") == "error":
                self.errors.append(answer["params"]["text"])
        if answer["type"] == "error":
            raise RuntimeError(answer["message"])
        return answer["result"]

    def open(self, url: str) -> None:
        self.ask("browsingContext.navigate", **self.tab, url=url, wait="complete")
        self.js("await ifcsr.ready;")

    def js(self, code: str):
        """The value (number, text, null) of an async JavaScript body."""
        answer = self.ask(
            "script.evaluate", expression=f"(async () => {{{code}}})()", target=self.tab, awaitPromise=True
        )
        if answer["type"] != "success":
            raise RuntimeError(answer["exceptionDetails"]["text"])
        return answer["result"].get("value")

    def upload(self, css: str, file) -> None:
        found = self.ask("browsingContext.locateNodes", **self.tab, locator={"type": "css", "value": css})
        element = {"sharedId": found["nodes"][0]["sharedId"]}
        self.ask("input.setFiles", **self.tab, element=element, files=[str(file)])

    def press(self, key: str) -> None:
        actions = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self.ask("input.performActions", **self.tab, actions=[{"type": "key", "id": "k", "actions": actions}])


@pytest.fixture(scope="module")
def firefox(tmp_path_factory):
    home = tmp_path_factory.mktemp("firefox")
    command = [FIREFOX, "--headless", "--no-remote", "--profile", str(home), "--remote-debugging-port=0"]
    with open(home / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HOME": str(home)})
    try:
        for _ in range(240):
            told = re.search(
                r"WebDriver BiDi listening on (ws://\S+)", (home / "log").read_text(errors="replace")
            )
            if told:
                break
            assert process.poll() is None, (home / "log").read_text(errors="replace")
            time.sleep(0.25)
        driver = Firefox(told[1] + "/session")
        yield driver
        driver.socket.close()
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)


@pytest.fixture
def page(firefox, tmp_path):
    ends = Endpoints(*(rand(1, 3, 120, 200, seed=k) for k in range(3)))
    Explorer([ends], names=["first"], model="test").save_html(tmp_path / "page.html")
    firefox.errors.clear()
    firefox.open((tmp_path / "page.html").as_uri())
    yield ends
    assert firefox.errors == []


def eight_bit(ends) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.asarray(to_uint8(x)).reshape(x.shape[2], x.shape[3], 3).astype(float) for x in ends)


def test_the_page_paints_e1(firefox, page):
    fid, real = eight_bit((page.x_fid, page.x_real))
    for gamma in (0, 0.1, 0.5, 0.77, 1):
        text = firefox.js(BYTES + f"ifcsr.setGamma({gamma}); return bytes(ifcsr.getPixels(0));")
        rgba = np.frombuffer(base64.b64decode(text), np.uint8).reshape(120, 200, 4)
        assert (rgba[..., 3] == 255).all()
        assert np.abs(rgba[..., :3] - ((1 - gamma) * fid + gamma * real)).max() <= 0.5 + 1e-6
        shown = json.loads(
            firefox.js(
                BYTES
                + "const s = ifcsr.getShown(); return JSON.stringify([bytes(s.data), s.width, s.height]);"
            )
        )
        painted = np.frombuffer(base64.b64decode(shown[0]), np.uint8).reshape(shown[2], shown[1], 4)
        zoom = shown[1] // 200  # "fit" enlarges by whole steps
        assert np.array_equal(painted, rgba.repeat(zoom, 0).repeat(zoom, 1))


def test_a_pair_is_opened_moved_by_key_and_exported(firefox, page, tmp_path):
    pair = Endpoints(*(rand(1, 3, 64, 96, seed=k) for k in (4, 5, 6)))
    path = pair.save(tmp_path / "pair.ifcsr.zip", "another model", gamma=0.3)
    firefox.upload("input[type=file][accept='.zip']", path)
    wait = "for (let i = 0; i < 100 && {}; i++) await new Promise(r => setTimeout(r, 50));"
    firefox.js(wait.format("ifcsr.gamma !== 0.3"))
    assert firefox.js("return ifcsr.gamma;") == 0.3
    firefox.js("document.querySelector('input[type=range]').focus();")
    firefox.press("\ue014")  # the arrow to the right
    assert firefox.js("return ifcsr.gamma;") == 0.31
    firefox.js(
        "const make = URL.createObjectURL.bind(URL);"
        "URL.createObjectURL = blob => { window.exported = blob; return make(blob); };"
        "[...document.querySelectorAll('button')].find(b => b.textContent === 'Export PNG').click();"
        + wait.format("!window.exported")
    )
    text = firefox.js(BYTES + "return bytes(new Uint8Array(await window.exported.arrayBuffer()));")
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))
    fid, real = eight_bit((pair.x_fid, pair.x_real))
    assert np.abs(picture - (0.69 * fid + 0.31 * real)).max() <= 0.5 + 1e-6
