"""The photo path without torch: equal to torch's, complete, and refused where the export is stale."""

import base64
import dataclasses
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.io import decode_png

from ifcsr_lib import images, lite, models
from ifcsr_lib.cli import main
from ifcsr_lib.config import ROOT
from ifcsr_lib.control import Endpoints, adain
from ifcsr_lib.explorer import Explorer
from ifcsr_lib.files import pixels, portable
from ifcsr_lib.lite import model as lite_model
from ifcsr_lib.lite import page, tiling, weights
from ifcsr_lib.nets import tiling as torch_tiling

RNG = np.random.default_rng(0)
needs_runtime = pytest.mark.skipif(bool(lite.missing("pocket")), reason=lite.missing("pocket"))


def picture(h: int, w: int, n: int = 1) -> np.ndarray:
    """Something between noise and flat, (n, 3, h, w) float32 in [0, 1]."""
    coarse = RNG.random((n, 3, h // 4 + 1, w // 4 + 1), np.float32).repeat(4, 2).repeat(4, 3)[..., :h, :w]
    return np.ascontiguousarray(0.7 * coarse + 0.3 * RNG.random((n, 3, h, w), np.float32))


def tensor(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.copy())


# the parts, with torch's beside them ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["upsample", "upsample_alpha"])
@pytest.mark.parametrize("h, w", [(16, 16), (17, 31), (1, 5)])
@pytest.mark.parametrize("scale", [2, 4])
def test_enlarging_is_torchs(name, h, w, scale):
    x = picture(h, w, 2)
    ours, theirs = getattr(pixels, name)(x, scale), getattr(images, name)(tensor(x), scale).numpy()
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < 1e-6


@pytest.mark.parametrize(
    "side, tile, overlap", [(64, 64, 32), (200, 128, 64), (1000, 256, 64), (150, 128, 64)]
)
def test_windows_are_those_of_torch(side, tile, overlap):
    ours, theirs = tiling.windows(side, tile, overlap), torch_tiling.windows(side, tile, overlap)
    assert [start for start, _ in ours] == [start for start, _ in theirs]
    for (_, u), (_, v) in zip(ours, theirs, strict=True):
        assert u.dtype == np.float32 and np.abs(u - v.numpy()).max() < 1e-6


def test_tiles_are_those_of_torch():
    x = picture(200, 330, 2)

    def twice(x):  # not the same in a tile as in the whole, so that the places and weights show
        return x * x.mean(), 1 - x * x.mean()

    ours, theirs = (m.tiled(twice, y, 128, 64, 16, 2) for m, y in ((tiling, x), (torch_tiling, tensor(x))))
    assert len(ours) == 2
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(a - b.numpy()).max() < 1e-5
    with pytest.raises(ValueError, match="multiples of 48"):
        tiling.tiled(twice, x, 128, 64, 48, 2)


def test_colour_fix_grey_and_blend_are_torchs():
    x, y = picture(40, 52, 2), picture(40, 52, 2)
    assert np.abs(lite_model.adain(x, y) - adain(tensor(x), tensor(y)).numpy()).max() < 1e-5
    assert np.array_equal(pixels.to_grey(x), images.to_grey(tensor(x)).numpy())
    x[1] = x[1, :1]
    assert pixels.is_grey(x).tolist() == images.is_grey(tensor(x)).tolist() == [False, True]
    for gamma in (0.0, 0.3, 0.5, 0.8, 1.0):
        theirs = Endpoints(tensor(x), tensor(y)).blend(gamma).numpy()
        assert np.abs(lite.Pair(x, y).blend(gamma) - theirs).max() < 1e-6
    assert np.array_equal(lite.Pair(x, y).blend(0.0), x) and np.array_equal(lite.Pair(x, y).blend(1.0), y)
    with pytest.raises(ValueError, match="gamma=1.5"):
        lite.Pair(x, y).blend(1.5)


@pytest.mark.parametrize("h, w, low", [(16, 20, (5, 7)), (120, 90, (96, 72)), (64, 64, (16, 16))])
def test_shrinking_is_torchs(h, w, low):
    x = picture(h, w)
    theirs = F.interpolate(tensor(x), size=low, mode="area").numpy()
    assert np.abs(page.shrunk(x, *low) - theirs).max() < 1e-6


def test_weights_are_read_and_merged_as_by_torch():
    """Every layer of the UNet with an adapter in it, from the shipped files, beside peft's own merge."""
    net = models.load("pocket", "cpu")
    unet, _ = weights.read(lite_model.POCKET / "unet" / "diffusion_pytorch_model.safetensors")
    lora, _ = weights.read(lite_model.POCKET / "adapters" / "realism.safetensors")
    ours = weights.merged(unet, lora, net.cfg.lora_alpha / net.cfg.rank)
    net.unet.set_adapter("realism")
    changed = 0
    for name, layer in net.unet.named_modules():
        if hasattr(layer, "get_delta_weight"):
            delta = layer.get_delta_weight("realism").detach().numpy()
            theirs = layer.base_layer.weight.detach().numpy() + delta
            assert np.abs(ours[f"{name}.weight"] - theirs).max() < 1e-6, name
            changed += bool(np.abs(delta).max() > 0)
    assert changed > 30 and set(ours) == set(unet)
    with pytest.raises(ValueError, match="two models"):
        weights.merged({}, lora, 1.0)


def test_damaged_weights_are_refused_in_a_sentence(tmp_path):
    bad = tmp_path / "a.safetensors"
    for data in (b"", b"\xff" * 40, b"\x02" + bytes(7) + b"[]", b"\x10" + bytes(7) + b'{"x":{"dtype":1}}'):
        bad.write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.safetensors is damaged.*Get it again"):
            weights.read(bad)


# files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", range(5))
def test_png_of_16_bit_without_torch(channels, kind):
    """Every filter, the first row and column too, against libpng."""
    import struct
    import zlib

    wanted = RNG.integers(0, 65536, (7, 9, channels), np.uint16)
    step, raw = 2 * channels, wanted.astype(">u2").view(np.uint8).reshape(7, -1).astype(int)
    a = np.pad(raw, ((0, 0), (step, 0)))[:, :-step]
    b = np.pad(raw, ((1, 0), (0, 0)))[:-1]
    c = np.pad(raw, ((1, 0), (step, 0)))[:-1, :-step]
    p = a + b - c
    near = [abs(p - v) for v in (a, b, c)]
    paeth = np.where((near[0] <= near[1]) & (near[0] <= near[2]), a, np.where(near[1] <= near[2], b, c))
    lines = (raw - (np.zeros_like(a), a, b, (a + b) // 2, paeth)[kind]) % 256
    body = np.insert(lines, 0, kind, 1).astype(np.uint8).tobytes()

    def chunk(tag, data):
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    head = struct.pack(">IIBBBBB", 9, 7, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    packed = zlib.compress(body)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)  # two IDATs, as most programs write
    png += chunk(b"IDAT", packed[:20]) + chunk(b"IDAT", packed[20:]) + chunk(b"IEND", b"")
    theirs = decode_png(torch.frombuffer(bytearray(png), dtype=torch.uint8)).permute(1, 2, 0).numpy()
    assert np.array_equal(theirs, wanted) and np.array_equal(pixels._inflated(png), wanted)
    with pytest.raises(ValueError, match="damaged"):
        pixels._inflated(png.replace(packed[20:], bytes(len(packed) - 20)))


def test_colours_run_on_below_transparency_without_scipy():
    """Flooding finds the nearest pixel as scipy does, but for a few that are nearly so."""
    hidden = RNG.random((60, 75)) > 0.02
    y, x = np.mgrid[:60, :75]
    (y1, x1), (y2, x2) = pixels._flooded(hidden), pixels._nearest(hidden)
    ours, best = (np.hypot(a - y, b - x) for a, b in ((y1, x1), (y2, x2)))
    assert not hidden[y1, x1].any()
    assert (ours > best + 1e-9).mean() < 0.01 and (ours - best).max() < 2


@pytest.mark.parametrize("n", [1, 2])
def test_the_page_is_the_explorers(n):
    """In what it says of the images, and in its numbers but for rounding."""
    x_fid, x_real, x_L = (picture(96, 132, n) for _ in range(3))
    made, names = {"model": "m", "hash": "h"}, [f"photo {i}" for i in range(n)]
    ours = page.Page(lite.Pair(x_fid, x_real, x_L), made, 0.25, names)
    ends = Endpoints(*map(tensor, (x_fid, x_real, x_L)))
    theirs = Explorer(ends, names=names, model=made, gamma=0.25)
    spec = theirs._spec
    for a, b in zip(ours.images, spec["images"], strict=True):
        (one,), (other,) = a.pop("panes"), b["panes"]
        assert a == {k: v for k, v in b.items() if k != "panes"} and set(one) == set(other)
        assert one.pop("difference") == pytest.approx(other["difference"], rel=1e-5)
        assert one.pop("consistency") == pytest.approx(other["consistency"], rel=1e-4)
        assert all(other[key] == value for key, value in one.items())
        a["panes"] = [one]


@pytest.mark.parametrize("n", [1, 2])
def test_a_pair_becomes_the_same_page(tmp_path, n):
    ends = Endpoints(*(tensor(picture(96, 132, n)) for _ in range(3)))
    pair = ends.save(tmp_path / "p.ifcsr.zip", gamma=0.75)
    assert main(["explore", str(pair), "--no-open", "--out", str(tmp_path / "ours.html")]) == 0
    read = Endpoints.load(pair)
    Explorer(read, names=["p"] if n == 1 else ["p 0", "p 1"]).save_html(tmp_path / "theirs.html")
    ours, theirs = (_data(tmp_path / f"{name}.html") for name in ("ours", "theirs"))
    assert set(ours["pictures"]) == set(theirs["pictures"]) and ours["state"] == theirs["state"]
    for key, png in theirs["pictures"].items():  # byte for byte but for thumbnails, which are rounded means
        a, b = (pixels.decode_image(base64.b64decode(x), key).rgb for x in (ours["pictures"][key], png))
        assert ours["pictures"][key] == png or ("thumb" in key and np.abs(a - b).max() < 1.001 / 255)
    for part in (ours, theirs):
        for image in part["spec"]["images"]:
            for pane in image["panes"]:
                del pane["difference"], pane["consistency"]
    assert ours["spec"] == theirs["spec"]


def _data(path) -> dict:
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="ifcsr-data">(.*?)</script>', text, re.DOTALL)[1])


# the model --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both():
    return lite.load("pocket"), models.load("pocket", "cpu")


@needs_runtime
@pytest.mark.parametrize("h, w", [(16, 16), (33, 47), (50, 21), (64, 64)])
@pytest.mark.parametrize("colour_fix", ["none", "adain"])
def test_parity_with_torch(both, h, w, colour_fix):
    ours, theirs = both
    x = picture(h, w)
    a, b = ours.endpoints(x, colour_fix), theirs.endpoints(tensor(x), colour_fix)
    for end in ("x_fid", "x_real", "x_L"):
        one, other = getattr(a, end), getattr(b, end).numpy()
        assert one.shape == other.shape and np.abs(one - other).max() < 1e-4, end
    assert np.abs(a.x_fid - a.x_real).max() > 0.01  # two adapters


@needs_runtime
def test_parity_with_torch_in_tiles_and_in_grey(both, monkeypatch):
    x = picture(45, 70)
    for m in both:
        monkeypatch.setattr(m, "cfg", m.cfg.replace(tile=128, tile_overlap=64))
    whole = both[0].endpoints(x)
    for lq in (x, np.repeat(x[:, :1], 3, 1)):
        a, b = both[0].endpoints(lq), both[1].endpoints(tensor(lq))
        for end in ("x_fid", "x_real"):
            assert np.abs(getattr(a, end) - getattr(b, end).numpy()).max() < 1e-4
        assert pixels.is_grey(a.x_fid).all() == (lq is not x)
    monkeypatch.setattr(both[0], "cfg", both[0].cfg.replace(tile=1024, tile_overlap=256))
    assert np.abs(both[0].endpoints(x).x_fid - whole.x_fid).max() > 0  # the tiles were used


@needs_runtime
def test_it_says_what_torch_says_of_itself(both):
    assert portable.describe(both[0]) == portable.describe(both[1])


@needs_runtime
def test_wrong_input_is_refused(both):
    with pytest.raises(TypeError, match="float64"):
        both[0].endpoints(picture(16, 16).astype(np.float64))
    with pytest.raises(ValueError, match="15x16"):
        both[0].endpoints(picture(16, 15))
    with pytest.raises(ValueError, match="colour_fix"):
        both[0].endpoints(picture(16, 16), "wavelet")


BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError("blocked", name=name.partition(".")[0])

sys.meta_path.insert(0, Blocker())
from ifcsr_lib.cli import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(code)
"""
HEAVY = [
    "torch",
    "torchvision",
    "diffusers",
    "peft",
    "transformers",
    "scipy",
    "pandas",
    "skimage",
    "anywidget",
]
HEAVY += ["traitlets", "safetensors", "cv2", "matplotlib", "sklearn"]


@needs_runtime
@pytest.mark.parametrize("kind", ["rgb", "rgb16", "grey", "alpha"])
def test_upscale_and_explore_without_torch(tmp_path, kind):
    """A process that cannot import torch writes what this one writes with it, within a level."""
    x = picture(24, 30)
    photo = pixels.Photo(x, bits=16 if kind == "rgb16" else 8, grey=kind == "grey")
    if kind == "alpha":
        alpha = np.ones((1, 1, 24, 30), np.float32)
        alpha[..., :8] = 0.5
        photo = dataclasses.replace(photo, alpha=alpha)
    source = tmp_path / "in.png"
    source.write_bytes(pixels.encode_image(photo, source))

    def run(*argv):
        code = BLOCKED.format(blocked=HEAVY)
        command = [sys.executable, "-c", code, *map(str, argv)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    done = run("upscale", source, tmp_path / "onnx.png")
    assert done.returncode == 0, done.stderr
    assert main(["upscale", str(source), str(tmp_path / "torch.png"), "--backend", "torch"]) == 0
    ours, theirs = (images.read_image(tmp_path / f"{name}.png") for name in ("onnx", "torch"))
    assert ours.rgb.shape == (1, 3, 96, 120) and (ours.grey, ours.bits) == (theirs.grey, theirs.bits)
    assert (ours.rgb - theirs.rgb).abs().max() <= 1.001 / 255
    assert kind != "alpha" or (ours.alpha - theirs.alpha).abs().max() <= 1.001 / 255
    if kind == "rgb":
        done = run("explore", source, "--no-open", "--out", tmp_path / "page.html")
        assert done.returncode == 0, done.stderr
        spec = _data(tmp_path / "page.html")["spec"]
        assert spec["images"][0]["width"] == 120 and "pocket" in spec["images"][0]["panes"][0]["model"]
        done = run("upscale", source, tmp_path / "x.png", "--backend", "torch")
        assert done.returncode == 2 and "'torch' is missing" in done.stderr


# which one runs ---------------------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the shipped model, taken for it."""
    folder = tmp_path / "pocket"
    shutil.copytree(lite_model.POCKET, folder)
    monkeypatch.setitem(lite_model.SHIPPED, "pocket", folder)
    return folder


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "onnx/decoder.onnx"])
def test_a_stale_export_is_refused(copied, name, capsys, tmp_path):
    assert lite.stale("pocket") == ""
    with open(copied / name, "ab") as file:
        file.write(b"\0")
    assert "export is stale" in lite.stale("pocket") and "export_onnx.py" in lite.stale("pocket")
    (tmp_path / "a.png").write_bytes(pixels.encode_png(picture(16, 16)))
    argv = ["upscale", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--backend", "onnx"]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert "error: --backend onnx: " in said and said.count("\n") == 1
    assert ("stale" in said) or ("onnxruntime is not installed" in said)


def test_an_export_that_is_not_there_is_told(copied):
    shutil.rmtree(copied / "onnx")
    assert "export.json is missing" in lite.stale("pocket")
    assert "only shipped models" in lite.missing("some/model") and lite.stale("some/model") == ""


def test_the_repositorys_export_is_fresh():
    assert lite.stale("pocket") == ""
    total = sum(p.stat().st_size for p in lite_model.POCKET.rglob("*") if p.is_file())
    assert total < 60e6
