"""The slider: gamma in a notebook, and the same on one page without a kernel. Every frame is E1; no network runs."""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import io
import json
import math
import numbers
import struct
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import torch
import torch.nn.functional as F
import traitlets
from PIL import Image, PngImagePlugin
from torch import Tensor

from . import __version__
from .control import Endpoints
from .evaluate import EPS, _items, _load, _luma_errors
from .images import to_uint8, upsample
from .results import atomic

PRESETS = (0.0, 0.25, 0.5, 0.75, 1.0)
ZOOMS = (1, 2, 4, 8, 16)
LIMIT = 1024  # longest side of the picture sent to the browser; larger images are shown reduced until zoomed into


def _fraction(value, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} came as {type(value).__name__} {value!r}; pass a number from 0 to 1")
    if not 0 <= value <= 1:  # NaN fails too
        raise ValueError(f"{name}={value!r}; allowed: 0 to 1" + " (0 fidelity, 1 realism)" * (name == "gamma"))
    return float(value)


def _shown(method):
    """Show an error of a callback in the explorer's message line, where JupyterLab would hide it; then raise it on."""

    @functools.wraps(method)
    def wrapped(self, *args):
        try:
            result = method(self, *args)
        except Exception as error:
            text = html.escape(f"{type(error).__name__}: {error}")
            self.message.value = f'<b role="alert" style="color:#c62828">{text}</b>'
            raise
        self.message.value = ""
        return result

    return wrapped


