"""The slider's JavaScript by itself: each module of js/ against Python, in node, or without it in
Chromium.
"""

import base64
import contextlib
import functools
import hashlib
import http.server
import io
import itertools
import json
import re
import shutil
import struct
import subprocess
import threading
import tomllib
import zipfile
import zlib

import numpy as np
import pytest
import torch
from chromium import browser, js, missing
from PIL import Image
from setuptools import find_packages

from ifcsr_lib import evaluate
from ifcsr_lib.config import ROOT
from ifcsr_lib.control import Endpoints
from ifcsr_lib.explorer import Explorer, page
from ifcsr_lib.files.images import decode_image, encode_png, to_uint8

FOLDER = page.JS
GAMMAS = [0, 0.1, 0.25, 1 / 3, 0.5, 0.637, 0.75, 0.999, 1]
# base64 of bytes both ways, and every module as an object of its name
PRELUDE = f"""
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const text64 = data => {{
  const view = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  let text = "";
  for (let i = 0; i < view.length; i += 32768) text += String.fromCharCode(...view.subarray(i, i + 32768));
  return btoa(text);
}};
const error = async f => {{
  try {{ await f(); }} catch (e) {{ return String(e.message); }}
  return "no error";
}};
const modules = {json.dumps(page.MODULES)};
const [{", ".join(page.MODULES)}] = await Promise.all(modules.map(name => import(base + name + ".js")));
"""


def b64(data) -> str:
    return base64.b64encode(data.tobytes() if isinstance(data, np.ndarray) else data).decode()


def array(text: str, dtype=np.uint8) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """js/ as a browser or node can import it, and the joined text beside it."""
    folder = tmp_path_factory.mktemp("js")
    for path in FOLDER.glob("*.js"):
        shutil.copy(path, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "joined.js").write_text(page.ESM, encoding="utf-8")
    (folder / "index.html").write_text("<!DOCTYPE html><link rel=icon href=data:><body></body>")
    return folder


