"""Image files as numpy arrays: reading, writing and the arithmetic of one photograph, without torch.

Public images are float32 RGB (N, 3, H, W) in [0, 1], sRGB-like values as stored. images.py has the same names
for torch tensors.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import io
import math
import struct
import sys
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin, UnidentifiedImageError

from . import exif
from .checks import is_pointer, oddity, pointer_text, printable

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
# read where Pillow, or pillow_heif if it is installed, can; never written
READ_ONLY = {".apng", ".avif", ".heic", ".heif", ".hif"}
# what else is a picture for people who look at a folder
OTHERS = {
    ".gif",
    ".jp2",
    ".j2k",
    ".jxl",
    ".psd",
    ".svg",
    ".ico",
    ".tga",
    ".exr",
    ".hdr",
    ".pgm",
    ".ppm",
    ".pnm",
}
OTHERS |= {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"}
FRAMES = {"PNG": "frames", "WEBP": "frames", "AVIF": "frames", "TIFF": "pages", "HEIF": "pictures"}
LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)  # dY / d(R, G, B) of the studio-range luma of all scores
EPS = 1e-8  # pyiqa adds it to the MSE: equal images score 80 dB
LONGEST = {"JPEG": 65500, "WEBP": 16383}  # pixels of a side: libjpeg's JPEG_MAX_DIMENSION, WebP's 14 bits
ALPHA = ("PNG", "WEBP", "TIFF")  # formats that hold alpha as we write them; PNG and TIFF also hold 16 bit
GREY_MODES = ("1", "L", "LA", "La")  # Pillow's, of 8 bit


@dataclass(frozen=True, eq=False)
class Photo:
    """One image file: rgb (1, 3, H, W) and alpha (1, 1, H, W) or None, float32 in [0, 1]; bits 8 or 16 a
    channel. Both are arrays from pixels.py, tensors from images.py.
    """

    rgb: Any
    alpha: Any = None
    bits: int = 8
    name: str = "image"
    icc: bytes | None = None  # the file's grey or RGB profile; values are used as stored, never converted
    grey: bool = False  # the file has one colour channel (1 bit too), and is written so; rgb still has three
    exif: bytes | None = None  # of exif.read: date, camera, place; not the orientation, for rgb is turned
    dpi: tuple[float, float] | None = None  # across and down
    notes: tuple[str, ...] = ()  # what reading left out or had to guess, for the person whose file it is


def check_images(x: np.ndarray, name: str = "lq", min_side: int = 16) -> None:
    """Raise TypeError or ValueError unless x is float32 (N, 3, H, W), finite, in [0, 1] (+-1e-6), sides >=
    min_side.
    """
    if not isinstance(x, np.ndarray) or x.dtype != np.float32:
        came = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
        raise TypeError(f"{name} came as {came}; pass a float32 array (N, 3, H, W), see pixels.to_float")
    check_shape(tuple(x.shape), name, min_side)
    low, high = x.min(), x.max()
    count = 0 if np.isfinite(low) and np.isfinite(high) else int((~np.isfinite(x)).sum())
    check_range(float(low), float(high), count, x.size, name)


def check_shape(shape: tuple[int, ...], name: str, min_side: int) -> None:
    """ValueError unless shape is (N, 3, H, W), sides >= min_side."""
    if len(shape) != 4 or shape[1] != 3 or shape[0] < 1:
        raise ValueError(f"{name} has shape {shape}; pass (N, 3, H, W), one image as image[None]")
    if min(shape[2:]) < min_side:
        raise ValueError(f"{name} is {shape[3]}x{shape[2]} pixels; allowed: {min_side} or more on each side")


def check_range(low: float, high: float, bad: int, total: int, name: str) -> None:
    """ValueError for values outside [0, 1] (+-1e-6). bad: how many of the total are not finite."""
    if bad:
        raise ValueError(f"{name} has {bad} NaN or infinite values of {total}; look at the step that made it")
    if low < -1e-6 or high > 1 + 1e-6:
        raise ValueError(
            f"{name} spans [{low:.6g}, {high:.6g}]; allowed: [0, 1]. Divide 8 bit by 255, or clamp(0, 1)"
        )


def to_uint8(x: np.ndarray) -> np.ndarray:
    """(N, C, H, W) in [0, 1] -> uint8 (N, H, W, C), clamped and rounded to the nearest level; ValueError on
    NaN.
    """
    return _levels(x, 255).astype(np.uint8)


def _levels(x: np.ndarray, top: int) -> np.ndarray:
    if not np.isfinite(x).all():
        raise ValueError(
            "the image has NaN or infinite values; nothing was converted. Look at the step that made it"
        )
    levels = np.rint(np.clip(x, 0, 1) * np.float32(top))
    return np.ascontiguousarray(levels.transpose(0, 2, 3, 1))


def to_float(array: np.ndarray) -> np.ndarray:
    """uint8, uint16 or float (H, W), (H, W, C) or (N, H, W, C) -> float32 (N, C, H, W); integers go to [0,
    1].
    """
    array = np.asarray(array)
    if array.ndim not in (2, 3, 4):
        raise ValueError(f"the array has shape {array.shape}; pass (H, W), (H, W, C) or (N, H, W, C)")
    if array.dtype not in (np.uint8, np.uint16) and array.dtype.kind != "f":
        raise TypeError(f"the array came as {array.dtype}; pass uint8, uint16 or float in [0, 1]")
    top = np.iinfo(array.dtype).max if array.dtype.kind == "u" else 1
    x = array.astype(np.float32) / np.float32(top)
    x = x[..., None] if x.ndim == 2 else x
    return np.ascontiguousarray(x.reshape(-1, *x.shape[-3:]).transpose(0, 3, 1, 2))


def upsample(lq: np.ndarray, scale: int = 4) -> np.ndarray:
    """x_L: (N, C, h, w) -> (N, C, scale h, scale w), bicubic without antialias (a = -0.75), clamped to [0,
    1].
    """
    return np.clip(_enlarged(lq, scale, _CUBIC), 0, 1)


def upsample_alpha(alpha: np.ndarray, scale: int = 4) -> np.ndarray:
    """(N, 1, h, w) -> (N, 1, scale h, scale w), linear: no negative weights, so edges do not ring."""
    return _enlarged(alpha, scale, _LINEAR)


def _cubic(t: float, a: float = -0.75) -> float:
    """Keys' kernel at distance t."""
    t = abs(t)
    if t <= 1:
        return ((a + 2) * t - (a + 3)) * t * t + 1
    return ((t - 5) * t + 8) * t * a - 4 * a if t < 2 else 0.0