def cut(x: Tensor, view: tuple[float, float, int], limit: int = LIMIT) -> Tensor:
    """The part of an image that a view shows: (1, 3, H, W) -> (1, 3, h, w), sides at most `limit`.

    view: (x, y, zoom), the centre as fractions of width and height, and the magnification against the whole picture.
    Nearest neighbour where an image pixel covers one screen pixel or more, box average where it covers less: both are
    linear, so that E1 of cut endpoints is the cut of E1.
    """
    across, down, zoom = view
    (height, width), shrink = x.shape[-2:], 2 ** max(0, math.ceil(math.log2(max(x.shape[-2:]) / limit)))
    h, w = max(1, height // zoom), max(1, width // zoom)
    top, left = (round(min(max(c * s - p / 2, 0), s - p)) for c, s, p in ((down, height, h), (across, width, w)))
    x = x[..., top : top + h, left : left + w]
    if zoom < shrink:
        return F.avg_pool2d(x, shrink // zoom, ceil_mode=True)
    return x.repeat_interleave(zoom // shrink, -1).repeat_interleave(zoom // shrink, -2)


class _Screen:
    """One view of a pair of endpoints, laid out as a 24-bit BMP so that a new gamma is one lerp and one rounding."""

    def __init__(self, x_fid: Tensor, x_real: Tensor, other: Tensor | None):
        self.h, self.w = x_fid.shape[-2:]
        self.fid, self.real = self._rows(x_fid), self._rows(x_real)
        self.other = None if other is None else self._rows(other).mul(255).round().byte()
        size = self.fid.numel()
        head = struct.pack("<2sIHHI", b"BM", 54 + size, 0, 0, 54)
        head += struct.pack("<IiiHHIIiiII", 40, self.w, self.h, 1, 24, 0, size, 2835, 2835, 0, 0)
        self.data, self.mix = bytearray(head + bytes(size)), torch.empty_like(self.fid)
        self.pixels = torch.frombuffer(self.data, dtype=torch.uint8, offset=54).view_as(self.fid)

    @staticmethod
    def _rows(x: Tensor) -> Tensor:
        """(1, 3, h, w) RGB -> (h, row) BGR, bottom row first, rows padded to multiples of 4 bytes."""
        x = x[0].flip(0, 1).permute(1, 2, 0).flatten(1)
        return F.pad(x, (0, -x.shape[1] % 4)).contiguous()

    def bmp(self, gamma: float, wipe: float) -> bytes:
        """E1 at gamma, rounded to 8 bit; the left `wipe` of the width shows the other image, behind a white line."""
        torch.lerp(self.fid, self.real, gamma, out=self.mix)  # as control.blend: torch.lerp in float32
        self.pixels.copy_(self.mix.mul_(255).round_())
        edge = 3 * round(wipe * self.w)
        if self.other is not None and edge:
            self.pixels[:, :edge] = self.other[:, :edge]
            self.pixels[:, edge - 3 : edge] = 255
        return bytes(self.data)


class Explorer(widgets.VBox):
    """A slider over endpoints that are already there: gamma moves, no network runs.

    ends: Endpoints of one or more images, or a list of them (sizes may differ).
    lq: the low-resolution inputs (N, 3, H/4, W/4), compared with as bicubic x4; default is x_L of the endpoints.
    hr: the references (N, 3, H, W); with them the PSNR (Y) of the current gamma is shown, from its closed form.
        Both: float32 RGB in [0, 1], or a list of single images or paths.
    names: one an image. model: the IFCSR that made the endpoints, or any text; it goes into exported files.
    folder: where the export button writes. gamma: where the slider starts.

    State, readable and settable from Python, in step with the controls: `gamma` in [0, 1]; `index` of the image; `view`
    = (x, y, zoom), see `cut`. The picture is sent to the browser only while it is displayed, so that notebooks run
    without one keep no image in their metadata. Raises TypeError or ValueError on anything that does not fit.
    """

    gamma = traitlets.TraitType(0.5)
    index = traitlets.TraitType(0)
    view = traitlets.TraitType((0.5, 0.5, 1))

    def __init__(self, ends, lq=None, hr=None, *, names=None, model=None, folder: str | Path = ".", gamma: float = 0.5):
        self._ends = _singles(ends)
        self._lq, self._hr = _fitting(lq, self._ends, "lq", 4), _fitting(hr, self._ends, "hr", 1)
        self.names = [str(n) for n in (names if names is not None else range(len(self._ends)))]
        if len(self.names) != len(self._ends):
            raise ValueError(f"{len(self.names)} names came for {len(self._ends)} images; pass one each")
        self.model, self.folder = _describe(model), Path(folder)
        super().__init__(gamma=gamma)
        self._controls()
        self._pick()

    def __repr__(self) -> str:
        return f"Explorer({len(self._ends)} images, gamma {self.gamma:g})"

    # state -----------------------------------------------------------------------------------------------------------

    @traitlets.validate("gamma")
    def _valid_gamma(self, proposal) -> float:
        return _fraction(proposal.value, "gamma")

    @traitlets.validate("index")
    def _valid_index(self, proposal) -> int:
        i = proposal.value
        if isinstance(i, bool) or not isinstance(i, numbers.Integral) or not 0 <= i < len(self._ends):
            raise ValueError(f"index={i!r}; allowed: 0 to {len(self._ends) - 1}")
        return int(i)

    @traitlets.validate("view")
    def _valid_view(self, proposal) -> tuple[float, float, int]:
        if not isinstance(proposal.value, (tuple, list)) or len(proposal.value) != 3 or proposal.value[2] not in ZOOMS:
            raise ValueError(f"view={proposal.value!r}; allowed: (x, y, zoom), x and y from 0 to 1, zoom of {ZOOMS}")
        across, down, zoom = proposal.value
        return _fraction(across, "view x"), _fraction(down, "view y"), int(zoom)

    # controls --------------------------------------------------------------------------------------------------------

    def _controls(self) -> None:
        whole, line = widgets.Layout(width="100%", max_width="760px"), widgets.Layout(flex_flow="row wrap")
        small = {"layout": {"width": "220px"}, "style": {"description_width": "64px"}}
        share = {"min": 0.0, "max": 1.0, "step": 0.01, "readout": False, **small}
        self.slider = widgets.FloatSlider(value=self.gamma, min=0.0, max=1.0, step=0.001, readout_format=".3f",
                                          description="γ", layout=whole,
                                          style={"description_width": "24px"}, tooltip="0 fidelity, 1 realism")  # fmt: skip
        self.presets = [widgets.Button(description=f"{g:g}", tooltip=f"gamma {g:g}", layout=widgets.Layout(width="60px"))
                        for g in PRESETS]  # fmt: skip
        self.picture = widgets.Image(format="bmp", _view_count=0)
        self.picture.add_class("ifcsr-picture")
        self.choice = widgets.Dropdown(options=[(n, i) for i, n in enumerate(self.names)], description="image", **small)
        self.zoom = widgets.Dropdown(options=[(f"{z} x", z) for z in ZOOMS], description="zoom", **small)
        self.across = widgets.FloatSlider(value=0.5, description="centre x", **share)
        self.down = widgets.FloatSlider(value=0.5, description="centre y", **share)
        self.against = widgets.Dropdown(options=[("nothing", "")], description="compare", **small)
        self.wipe = widgets.FloatSlider(value=0.5, description="up to", **share)
        self.export = widgets.Button(description="Export PNG", tooltip="the whole image at this gamma, full size")
        self.readout, self.written, self.message = widgets.HTML(), widgets.HTML(), widgets.HTML()
        style = widgets.HTML("<style>.ifcsr-picture {image-rendering: pixelated; object-fit: contain}</style>")

        self.slider.observe(lambda change: self.set_trait("gamma", change.new), "value")
        self.choice.observe(lambda change: self.set_trait("index", change.new), "value")
        for box in (self.zoom, self.across, self.down):
            box.observe(self._aim, "value")
        self.against.observe(self._reframe, "value")
        self.wipe.observe(lambda change: self._draw(), "value")
        for g, button in zip(PRESETS, self.presets, strict=True):
            button.on_click(lambda _, g=g: self.set_trait("gamma", g))
        self.export.on_click(self._export)
        self.picture.observe(lambda change: self._draw(), "_view_count")  # a browser shows the picture from now on
        self.observe(self._moved, "gamma")
        self.observe(self._pick, "index")
        self.observe(self._looked, "view")
        rows = [
            [self.slider], self.presets, [self.picture], [self.readout],
            [self.choice, self.against, self.wipe], [self.zoom, self.across, self.down], [self.export, self.written],
        ]  # fmt: skip
        self.children = [*(widgets.HBox(row, layout=line) for row in rows), self.message, style]

    @_shown
    def _moved(self, _) -> None:
        self.slider.value = self.gamma
        self._draw()

    @_shown
    def _aim(self, _) -> None:
        if not getattr(self, "_aiming", False):  # setting the three boxes from `view` must not come back here
            self.view = (self.across.value, self.down.value, self.zoom.value)

    @_shown
    def _looked(self, _) -> None:
        self._aiming = True
        try:
            self.across.value, self.down.value, self.zoom.value = self.view
        finally:
            self._aiming = False
        self._reframe()

    @_shown
    def _pick(self, _=None) -> None:
        """Another image: what can be compared with it, and its numbers, once."""
        i, ends = self.index, self._ends[self.index]
        self.choice.value, self.choice.layout.display = i, None if len(self._ends) > 1 else "none"
        x_L = ends.x_L if self._lq is None else upsample(self._lq[i])
        self._others = {"bicubic": x_L, "HR": None if self._hr is None else self._hr[i]}
        self._errors = None if self._hr is None else _luma_errors(ends, self._hr[i])[0][:, 0].tolist()
        self._difference = 255 * (ends.x_real - ends.x_fid).abs().mean().item()
        kept, self._screen = self.against.value, None
        self.against.options = [("nothing", ""), *((n, n) for n, x in self._others.items() if x is not None)]
        self.against.value = kept if self._others.get(kept) is not None else ""
        self._reframe()

    @_shown
    def _reframe(self, _=None) -> None:
        ends, other = self._ends[self.index], self._others.get(self.against.value)
        self.wipe.disabled, zoomed = other is None, self.view[2] > 1
        self.across.disabled = self.down.disabled = not zoomed
        self._screen = _Screen(*(None if x is None else cut(x, self.view) for x in (ends.x_fid, ends.x_real, other)))
        self.picture.layout.width, self.picture.layout.max_width = f"{self._screen.w}px", "100%"
        self._draw()

    @_shown
    def _draw(self) -> None:
        if self._screen is None:  # between two images
            return
        self.readout.value = self._text()
        if self.picture._view_count:
            self.picture.value = self._screen.bmp(self.gamma, self.wipe.value)

    @_shown
    def _export(self, _) -> None:
        self.written.value = ""
        path = self.save_png(self.folder / f"{self.names[self.index]}_gamma_{self.gamma:.3f}.png")
        self.written.value = f"written: <code>{html.escape(str(path))}</code>"

    # numbers and pixels ----------------------------------------------------------------------------------------------

    def numbers(self, gamma: float | None = None) -> dict[str, float]:
        """What is known of the shown image at gamma (default: the current one), without touching a pixel.

        "difference": mean |x_real - x_fid| in levels of 255. With hr also "psnr" (dB, Y), "best_gamma", "best_psnr".
        """
        gamma = self.gamma if gamma is None else _fraction(gamma, "gamma")
        out = {"gamma": gamma, "difference": self._difference}
        if self._errors is not None:
            e_f, e_r, c = self._errors

            def psnr(g: float) -> float:  # MSE = (1-g)^2 E_f + g^2 E_r + 2 g (1-g) C, see evaluate.psnr_curve
                return -10 * math.log10((1 - g) ** 2 * e_f + g**2 * e_r + 2 * g * (1 - g) * c + EPS)

            width = e_f + e_r - 2 * c
            best = min(max((e_f - c) / width, 0.0), 1.0) if width > 1e-15 else 0.0
            out |= {"psnr": psnr(gamma), "best_gamma": best, "best_psnr": psnr(best)}
        return out

    def _text(self) -> str:
        n = self.numbers()
        apart = f"mean |x_real - x_fid| = {n['difference']:.2f} of 255 levels"
        if "psnr" not in n:
            return f"gamma {n['gamma']:.3f}: {apart}"
        return (f"gamma {n['gamma']:.3f}: PSNR {n['psnr']:.2f} dB (highest {n['best_psnr']:.2f} dB at gamma "
                f"{n['best_gamma']:.2f}), {apart}")  # fmt: skip

    def image(self, gamma: float | None = None) -> np.ndarray:
        """The whole current image at gamma (default: the current one): E1 rounded to 8 bit, (H, W, 3) uint8 RGB."""
        gamma = self.gamma if gamma is None else _fraction(gamma, "gamma")
        return to_uint8(self._ends[self.index].blend(gamma))[0]

    def save_png(self, path: str | Path) -> Path:
        """Write `image()` whole or not at all, with the texts Software, gamma, image, model and hash inside it."""
        path = _suffixed(path, ".png")
        info = PngImagePlugin.PngInfo()
        texts = {"Software": f"ifcsr_lib {__version__}", "gamma": repr(self.gamma), "image": self.names[self.index]}
        for key, text in {**texts, **self.model}.items():
            info.add_itxt(key, text)
        with atomic(path) as tmp:
            Image.fromarray(self.image()).save(tmp, "PNG", pnginfo=info)
        return path

    def save_html(self, path: str | Path) -> Path:
        """Write one page with a slider over all images, for any browser: no kernel, no server, nothing fetched.

        It holds both endpoints of each image as 8-bit PNG and blends them in a canvas, at most one level from `image`.
        Scripts find window.ifcsr = {ready, setGamma(g), gamma, getPixels()}; the last is RGBA at full image size.
        """
        path = _suffixed(path, ".html")
        images = []
        for i, (name, ends) in enumerate(zip(self.names, self._ends, strict=True)):
            errors = None if self._hr is None else _luma_errors(ends, self._hr[i])[0][:, 0].tolist()
            images.append({"name": name, "fid": _uri(ends.x_fid), "real": _uri(ends.x_real), "errors": errors})
        data = {"gamma": self.gamma, "index": self.index, "images": images, "eps": EPS, "presets": PRESETS, **self.model}
        text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")  # no name can close the script
        with atomic(path) as tmp:
            tmp.write_text(_PAGE.replace("/*DATA*/", text), encoding="utf-8")
        return path


def _singles(ends) -> list[Endpoints]:
    parts = list(ends) if isinstance(ends, (list, tuple)) else [ends]
    for part in parts:
        if not isinstance(part, Endpoints):
            raise TypeError(f"ends came as {type(part).__name__}; pass model.endpoints(lq), or a list of such")
    if not parts:
        raise ValueError("ends is an empty list; pass the Endpoints of at least one image")
    own = [Endpoints(*(None if x is None else x.detach().cpu() for x in (p.x_fid, p.x_real, p.x_L))) for p in parts]
    return [part[i] for part in own for i in range(len(part))]


def _fitting(x, ends: list[Endpoints], name: str, divisor: int) -> list[Tensor] | None:
    """lq or hr as a list of (1, 3, h, w), checked against the endpoints."""
    if x is None:
        return None
    items = [_load(item, name).detach().cpu() for item in _items(x, name)]
    if len(items) != len(ends):
        raise ValueError(f"{name} has {len(items)} images and ends {len(ends)}; pass one each")
    for i, (item, one) in enumerate(zip(items, ends, strict=True)):
        want = (1, 3, *(s // divisor for s in one.x_fid.shape[-2:]))
        if tuple(item.shape) != want:
            raise ValueError(f"{name} of image {i} is {tuple(item.shape)}; allowed: {want}, its endpoints' size"
                             + f" / {divisor}" * (divisor > 1))  # fmt: skip
    return items


def _describe(model) -> dict[str, str]:
    """{"model": backbone and profile, "hash": over the backbone's hash and both adapters' weights} of an IFCSR."""
    if model is None or isinstance(model, str):
        return {"model": model or "unknown", "hash": "unknown"}
    if not hasattr(model, "adapter"):
        raise TypeError(f"model came as {type(model).__name__}; pass the IFCSR that made the endpoints, or a text")
    digest = hashlib.sha256(model.source["hash"].encode())
    for name in ("fidelity", "realism"):
        for key, p in sorted(model.adapter(name).items()):
            digest.update(key.encode() + p.detach().float().cpu().numpy().tobytes())
    backbone = Path(str(model.source["id"])).name if Path(str(model.source["id"])).is_absolute() else model.source["id"]
    return {"model": f"{backbone}, profile {model.cfg.profile}, config {model.cfg.hash}", "hash": digest.hexdigest()[:16]}


def _suffixed(path: str | Path, suffix: str) -> Path:
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise ValueError(f"{path}: suffix {path.suffix!r}; allowed: {suffix}")
    return path


def _uri(x: Tensor) -> str:
    out = io.BytesIO()
    Image.fromarray(to_uint8(x)[0]).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>IFCSR: fidelity to realism</title>
<style>
:root {color-scheme: light dark; font: 16px/1.4 system-ui, sans-serif}
body {max-width: 1100px; margin: 0 auto; padding: 12px}
.row {display: flex; flex-wrap: wrap; gap: 8px; align-items: center; margin: 8px 0}
#gamma {flex: 1 1 200px; min-width: 0; height: 32px}
button, select {font: inherit; padding: 4px 10px}
#frame {overflow: auto; max-height: 78vh; border: 1px solid #8888}
canvas {display: block}
canvas.fit {max-width: 100%; height: auto}
canvas.exact {image-rendering: pixelated}
#message {color: #c62828; font-weight: bold}
small {opacity: .7}
</style></head><body>
<div class="row"><label for="gamma">fidelity</label>
<input id="gamma" type="range" min="0" max="1" step="0.001" aria-label="gamma, 0 fidelity to 1 realism"><span>realism</span></div>
<div class="row" id="presets"></div>
<div class="row"><output id="numbers" for="gamma"></output></div>
<div id="frame"><canvas id="picture" class="fit" role="img" aria-label="the blend at the current gamma"></canvas></div>
<div class="row"><label id="choose">image <select id="image"></select></label>
<label>zoom <select id="zoom"><option value="0">fit</option><option value="1">1:1</option><option value="2">2 x</option>
<option value="4">4 x</option><option value="8">8 x</option></select></label></div>
<div id="message" role="alert"></div>
<small id="model"></small>
<script>
"use strict";
const data = /*DATA*/;
const $ = id => document.getElementById(id), canvas = $("picture"), slider = $("gamma");
const context = canvas.getContext("2d", {alpha: false, willReadFrequently: true});
let gamma = data.gamma, current = null, fid = null, real = null, frame = null;
const say = error => { $("message").textContent = error ? String(error.message || error) : ""; };
addEventListener("error", event => say(event.error || event.message));
addEventListener("unhandledrejection", event => say(event.reason));

function draw() {
  const out = frame.data;  // a clamped array rounds to the nearest level: E1 in 8 bit
  for (let i = 0; i < out.length; i++) out[i] = fid[i] + gamma * (real[i] - fid[i]);
  context.putImageData(frame, 0, 0);
  let text = "gamma " + gamma.toFixed(3);
  if (current.errors) {
    const [f, r, c] = current.errors, g = gamma;
    text += ": PSNR " + (-10 * Math.log10((1 - g) ** 2 * f + g * g * r + 2 * g * (1 - g) * c + data.eps)).toFixed(2) + " dB";
  }
  $("numbers").textContent = text;
}
function setGamma(g) {
  if (typeof g !== "number" || !(g >= 0 && g <= 1)) throw new RangeError("gamma=" + g + "; allowed: numbers from 0 to 1");
  gamma = g;
  slider.value = g;
  if (frame) draw();
}
async function pixels(uri) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  const page = document.createElement("canvas");
  page.width = image.naturalWidth;
  page.height = image.naturalHeight;
  const pen = page.getContext("2d", {willReadFrequently: true});
  pen.drawImage(image, 0, 0);
  return pen.getImageData(0, 0, page.width, page.height);
}
async function show(i) {
  const wanted = data.images[i];
  current = wanted;
  const [a, b] = await Promise.all([pixels(wanted.fid), pixels(wanted.real)]);
  if (current !== wanted) return;  // another image was chosen meanwhile
  [fid, real, frame] = [a.data, b.data, new ImageData(a.width, a.height)];
  canvas.width = a.width;
  canvas.height = a.height;
  look();
  draw();
}
function look() {
  const zoom = +$("zoom").value;
  canvas.className = zoom ? "exact" : "fit";
  canvas.style.width = zoom ? canvas.width * zoom + "px" : "";
}
slider.oninput = () => setGamma(+slider.value);
$("zoom").onchange = look;
$("image").onchange = () => { ifcsr.ready = show(+$("image").value); };
for (const g of data.presets) {
  const button = document.createElement("button");
  button.textContent = g;
  button.setAttribute("aria-label", "gamma " + g);
  button.onclick = () => setGamma(g);
  $("presets").append(button);
}
data.images.forEach((image, i) => $("image").add(new Option(image.name, i)));
$("image").value = data.index;
$("choose").hidden = data.images.length < 2;
$("model").textContent = "model " + data.model + ", hash " + data.hash;
slider.value = gamma;
window.ifcsr = {setGamma, get gamma() { return gamma; }, getPixels: () => new Uint8ClampedArray(frame.data)};
ifcsr.ready = show(data.index);
</script></body></html>
"""
