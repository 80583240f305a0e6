"""The widget: the state that Python and the page share, their messages, and the files that it writes."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import anywidget
import numpy as np
import torch
import traitlets
from torch import Tensor

from ..control import Endpoints
from ..evaluate.metrics import EPS, METRICS, missing, sweep
from ..files import portable
from ..files.images import encode_png, read_image, to_uint8
from ..files.results import atomic
from . import numbers, page
from .numbers import fraction
from .page import PRESETS, SOFTWARE
from .picture import Picture, fitting, singles, with_suffix
from .traits import Gamma, GammaMap, Gammas, Index, View

MESSAGES = ("picture", "map", "export", "sweep", "open")  # what a page asks for, see Explorer.receive
SYNCED = ("gamma", "gammas", "same_gamma", "index", "view")


class Explorer(anywidget.AnyWidget):
    """A slider over endpoints that are already there: gamma moves in the browser, and no network runs.

    ends: Endpoints of one or more images, or a list of them (sizes may differ); `compare` takes several
    models.
    lq: the low-resolution inputs (N, 3, H/4, W/4), compared with as bicubic x4; default is x_L of the
    endpoints.
    hr: the references (N, 3, H, W); with them the PSNR (Y) of the current gamma is shown, from its closed
    form.
        Both: float32 RGB in [0, 1], or a list of single images or paths.
    names: one per image. model: the IFCSR that made the endpoints, or any text; it goes into exported files.
    folder: where the export button writes. gamma: where the slider starts (default: as the endpoints' file
    says, or 0.5).

    State, readable and settable from Python, in step with the page: `gamma` in [0, 1] of the shown image;
    `gammas`, one per image; `same_gamma`, one value for all; `index` of the image; `view` = (x, y, zoom),
    centre as fractions and screen pixels per image pixel (0 fits the window); `gamma_map`, None or (1, 1, H,
    W) in [0, 1], what `Endpoints.blend` takes; `error`, what the message line shows. Images travel as binary
    messages to an open page, so that no notebook stores them. Raises TypeError or ValueError on anything that
    does not fit; what was set before then stays.
    """

    _esm, _css = page.ESM, page.CSS
    gamma = Gamma(0.5).tag(sync=True)
    gammas = Gammas(()).tag(sync=True)
    same_gamma = traitlets.Bool(False).tag(sync=True)
    index = Index(0).tag(sync=True)
    view = View((0.5, 0.5, 0)).tag(sync=True)
    error = traitlets.Unicode("").tag(sync=True)
    gamma_map = GammaMap(None)
    _spec = traitlets.Dict().tag(sync=True)
    _path = traitlets.Unicode("auto").tag(sync=True)  # "2d" or "webgl2" in tests, else chosen by the browser

    def __init__(self, ends, lq=None, hr=None, *, names=None, model=None, folder=".", gamma=None):
        models = ends if isinstance(ends, dict) else {"": ends}
        if not models:
            raise ValueError("ends is empty; pass the Endpoints of at least one model")
        panes = {str(label): singles(part) for label, part in models.items()}
        label, first = next(iter(panes.items()))
        for other, part in panes.items():
            if [x.x_fid.shape for x in part] != [x.x_fid.shape for x in first]:
                raise ValueError(
                    f"the endpoints of {other!r} differ in number or size from those of "
                    f"{label!r}; compare models on the same images"
                )
        lq, hr = fitting(lq, first, "lq", 4), fitting(hr, first, "hr", 1)
        names = [str(name) for name in (names if names is not None else range(len(first)))]
        if len(names) != len(first):
            raise ValueError(f"{len(names)} names came for {len(first)} images; pass one each")
        if not isinstance(model, dict) or set(model) == {"model", "hash"}:
            model = dict.fromkeys(panes, model)
        known = [label for label in panes if model.get(label) is not None]
        described = {label: portable.describe(model[label]) for label in known}
        if gamma is None:
            gamma = next((e.made_by["gamma"] for e in first if e.made_by), 0.5)
        gamma = fraction(gamma, "gamma")
        self.folder, self.following = Path(folder), False
        self.pictures = [
            Picture.of(name, {label: part[i] for label, part in panes.items()}, lq[i], hr[i], described)
            for i, name in enumerate(names)
        ]
        self._parts: dict[str, dict[int, bytes]] = {}  # of files that are still arriving
        super().__init__(gamma=gamma, gammas=(gamma,) * len(names), same_gamma=len(names) > 1)
        self._describe()
        self.on_msg(lambda _, content, buffers: self.receive(content, buffers))

    def __repr__(self) -> str:
        return f"Explorer({len(self.pictures)} images, gamma {self.gamma:g})"

    @property
    def picture(self) -> Picture:
        """The shown image."""
        return self.pictures[self.index]

    # state --------------------------------------------------------------------------------------------------

    @traitlets.observe("gamma", "same_gamma")
    def _gamma_moved(self, _) -> None:
        if not self.gammas:  # in the constructor
            return
        gammas = [self.gamma] * len(self.pictures) if self.same_gamma else list(self.gammas)
        gammas[self.index] = self.gamma
        self.gammas = tuple(gammas)
        self._follow()

    @traitlets.observe("gammas", "index")
    def _image_picked(self, change) -> None:
        if self.gammas:
            self.gamma = self.gammas[self.index]
        if change.name == "index":
            self._follow()

    @traitlets.observe("gamma_map")
    def _map_set(self, change) -> None:
        """From Python: the page gets it."""
        if not self.following:
            self.picture.paint(change.new)
            self._send_map(self.index)

    def _follow(self) -> None:
        """gamma_map is that of the shown image, at its gamma."""
        value = self.picture.gamma_map(self.gamma)
        if value is None and self.gamma_map is None:
            return
        self.following = True
        try:
            self.gamma_map = value
        finally:
            self.following = False

    # errors: shown in the message line, where JupyterLab would hide them, and raised on ---------------------

    def _show(self, error: Exception) -> None:
        self.error = f"{type(error).__name__}: {error}"

    def notify_change(self, change) -> None:
        """Also any observer that a notebook adds: its error reaches the message line."""
        try:
            super().notify_change(change)
        except Exception as error:
            self._show(error)
            raise
        if change["name"] in ("gamma", "index", "view", "gamma_map") and self.error:
            self.error = ""

    def set_state(self, state) -> None:
        """What the page sends. Judged before anything is set: traitlets takes back only its own errors."""
        try:
            for name in SYNCED:
                if name in state:
                    self.traits()[name]._validate(self, state[name])
            super().set_state(state)
        except Exception as error:
            self._show(error)
            raise

    # messages -----------------------------------------------------------------------------------------------

    def receive(self, content: dict, buffers=None) -> None:
        """Do what the page asks for; its errors go to the message line.

        content: {"kind": "picture" | "map" | "export" | "sweep" | "open", ...}. buffers: at most one file;
        parts of a large one come one by one, {"id", "part", "parts"}, as servers limit a message.
        """
        try:
            if content.get("kind") not in MESSAGES:
                raise ValueError(f"a message of kind {content.get('kind')!r}; allowed: {', '.join(MESSAGES)}")
            data = self._whole(content, [bytes(b) for b in buffers or []])
            if data is not None:
                getattr(self, f"_on_{content['kind']}")(content, data)
        except Exception as error:  # noqa: BLE001  ipywidgets would only log it
            self._show(error)

    def _whole(self, content: dict, data: list[bytes]) -> bytes | None:
        """The file of a message, b"" for none; None while parts are missing."""
        if content.get("parts", 1) == 1:
            return b"".join(data)
        parts = self._parts.setdefault(content["id"], {})
        parts[content["part"]] = data[0]
        if len(parts) < content["parts"]:
            return None
        del self._parts[content["id"]]
        return b"".join(parts[k] for k in sorted(parts))

    def _on_picture(self, content, _) -> None:
        answer = {"kind": "picture", "key": content["key"]}
        try:
            i, _, key = content["key"].partition("/")
            data = self.pictures[int(i)].png(key, level=1)
        except Exception as error:  # noqa: BLE001  the page shows it where the picture would be
            self.send({**answer, "error": f"{type(error).__name__}: {error}"})
        else:
            self.send(answer, [data])

    def _on_map(self, content, data) -> None:
        i = content["image"]
        if content["clear"]:
            self.pictures[i].paint(None)
        else:
            self.pictures[i].paint_png(data)
        self._send_map(i, content["view"])
        if i == self.index:
            self._follow()

    def _on_export(self, content, _) -> None:
        paths = []
        for label in self.picture.parts:
            name = "_".join(filter(None, (f"{self.picture.name}_gamma_{self.gamma:.3f}", label)))
            paths.append(self.save_png(self.folder / f"{file_name(name)}.png", content["bits"], label))
        self.send({"kind": "note", "text": f"written: {', '.join(map(str, paths))}"})

    def _on_sweep(self, *_) -> None:
        self.measure()
        self.send({"kind": "note", "text": "measured"})

    def _on_open(self, content, data) -> None:
        name = str(content["name"])
        self.add(Endpoints.load(data, name), name.removesuffix(".zip").removesuffix(".ifcsr"))
        self.send({"kind": "note", "text": f"opened: {name}"})

    def _send_map(self, i: int, view: str | None = None) -> None:
        """To every view but the one that it came from."""
        painted = self.pictures[i].planes is not None
        if self._spec["images"][i]["map"] != painted:
            self._describe()
        data = [self.pictures[i].png("map", level=1)] if painted else None
        self.send({"kind": "map", "image": i, "view": view}, data)

    def _describe(self) -> None:
        """_spec: what the front end has to know of the images, without their pixels."""
        images = [picture.described(thumb=len(self.pictures) > 1) for picture in self.pictures]
        self._spec = {"images": images, "presets": list(PRESETS), "eps": EPS, "software": SOFTWARE}

    # numbers and pixels -------------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        return [picture.name for picture in self.pictures]

    @property
    def model(self) -> dict[str, str]:
        """{"model", "hash"} of the shown image's (first) endpoints, as exported files have it."""
        return next(iter(self.picture.made.values()))

    def ends(self, label: str | None = None) -> Endpoints:
        """Endpoints of the shown image; label: which of the compared models (default: the first)."""
        return self.picture.parts[self.picture.label(label)]

    def numbers(self, gamma: float | None = None, label: str | None = None) -> dict[str, float]:
        """What is known of the shown image at gamma (default: the current one), without touching a pixel.

        "difference": mean |x_real - x_fid| in levels of 255. With hr also "psnr" (dB, Y), "best_gamma",
        "best_psnr"; with a low-resolution input "consistency" (dB, Y): PSNR of the 4x4 means of the blend
        against it. Both are closed forms in one gamma, so the painted map does not enter.
        """
        gamma = self.gamma if gamma is None else fraction(gamma, "gamma")
        return numbers.at(self.picture.numbers[self.picture.label(label)], gamma)

    def measure(self, gammas=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0), metrics=None) -> None:
        """Sweep metrics over the shown image (seconds; no network of ours runs) and draw them as curves.

        metrics: names of evaluate.METRICS; default SSIM and lpips-lite (with hr), and NIQE, or niqe-pocket
        where NIQE's parameters are missing. A metric that cannot run leaves its reason in the chart's place.
        """
        shown = self.picture
        if metrics is None:
            metrics = ["ssim", "lpips-lite"] if shown.hr is not None else []
            metrics += ["niqe-pocket" if missing("niqe") else "niqe"]
        for label, part in shown.parts.items():
            table = sweep(part, None if shown.hr is None else [shown.hr], gammas, metrics)
            for name in table:
                values = [(float(g), v) for g, v in table[name].items()]
                points = [[g, float(v)] for g, v in values if not isinstance(v, str)]
                note = next((v for _, v in values if isinstance(v, str)), None)
                curve = {"points": points, "note": note, "lower": METRICS[name].lower_better}
                shown.curves[label][METRICS[name].label] = curve
        self._describe()

    def image(self, gamma: float | None = None, label: str | None = None) -> np.ndarray:
        """The whole shown image, E1 rounded to 8 bit, (H, W, 3) uint8 RGB: at gamma, or as it is."""
        return to_uint8(self._blend(gamma, label))[0]

    def _blend(self, gamma: float | None, label: str | None) -> Tensor:
        if gamma is None:
            gamma = self.gamma if self.gamma_map is None else self.gamma_map
        else:
            gamma = fraction(gamma, "gamma")
        return self.ends(label).blend(gamma)

    # files --------------------------------------------------------------------------------------------------

    def save_png(self, path: str | Path, bits: int = 8, label: str | None = None) -> Path:
        """Write the shown blend at full size, 8 or 16 bit a channel, whole or not at all.

        Its text fields: Software, gamma, image, model, hash, and whether a gamma map was painted.
        """
        path, shown = with_suffix(path, ".png"), self.picture
        texts = {
            "Software": SOFTWARE,
            "gamma": repr(self.gamma),
            "image": shown.name,
            **shown.made[shown.label(label)],
            "gamma map": "none" if self.gamma_map is None else "painted",
        }
        data = encode_png(self._blend(None, label), bits, texts)
        with atomic(path) as tmp:
            tmp.write_bytes(data)
        return path

    def save_map(self, path: str | Path) -> Path:
        """Write gamma of each pixel of the shown image as a grey 8-bit PNG, 0 black to 1 white.

        Without a map it is all one grey.
        """
        path = with_suffix(path, ".png")
        value = self.gamma_map
        if value is None:
            value = torch.full((1, 1, *self.picture.size), self.gamma)
        data = encode_png(value)
        with atomic(path) as tmp:
            tmp.write_bytes(data)
        return path

    def load_map(self, path: str | Path) -> None:
        """Take the gamma map of a grey PNG, or any image of the shown image's size (its red channel)."""
        self.gamma_map = read_image(path).rgb[:, :1]

    def add(self, ends: Endpoints, name: str) -> None:
        """Append images to the gallery and show the first of them; gamma starts as their file says."""
        if len(self.pictures[0].parts) > 1:
            raise ValueError("this explorer compares models; pass the new endpoints to their own Explorer")
        count, new = len(self.pictures), singles(ends)
        gamma = fraction(ends.made_by["gamma"] if ends.made_by else 0.5, "gamma")
        added = [Picture.of(f"{name} {i}" if len(new) > 1 else name, {"": one}) for i, one in enumerate(new)]
        self.same_gamma = False
        self.pictures += added
        self.gammas = (*self.gammas, *[gamma] * len(new))
        self._describe()
        self.index = count

    def save_html(self, path: str | Path) -> Path:
        """Write one page with the slider over all images: no kernel, no server, nothing fetched.

        It holds both endpoints of each image as 8-bit PNG and the very front end of the notebook, so that a
        shown pixel is at most one level from `image`. It starts as this explorer stands: gamma, map, view.
        Scripts find window.ifcsr = {ready, setGamma(g), gamma, getPixels()}: `ready` is a promise, and after
        it getPixels() gives the shown blend, RGBA at full image size.
        """
        path, pictures = with_suffix(path, ".html"), {}
        for i, picture in enumerate(self.pictures):
            for key in picture.keys(thumb=len(self.pictures) > 1):
                pictures[f"{i}/{key}"] = base64.b64encode(picture.png(key, level=6)).decode()
        state = {"gammas": self.gammas, "same_gamma": self.same_gamma, "index": self.index, "view": self.view}
        with atomic(path) as tmp:
            tmp.write_text(page.html(self._spec, state, pictures), encoding="utf-8")
        return path


def compare(ends: dict, lq=None, hr=None, **options) -> Explorer:
    """Several models under one slider: {label: Endpoints (or a list of them) of the same images}.

    lq, hr and options: as in Explorer; model may be a dict {label: model}. Raises TypeError or ValueError.
    """
    if not isinstance(ends, dict):
        raise TypeError(f"ends came as {type(ends).__name__}; pass a dict {{label: Endpoints}}")
    return Explorer(ends, lq, hr, **options)


def file_name(text: str) -> str:
    """text without what a file name must not hold, path separators above all."""
    return re.sub(r'[\\/:*?"<>|\x00-\x1f]+', "_", text)