_CUBIC = (_cubic, range(-1, 3))  # a kernel and the neighbours that it reaches
_LINEAR = (lambda t: max(0.0, 1 - abs(t)), range(2))


def _enlarged(x: np.ndarray, scale: int, how) -> np.ndarray:
    """One axis after the other. Pixel centres lie at halves, the border is repeated."""
    kernel, reach = how
    for axis in (3, 2):
        side = x.shape[axis]
        out = np.empty((*x.shape[:axis], side, scale, *x.shape[axis + 1 :]), np.float32)
        for phase in range(scale):
            at = (phase + 0.5) / scale - 0.5
            first, total = math.floor(at), 0
            for k in reach:
                rows = np.clip(np.arange(side) + first + k, 0, side - 1)
                total = total + np.float32(kernel(at - first - k)) * x.take(rows, axis)
            out[(slice(None),) * (axis + 1) + (phase,)] = total
        x = out.reshape(*x.shape[:axis], side * scale, *x.shape[axis + 1 :])
    return x


def bleed(rgb: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """rgb (N, 3, H, W) where each pixel of alpha 0 has the colour of the nearest one that can be seen.

    What a file holds under full transparency is arbitrary, mostly black; a network, or a filter, would carry
    it into the edge of what can be seen. alpha: (N, 1, H, W), or None, which changes nothing. An image that
    is transparent everywhere stays as it is.
    """
    if alpha is None:
        return rgb
    out = rgb.copy()
    for i, hidden in enumerate(alpha[:, 0] <= 0):
        if hidden.any() and not hidden.all():
            y, x = _nearest(hidden)
            out[i][:, hidden] = rgb[i][:, y[hidden], x[hidden]]
    return out


def _nearest(hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the nearest pixel of a mask (H, W) that is not hidden."""
    try:
        from scipy.ndimage import distance_transform_edt
    except ImportError:  # the light install has no scipy
        return _flooded(hidden)
    return tuple(distance_transform_edt(hidden, return_distances=False, return_indices=True))


def _flooded(hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same by jump flooding (Rong and Tan, 2006): a few pixels get one that is nearly the nearest."""
    h, w = hidden.shape
    own = np.stack(np.mgrid[:h, :w]).astype(np.int64)
    found = np.where(hidden, -(10**6), own)
    steps = [2**k for k in range(max(h, w).bit_length() - 1, -1, -1)]
    for step in (*steps, 1):
        padded = np.pad(found, ((0, 0), (step, step), (step, step)), constant_values=-(10**6))
        for dy in (0, step, 2 * step):
            for dx in (0, step, 2 * step):
                other = padded[:, dy : dy + h, dx : dx + w]
                nearer = ((other - own) ** 2).sum(0) < ((found - own) ** 2).sum(0)
                found = np.where(nearer, other, found)
    return found[0], found[1]


def on_white(rgb, alpha):
    """rgb (N, 3, H, W) as seen on white through alpha (N, 1, H, W); None: opaque. Arrays or tensors."""
    return rgb if alpha is None else rgb * alpha + (1 - alpha)


def is_grey(x: np.ndarray) -> np.ndarray:
    """(N,) bool: which of the images (N, 3, H, W) have three equal channels everywhere, within 1e-6."""
    return np.stack([(np.abs(x[:, 0] - x[:, c]) <= 1e-6).all((1, 2)) for c in (1, 2)]).all(0)


def to_grey(x: np.ndarray) -> np.ndarray:
    """(N, 3, H, W) -> the same size, each channel 0.299 R + 0.587 G + 0.114 B (BT.601, as Pillow's "L").

    Pixels that are grey already stay bit for bit.
    """
    r, g, b = x[:, :1], x[:, 1:2], x[:, 2:3]
    y = g + np.float32(0.299) * (r - g) + np.float32(0.114) * (b - g)
    return np.repeat(y, 3, 1)


@functools.cache
def readable() -> dict[str, str]:
    """{suffix: Pillow's name of the format}: FORMATS, and what of READ_ONLY is possible here."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    known = Image.registered_extensions()
    return FORMATS | {suffix: known[suffix] for suffix in READ_ONLY if suffix in known}


def list_images(folder: str | Path) -> list[Path]:
    """The folder's image files by suffix (`readable`), sorted by name; not recursive, hidden files left out.

    Raises FileNotFoundError when there are none. `left_out` tells what other pictures there are.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; pass an existing folder with images")
    found = sorted(p for p in _visible(folder) if p.suffix.lower() in readable())
    if not found:
        others = f"{text}; " if (text := left_out(folder)) else ""
        raise FileNotFoundError(
            f"{folder} has no images; {others}allowed: {' '.join(readable())} (subfolders are not searched)"
        )
    return found


def _visible(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]


def left_out(folder: str | Path) -> str:
    """One line on the pictures of a folder that `list_images` leaves out, with their number; "" for none."""
    known = set(readable())
    kinds = (OTHERS | READ_ONLY) - known
    count = collections.Counter(p.suffix.lower() for p in _visible(Path(folder)))
    there = [f"{count[kind]} {kind}" for kind in sorted(kinds & set(count))]
    # a share that is not mounted, a pipe: what looks like a picture by its name
    odd = [p for p in Path(folder).iterdir() if p.suffix.lower() in known and not p.name.startswith(".")]
    odd = [(text, p.name) for p in sorted(odd) if (text := oddity(p))]
    lost = "; ".join(f"{printable(name)} is {text}" for text, name in odd[:3])
    if len(odd) > 3:
        lost += f" and {len(odd) - 3} more alike"
    if not there:
        return f"left out: {lost}" if odd else ""
    lost = f"; {lost}" if odd else ""
    total = sum(count[kind] for kind in kinds)
    heic = "; pip install pillow-heif reads HEIC" if {".heic", ".heif", ".hif"} & kinds & set(count) else ""
    return f"left out {total} pictures of kinds that are not read here ({', '.join(there)}){heic}{lost}"


def partners(files: list[Path], others: list[Path]) -> dict[Path, Path]:
    """{file: the other file that belongs to it}: of the same full name, else of the same stem where no doubt
    is possible.

    A file without a partner is left out. Raises ValueError where a stem, such as photo of photo.jpg and
    photo.png, fits more than one file that has no partner of the same full name.
    """
    by_name = {p.name: p for p in others}
    found = {p: by_name[p.name] for p in files if p.name in by_name}
    taken = {p.name for p in found.values()}
    rest: dict[str, tuple[list, list]] = {}
    for side, paths in enumerate(
        ([p for p in files if p not in found], [p for p in others if p.name not in taken])
    ):
        for p in paths:
            rest.setdefault(p.stem, ([], []))[side].append(p)
    for stem, (left, right) in rest.items():
        if left and right and len(left) + len(right) > 2:
            raise ValueError(
                f"{', '.join(p.name for p in left)} of {left[0].parent} and "
                f"{', '.join(p.name for p in right)} of {right[0].parent} all are called {stem!r}; give "
                "partners the same full name"
            )
        found |= dict(zip(left, right, strict=False))
    return found


def distinct(files: list[Path], key=str) -> list[str]:
    """A name per file: its stem, or the full name where another file has the same stem.

    key: what two names must differ in, such as str.casefold for files on any system.
    """
    count = collections.Counter(key(p.stem) for p in files)
    names = [p.stem if count[key(p.stem)] == 1 else p.name for p in files]
    if len(set(map(key, names))) < len(names):  # a.jpg.png beside a.jpg and a.png
        names = [p.name for p in files]
    return names


def labels(files: list[Path]) -> list[str]:
    """`distinct` names for tables and pages, see `printable`."""
    return [printable(name) for name in distinct(files)]


def read_image(path: str | Path) -> Photo:
    """Read a PNG, JPEG, WebP, TIFF, BMP, or of READ_ONLY what `readable` has, as a Photo, turned as its EXIF
    orientation says. The content counts, not the suffix; of several frames or pages the first is read.

    Grey and palette become RGB (Photo.grey tells grey); CMYK becomes sRGB, through its colour profile where
    the file has one. Raises FileNotFoundError, or ValueError naming the file when it is damaged or no such
    image.
    """
    path = Path(path)
    if odd := oddity(path):
        raise ValueError(f"{printable(str(path))} is {odd}; pass an image file")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; pass an image file")
    return decode_image(path.read_bytes(), str(path))


def decode_image(data: bytes, name: str) -> Photo:
    """`read_image` of a file's bytes; name: for the errors and Photo.name (its last part)."""
    if is_pointer(data):
        raise ValueError(pointer_text(name))
    try:
        return _decode(data, Path(name).name)
    except Exception as error:  # Pillow, libpng and tifffile raise a dozen kinds for damaged bytes
        reason = (
            getattr(error, "strerror", None) or str(error).split("\n")[0].split(" <_io")[0] or repr(error)
        )
        raise ValueError(
            f"{printable(name)} cannot be read as an image ({reason}); allowed: {' '.join(readable())}, "
            "whole files, 8 or 16 bit"
        ) from error


def _decode(data: bytes, name: str) -> Photo:
    try:
        with warnings.catch_warnings():  # the note below says it in one line
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=sorted(set(readable().values())))
    except Image.DecompressionBombError:
        most = 2 * Image.MAX_IMAGE_PIXELS / 1e6
        raise ValueError(f"more than {most:.0f} megapixels; cut or shrink it first") from None
    except UnidentifiedImageError:
        if data[:4] not in (b"II*\0", b"MM\0*"):
            raise
        return _decode_tiff16(data, name)  # such as grey with alpha, which Pillow does not know
    is_tiff, notes = image.format == "TIFF", []
    with contextlib.suppress(Exception):  # a damaged second page is no reason to refuse the first
        if image.format in FRAMES and (count := getattr(image, "n_frames", 1)) > 1:
            notes.append(f"the first of its {count} {FRAMES[image.format]} only")
    turn, key, icc = (
        image.getexif().get(274, 1),
        image.info.get("transparency"),
        image.info.get("icc_profile"),
    )
    wide = _is_wide(image, data)
    image.load()  # finds a truncated file, and turns a TIFF by itself
    turn = turn if wide else image.getexif().get(274, 1)
    pixels = _read_wide(image, data, key) if wide else _read_8bit(image, icc, notes)
    grey = pixels.shape[-1] < 3 if wide else image.mode in GREY_MODES
    if (count := image.width * image.height) > (Image.MAX_IMAGE_PIXELS or math.inf):
        size = f"{image.width}x{image.height}, {count / 1e6:.0f} megapixels"
        # 3 channels of 4 bytes, 4 x 4 pixels for one
        notes.append(
            f"{size}: each float32 copy of it takes {count * 12 / 1e9:.1f} GB, and 16 times that at x4"
        )
    said = data if is_tiff else _exif_of(image)
    rest = dict(
        icc=_fitting(icc, notes), exif=exif.read(said), dpi=_dpi(image.info.get("dpi") or exif.dpi(said))
    )
    return _photo(_turn(pixels, turn), wide, grey, name=name, notes=tuple(notes), **rest)


def _exif_of(image: Image.Image) -> bytes:
    """As the file has it, also as older PNGs have it: a text of hexadecimal digits behind three lines."""
    text = image.info.get("Raw profile type exif")
    with contextlib.suppress(ValueError):
        if text and "exif" not in image.info:
            return bytes.fromhex("".join(text.split("\n")[3:]))
    return image.info.get("exif", b"")


def _dpi(value) -> tuple[float, float] | None:
    with contextlib.suppress(TypeError, ValueError, ZeroDivisionError):
        x, y = (float(v) for v in value)
        if 0 < x < 1e6 and 0 < y < 1e6:
            return x, y
    return None


def _fitting(icc: bytes | None, notes: list[str]) -> bytes | None:
    """A whole profile of grey or RGB; one of CMYK does not fit what we return."""
    if not icc or icc[16:20] not in (b"RGB ", b"GRAY"):
        return None
    try:
        ImageCms.ImageCmsProfile(io.BytesIO(icc))
    except (OSError, ImageCms.PyCMSError):
        notes.append("its colour profile is damaged and is left out")
        return None
    return icc


def _decode_tiff16(data: bytes, name: str) -> Photo:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tags = file.pages[0].tags
        kind = np.unique(tags.valueof("BitsPerSample")).tolist(), int(tags.valueof("SampleFormat", 1))
        if kind != ([16], 1) or tags.valueof("PhotometricInterpretation") not in (0, 1, 2):
            raise ValueError("a kind of TIFF that is not known here")
        turn, icc = int(tags.valueof("Orientation", 1)), tags.valueof("InterColorProfile")
    pixels = _read_tiff16(data)
    notes: list[str] = []
    rest = dict(icc=_fitting(icc, notes), exif=exif.read(data), dpi=_dpi(exif.dpi(data)), notes=tuple(notes))
    return _photo(_turn(pixels, turn), True, pixels.shape[-1] < 3, name=name, **rest)


def _photo(pixels: np.ndarray, wide: bool, grey: bool, **rest) -> Photo:
    """Of (H, W), or (H, W, 1 to 4) with alpha last."""
    x = to_float(pixels)
    rgb, alpha = (x[:, :-1], x[:, -1:]) if x.shape[1] in (2, 4) else (x, None)
    rgb = np.repeat(rgb, 3, 1) if rgb.shape[1] == 1 else np.ascontiguousarray(rgb)
    return Photo(rgb, alpha, bits=16 if wide else 8, grey=grey, **rest)


def of_pil(image: Image.Image) -> Photo:
    """A Photo of a PIL image as it is, not turned; 16-bit grey ("I;16") keeps its bits.

    Raises ValueError for modes that are no photograph's: "F", "I", "LAB".
    """
    wide = image.mode.startswith("I;16")
    try:
        pixels = (
            np.asarray(image).astype(np.uint16)
            if wide
            else _read_8bit(image, image.info.get("icc_profile"), [])
        )
    except ValueError as error:
        raise ValueError(f"the image has {error}; allowed: 1, L, LA, I;16, P, RGB, RGBA, CMYK") from error
    return _photo(pixels, wide, wide or image.mode in GREY_MODES)


def _is_wide(image: Image.Image, data: bytes) -> bool:
    """16 bit a channel, which Pillow cuts to 8 in colour images."""
    if image.format == "PNG":
        return data[24] == 16  # the bit depth in IHDR
    # TIFF: BitsPerSample, PhotometricInterpretation (grey or RGB), SampleFormat
    tags = getattr(image, "tag_v2", {})
    return (
        set(np.atleast_1d(tags.get(258, 1))) == {16}
        and tags.get(262) in (0, 1, 2)
        and tags.get(339, (1,))[0] == 1
    )


def _read_8bit(image: Image.Image, icc: bytes | None, notes: list[str]) -> np.ndarray:
    """uint8 (H, W, 3 or 4). notes: gets one where a CMYK profile cannot be used."""
    if image.mode in ("F", "I", "LAB") or image.mode.startswith("I;"):
        raise ValueError(f"pixel mode {image.mode}")
    if image.mode == "CMYK" and icc:
        try:
            image = ImageCms.profileToProfile(
                image, io.BytesIO(icc), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except (OSError, ImageCms.PyCMSError):
            notes.append(
                "its CMYK profile is damaged or of another kind: converted without, colours are a guess"
            )
    alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    return np.asarray(image.convert("RGBA" if alpha else "RGB"))


def _read_wide(image: Image.Image, data: bytes, key: int | tuple | None) -> np.ndarray:
    """uint16 (H, W, 1 to 4) of a 16-bit grey or RGB PNG or TIFF; alpha, straight, comes last."""
    if image.format == "TIFF":
        return _read_tiff16(data)
    a = _decode_png16(data)
    return a if key is None else np.dstack([a, np.uint16(65535) * (a != np.asarray(key)).any(-1)])


def _decode_png16(data: bytes) -> np.ndarray:
    """uint16 (H, W, C) of a PNG of 16 bit: by torchvision where torch is at work already, which is ten times
    as fast, else by `_inflated`.
    """
    if "torch" in sys.modules:
        import torch
        from torchvision.io import decode_png

        return decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8)).permute(1, 2, 0).numpy()
    return _inflated(data)


