"""`upscale` on files: what of a photograph's file comes out again, with a model that needs no network."""

import os
import re

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

from ifcsr_lib.cli import main
from ifcsr_lib.cli.upscale import JOURNAL, output_files, upscale_folder
from ifcsr_lib.config import resolve
from ifcsr_lib.control import Endpoints
from ifcsr_lib.files.images import bleed, is_grey, on_white, read_image, upsample

RNG = np.random.default_rng(0)
TORCH = ("--backend", "torch")  # where onnxruntime is installed too, the models of these tests run
NOISE = RNG.integers(0, 256, (20, 24, 4), dtype=np.uint8)


class Tinting:
    """A model that answers every photograph with colours of its own, as a trained network does."""

    adapters, adapter = (), None

    def __init__(self, weights="0"):
        self.source, self.cfg, self.seen = {"id": "fake", "hash": weights}, resolve("smoke"), 0

    def endpoints(self, lq):
        self.seen += 1
        x = upsample(lq)
        tints = (torch.tensor(t).view(1, 3, 1, 1) for t in ((1.0, 0.9, 0.7), (0.6, 0.8, 1.0)))
        return Endpoints(*(x * t for t in tints), x)


def upscaled(image_or_path, folder, suffix="png", model=None, **how):
    """The file that `upscale_folder` makes of an image, saved as PNG, or of a file."""
    path = image_or_path
    if isinstance(path, Image.Image):
        path = folder / "source.png"
        image_or_path.save(path, **how)
    out = folder / f"upscaled.{suffix}"
    assert upscale_folder(model or Tinting(), {path: out}, 0.5) == 0
    return out


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "RGB", "RGBA", "P"])
def test_grey_in_grey_out(tmp_path, mode, suffix):
    """Also a colour file that shows only grey, which keeps its three channels."""
    grey = Image.fromarray(NOISE[..., 0])
    if mode == "I;16":
        image = Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257)
    elif mode == "RGBA":
        image = grey.convert("LA").convert("RGBA")
    else:
        image = grey.convert(mode)
    out = upscaled(image, tmp_path, suffix)
    assert bool(is_grey(read_image(out).rgb))
    one = mode in ("1", "L", "LA", "I;16") and suffix != "webp"
    assert (Image.open(out).mode in ("L", "LA", "I;16")) == one


def test_colour_stays_colour(tmp_path):
    image = Image.fromarray(NOISE[..., :3])
    assert not is_grey(read_image(upscaled(image, tmp_path)).rgb)
    almost = np.repeat(NOISE[..., :1], 3, 2)
    almost[3, 5, 2] ^= 1
    assert not is_grey(read_image(upscaled(Image.fromarray(almost), tmp_path)).rgb)


class Bicubic(Tinting):
    """Exact where the input is flat; it rings at edges, as networks do."""

    def endpoints(self, lq):
        return Endpoints(upsample(lq), upsample(lq))


def disc(colour, background, alpha=255, mode="RGBA"):
    """A disc of one colour on a transparent background that hides another."""
    y, x = np.mgrid[:24, :24] - 11.5
    inside = (x**2 + y**2 < 60)[..., None]
    image = Image.fromarray(
        np.where(inside, [*colour, alpha], [*background, 0]).astype(np.uint8).reshape(24, 24, 4)
    )
    return image.convert(mode)


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "jpg", "bmp"])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "16 bit"])
@pytest.mark.parametrize("colour, hidden", [((255,) * 3, (0,) * 3), ((128,) * 3, (255,) * 3)])
def test_what_transparency_hides_does_not_come_out(tmp_path, suffix, mode, colour, hidden):
    """A flat disc keeps its colour up to the edge, in the file and put on white, to rounding (and JPEG)."""
    image = disc(colour, hidden, mode="RGBA" if mode in ("P", "16 bit") else mode)
    source = tmp_path / ("source.tif" if mode == "16 bit" else "source.png")
    if mode == "16 bit":
        wide = np.asarray(image).astype(np.uint16) * 257
        tifffile.imwrite(source, wide, photometric="rgb", extrasamples=["unassalpha"])
    elif mode == "P":
        y = np.asarray(image)[..., 3] > 0
        palette = Image.fromarray(y.astype(np.uint8), "P")
        palette.putpalette([*hidden, *colour])
        palette.save(source, transparency=0)
    else:
        image.save(source)
    photo = read_image(upscaled(source, tmp_path, suffix, Bicubic()))
    tolerance = {"jpg": 3}.get(suffix, 0.6) / 255
    if photo.alpha is not None:
        assert (photo.rgb - colour[0] / 255).abs().max() <= tolerance, "also below alpha 0"
        assert (photo.alpha == 0).any() and (photo.alpha == 1).any()
    seen = on_white(photo.rgb, photo.alpha)
    # the darkest that the edge of a flat disc can be on white is the disc
    assert seen.min() >= colour[0] / 255 - tolerance and (seen.max() - 1).abs() <= tolerance


