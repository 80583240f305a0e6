"""Frame times of the exported page: from a move of the slider to the painted frame, in headless Chromium
without a GPU.

    python benchmarks/slider.py

Each row: 120 moves, each at the start of a frame, where browsers deliver pointer moves. "move" ends with the
first task after that frame (script, layout and paint of the main thread); "interval" is from one moved frame
to the next, which also counts what the compositor and SwiftShader (the WebGL2 rows) do elsewhere. View "fit"
is a window of 1280x900; "1:1" shows all pixels of the image at once. Needs chromium and chromedriver, as the
tests do.
"""

import platform
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from chromium import browser, js, missing
from common import load, machine

from ifcsr_lib.control import Endpoints
from ifcsr_lib.explorer import Explorer

SIZES = (512, 1024, 2048)
MEASURE = """
const slider = document.querySelector(".ifcsr-gamma"), moves = [], starts = [];
const channel = new MessageChannel();
for (let i = 0; i < 130; i++) {
  await new Promise(done => requestAnimationFrame(() => {
    const start = performance.now();
    slider.value = (i * 37 % 101) / 100;
    slider.dispatchEvent(new Event("input"));
    channel.port1.onmessage = () => { moves.push(performance.now() - start); starts.push(start); done(); };
    channel.port2.postMessage(0);
  }));
}
const {width, height, path} = ifcsr.getShown();
const gaps = starts.slice(11).map((t, i) => t - starts[i + 10]);
return {moves: moves.slice(10), gaps, canvas: `${width}x${height}`, path};
"""


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[round(q * (len(values) - 1))]


def main() -> int:
    if why := missing():
        print(why, file=sys.stderr)
        return 2
    print(f"{machine()}; {load()}; {platform.system()}, Chromium")
    print(
        f"{'path':7} {'image':10} {'view':5} {'canvas':10} {'move median':>12} {'p95':>7} {'max':>7} "
        f"{'interval median':>16} {'p95':>7}  (ms)"
    )
    with tempfile.TemporaryDirectory(prefix="ifcsr-bench-") as folder:
        pages = {}
        for side in SIZES:
            x = F.interpolate(torch.rand(2, 3, side // 8, side // 8), size=(side, side), mode="bilinear")
            pages[side] = Explorer(Endpoints(x[:1], x[1:])).save_html(Path(folder, f"{side}.html")).as_uri()
        for path in ("2d", "webgl2"):
            for view, window in (("fit", (1280, 900)), ("1:1", (2300, 2900))):
                with browser(*window, flags=("--enable-unsafe-swiftshader",)) as driver:
                    for side, uri in pages.items():
                        driver.get(f"{uri}?path={path}")
                        if view == "1:1":
                            js(
                                driver,
                                "document.body.style.maxWidth = 'none'; "
                                "document.querySelector('.ifcsr-stage').style.maxHeight = 'none';await "
                                "ifcsr.ready; await new Promise(r => setTimeout(r, 300)); ifcsr.setView(0.5, "
                                "0.5, 1);",
                            )
                        out = js(
                            driver, "await ifcsr.ready; await new Promise(r => setTimeout(r, 500));" + MEASURE
                        )
                        m, g = out["moves"], out["gaps"]
                        print(
                            f"{out['path']:7} {f'{side}x{side}':10} {view:5} {out['canvas']:10} "
                            f"{quantile(m, 0.5):12.1f} {quantile(m, 0.95):7.1f} {max(m):7.1f} "
                            f"{quantile(g, 0.5):16.1f} {quantile(g, 0.95):7.1f}",
                            flush=True,
                        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