def _inflated(data: bytes) -> np.ndarray:
    """uint16 (H, W, C) of a PNG of 16 bit (PNG specification, sections 8 to 10). ValueError if damaged."""
    w, h, _, kind, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    channels, packed, at = {0: 1, 2: 3, 4: 2, 6: 4}[kind], b"", 8
    while at + 8 <= len(data):
        size, tag = struct.unpack_from(">I4s", data, at)
        packed += data[at + 8 : at + 8 + size] if tag == b"IDAT" else b""
        at += 12 + size
    try:
        raw = np.frombuffer(zlib.decompress(packed), np.uint8)
    except zlib.error as error:
        raise ValueError(f"damaged: {error}") from error
    out, at = np.empty((h, w, channels), np.uint16), 0
    adam7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    for top, left, down, right in adam7 if interlaced else ((0, 0, 1, 1),):
        part = out[top::down, left::right]
        rows, columns = part.shape[:2]
        if part.size:
            size = rows * (1 + 2 * channels * columns)
            lines = raw[at : at + size].reshape(rows, -1)
            part[:], at = _unfiltered(lines, 2 * channels).view(">u2"), at + size
    return out


def _unfiltered(lines: np.ndarray, step: int) -> np.ndarray:
    """Rows of a PNG, each behind its filter, as bytes (H, W, step).

    A pixel needs those to its left and above, so all on one diagonal are worked out together.
    """
    h, w = len(lines), (lines.shape[1] - 1) // step
    kinds, raw = lines[:, 0], lines[:, 1:].reshape(h, w, step)
    if kinds.max() > 4:
        raise ValueError(f"filter {kinds.max()} is unknown; damaged")
    out = np.zeros((h + 1, w + 1, step), np.int16)
    for d in range(h + w - 1):
        y = np.arange(max(0, d - w + 1), min(h, d + 1))
        x = d - y
        a, b, c = out[y + 1, x], out[y, x + 1], out[y, x]  # left, above, above left
        pa, pb, pc = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
        paeth = np.where((pa <= pb) & (pa <= pc), a, np.where(pb <= pc, b, c))
        guess = np.choose(kinds[y][:, None], (np.zeros_like(a), a, b, (a + b) >> 1, paeth))
        out[y + 1, x + 1] = (raw[y, x] + guess) & 255
    return np.ascontiguousarray(out[1:, 1:].astype(np.uint8))