def test_alpha_does_not_ring(tmp_path):
    """Steps between 51 and 204: nothing outside, and monotonic across the edge."""
    pixels = NOISE.copy()
    pixels[..., 3] = np.where(np.arange(24) < 12, 51, 204)
    alpha = read_image(upscaled(Image.fromarray(pixels), tmp_path)).alpha[0, 0] * 255
    assert alpha.min().round() == 51 and alpha.max().round() == 204 and (alpha.diff(dim=1) >= 0).all()


def test_bleed_changes_only_what_cannot_be_seen():
    rgb, alpha = torch.rand(2, 3, 16, 20), torch.rand(2, 1, 16, 20).clamp(min=0.01)
    alpha[0, :, 4:9, 3:7] = 0
    out = bleed(rgb, alpha)
    seen = (alpha > 0).expand_as(rgb)
    assert torch.equal(out[seen], rgb[seen]) and torch.equal(out[1], rgb[1]) and bleed(rgb, None) is rgb
    assert torch.equal(out[0, :, 4, 5], rgb[0, :, 3, 5])
    assert torch.equal(out[0, :, 8, 4], rgb[0, :, 9, 4]), "the nearest visible pixel"
    assert torch.equal(bleed(rgb, torch.zeros_like(alpha)), rgb), "nothing is visible"


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_what_the_file_says_comes_out_again(tmp_path, monkeypatch, suffix):
    """Date and profile of a turned photograph; the place when --gps asks for it, through the command."""
    said, profile = Image.Exif(), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    said[274], said[306] = 6, "2024:05:06 07:08:09"
    said[0x8825] = {1: "N"}
    (tmp_path / "in").mkdir()
    Image.fromarray(NOISE[..., :3]).save(
        tmp_path / "in" / "a.jpg", exif=said, icc_profile=profile, dpi=(300, 300)
    )
    monkeypatch.setattr("ifcsr_lib.models.load", lambda name: Tinting())
    for options, place in (([], {}), (["--gps"], {1: "N"})):
        out = tmp_path / f"out{len(options)}"
        assert main(["upscale", str(tmp_path / "in"), str(out), "--format", suffix, *TORCH, *options]) == 0
        with Image.open(out / f"a.{suffix}") as image:
            assert image.size == (80, 96) and image.info["icc_profile"] == profile
            told = image.getexif()
            assert told[306] == said[306] and 274 not in told and dict(told.get_ifd(0x8825)) == place
        assert np.allclose(read_image(out / f"a.{suffix}").dpi, 300, atol=0.02)