@contextlib.contextmanager
def served(folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def chromium(scripts):
    """run(body, *args) in Chromium: the value of an async JavaScript body, with PRELUDE's names and
    `args`.
    """
    if why := missing():
        pytest.skip(why)
    with served(scripts) as base, browser() as driver:
        driver.get(base)
        yield lambda body, *args: js(driver, f"const base = '{base}';" + PRELUDE + "{" + body + "}", *args)


@pytest.fixture(scope="module")
def run(scripts, request):
    """As chromium, in node if it is installed."""
    if not shutil.which("node"):
        return request.getfixturevalue("chromium")

    def in_node(body, *args):
        (scripts / "args.json").write_text(json.dumps(args))
        (scripts / "main.mjs").write_text(
            'import {readFileSync} from "node:fs"; const base = "./";'
            f'const args = JSON.parse(readFileSync("args.json")); {PRELUDE}'
            "const value = await (async () => {" + body + "})();"
            "process.stdout.write(JSON.stringify(value ?? null));",
            encoding="utf-8",
        )
        done = subprocess.run(
            ["node", "main.mjs"], cwd=scripts, capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return json.loads(done.stdout)

    return in_node


# the modules as such ----------------------------------------------------------------------------------------


def test_the_list_is_complete_and_in_order():
    """Each file once, and each imports, on one line, only what a module before it exports."""
    assert sorted(page.MODULES) == sorted(path.stem for path in FOLDER.iterdir())
    exported = {}
    for name in page.MODULES:
        text = (FOLDER / f"{name}.js").read_text(encoding="utf-8")
        lines = re.findall(r"^import\b.*", text, re.MULTILINE)
        for line in lines:
            names, source = re.fullmatch(r'import \{(.+)\} from "\./(\w+)\.js";', line).groups()
            assert set(names.split(", ")) <= exported.get(source, set()), f"{name}.js: {line}"
        assert not re.search(r"\bimport\(|^[ \t]+import\b|^export\b.*\bfrom\b", text, re.MULTILINE), name
        exported[name] = set(
            re.findall(r"^export (?:async )?(?:function|class|const) (\w+)", text, re.MULTILINE)
        )


def test_the_package_carries_every_file():
    """What pyproject.toml installs with ifcsr_lib.explorer is what lies there."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    package = ROOT / "ifcsr_lib" / "explorer"
    carried = {path for glob in settings["package-data"]["ifcsr_lib.explorer"] for path in package.glob(glob)}
    assert "ifcsr_lib.explorer" in find_packages(ROOT, include=settings["packages"]["find"]["include"])
    assert carried == {
        path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")
    }


def test_joined_text_is_one_module(scripts, run):
    """It parses (names are unique, or it would not), has no import left, and exports what anywidget calls."""
    assert not re.search(r"^\s*import\b|^export (?!default)|/\*\*", page.ESM, re.MULTILINE)
    assert page.ESM.count("export default") == 1
    assert run(
        "const m = await import(base + 'joined.js'); return [Object.keys(m), typeof m.default.render];"
    ) == [["default"], "function"]
    for name in page.MODULES:
        text = (FOLDER / f"{name}.js").read_text(encoding="utf-8")
        for declared in re.findall(
            r"^(?:export )?(?:async )?(?:function|class|const) (\w+)", text, re.MULTILINE
        ):
            assert re.search(rf"^(?:async )?(?:function|class|const) {declared}\b", page.ESM, re.MULTILINE), (
                declared
            )


def test_each_export_is_explained_and_each_line_is_short():
    for path in FOLDER.iterdir():
        lines = path.read_text(encoding="utf-8").splitlines()
        assert max(map(len, lines)) <= 110 and lines[0].startswith("// "), path.name
        for before, line in itertools.pairwise(lines):
            if re.match(r"export (?!default)", line):
                assert before.endswith("*/"), f"{path.name}: {line}"


# PNG --------------------------------------------------------------------------------------------------------


def photo(h=37, w=53, channels=3, bits=8):
    """Smooth with noise, so that an encoder finds a use for every filter."""
    y, x = np.mgrid[:h, :w]
    noise = np.random.default_rng(0).normal(0, 0.02, (h, w, channels))
    phase = np.arange(channels)
    value = 0.5 + 0.4 * np.sin(x[..., None] / 9 + phase) * np.cos(y[..., None] / 7 - phase) + noise
    return np.clip(np.round(value * (2**bits - 1)), 0, 2**bits - 1).astype(
        np.uint8 if bits == 8 else np.uint16
    )


def chunks(*parts) -> bytes:
    out = [b"\x89PNG\r\n\x1a\n"]
    for tag, body in parts:
        out.append(struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body)))
    return b"".join(out)


def header(w, h, bits, channels, interlaced=0) -> bytes:
    return struct.pack(">IIBBBBB", w, h, bits, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, interlaced)


def rows_of(pixels) -> list[bytes]:
    return [row.astype(">u2" if pixels.dtype == np.uint16 else np.uint8).tobytes() for row in pixels]


def filtered(rows, kind, step) -> bytes:
    """The PNG specification's filters, byte by byte."""
    out, above = [], bytes(len(rows[0]))
    for row in rows:
        line = [kind]
        for i, value in enumerate(row):
            a, b, c = (row[i - step], above[i], above[i - step]) if i >= step else (0, above[i], 0)
            paeth = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
            line.append((value - [0, a, b, (a + b) // 2, paeth][kind]) % 256)
        out.append(bytes(line))
        above = row
    return b"".join(out)


def png(pixels, kind=0) -> bytes:
    """A PNG whose every row has that filter; its data in two chunks."""
    h, w, channels = pixels.shape
    bits = 8 * pixels.dtype.itemsize
    data = zlib.compress(filtered(rows_of(pixels), kind, channels * bits // 8))
    return chunks(
        (b"IHDR", header(w, h, bits, channels)), (b"IDAT", data[:99]), (b"IDAT", data[99:]), (b"IEND", b"")
    )


DECODE = """const p = await png.decodePNG(bytes(args[0]), "x.png");
return [p.width, p.height, p.channels, p.data.constructor.name, text64(p.data)];"""


def decoded(run, data: bytes) -> np.ndarray:
    w, h, channels, kind, text = run(DECODE, b64(data))
    return array(text, np.uint16 if kind == "Uint16Array" else np.uint8).reshape(h, w, channels)


@pytest.mark.parametrize("mode, channels", [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)])
def test_png_of_pillow(run, mode, channels):
    pixels, file = photo(channels=channels), io.BytesIO()
    Image.fromarray(pixels.squeeze(), mode).save(file, "PNG")
    assert np.array_equal(decoded(run, file.getvalue()), pixels)


def test_png_of_pillow_16_bit(run):
    pixels, file = photo(channels=1, bits=16), io.BytesIO()
    Image.fromarray(pixels[..., 0]).save(file, "PNG")
    assert np.array_equal(decoded(run, file.getvalue()), pixels)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", range(5))
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_filters(run, kind, channels, bits):
    pixels = photo(11, 13, channels, bits)
    data = png(pixels, kind)
    if bits == 8 or channels == 1:  # Pillow reads no more of 16 bit: what is written here is right
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels.squeeze())
    assert np.array_equal(decoded(run, data), pixels)


def test_png_of_python_16_bit(run):
    data = encode_png(torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0)), 16)
    want = (decode_image(data, "x").rgb[0].permute(1, 2, 0).double() * 65535).round().numpy()
    assert np.array_equal(decoded(run, data), want)


def interlaced(pixels) -> bytes:
    h, w, channels = pixels.shape
    starts = [
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ]
    parts = [pixels[y::dy, x::dx] for y, x, dy, dx in starts]
    data = b"".join(filtered(rows_of(part), 0, channels) for part in parts if part.size)
    return chunks((b"IHDR", header(w, h, 8, channels, 1)), (b"IDAT", zlib.compress(data)), (b"IEND", b""))


def test_png_that_the_browser_decodes(chromium):
    """Palettes, interlacing and few bits come as RGBA, with the values that Pillow reads."""
    grey, files = photo(channels=1)[..., 0], {}
    for name, image in {
        "palette": Image.fromarray(photo()).quantize(31),
        "1 bit": Image.fromarray(grey > 128),
    }.items():
        file = io.BytesIO()
        image.save(file, "PNG")
        files[name] = file.getvalue()
    files["interlaced"] = interlaced(photo())
    for name, data in files.items():
        with Image.open(io.BytesIO(data)) as image:
            want = np.asarray(image.convert("RGBA"))
        assert np.array_equal(decoded(chromium, data), want), name
    assert "the browser cannot read it" in chromium(
        "return error(() => png.decodePNG(bytes(args[0])));", b64(files["palette"][:60])
    )


def test_png_errors_name_the_file(run):
    data = png(photo(11, 13))
    head = (b"IHDR", header(13, 11, 8, 3))
    flipped = bytearray(data)
    flipped[60] ^= 1
    short = zlib.compress(filtered(rows_of(photo(10, 13)), 0, 3))
    cases = [
        (b"GIF89a" + data[6:], "no PNG signature"),
        (data[:30], "no PNG signature"),
        (data[:-4], "cut short"),
        (data[:100], "cut short"),
        (data[:-12], "cut short"),
        (bytes(flipped), "checksum"),
        (chunks(head, (b"IDAT", b"\x78\x9c" + bytes(50)), (b"IEND", b"")), "its data do not unpack"),
        (chunks(head, (b"IDAT", short), (b"IEND", b"")), "wrong length"),
    ]
    body = "return Promise.all(args[0].map(file => error(() => png.decodePNG(bytes(file), 'x.png'))));"
    for (_, why), text in zip(cases, run(body, [b64(file) for file, _ in cases]), strict=True):
        assert text == f"x.png is not a whole PNG image ({why}); get it again"


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_png_written(run, channels, bits):
    pixels = photo(channels=channels, bits=bits)
    body = """const data = new (args[3] === 8 ? Uint8Array : Uint16Array)(bytes(args[4]).buffer);
    return text64(await png.encodePNG(args[0], args[1], args[2], data, {gamma: "0.5", image: "Käfer"}));"""
    file = array(run(body, 53, 37, channels, bits, b64(pixels))).tobytes()
    photo_ = decode_image(file, "written")
    planes = photo_.rgb if channels == 3 else photo_.rgb[:, :1]
    planes = torch.cat([planes, photo_.alpha], 1) if channels == 2 else planes
    top = 2**bits - 1
    assert np.array_equal((planes[0].permute(1, 2, 0).double() * top).round().numpy(), pixels)
    assert photo_.bits == bits or channels != 3
    with Image.open(io.BytesIO(file)) as image:
        image.load()
        assert image.text == {"gamma": "0.5", "image": "Käfer"}


def test_rgb8_rounds_16_bit_to_the_nearest_level(run):
    body = """const wide = Uint16Array.from({length: 65536}, (_, i) => i);
    const grey = png.rgb8({width: 256, height: 256, channels: 1, data: wide});
    const one = png.rgb8({width: 1, height: 1, channels: 4, data: new Uint8Array([1, 2, 3, 4])});
    return [text64(grey), text64(one)];"""
    grey, rgb = run(body)
    want = np.round(np.arange(65536) / 257)
    assert np.array_equal(array(grey).reshape(-1, 3), np.stack([want] * 3, 1)) and array(rgb).tolist() == [
        1,
        2,
        3,
    ]


# zip and pair -----------------------------------------------------------------------------------------------


def pair(n=1, h=24, w=40, seed=0):
    return Endpoints(
        *(torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(seed + k)) for k in range(3))
    )


def zipped(parts: dict, method=zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, data in parts.items():
            file.writestr(name, data)
    return out.getvalue()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_unzip(run, method):
    parts = {"a.txt": b"abc" * 1000, "Käfer.bin": photo().tobytes(), "empty": b""}
    out = run(
        "return [...await pair.unzip(bytes(args[0]), 'x.zip')].map(([k, v]) => [k, text64(v)]);",
        b64(zipped(parts, method)),
    )
    assert {name: array(text).tobytes() for name, text in out} == parts


def test_unzip_errors(run):
    whole = zipped({"a": b"abcdefgh" * 50})
    flipped = whole.replace(b"abcdefgh", b"abcdefgi", 1)
    packed = bytearray(zipped({"a": b"abcdefgh" * 50}, zipfile.ZIP_DEFLATED))
    packed[31:36] = b"\xff" * 5
    directory = bytearray(whole)
    directory[whole.rindex(b"PK\x01\x02")] ^= 1
    cases = {
        "a: checksum": flipped,
        "no zip directory": whole[:-30],
        "a does not unpack": bytes(packed),
        "damaged directory": bytes(directory),
        "a is packed by method 12": zipped({"a": b"x"}, zipfile.ZIP_BZIP2),
        "cut short": whole[300:],
    }
    body = "return Promise.all(args[0].map(file => error(() => pair.unzip(bytes(file), 'x.zip'))));"
    for why, text in zip(cases, run(body, [b64(data) for data in cases.values()]), strict=True):
        assert text.startswith("x.zip is not a whole .ifcsr.zip (") and text.endswith(
            "); write it again with ends.save"
        )
        assert why in text or (why == "cut short" and "damaged directory" in text), text


def test_crc_and_sha_are_those_of_python(run):
    data = photo().tobytes()
    crc, sha = run(
        "const b = bytes(args[0]), crc = png.crc32(b.subarray(0, 7), b.subarray(7));"
        "return [crc, await pair.sha256(b)];",
        b64(data),
    )
    assert crc == zlib.crc32(data) and sha == hashlib.sha256(data).hexdigest()


def test_open_pair(run, tmp_path):
    ends = pair(2)
    file = ends.save(tmp_path / "p.ifcsr.zip", "mine", gamma=0.25, bits=8).read_bytes()
    body = """const images = await pair.openPair(bytes(args[0]), "p.ifcsr.zip", "photo");
    const texts = parts => Object.fromEntries(Object.entries(parts).map(([k, v]) => [k, text64(v)]));
    return images.map(i => ({...i, bytes: texts(i.bytes)}));"""
    images = run(body, b64(file))
    assert (
        [i["name"] for i in images] == ["photo 0", "photo 1"]
        and images[0]["gamma"] == 0.25
        and images[0]["x_L"]
    )
    assert images[0]["panes"][0]["model"] == "mine" and (images[1]["width"], images[1]["height"]) == (40, 24)
    for i, image in enumerate(images):
        for key, x in {"0/fid": ends.x_fid, "0/real": ends.x_real, "bicubic": ends.x_L}.items():
            seen = np.asarray(Image.open(io.BytesIO(array(image["bytes"][key]).tobytes())))
            assert np.array_equal(seen, to_uint8(x)[i])


def test_open_pair_errors(run, tmp_path):
    file = pair().save(tmp_path / "p.ifcsr.zip")
    with zipfile.ZipFile(file) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    other = json.dumps(json.loads(parts["ifcsr.json"]) | {"format": "other 2"}).encode()
    cases = {
        "no ifcsr.json in it": {"x_fid.png": parts["x_fid.png"]},
        "ifcsr.json is not JSON": parts | {"ifcsr.json": b"{"},
        'format "other 2"; allowed: "ifcsr endpoints 1"': parts | {"ifcsr.json": other},
        "x_real of image 0 is missing": {k: v for k, v in parts.items() if k != "x_real.png"},
        "x_fid.png is not the one ifcsr.json describes (sha256)": parts | {"x_fid.png": parts["x_real.png"]},
    }
    body = "return Promise.all(args[0].map(file => error(() => pair.openPair(bytes(file), 'p.zip', 'p'))));"
    for why, text in zip(cases, run(body, [b64(zipped(part)) for part in cases.values()]), strict=True):
        assert text.startswith(f"p.zip: {why}"), text


# E1 ---------------------------------------------------------------------------------------------------------

PAIRS = """const fid = new Uint8Array(3 * 65536), real = new Uint8Array(3 * 65536);
for (let k = 0; k < 65536; k++) { fid.fill(k >> 8, 3 * k, 3 * k + 3); real.fill(k & 255, 3 * k, 3 * k + 3); }
const out = new Uint32Array(65536);"""
F, R = (v.astype(float) for v in np.divmod(np.arange(65536), 256))


def is_rounded(seen, exact):
    """The nearest level, wherever E1 is farther from a tie than gamma's 16 bits: 255 / 2^17 levels."""
    clear = np.abs(exact - np.floor(exact) - 0.5) > 255 / 2**17 + 1e-9
    assert (
        np.array_equal(seen[clear], np.round(exact)[clear])
        and np.abs(seen - exact).max() <= 0.5 + 255 / 2**17 + 1e-9
    )


def test_e1_of_all_values(run):
    """256 x 256 pairs of values at nine gammas, in all three channels; each is Python's rounding, opaque."""
    body = PAIRS + "return args[0].map(g => { blend.blend(fid, real, g, out); return text64(out); });"
    for gamma, text in zip(GAMMAS, run(body, GAMMAS), strict=True):
        rgba = array(text).reshape(-1, 4)
        assert (rgba[:, 3] == 255).all() and (rgba[:, :1] == rgba[:, :3]).all()
        G = round(gamma * 65536)
        assert np.array_equal(rgba[:, 0], np.floor(F + G / 65536 * (R - F) + 0.5))  # ties: up
        is_rounded(rgba[:, 0], (1 - gamma) * F + gamma * R)
        if gamma in (0, 1):
            assert np.array_equal(rgba[:, 0], R if gamma else F)


@pytest.mark.parametrize("gamma", [0, 0.3, 1])
def test_e1_with_a_map(run, gamma):
    """gamma of a pixel is ((255 - cover) gamma + paint) / 255, paint <= cover: 65536 random combinations."""
    rng = np.random.default_rng(1)
    cover = rng.integers(0, 256, 65536)
    paint = (cover * rng.random(65536)).astype(int)
    body = (
        PAIRS + "blend.blend(fid, real, args[0], out, {cover: bytes(args[1]), paint: bytes(args[2])});"
        "return text64(out);"
    )
    seen = array(run(body, gamma, b64(cover.astype(np.uint8)), b64(paint.astype(np.uint8)))).reshape(-1, 4)[
        :, 0
    ]
    weight = ((255 - cover) * gamma + paint) / 255
    is_rounded(seen, F + weight * (R - F))


def test_e1_in_16_bit(run):
    fid, real = photo(bits=16), photo(bits=16)[::-1, ::-1]
    body = """const [fid, real] = args.map(text => ({data: new Uint16Array(bytes(text).buffer)}));
    return text64(files.blend16(fid, real, 0.3, null));"""
    seen = array(run(body, b64(fid), b64(np.ascontiguousarray(real))), np.uint16).reshape(fid.shape)
    assert np.abs(seen - (0.7 * fid + 0.3 * real)).max() <= 0.5 + 1e-6
    body = """const [fid, real, paint] = args.map(bytes), map = {cover: new Uint8Array(9).fill(255), paint};
    return text64(files.blend16({data: fid}, {data: real}, 0.5, map));"""
    small = photo(3, 3)
    paint = np.arange(0, 252, 28, dtype=np.uint8)
    seen = array(run(body, b64(small), b64(255 - small), b64(paint)), np.uint16).reshape(3, 3, 3)
    weight = paint.reshape(3, 3, 1) / 255
    assert np.abs(seen - 257 * (small + weight * (255 - 2 * small.astype(float)))).max() <= 0.5 + 1e-6


# sampling ---------------------------------------------------------------------------------------------------

SAMPLE = """const [w, h, data, canvas, view] = args, picture = new sampling.Picture(w, h, bytes(data));
const spot = sampling.place({width: w, height: h}, canvas, view);
const seen = sampling.sampled(picture, spot, new Uint8Array(3 * spot.width * spot.height));
return [spot, text64(seen), picture.levels.length];"""


def sample(run, pixels, canvas, x, y, zoom):
    h, w = pixels.shape[:2]
    spot, text, levels = run(
        SAMPLE, w, h, b64(pixels), {"width": canvas[0], "height": canvas[1]}, {"x": x, "y": y, "zoom": zoom}
    )
    return spot, array(text).reshape(spot["height"], spot["width"], 3), levels


@pytest.mark.parametrize("zoom", [1, 2, 5])
def test_whole_zooms_repeat_pixels(run, zoom):
    pixels = photo(40, 60)
    spot, seen, _ = sample(run, pixels, (100, 70), 0.4, 0.6, zoom)
    big = pixels.repeat(zoom, 0).repeat(zoom, 1)
    if zoom == 1:  # smaller than the canvas: in the middle of it
        assert (spot["left"], spot["top"], spot["width"], spot["height"]) == (20, 15, 60, 40)
        assert np.array_equal(seen, pixels)
    else:  # larger: a window around the centre
        left, top = round(0.4 * 60 * zoom - 50), round(0.6 * 40 * zoom - 35)
        left, top = min(max(left, 0), 60 * zoom - 100), min(max(top, 0), 40 * zoom - 70)
        assert (spot["originX"], spot["originY"], spot["width"], spot["height"]) == (-left, -top, 100, 70)
        assert np.array_equal(seen, big[top : top + 70, left : left + 100])


@pytest.mark.parametrize("zoom, halvings", [(0.8, 0), (0.5, 1), (0.3, 1), (0.12, 3)])
def test_smaller_zooms_are_bilinear_of_the_halved_picture(run, zoom, halvings):
    """Against the formula in float64; weights of 1/256 and one rounding: 1.5 levels at most."""
    pixels = photo(123, 150)
    spot, seen, levels = sample(run, pixels, (200, 200), 0.5, 0.5, zoom)
    assert (spot["width"], spot["height"]) == (
        round(150 * zoom),
        round(123 * zoom),
    ) and levels == halvings + 1
    level = pixels.astype(int)
    for _ in range(halvings):
        h, w = level.shape[0] // 2 * 2, level.shape[1] // 2 * 2
        level = (level[:h:2, :w:2] + level[1:h:2, :w:2] + level[:h:2, 1:w:2] + level[1:h:2, 1:w:2] + 2) // 4
    axes = []
    for size, count in zip(level.shape, seen.shape[:2], strict=False):
        at = np.clip((np.arange(count) + 0.5) / zoom / 2**halvings - 0.5, 0, size - 1)
        low = np.minimum(np.floor(at).astype(int), size - 2)
        axes.append((low, (at - low)))
    (y, v), (x, u) = axes
    u, v = u[None, :, None], v[:, None, None]
    exact = (1 - v) * ((1 - u) * level[y][:, x] + u * level[y][:, x + 1]) + v * (
        (1 - u) * level[y + 1][:, x] + u * level[y + 1][:, x + 1]
    )
    assert np.abs(seen - exact).max() <= 1.5


def test_thin_pictures_and_planes(run):
    """One pixel wide or high is sampled without a neighbour; a plane is nearest neighbour at every zoom."""
    for shape in ((1, 9), (9, 1), (1, 1)):
        spot, seen, _ = sample(run, photo(*shape), (40, 40), 0.5, 0.5, 0.5)
        assert seen.shape == (spot["height"], spot["width"], 3) and (seen > 0).all()
    plane = photo(23, 31, 1)[..., 0]
    body = """const spot = sampling.place({width: 31, height: 23}, {width: 50, height: 40}, args[1]);
    return [spot, text64(sampling.nearest(bytes(args[0]), 31, 23, spot))];"""
    for zoom in (0.4, 1, 3):
        spot, text = run(body, b64(plane), {"x": 0.5, "y": 0.5, "zoom": zoom})
        rows, columns = (
            (spot[f"{axis}0"] + (np.arange(spot[size]) + 0.5) / zoom).astype(int)
            for axis, size in (("y", "height"), ("x", "width"))
        )
        assert np.array_equal(
            array(text).reshape(spot["height"], spot["width"]),
            plane[rows.clip(max=22)][:, columns.clip(max=30)],
        )


# brush ------------------------------------------------------------------------------------------------------

STROKE = """const [w, h, settings, dabs, base] = args;
const map = base && {cover: bytes(base[0]), paint: bytes(base[1])};
const stroke = new brush.Stroke(map, w, h, settings);
for (const [x, y] of dabs) stroke.dab(x, y);
const {before, after} = stroke.step(), w0 = after.rect[2] - after.rect[0];
const planes = [text64(stroke.map.cover), text64(stroke.map.paint)];
return [...planes, stroke.rect, stroke.touched, after.map.cover.length, w0, before.map === null];"""


def stroke(run, dabs, h=30, w=40, base=None, **settings):
    settings = {"gamma": 1, "size": 10, "strength": 1, "erase": False} | settings
    cover, paint, *rest = run(STROKE, w, h, settings, dabs, base and [b64(plane) for plane in base])
    return array(cover).reshape(h, w), array(paint).reshape(h, w), *rest


@pytest.mark.parametrize("x, y", [(20, 15), (0, 0), (39.9, 29.9), (-3, 12), (20.3, 33)])
def test_a_stamp_stays_in_the_image_and_in_its_circle(run, x, y):
    """The formula: 1 - d^4 of the distance d in radii, at the centre of each pixel."""
    cover, paint, rect, touched, area, width, fresh = stroke(run, [(x, y)], gamma=0.6, strength=0.5)
    py, px = np.mgrid[:30, :40] + 0.5
    d = ((px - x) ** 2 + (py - y) ** 2) / 25
    soft = np.where(d < 1, np.floor(255 * (1 - d * d) + 0.5), 0) / 255
    want = np.floor(255 * 0.5 * soft + 0.5)
    assert np.array_equal(cover, want)
    assert np.array_equal(paint, np.minimum(want, np.floor(255 * 0.5 * soft * 0.6 + 0.5)))
    x0, y0, x1, y1 = rect
    assert (
        touched
        and fresh
        and 0 <= x0 < x1 <= 40
        and 0 <= y0 < y1 <= 30
        and area == (x1 - x0) * (y1 - y0)
        and width == x1 - x0
    )
    inside = np.zeros((30, 40), bool)
    inside[y0:y1, x0:x1] = True
    assert not cover[~inside].any() and (x0, y0) == (
        max(0, int(np.floor(x - 5))),
        max(0, int(np.floor(y - 5))),
    )


def test_a_stroke_beside_the_image_touches_nothing(run):
    cover, paint, rect, touched, *_ = stroke(run, [(-30, -30), (-20, 80)])
    assert not touched and not cover.any() and not paint.any() and rect == [40, 30, 0, 0]


def test_a_stroke_is_as_strong_as_its_strongest_dab(run):
    once = stroke(run, [(20, 15)], strength=0.3)[0]
    assert np.array_equal(stroke(run, [(20, 15)] * 5, strength=0.3)[0], once)
    line = stroke(run, [(10, 15), (30, 15)], strength=0.3)[0]
    assert line.max() == once.max() and (line[15, 10:30] >= 0.9 * once.max()).all() and not line[:9].any()


def test_a_stroke_mixes_and_erases(run):
    """Over a map, paint moves towards the brush's gamma by its strength; erasing takes the same
    share away.
    """
    base = [np.full((30, 40), 200, np.uint8), np.full((30, 40), 100, np.uint8)]
    cover, paint, *_, fresh = stroke(run, [(20, 15)], base=base, gamma=1, strength=0.5, size=60)
    assert (
        not fresh
        and cover[15, 20] == pytest.approx(227.5, abs=1)
        and paint[15, 20] == pytest.approx(177.5, abs=1)
    )
    assert (paint <= cover).all()
    cover, paint, *_ = stroke(run, [(20, 15)], base=base, erase=True, strength=0.5, size=60)
    assert (cover[15, 20], paint[15, 20]) == (100, 50)
    cover, paint, *_ = stroke(run, [(19, 15), (21, 15)], base=base, erase=True, strength=1, size=20)
    assert cover[15, 20] == paint[15, 20] == 0 and (cover[0] == 200).all() and (paint[0] == 100).all()


# state ------------------------------------------------------------------------------------------------------

STATE = """let now = 0;
const images = [{width: 4, height: 3}, {width: 2, height: 2}], events = [];
const values = {gammas: [0.5, 0.5], same_gamma: false, index: 0, view: [0.5, 0.5, 0]};
const s = new state.State(values, images, () => now);
for (const event of ["gamma", "view", "stroke", "map"])
  s.on(event, (...more) => events.push([event, ...more]));
const undo = forward => s.takeBack(s.nextStep(forward), forward);
const seen = map => map && [[...map.cover], [...map.paint]];
"""


def test_undo_of_gamma(run):
    """Moves within 0.7 s are one step, others their own; what was taken back can be done again,
    until a move.
    """
    body = (
        STATE
        + """
    for (const [time, g] of [[0, 0.1], [300, 0.2], [900, 0.3], [2000, 0.8], [4000, 1]]) {
      now = time;
      s.setGamma(g);
    }
    const steps = s.past.length, back = [];
    for (let i = 0; i < 3; i++) { undo(false); back.push(s.gammas[0]); }
    const none = s.nextStep(false) === undefined, again = [];
    for (let i = 0; i < 2; i++) { undo(true); again.push(s.gammas[0]); }
    now = 9000;
    s.setGamma(0.4);
    const cut = s.nextStep(true) === undefined;
    for (let i = 0; i < 300; i++) { now += 1000; s.setGamma(i / 300); }
    const only = events.every(e => e[0] === "gamma");
    return [steps, back, none, again, cut, s.past.length, s.gammas[1], only];"""
    )
    assert run(body) == [3, [0.8, 0.3, 0.5], True, [0.3, 0.8], True, 100, 0.5, True]


def test_state_of_images(run):
    body = (
        STATE
        + """
    s.setSame(true);
    s.setGamma(0.25);
    const all = [...s.gammas];
    s.addImage({width: 1, height: 1}, 0.9);
    s.setSame(false);
    s.index = 1;
    now = 5000;
    s.setGamma(0.75);
    s.addImage({width: 1, height: 1}, 0.9);
    undo(false);
    return [all, s.gammas, s.values()];"""
    )
    all_, gammas, values = run(body)
    assert all_ == [0.25, 0.25] and gammas == [
        0.25,
        0.25,
        0.25,
        0.9,
    ]  # an image that came after the move keeps its gamma
    assert values == {"gamma": 0.25, "gammas": gammas, "same_gamma": False, "index": 1, "view": [0.5, 0.5, 0]}


def test_state_refuses_what_python_would(run):
    body = (
        STATE
        + """
    const bad = [null, undefined, NaN, "0.5", -0.1, 1.1, true], out = [];
    for (const g of bad) out.push(await error(() => s.setGamma(g)));
    const views = [{x: NaN, y: 0, zoom: 1}, {x: 0, y: 0}, {x: 0, y: 0, zoom: -1}, {x: null, y: 0, zoom: 1}];
    for (const view of views) out.push(await error(() => s.setView(view)));
    s.setView({x: -3, y: 7, zoom: 2});
    return [out, s.values(), events.map(e => e[0]), s.past.length];"""
    )
    errors, values, events, steps = run(body)
    assert all("allowed: numbers from 0 to 1" in text for text in errors[:7]) and all(
        text.startswith("view=") for text in errors[7:]
    )
    assert (
        len(errors) == 11
        and values["gammas"] == [0.5, 0.5]
        and values["view"] == [0, 1, 2]
        and events == ["view"]
        and steps == 0
    )


def test_undo_of_maps(run):
    """A stroke, a second one, a clear: each taken back and done again; an emptied map is no map."""
    body = (
        STATE
        + """
    const b = new brush.Brush(s), maps = [];
    Object.assign(b, {size: 2, strength: 1, gamma: 1});
    for (const x of [0.5, 2.5]) { b.start(); b.dab(x, 1.5); b.end(); maps.push(seen(s.map)); }
    s.replaceMap(null);
    const cleared = s.map;
    undo(false);
    const back = [seen(s.map)];
    undo(false);
    back.push(seen(s.map));
    undo(false);
    const empty = s.map;
    undo(true);
    const again = [seen(s.map)];
    undo(true);
    again.push(seen(s.map));
    b.start(); b.dab(1.5, 0.5); b.drop();
    const dropped = seen(s.map);
    b.start(); b.dab(90, 90); b.end();
    const own = events.filter(e => e[0] === "map").every(e => e[1] === true);
    return [maps, cleared, back, empty, again, dropped, s.past.length, seen(s.map), own];"""
    )
    maps, cleared, back, empty, again, dropped, steps, last, own = run(body)
    assert maps[0] != maps[1] and sum(maps[0][0]) > 0 and cleared is None and empty is None and own
    assert (
        back == [maps[1], maps[0]] and again == maps and dropped == maps[1] and last == maps[1] and steps == 2
    )


def test_maps_travel(run):
    """Grey-alpha pixels both ways; a map of another image, or of Python, is told from one made here."""
    body = (
        STATE
        + """
    const map = {cover: Uint8Array.of(9, 8, 7, 6), paint: Uint8Array.of(1, 2, 3, 4)};
    const pixels = state.mapToPixels(map);
    const back = state.mapFromPicture({width: 2, height: 2, channels: 2, data: pixels});
    s.receiveMap(1, map);
    const quiet = events.length;
    s.index = 1;
    const there = seen(s.map);
    s.receiveMap(1, null);
    const grey = files.mapFromGrey({width: 2, height: 1, channels: 1, data: Uint8Array.of(0, 200)});
    const levels = [grey, null].map(m => [...files.mapToGrey(m, 0.5, 2)]);
    return [[...pixels], seen(back), quiet, there, events, s.map, seen(grey), ...levels];"""
    )
    pixels, back, quiet, there, events, gone, grey, levels, plain = run(body)
    assert pixels == [9, 1, 8, 2, 7, 3, 6, 4] and back == there == [[9, 8, 7, 6], [1, 2, 3, 4]] and quiet == 0
    assert (
        events == [["map", False]]
        and gone is None
        and grey == [[255, 255], [0, 200]]
        and levels == [0, 200]
        and plain == [128, 128]
    )


# numbers, zooms, names, timers, pictures --------------------------------------------------------------------


def test_numbers_are_those_of_python(run):
    ends, hr = pair(1, 64, 80), torch.rand(1, 3, 64, 80, generator=torch.Generator().manual_seed(9))
    explorer = Explorer(ends, hr=hr)
    pane = explorer._spec["images"][0]["panes"][0]
    lines = run(
        "return args[1].map(g => numbers.reading(args[0], g, args[2], false));", pane, GAMMAS, evaluate.EPS
    )
    for gamma, line in zip(GAMMAS, lines, strict=True):
        n = explorer.numbers(float(gamma))
        assert line == (
            f"PSNR {n['psnr']:.2f} dB (best {n['best_psnr']:.2f} at γ {n['best_gamma']:.2f}) · "
            f"ends differ by {n['difference']:.2f} of 255 · LQ consistency {n['consistency']:.2f} dB"
        )
    mapped = run(
        "return [undefined, 21.456].map(psnr => numbers.reading(args[0], 0.5, args[1], true, psnr));",
        pane,
        evaluate.EPS,
    )
    assert mapped[0] == f"ends differ by {pane['difference']:.2f} of 255"
    assert mapped[1] == f"PSNR 21.46 dB with the painted map · {mapped[0]}"
    shown, low = to_uint8(ends.blend(0.3))[0], to_uint8(hr)[0]
    rgba = np.concatenate([shown, np.full((64, 80, 1), 255, np.uint8)], 2)
    seen = run(
        "return numbers.measuredPSNR(bytes(args[0]), bytes(args[1]), args[2]);",
        b64(rgba),
        b64(low),
        evaluate.EPS,
    )
    as_tensor = [torch.from_numpy(x.astype(np.float32)).permute(2, 0, 1)[None] / 255 for x in (shown, low)]
    assert seen == pytest.approx(evaluate.score(*as_tensor, ["psnr"])["psnr"].item(), abs=2e-3)


def test_charts_zooms_and_names(run):
    points = [[0, 3], [0.2, 5], [0.7, -1], [1, 2]]
    at = [0, 0.1, 0.2, 0.5, 0.99, 1]
    values, near, levels, names, compared = run(
        """
    return [args[1].map(g => charts.valueAt(args[0], g)), [0, 0.2, 0.5, 0.8, 1].map(controls.nearTo),
    [0.2, 1, 3].map(stage.zoomLevels), ["a/b c", "../x", "Käfer"].map(files.fileName),
    [{x_L: true, hr: true}, {}].map(stage.comparable)];""",
        points,
        at,
    )
    assert values == pytest.approx(np.interp(at, *np.array(points).T).tolist())
    assert near == ["fidelity", "nearer to fidelity", "half way", "nearer to realism", "realism"]
    assert levels[0][0] == 0.2 and levels[0][1:5] == pytest.approx([0.25, 0.5**1.5, 0.5, 0.5**0.5])
    assert (
        levels[0][5:] == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
        and levels[1] == levels[0][5:]
        and levels[2] == [3, *levels[0][8:]]
    )
    assert not any("/" in name for name in names)
    assert compared == [["", "bicubic", "HR", "fidelity", "realism"], ["", "fidelity", "realism"]]


def test_timers_end_with_their_owner(run):
    body = """const t = new util.Timers(), rang = [];
    t.start("a", 5, () => rang.push("old a"));
    t.start("a", 5, () => rang.push("a"));
    t.start("b", 5, () => rang.push("b"));
    t.start("c", 40, () => rang.push("c"));
    t.stop("b");
    const running = ["a", "b", "c"].map(name => t.has(name));
    await new Promise(done => setTimeout(done, 20));
    t.free();
    t.start("d", 1, () => rang.push("d"));
    await new Promise(done => setTimeout(done, 60));
    return [running, rang, t.has("a"), t.has("c"), t.has("d")];"""
    assert run(body) == [[True, False, True], ["a"], False, False, False]


def test_pictures_are_decoded_once_and_checked(run):
    files = {f"{i}/0/{end}": b64(png(photo(6, 8) // (i + 1))) for i in range(6) for end in ("fid", "real")}
    body = """const asked = [];
    const host = {picture: async key => { asked.push(key); return bytes(args[0][key]); }};
    const p = new pictures.Pictures(host), image = {name: "x", width: 8, height: 6, panes: [{}]};
    for (const i of [0, 0, 1, 2, 3, 4, 4]) await p.endpoints(i, image);
    const once = asked.length;
    await p.endpoints(0, image);
    const [small] = await p.thumbs(1, image), [{fid}] = await p.endpoints(5, image);
    const total = asked.length, why = await error(() => p.one("0/0/fid", {...image, width: 9}));
    return [once, total, text64(fid.data), small.width, why];"""
    once, after, fid, width, why = run(body, files)
    assert (once, after, width) == (10, 16, 8) and np.array_equal(
        array(fid).reshape(6, 8, 3), photo(6, 8) // 6
    )
    assert why == "0/0/fid is 8x6; allowed: 9x6"


# the widget in a page of its own ----------------------------------------------------------------------------

WATCHED = """
const live = {timers: new Set(), frames: new Set(), observers: new Set()}, real = {};
const names = ["setTimeout", "clearTimeout", "requestAnimationFrame", "cancelAnimationFrame",
  "ResizeObserver"];
for (const name of names) {
  real[name] = name === "ResizeObserver" ? window[name] : window[name].bind(window);
}
const watch = (start, ids) => (f, ms) => {
  const id = start((...details) => { ids.delete(id); f(...details); }, ms);
  ids.add(id);
  return id;
};
window.setTimeout = watch(real.setTimeout, live.timers);
window.clearTimeout = id => { live.timers.delete(id); real.clearTimeout(id); };
window.requestAnimationFrame = watch(real.requestAnimationFrame, live.frames);
window.cancelAnimationFrame = id => { live.frames.delete(id); real.cancelAnimationFrame(id); };
window.ResizeObserver = class extends real.ResizeObserver {
  observe(box) { live.observers.add(this); super.observe(box); }
  disconnect() { live.observers.delete(this); super.disconnect(); }
};
const wait = ms => new Promise(done => real.setTimeout(done, ms));
"""
# a stand-in for anywidget's model: image 0 is sent, image 1 never is
MODEL = """
const [traits, pngs] = args, handlers = [], sent = [];
const model = {
  get: name => traits[name],
  set: (name, value) => { traits[name] = value; },
  save_changes: () => sent.push("traits"),
  on: (event, f) => handlers.push([event, f]),
  off: (event, f) => handlers.splice(handlers.findIndex(h => h[0] === event && h[1] === f), 1),
  send: content => {
    sent.push(content.kind);
    if (content.kind !== "picture" || !pngs[content.key]) return;
    const data = bytes(pngs[content.key]);
    const answer = f => f({kind: "picture", key: content.key}, [new DataView(data.buffer)]);
    Promise.resolve().then(() => handlers.filter(h => h[0] === "msg:custom").forEach(h => answer(h[1])));
  },
};
const el = document.createElement("div");
document.body.replaceChildren(el);
"""


def test_nothing_outlives_a_freed_view(chromium):
    """Timers (tell, send, measure, wait), the animation frame, the observer and every listener: gone."""
    explorer = Explorer(pair(2, 64, 80), hr=torch.rand(2, 3, 64, 80), names=["a", "b"])
    keys = [f"0/{key}" for key in explorer.pictures[0].keys(thumb=True)] + ["1/thumb_fid", "1/thumb_real"]
    files = {key: b64(explorer.pictures[int(key[0])].png(key[2:], 1)) for key in keys}
    traits = {
        name: explorer.get_state()[name]
        for name in ("_spec", "_path", "error", "gammas", "gamma", "same_gamma", "index", "view")
    }
    out = chromium(
        WATCHED
        + MODEL
        + """
      const free = hosts.default.render({model, el}), root = el.firstChild;
      await root.ifcsr.ready;
      await wait(400);
      const event = key => new KeyboardEvent("keydown", {key, bubbles: true});
      const press = key => root.querySelector(".ifcsr-stage").dispatchEvent(event(key));
      press("b");
      press("Enter");
      root.ifcsr.setGamma(0.3);
      const painted = root.ifcsr.map !== null;
      root.querySelector(".ifcsr-thumb:nth-child(2)").click();
      const early = await error(() => root.ifcsr.getPixels());
      const count = () => [live.timers.size, live.frames.size, live.observers.size, handlers.length];
      const before = count();
      free();
      const after = count(), messages = sent.length;
      press("b");
      window.dispatchEvent(new Event("resize"));
      await wait(1800);
      Object.assign(window, real);
      const status = root.querySelector(".ifcsr-status").textContent;
      return [painted, before, after, sent.length - messages, early, status];""",
        traits,
        files,
    )
    painted, before, after, later, early, status = out
    assert painted and before == [4, 1, 1, 7], before  # tell, map, measure, wait
    assert after == [0, 0, 0, 0] and later == 0 and status == ""
    assert early == "the pictures are not decoded yet; await ready first, then call getPixels"


def test_a_page_refuses_what_is_no_number(chromium):
    """null from a script, or NaN, which JSON makes null: refused with its reason; nothing moves or
    travels.
    """
    explorer = Explorer(pair(1, 64, 80))
    files = {
        f"0/{key}": b64(explorer.pictures[0].png(key, 1)) for key in explorer.pictures[0].keys(thumb=False)
    }
    traits = {
        name: explorer.get_state()[name]
        for name in ("_spec", "_path", "error", "gammas", "gamma", "same_gamma", "index", "view")
    }
    errors, state, moved = chromium(
        MODEL
        + """
      const free = hosts.default.render({model, el}), api = el.firstChild.ifcsr;
      await api.ready;
      await new Promise(done => setTimeout(done, 200));
      const count = sent.length, errors = [];
      const views = [[NaN, 0.5, 1], [null, 0.5, 1], []];
      errors.push(await error(() => api.setGamma(null)));
      for (const view of views) errors.push(await error(() => api.setView(...view)));
      await new Promise(done => setTimeout(done, 200));
      const out = [errors, api.state, sent.length - count];
      free();
      return out;""",
        traits,
        files,
    )
    assert "gamma=null; allowed" in errors[0] and all(
        text.startswith("view=") and "allowed" in text for text in errors[1:]
    )
    assert moved == 0 and state["gamma"] == 0.5 and state["view"] == [0.5, 0.5, 0]