def _read_tiff16(data: bytes) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        try:
            a = page.asarray()
            a = np.moveaxis(a, 0, -1) if page.axes.startswith("S") else a.reshape(*a.shape[:2], -1)
        except ValueError:  # LZW needs imagecodecs; opencv, which pyiqa brings, has its own
            import cv2

            a = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            a = a[..., None] if a.ndim == 2 else a[..., [2, 1, 0, 3][: a.shape[-1]]]
        colours, extra = (3 if page.photometric == 2 else 1), (*page.extrasamples, 2)[0]
        a, alpha = a[..., :colours], a[..., colours : colours + 1]
        a = 65535 - a if page.photometric == 0 else a  # white is zero
        if alpha.size and extra == 1:  # stored premultiplied
            a = np.minimum(np.round(a * (65535.0 / np.maximum(alpha, 1))), 65535).astype(np.uint16)
        return np.concatenate([a, alpha], -1) if extra in (1, 2) else a


def _turn(a: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) as the EXIF orientation 1..8 wants it shown."""
    if orientation in (5, 6, 7, 8):
        a = a.swapaxes(0, 1)
    a = a[::-1] if orientation in (3, 4, 7, 8) else a
    return a[:, ::-1] if orientation in (2, 3, 6, 7) else a


def format_of(path: Path) -> str:
    """Pillow's name of the format that the suffix of path asks for. ValueError for an unknown one."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: suffix {path.suffix!r} is unknown; allowed: {' '.join(FORMATS)}")
    return FORMATS[path.suffix.lower()]