def test_what_was_not_read_is_said_in_one_line_each(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ifcsr_lib.models.load", lambda name: Tinting())
    folder = tmp_path / "in"
    folder.mkdir()
    frames = [Image.fromarray(np.roll(NOISE, k, 0)) for k in (0, 1)]
    frames[0].save(folder / "a.png", save_all=True, append_images=frames[1:])
    frames[0].convert("RGB").save(folder / "b.jfif", "JPEG")
    for name in ("c.gif", "d.gif"):
        (folder / name).touch()
    assert main(["upscale", str(folder), str(tmp_path / "out"), *TORCH]) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "left out" in line and "2 .gif" in line]
    assert [line for line in said if "a.png" in line and "2 frames" in line]
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    "sources",
    [
        ["photo.jpg", "photo.png", "other.bmp"],
        ["photo.jpg", "PHOTO.webp", "Photo.tif"],
        ["a.jpg.png", "a.jpg", "a.png"],
        ["a.png.jpg", "a.png.bmp", "a.png", "a.tif"],
    ],
)
def test_photos_of_one_stem_all_live(tmp_path, monkeypatch, sources):
    """Each photo has an output that is its own, also where a file system does not tell A from a."""
    monkeypatch.setattr("ifcsr_lib.models.load", lambda name: Bicubic())
    (tmp_path / "in").mkdir()
    for level, name in enumerate(sources):
        flat = np.full((16, 16, 3), 20 * level, np.uint8)
        Image.fromarray(flat).save(tmp_path / "in" / name)
    jobs = output_files(tmp_path / "in", tmp_path / "out")
    assert len({str(p).casefold() for p in jobs.values()}) == len(sources)
    assert main(["upscale", str(tmp_path / "in"), str(tmp_path / "out"), *TORCH]) == 0
    levels = {p.name: read_image(out).rgb.mean().item() * 255 for p, out in jobs.items()}
    assert all(abs(levels[name] - 20 * level) < 1.5 for level, name in enumerate(sources))
    assert "other.bmp" not in sources or jobs[tmp_path / "in" / "other.bmp"].name == "other.png"


class Stopping(Tinting):
    """Ctrl-C arrives while it works on photo number n; kill leaves the same files."""

    def __init__(self, n):
        super().__init__()
        self.n = n

    def endpoints(self, lq):
        if self.seen == self.n:
            raise KeyboardInterrupt
        return super().endpoints(lq)


@pytest.fixture
def folder_run(tmp_path, monkeypatch):
    """(IN with four photographs, OUT, run): run(model, *options) gives the exit code, or the error's."""
    for k in range(4):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(np.roll(NOISE, k, 0)).save(tmp_path / "in" / f"{k}.png")

    def run(model, *options):
        monkeypatch.setattr("ifcsr_lib.models.load", lambda name: model)
        return main(["upscale", str(tmp_path / "in"), str(tmp_path / "out"), *TORCH, *options])

    return tmp_path / "in", tmp_path / "out", run


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp"])
def test_a_stopped_folder_goes_on(folder_run, capsys, suffix):
    """The two photographs that were finished are not made again, and the rest is as of one run."""
    _, out, run = folder_run
    assert run(Stopping(2), "--format", suffix) == 130 and len(list(out.glob("[0-9]*"))) == 2
    capsys.readouterr()
    assert run(model := Tinting(), "--format", suffix) == 0 and model.seen == 2
    said = capsys.readouterr()
    assert "2 of 4 photos were done" in said.err and "2 of 4 photos written" in said.out
    files = {p.name: p.read_bytes() for p in out.glob("[0-9]*")}
    assert run(model := Tinting(), "--format", suffix) == 0 and model.seen == 0
    assert run(model := Tinting(), "--format", suffix, "--overwrite") == 0 and model.seen == 4
    assert files == {p.name: p.read_bytes() for p in out.glob("[0-9]*")} and len(files) == 4


