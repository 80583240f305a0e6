"""The slider: gamma in a notebook (an anywidget), and the same on one page without a kernel. Every frame is E1.

Both run explorer.js, which gets the endpoint images once and blends them in the browser: a move of gamma asks neither the
kernel nor a network. This file is what surrounds it: state, numbers, files.
"""

from __future__ import annotations

import base64
import json
import math
import numbers
from pathlib import Path
from types import SimpleNamespace

import anywidget
import numpy as np
import torch
import torch.nn.functional as F
import traitlets
from torch import Tensor

from .. import __version__, portable
from ..control import Endpoints
from ..evaluate import EPS, METRICS, _items, _load, _luma_errors, missing, sweep
from ..images import decode_image, encode_png, read_image, to_uint8, upsample
from ..results import atomic

PRESETS = (0.0, 0.25, 0.5, 0.75, 1.0)
_HERE = Path(__file__).parent
_ESM, _CSS = ((_HERE / f"explorer.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))


def _fraction(value, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} came as {type(value).__name__} {value!r}; pass a number from 0 to 1")
    if not 0 <= value <= 1:  # NaN fails too
        raise ValueError(f"{name}={value!r}; allowed: 0 to 1" + " (0 fidelity, 1 realism)" * (name == "gamma"))
    return float(value)


class Explorer(anywidget.AnyWidget):
    """A slider over endpoints that are already there: gamma moves in the browser, no network runs, no kernel is asked.

    ends: Endpoints of one or more images, or a list of them (sizes may differ); `compare` takes several models.
    lq: the low-resolution inputs (N, 3, H/4, W/4), compared with as bicubic x4; default is x_L of the endpoints.
    hr: the references (N, 3, H, W); with them the PSNR (Y) of the current gamma is shown, from its closed form.
        Both: float32 RGB in [0, 1], or a list of single images or paths.
    names: one an image. model: the IFCSR that made the endpoints, or any text; it goes into exported files.
    folder: where the export button writes. gamma: where the slider starts (default: as the endpoints' file says, or 0.5).

    State, readable and settable from Python, in step with the page: `gamma` in [0, 1] of the shown image; `gammas`, one
    an image; `same_gamma`, one value for all; `index` of the image; `view` = (x, y, zoom), centre as fractions and
    screen pixels per image pixel (0 fits the window); `gamma_map`, None or (1, 1, H, W) in [0, 1], what `Endpoints.blend`
    takes; `error`, what the message line shows. Images travel as binary messages to an open page, so that no notebook
    stores them. Raises TypeError or ValueError on anything that does not fit; what was set before then stays.
    """

    _esm, _css = _ESM, _CSS
    gamma = traitlets.Any(0.5).tag(sync=True)
    gammas = traitlets.Any(()).tag(sync=True)
    same_gamma = traitlets.Bool(False).tag(sync=True)
    index = traitlets.Any(0).tag(sync=True)
    view = traitlets.Any((0.5, 0.5, 0)).tag(sync=True)
    error = traitlets.Unicode("").tag(sync=True)
    gamma_map = traitlets.Any(None)
    _spec = traitlets.Dict().tag(sync=True)
    _path = traitlets.Unicode("auto").tag(sync=True)  # "2d" or "webgl2" in tests, else chosen by the browser

    def __init__(self, ends, lq=None, hr=None, *, names=None, model=None, folder: str | Path = ".", gamma=None):
        models = ends if isinstance(ends, dict) else {"": ends}
        if not models:
            raise ValueError("ends is empty; pass the Endpoints of at least one model")
        panes = {str(label): _singles(part) for label, part in models.items()}
        first = next(iter(panes.values()))
        for label, part in panes.items():
            if [x.x_fid.shape for x in part] != [x.x_fid.shape for x in first]:
                raise ValueError(f"the endpoints of {label!r} differ in number or size from those of {next(iter(panes))!r}; "
                                 "compare models on the same images")  # fmt: skip
        lq, hr = _fitting(lq, first, "lq", 4), _fitting(hr, first, "hr", 1)
        names = [str(n) for n in (names if names is not None else range(len(first)))]
        if len(names) != len(first):
            raise ValueError(f"{len(names)} names came for {len(first)} images; pass one each")
        if isinstance(model, dict) and set(model) != {"model", "hash"}:
            by = {label: model.get(label) for label in panes}
        else:
            by = dict.fromkeys(panes, model)
        described = {label: None if m is None else portable.describe(m) for label, m in by.items()}
        self.folder, self._images, self._planes, self._halves = Path(folder), [], {}, {}
        for i, name in enumerate(names):
            parts = {label: p[i] for label, p in panes.items()}
            self._images.append(self._image(name, parts, None if lq is None else lq[i], None if hr is None else hr[i], described))
        if gamma is None:
            gamma = next((e.made_by["gamma"] for e in first if e.made_by), 0.5)
        gamma = _fraction(gamma, "gamma")
        super().__init__(gamma=gamma, gammas=(gamma,) * len(names), same_gamma=len(names) > 1)
        self._tell()
        self.on_msg(self._received)

    @staticmethod
    def _image(name: str, parts: dict[str, Endpoints], lq, hr, described: dict) -> SimpleNamespace:
        """One image of the gallery: its endpoints by label, what it is compared with, and its numbers, measured once."""
        first = next(iter(parts.values()))
        x_L = first.x_L if lq is None else upsample(lq)
        low = lq if lq is not None else None if x_L is None else F.avg_pool2d(x_L, 4)
        image = SimpleNamespace(name=name, parts=parts, hr=hr, x_L=x_L, numbers={}, curves={label: {} for label in parts})
        image.made = {label: described.get(label) or portable.describe(part.made_by) for label, part in parts.items()}
        for label, part in parts.items():
            image.numbers[label] = {
                "difference": 255 * (part.x_real - part.x_fid).abs().mean().item(),
                "errors": None if hr is None else _luma_errors(part, [hr])[0][:, 0].tolist(),
                "consistency": _consistency(part, low),
            }
        return image

    def __repr__(self) -> str:
        return f"Explorer({len(self._images)} images, gamma {self.gamma:g})"

    # state -----------------------------------------------------------------------------------------------------------

    @traitlets.validate("gamma")
    def _valid_gamma(self, proposal) -> float:
        return _fraction(proposal.value, "gamma")

    @traitlets.validate("gammas")
    def _valid_gammas(self, proposal) -> tuple[float, ...]:
        values = proposal.value
        if not isinstance(values, (tuple, list)) or len(values) != len(self._images):
            raise ValueError(f"gammas={values!r}; allowed: {len(self._images)} numbers from 0 to 1, one an image")
        return tuple(_fraction(g, "gamma") for g in values)

    @traitlets.validate("index")
    def _valid_index(self, proposal) -> int:
        i = proposal.value
        if isinstance(i, bool) or not isinstance(i, numbers.Integral) or not 0 <= i < len(self._images):
            raise ValueError(f"index={i!r}; allowed: 0 to {len(self._images) - 1}")
        return int(i)

    @traitlets.validate("view")
    def _valid_view(self, proposal) -> tuple[float, float, float]:
        view = proposal.value
        if not isinstance(view, (tuple, list)) or len(view) != 3:
            raise ValueError(f"view={view!r}; allowed: (x, y, zoom), x and y from 0 to 1, zoom from 0 (fit) to 32")
        x, y, zoom = view
        if isinstance(zoom, bool) or not isinstance(zoom, numbers.Real) or not 0 <= zoom <= 32:
            raise ValueError(f"view zoom={zoom!r}; allowed: 0 (fit) to 32 screen pixels per image pixel")
        return _fraction(x, "view x"), _fraction(y, "view y"), zoom

    @traitlets.validate("gamma_map")
    def _valid_map(self, proposal) -> Tensor | None:
        value, (h, w) = proposal.value, self._size
        if value is None or getattr(self, "_following", False):
            return value
        x = torch.as_tensor(value).detach().cpu().float()
        if x.numel() != h * w or tuple(x.shape[-2:]) != (h, w):
            raise ValueError(f"gamma_map has shape {tuple(x.shape)}; allowed: (1, 1, {h}, {w}), the size of the image")
        if not bool(((x >= 0) & (x <= 1)).all()):  # NaN fails too
            raise ValueError(f"gamma_map spans [{x.min().item():g}, {x.max().item():g}]; allowed: 0 to 1")
        return x.reshape(1, 1, h, w).mul(255).round().div(255)  # as the page holds it

    @traitlets.observe("gamma", "same_gamma")
    def _moved(self, _) -> None:
        if not self.gammas:  # in the constructor
            return
        n, old = len(self._images), self.gammas
        self.gammas = (self.gamma,) * n if self.same_gamma else (*old[: self.index], self.gamma, *old[self.index + 1 :])
        self._follow()

    @traitlets.observe("gammas", "index")
    def _picked(self, change) -> None:
        if self.gammas:
            self.gamma = self.gammas[self.index]
        if change.name == "index":
            self._follow()

    @traitlets.observe("gamma_map")
    def _map_set(self, change) -> None:
        """From Python: the page gets it. A map holds gamma everywhere until a brush erases it in the page."""
        if getattr(self, "_following", False):
            return
        value = change.new
        if value is None:
            self._planes.pop(self.index, None)
        else:
            paint = to_uint8(value)[0, ..., 0]
            self._planes[self.index] = (np.full_like(paint, 255), paint)
        self._send_map(self.index)

    def _follow(self) -> None:
        """gamma_map of the shown image: ((255 - cover) gamma + paint) / 255, or None where no map is."""
        planes = self._planes.get(self.index)
        if planes is None and self.gamma_map is None:
            return
        value = None
        if planes is not None:
            cover, paint = (torch.from_numpy(p).float() for p in planes)
            value = (((255 - cover) * self.gamma + paint) / 255)[None, None]
        self._following = True
        try:
            self.gamma_map = value
        finally:
            self._following = False

    # errors: shown in the message line, where JupyterLab would hide them, and raised on ------------------------------

    def _fail(self, error: Exception) -> None:
        self.error = f"{type(error).__name__}: {error}"

    def notify_change(self, change) -> None:
        """Also any observer that a notebook adds: its error reaches the message line."""
        try:
            super().notify_change(change)
        except Exception as error:
            self._fail(error)
            raise
        if change["name"] in ("gamma", "index", "view", "gamma_map") and self.error:
            self.error = ""

    def set_state(self, state) -> None:
        """What the page sends. Judged before anything is set: traitlets takes back only its own errors."""
        try:
            for name in {"gamma", "gammas", "index", "view"} & set(state):
                self.traits()[name]._validate(self, state[name])
            super().set_state(state)
        except Exception as error:
            self._fail(error)
            raise

    # messages --------------------------------------------------------------------------------------------------------

    def _received(self, _, content, buffers) -> None:
        """What the page asks for; parts of a large file come one by one, as servers limit a message."""
        try:
            data = [bytes(b) for b in buffers or []]
            if content.get("parts", 1) > 1:
                parts = self._halves.setdefault(content["id"], {})
                parts[content["part"]] = data[0]
                if len(parts) < content["parts"]:
                    return
                del self._halves[content["id"]]
                data = [b"".join(parts[k] for k in sorted(parts))]
            getattr(self, f"_on_{content['kind']}")(content, data[0] if data else None)
        except Exception as error:  # noqa: BLE001  ipywidgets would only log it
            self._fail(error)

    def _on_picture(self, content, _) -> None:
        try:
            self.send({"kind": "picture", "key": content["key"]}, [self._png(content["key"], level=1)])
        except Exception as error:  # noqa: BLE001  the page shows it where the picture would be
            self.send({"kind": "picture", "key": content["key"], "error": f"{type(error).__name__}: {error}"})

    def _on_map(self, content, data) -> None:
        i = content["image"]
        if content["clear"]:
            self._planes.pop(i, None)
        else:
            self._planes[i] = self._cover_and_paint(data, i)
        self._send_map(i, content["view"])
        if i == self.index:
            self._follow()

    def _on_export(self, content, _) -> None:
        image, bits = self._images[self.index], content["bits"]
        stem = f"{image.name}_gamma_{self.gamma:.3f}"
        paths = [self.save_png(self.folder / f"{stem}{f'_{label}' if label else ''}.png", bits, label) for label in image.parts]
        self.send({"kind": "note", "text": f"written: {', '.join(map(str, paths))}"})

    def _on_sweep(self, *_) -> None:
        self.measure()
        self.send({"kind": "note", "text": "measured"})

    def _on_open(self, content, data) -> None:
        name = str(content["name"])
        self.add(portable.load(data, name), name.removesuffix(".zip").removesuffix(".ifcsr"))
        self.send({"kind": "note", "text": f"opened: {name}"})

    def _send_map(self, i: int, view: str | None = None) -> None:
        if self._spec["images"][i]["map"] != (i in self._planes):
            self._tell()
        data = [self._png(f"{i}/map", level=1)] if i in self._planes else None
        self.send({"kind": "map", "image": i, "view": view}, data)

    @property
    def _size(self) -> tuple[int, int]:
        return tuple(next(iter(self._images[self.index].parts.values())).x_fid.shape[-2:])

    def _cover_and_paint(self, data: bytes, i: int) -> tuple[np.ndarray, np.ndarray]:
        photo = decode_image(data, "the gamma map")
        h, w = next(iter(self._images[i].parts.values())).x_fid.shape[-2:]
        if tuple(photo.rgb.shape[-2:]) != (h, w) or photo.alpha is None:
            raise ValueError(f"the gamma map is {tuple(photo.rgb.shape)}; allowed: grey with alpha, {w}x{h}")
        cover, paint = to_uint8(photo.rgb)[0, ..., 0], to_uint8(photo.alpha)[0, ..., 0]
        return cover, np.minimum(cover, paint)

    def _png(self, key: str, level: int) -> bytes:
        """The PNG of a key of explorer.js: i/pane/fid, i/pane/real, i/bicubic, i/HR, i/map, i/thumb_fid, i/thumb_real."""
        i, *rest = key.split("/")
        image, labels = self._images[int(i)], list(self._images[int(i)].parts)
        if rest == ["map"]:
            planes = torch.from_numpy(np.stack(self._planes[int(i)])[None])
            return encode_png(planes.float() / 255, level=level)
        part = image.parts[labels[int(rest[0]) if len(rest) == 2 else 0]]
        x = {"fid": part.x_fid, "real": part.x_real, "bicubic": image.x_L, "HR": image.hr}.get(rest[-1].removeprefix("thumb_"))
        if x is None:
            raise KeyError(f"no picture {key}")
        if rest[-1].startswith("thumb_"):
            x = F.interpolate(x, size=_thumb(*x.shape[-2:]), mode="area")
        return encode_png(x, level=level)

    def _tell(self) -> None:
        """_spec: what the front end has to know of the images, without their pixels."""
        many = len(self._images) > 1
        images = []
        for i, image in enumerate(self._images):
            h, w = next(iter(image.parts.values())).x_fid.shape[-2:]
            panes = [{"label": label, **image.made[label], **image.numbers[label], "curves": image.curves[label]} for label in image.parts]
            images.append({"name": image.name, "width": w, "height": h, "hr": image.hr is not None, "thumb": many,
                           "x_L": image.x_L is not None, "map": i in self._planes, "panes": panes})  # fmt: skip
        self._spec = {"images": images, "presets": list(PRESETS), "eps": EPS, "software": f"ifcsr_lib {__version__}"}

    # numbers and pixels ----------------------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        return [image.name for image in self._images]

    @property
    def model(self) -> dict[str, str]:
        """{"model", "hash"} of the shown image's (first) endpoints, as exported files have it."""
        return next(iter(self._images[self.index].made.values()))

    def ends(self, label: str | None = None) -> Endpoints:
        """Endpoints of the shown image; label: which of the compared models (default: the first)."""
        parts = self._images[self.index].parts
        label = next(iter(parts)) if label is None else label
        if label not in parts:
            raise ValueError(f"label={label!r}; allowed: {', '.join(map(repr, parts))}")
        return parts[label]

    def numbers(self, gamma: float | None = None, label: str | None = None) -> dict[str, float]:
        """What is known of the shown image at gamma (default: the current one), without touching a pixel.

        "difference": mean |x_real - x_fid| in levels of 255. With hr also "psnr" (dB, Y), "best_gamma", "best_psnr"; with
        a low-resolution input "consistency" (dB, Y): PSNR of the 4x4 means of the blend against it. Both are closed forms
        in one gamma, so the painted map does not enter.
        """
        gamma = self.gamma if gamma is None else _fraction(gamma, "gamma")
        self.ends(label)
        known = self._images[self.index].numbers[label if label is not None else next(iter(self._images[self.index].parts))]

        def psnr(errors, g: float) -> float:  # MSE = (1-g)^2 E_f + g^2 E_r + 2 g (1-g) C, see evaluate.psnr_curve
            e_f, e_r, c = errors
            return -10 * math.log10((1 - g) ** 2 * e_f + g**2 * e_r + 2 * g * (1 - g) * c + EPS)

        out = {"gamma": gamma, "difference": known["difference"]}
        if known["errors"] is not None:
            e_f, e_r, c = known["errors"]
            width = e_f + e_r - 2 * c
            best = min(max((e_f - c) / width, 0.0), 1.0) if width > 1e-15 else 0.0
            out |= {"psnr": psnr(known["errors"], gamma), "best_gamma": best, "best_psnr": psnr(known["errors"], best)}
        if known["consistency"] is not None:
            out["consistency"] = psnr(known["consistency"], gamma)
        return out

    def measure(self, gammas=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0), metrics=None) -> None:
        """Sweep metrics over the shown image (seconds; no network of ours runs) and draw them as curves with a marker.

        metrics: names of evaluate.METRICS; default SSIM (with hr) and NIQE, or niqe-pocket where NIQE's parameters are
        missing. A metric that cannot run leaves its reason in the chart's place.
        """
        image = self._images[self.index]
        if metrics is None:
            metrics = (["ssim"] if image.hr is not None else []) + ["niqe-pocket" if missing("niqe") else "niqe"]
        for label, part in image.parts.items():
            table = sweep(part, None if image.hr is None else [image.hr], gammas, metrics)
            for name in table:
                values = [(float(g), v) for g, v in table[name].items()]
                points = [[g, float(v)] for g, v in values if not isinstance(v, str)]
                note = next((v for _, v in values if isinstance(v, str)), None)
                image.curves[label][METRICS[name].label] = {"points": points, "note": note, "lower": METRICS[name].lower_better}
        self._tell()

    def image(self, gamma: float | None = None, label: str | None = None) -> np.ndarray:
        """The whole shown image, E1 rounded to 8 bit, (H, W, 3) uint8 RGB: at gamma, or as it is (with the painted map)."""
        return to_uint8(self._blend(gamma, label))[0]

    def _blend(self, gamma: float | None, label: str | None) -> Tensor:
        if gamma is None:
            gamma = self.gamma if self.gamma_map is None else self.gamma_map
        else:
            gamma = _fraction(gamma, "gamma")
        return self.ends(label).blend(gamma)

    # files -----------------------------------------------------------------------------------------------------------

    def save_png(self, path: str | Path, bits: int = 8, label: str | None = None) -> Path:
        """Write the shown blend at full size, 8 or 16 bit a channel, whole or not at all.

        Its text fields: Software, gamma, image, model, hash, and whether a gamma map was painted.
        """
        path, image = _suffixed(path, ".png"), self._images[self.index]
        self.ends(label)
        made = image.made[next(iter(image.parts)) if label is None else label]
        texts = {"Software": f"ifcsr_lib {__version__}", "gamma": repr(self.gamma), "image": image.name, **made,
                 "gamma map": "none" if self.gamma_map is None else "painted"}  # fmt: skip
        data = encode_png(self._blend(None, label), bits, texts)
        with atomic(path) as tmp:
            tmp.write_bytes(data)
        return path

    def save_map(self, path: str | Path) -> Path:
        """Write gamma of each pixel of the shown image as a grey 8-bit PNG, 0 black to 1 white (no map: all one grey)."""
        path = _suffixed(path, ".png")
        value = self.gamma_map if self.gamma_map is not None else torch.full((1, 1, *self._size), self.gamma)
        data = encode_png(value)
        with atomic(path) as tmp:
            tmp.write_bytes(data)
        return path

    def load_map(self, path: str | Path) -> None:
        """Take the gamma map of a grey PNG, or any image of the shown image's size (its red channel)."""
        self.gamma_map = read_image(path).rgb[:, :1]

    def add(self, ends: Endpoints, name: str) -> None:
        """Append the images of `ends` to the gallery and show the first of them; gamma starts as their file says."""
        if len(self._images[0].parts) > 1:
            raise ValueError("this explorer compares models; pass the new endpoints to an Explorer of their own")
        count, new = len(self._images), _singles(ends)
        gamma = ends.made_by["gamma"] if ends.made_by else 0.5
        for i, one in enumerate(new):
            self._images.append(self._image(f"{name} {i}" if len(new) > 1 else name, {"": one}, None, None, {}))
        self.same_gamma = False
        self.gammas = (*self.gammas, *[_fraction(gamma, "gamma")] * len(new))
        self._tell()
        self.index = count

    def save_html(self, path: str | Path) -> Path:
        """Write one page with the slider over all images, for any browser: no kernel, no server, nothing fetched.

        It holds both endpoints of each image as 8-bit PNG and the very front end of the notebook, so that a shown pixel is
        at most one level from `image`. It starts as this explorer stands: gamma, map, view. Scripts find window.ifcsr =
        {ready, setGamma(g), gamma, getPixels()}; the last is the shown blend, RGBA at full image size.
        """
        path = _suffixed(path, ".html")
        keys = []
        for i, image in enumerate(self._spec["images"]):
            keys += [f"{i}/{p}/{end}" for p in range(len(image["panes"])) for end in ("fid", "real")]
            keys += [f"{i}/{key}" for key, there in (("bicubic", "x_L"), ("HR", "hr"), ("map", "map"), ("thumb_fid", "thumb"),
                                                     ("thumb_real", "thumb")) if image[there]]  # fmt: skip
        state = {"gammas": self.gammas, "same_gamma": self.same_gamma, "index": self.index, "view": self.view}
        pictures = {key: base64.b64encode(self._png(key, level=6)).decode() for key in keys}
        data = json.dumps({"spec": self._spec, "state": state, "pictures": pictures}, allow_nan=False)
        page = _PAGE.replace("/*CSS*/", _CSS).replace("/*JS*/", _ESM)
        with atomic(path) as tmp:  # no name can close the script
            tmp.write_text(page.replace("/*DATA*/", data.replace("<", "\\u003c")), encoding="utf-8")
        return path


def compare(ends: dict, lq=None, hr=None, **options) -> Explorer:
    """Several models side by side under one slider: {label: Endpoints (or a list of them) of the same images}.

    lq, hr and options: as in Explorer; model may be a dict {label: model}. Raises TypeError or ValueError.
    """
    if not isinstance(ends, dict):
        raise TypeError(f"ends came as {type(ends).__name__}; pass a dict {{label: Endpoints}}")
    return Explorer(ends, lq, hr, **options)


def _singles(ends) -> list[Endpoints]:
    parts = list(ends) if isinstance(ends, (list, tuple)) else [ends]
    for part in parts:
        if not isinstance(part, Endpoints):
            raise TypeError(f"ends came as {type(part).__name__}; pass model.endpoints(lq), or a list of such")
    if not parts:
        raise ValueError("ends is an empty list; pass the Endpoints of at least one image")
    own = [Endpoints(*(None if x is None else x.detach().cpu() for x in (p.x_fid, p.x_real, p.x_L)), p.made_by) for p in parts]
    return [part[i] for part in own for i in range(len(part))]


def _fitting(x, ends: list[Endpoints], name: str, divisor: int) -> list[Tensor] | None:
    """x as one CPU image for each of ends, of their size divided by `divisor`."""
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


def _consistency(ends: Endpoints, low: Tensor | None) -> list[float] | None:
    """[E_f, E_r, C] of the ends' 4x4 means against the input (as evaluate._luma_errors); None without one, or tiny."""
    if low is None or min(low.shape[-2:]) < 16:
        return None
    small = SimpleNamespace(x_fid=F.avg_pool2d(ends.x_fid, 4), x_real=F.avg_pool2d(ends.x_real, 4))
    return _luma_errors(small, [low])[0][:, 0].tolist()


def _thumb(h: int, w: int, side: int = 96) -> tuple[int, int]:
    scale = min(1.0, side / max(h, w))
    return max(1, round(h * scale)), max(1, round(w * scale))


def _suffixed(path: str | Path, suffix: str) -> Path:
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise ValueError(f"{path}: suffix {path.suffix!r}; allowed: {suffix}")
    return path


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>IFCSR: fidelity to realism</title>
<style>
/*CSS*/
html {color-scheme: light dark}
body {max-width: 1400px; margin: 0 auto; padding: 12px; background: var(--ifcsr-back); color: var(--ifcsr-ink)}
</style></head><body>
<main id="ifcsr"></main>
<noscript>This page blends its pictures with JavaScript; allow it for this file.</noscript>
<script type="application/json" id="ifcsr-data">/*DATA*/</script>
<script type="module">
/*JS*/
page(JSON.parse(document.getElementById("ifcsr-data").textContent), document.getElementById("ifcsr"));
</script></body></html>
"""