def check_sides(width: int, height: int, path: Path) -> None:
    """ValueError when the format of path holds no picture of so many pixels a side."""
    most = LONGEST.get(kind := format_of(path))
    if most and max(width, height) > most:
        raise ValueError(
            f"{path.name} would be {width}x{height} pixels; {kind} holds {most} a side, use .png or .tif"
        )


def encode_image(photo: Photo, path: Path, gps: bool = False) -> bytes:
    """The bytes that images.write_image writes to path; its ValueErrors."""
    kind, x, alpha = format_of(path), photo.rgb, photo.alpha
    check_images(x, path.name, 1)
    if (
        len(x) != 1
        or photo.bits not in (8, 16)
        or (alpha is not None and alpha.shape != (1, 1, *x.shape[2:]))
    ):
        raise ValueError(
            f"{path}: rgb {tuple(x.shape)}, alpha {None if alpha is None else tuple(alpha.shape)}, bits "
            f"{photo.bits}; allowed: one (1, 3, H, W) image, alpha (1, 1, H, W) or None, 8 or 16 bits"
        )
    if photo.grey:
        x = to_grey(x)[:, : 3 if kind == "WEBP" else 1]
    if alpha is not None:
        # DECISION D24: alpha goes its own way, linear; JPEG and BMP, without alpha, show it on white
        x = np.concatenate([x, alpha], 1) if kind in ALPHA else on_white(x, alpha)
    wide = photo.bits == 16 and kind in ("PNG", "TIFF")
    pixels = _levels(x, 65535).astype(np.uint16)[0] if wide else to_uint8(x)[0]
    space = b"GRAY" if pixels.shape[-1] < 3 else b"RGB "
    # of formats without a place for dpi, EXIF tells it
    told = photo.dpi if photo.exif or kind in ("WEBP", "TIFF") else None
    about = {
        "icc": photo.icc if photo.icc and photo.icc[16:20] == space else None,
        "block": exif.block(photo.exif, pixels.shape[1::-1], told, gps),
        "dpi": photo.dpi,
    }
    try:
        return _encode(pixels, kind, **about)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be written as {kind} ({error}); try .png") from error