@pytest.mark.parametrize(
    "change",
    [
        "gamma",
        "tile",
        "gps",
        "model",
        "weights",
        "config",
        "photo",
        "cut output",
        "other output",
        "no journal",
    ],
)
def test_only_whole_files_of_the_same_settings_are_skipped(folder_run, capsys, change):
    source, out, run = folder_run
    assert run(Stopping(2)) == 130
    options = {
        "gamma": ["--gamma", "0.3"],
        "tile": ["--tile", "512"],
        "gps": ["--gps"],
        "model": ["--model", "x"],
    }
    model = Tinting("1") if change == "weights" else Tinting()
    if change == "config":
        model.cfg = model.cfg.replace(colour_fix="adain" if model.cfg.colour_fix == "none" else "none")
    if change == "photo":
        Image.fromarray(NOISE[::-1]).save(source / "0.png")
    elif change == "cut output":
        (out / "0.png").write_bytes((out / "0.png").read_bytes()[:-9])
    elif change == "other output":
        (out / "0.png").write_bytes((out / "1.png").read_bytes())
    elif change == "no journal":
        (out / JOURNAL).unlink()
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert run(model, *options.get(change, [])) == 2 and model.seen == 0
    assert re.search("outputs exist and are .*; pass --overwrite or another OUT", capsys.readouterr().err)
    assert before == {p.name: p.read_bytes() for p in out.iterdir()}


def test_a_kill_between_journal_and_file_or_within_a_line(folder_run):
    """A record without its file counts for nothing; a line cut short hides neither its neighbours."""
    _, out, run = folder_run
    assert run(Stopping(2)) == 130
    (out / "1.png").unlink()
    with open(out / JOURNAL, "ab") as file:
        file.write(b'\n{"file": "2.pn')
    assert run(model := Tinting()) == 0 and model.seen == 3
    assert run(model := Tinting()) == 0 and model.seen == 0


def test_one_photo_leaves_no_journal_and_a_new_photo_joins_the_folder(folder_run, tmp_path):
    source, _, run = folder_run
    assert run(Tinting()) == 0
    Image.fromarray(NOISE[::-1]).save(source / "new.png")
    assert run(model := Tinting()) == 0 and model.seen == 1
    assert main(["upscale", str(source / "new.png"), str(tmp_path / "one.png"), *TORCH]) == 0
    assert not (tmp_path / JOURNAL).exists()
    assert main(["upscale", str(source / "new.png"), str(tmp_path / "one.png"), *TORCH]) == 2


def test_outputs_in_the_photos_own_folder_are_no_photos(tmp_path, monkeypatch, capsys):
    """IN is OUT: a second run would take what the first one made for photographs, and a third one that, 64
    times as large. A photo that replaced an output is one.
    """
    monkeypatch.setattr("ifcsr_lib.models.load", lambda name: Tinting())
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(NOISE[..., :3]).save(folder / name)
    argv = ["upscale", str(folder), str(folder), *TORCH]
    for options in ([], [], ["--overwrite"]):
        assert main([*argv, *options]) == 0
        assert sorted(p.name for p in folder.glob("[a-z]*")) == ["a.jpg", "a.png", "b.jpg", "b.png"]
    assert "left out 2 pictures that upscale made" in capsys.readouterr().err
    Image.fromarray(NOISE).save(folder / "b.png")
    assert main([*argv, "--overwrite"]) == 0
    assert read_image(folder / "b.png.png").rgb.shape[2:] == (80, 96)
    for name in ("a.jpg", "b.jpg", "b.png"):
        (folder / name).unlink()
    capsys.readouterr()
    assert main(argv) == 2 and "no images but those that upscale made" in capsys.readouterr().err


def test_two_runs_into_one_folder(folder_run, tmp_path, capsys):
    """The other run, of another gamma, is faster with one photograph: its file stays, and that is said."""
    _, out, run = folder_run

    class Late(Tinting):
        def endpoints(self, lq):
            if self.seen == 1:
                (out / "1.png").write_bytes(b"of the other run")
            return super().endpoints(lq)

    assert run(Late()) == 1
    said = capsys.readouterr()
    assert "1.png was written by another program meanwhile" in said.err and "3 of 4 photos" in said.out
    assert (out / "1.png").read_bytes() == b"of the other run"
    assert run(Late(), "--overwrite") == 0 and (out / "1.png").read_bytes() != b"of the other run"


@pytest.mark.parametrize("name", ["x" * 250, "\u00e9" * 125])
def test_a_name_too_long_is_told_before_the_work(tmp_path, monkeypatch, capsys, name):
    """photo.png and photo.jpg become photo.png.png and photo.jpg.png: 4 bytes more than a name may have."""
    monkeypatch.setattr("ifcsr_lib.models.load", lambda name: pytest.fail("a model was loaded"))
    (tmp_path / "in").mkdir()
    for suffix in ("png", "jpg"):
        Image.fromarray(NOISE[..., :3]).save(tmp_path / "in" / f"{name}.{suffix}")
    assert main(["upscale", str(tmp_path / "in"), str(tmp_path / "out"), *TORCH]) == 2
    assert "allowed: 255. Give its photo a shorter name" in capsys.readouterr().err


@pytest.mark.parametrize("suffix, side", [("webp", 4096), ("jpg", 16376)])
def test_a_side_too_long_for_the_format_costs_no_work(tmp_path, capsys, suffix, side):
    """A long narrow one, and the largest that still fits."""
    jobs, model = {}, Bicubic()
    for name, width in (("long", side), ("fits", side - 1)):
        Image.new("L", (width, 16)).save(tmp_path / f"{name}.png")
        jobs[tmp_path / f"{name}.png"] = tmp_path / f"{name}.{suffix}"
    seen, own = [], model.endpoints
    model.endpoints = lambda lq: seen.append(lq.shape[-1]) or own(lq)
    assert upscale_folder(model, jobs, 0.5) == 1 and seen == [side - 1]
    assert f"would be {4 * side}x64 pixels" in capsys.readouterr().err
    with Image.open(tmp_path / f"fits.{suffix}") as image:
        assert image.size == (4 * side - 4, 64)


@pytest.mark.skipif(os.name != "posix", reason="needs links, pipes and devices")
@pytest.mark.parametrize(
    "out, words",
    [
        (os.devnull, "is a device, not a folder"),
        ("/dev/full", "is a device, not a folder"),
        ("nowhere", "is a link that leads nowhere, not a folder"),
        ("circle/x.png", "is a link that leads nowhere, not a folder"),
        ("file/x.png", "is a file, not a folder"),
        ("pipe.png", "is a pipe, which is never replaced"),
    ],
)
def test_places_that_take_no_picture(tmp_path, monkeypatch, capsys, out, words):
    """Each in a line that names the place, before a model loads; none of them is replaced."""
    monkeypatch.setattr("ifcsr_lib.models.load", lambda name: pytest.fail("a model was loaded"))
    Image.fromarray(NOISE[..., :3]).save(tmp_path / "a.png")
    (tmp_path / "nowhere").symlink_to("none")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe.png")
    before = sorted(p.name for p in tmp_path.iterdir())
    assert main(["upscale", str(tmp_path / "a.png"), str(tmp_path / out), "--overwrite", *TORCH]) == 2
    said = capsys.readouterr().err
    assert words in said and str(tmp_path / out).removesuffix("/x.png") in said and said.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == before and (tmp_path / "pipe.png").is_fifo()


def test_an_output_that_is_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "upscaled.png").symlink_to("disk/large.png")
    out = upscaled(Image.fromarray(NOISE), tmp_path)
    assert out.is_symlink() and read_image(tmp_path / "disk" / "large.png").rgb.shape[2:] == (80, 96)


@pytest.mark.parametrize(
    "line", [b"[]", b"3", b'{"file": "0.png"}', b'{"file": "0.png", "settings": [1]}', b"[" * 10**5, b"\xff"]
)
def test_a_journal_of_another_version(folder_run, line):
    """Lines of another form count for nothing; the files that they name are not taken for ours."""
    _, out, run = folder_run
    assert run(Stopping(2)) == 130
    with open(out / JOURNAL, "ab") as file:
        file.write(b"\n" + line + b"\n")
    assert run(model := Tinting()) == 0 and model.seen == 2