def _encode(pixels: np.ndarray, kind: str, icc: bytes | None, block: bytes | None, dpi) -> bytes:
    out = io.BytesIO()
    if pixels.dtype == np.uint16 and kind == "PNG":
        return _png16(pixels, icc, block=block, dpi=dpi)
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    if kind == "TIFF":
        import tifffile

        tifffile.imwrite(
            out,
            pixels,
            byteorder=">" if block and block[:2] == b"MM" else "<",
            photometric="rgb" if pixels.shape[2:] in ((3,), (4,)) else "minisblack",
            planarconfig="contig" if pixels.ndim == 3 else None,
            extrasamples=["unassalpha"] if pixels.shape[2:] in ((2,), (4,)) else None,
            compression="zlib",
            predictor=True,
            iccprofile=icc,
            metadata=None,
            software=False,
        )
        tiff = out.getvalue()
        # a BigTIFF has directories of another kind
        return exif.into_tiff(tiff, block) if block and 42 in tiff[2:4] else tiff
    how = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True, "exact": True}}.get(kind, {})
    about = {"icc_profile": icc, "dpi": dpi, "exif": b"Exif\0\0" + block if block else None}
    Image.fromarray(pixels).save(out, kind, **{k: v for k, v in about.items() if v}, **how)
    return out.getvalue()


def encode_png(x: np.ndarray, bits: int = 8, texts: dict[str, str] | None = None, level: int = 6) -> bytes:
    """PNG of one image (1, C, H, W) in [0, 1], C 1 to 4, rounded to 8 or 16 bits; texts go into iTXt chunks.

    level: of zlib, 1 fast to 9 small. Raises ValueError on NaN or other bits.
    """
    if bits not in (8, 16) or x.ndim != 4 or len(x) != 1:
        raise ValueError(f"bits={bits!r}, shape {tuple(x.shape)}; allowed: 8 or 16, one image (1, C, H, W)")
    if bits == 16:
        return _png16(_levels(x, 65535).astype(np.uint16)[0], None, texts, level)
    info, out = PngImagePlugin.PngInfo(), io.BytesIO()
    for key, text in (texts or {}).items():
        info.add_itxt(key, text)
    pixels = to_uint8(x)[0]
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(
        out, "PNG", pnginfo=info, compress_level=level
    )
    return out.getvalue()


def _png16(
    pixels: np.ndarray,
    icc: bytes | None,
    texts: dict[str, str] | None = None,
    level: int = 6,
    block: bytes | None = None,
    dpi: tuple[float, float] | None = None,
) -> bytes:
    """PNG of uint16 (H, W, 1 to 4), which Pillow cannot write: filter "up" on every row, one IDAT."""

    def chunk(tag: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))

    h, w, channels = pixels.shape
    rows = pixels.astype(">u2").view(np.uint8).reshape(h, -1)
    rows = np.diff(rows, axis=0, prepend=np.uint8(0) * rows[:1])  # uint8 wraps, as PNG wants
    rows = np.insert(rows, 0, 2, axis=1)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0))
    profile = chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)) if icc else b""
    notes = b"".join(chunk(b"iTXt", f"{key}\0\0\0\0\0{text}".encode()) for key, text in (texts or {}).items())
    size = b""
    if dpi:  # per metre
        size = chunk(b"pHYs", struct.pack(">IIB", *(round(value / 0.0254) for value in dpi), 1))
    about = chunk(b"eXIf", block) if block else b""
    data = chunk(b"IDAT", zlib.compress(rows, level))
    return b"\x89PNG\r\n\x1a\n" + head + profile + size + about + notes + data + chunk(b"IEND", b"")
