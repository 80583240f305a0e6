"""The command line: folders through a real (tiny, random) model, exit codes, refusals, and nothing
half-written.
"""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image

from ifcsr_lib import __version__
from ifcsr_lib.cli import main
from ifcsr_lib.cli.options import setting
from ifcsr_lib.cli.upscale import JOURNAL, output_files, upscale_folder
from ifcsr_lib.config import RECIPES, ROOT, resolve
from ifcsr_lib.control import Endpoints
from ifcsr_lib.files.images import read_image, to_tensor, upsample, upsample_alpha, write_image


class Bicubic:
    """A model without a network: bicubic as the fidelity end, its half as the realism end."""

    def endpoints(self, lq):
        return Endpoints(upsample(lq), upsample(lq) / 2)


@pytest.fixture
def photos(tmp_path):
    """a.png (RGBA), b.tif (16 bit), c.jpg (grey) and d.png (damaged), 16x20 pixels."""
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (16, 20, 4), dtype=np.uint8)).save(folder / "a.png")
    tifffile.imwrite(
        folder / "b.tif", rng.integers(0, 65536, (16, 20, 3), dtype=np.uint16), photometric="rgb"
    )
    Image.fromarray(rng.integers(0, 256, (16, 20), dtype=np.uint8)).save(folder / "c.jpg")
    (folder / "d.png").write_bytes((folder / "a.png").read_bytes()[:400])
    return folder


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def usage(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in argv])
    assert stop.value.code == 2
    return capsys.readouterr().err


def error(argv, capsys):
    """The one line that the command prints with exit code 2."""
    assert main([str(a) for a in argv]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1 and "Traceback" not in text
    return text


def test_folder_through_a_real_model(photos, tmp_path, tiny_backbone, capsys):
    """One broken file is told and skipped (exit 1); the others are written whole, at x4, with alpha and bit
    depth.
    """
    out = tmp_path / "out"
    assert main(["upscale", str(photos), str(out), "--gamma", "0.25", "--model", str(tiny_backbone)]) == 1
    said = capsys.readouterr()
    assert "d.png cannot be read" in said.err and "Traceback" not in said.err and "3 of 4 photos" in said.out
    assert names(out) == [JOURNAL, "a.png", "b.png", "c.png"]
    a, b, c = (read_image(out / n) for n in names(out)[1:])
    assert a.rgb.shape == b.rgb.shape == c.rgb.shape == (1, 3, 64, 80)
    assert (a.bits, b.bits, c.bits) == (8, 16, 8) and b.alpha is None and c.alpha is None
    alpha = upsample_alpha(read_image(photos / "a.png").alpha)
    assert (a.alpha - alpha).abs().max() <= 0.5 / 255 + 1e-6
    assert "3 of 4 outputs exist" in error(["upscale", photos, out, "--model", "none-such"], capsys)


def test_a_large_photo_in_tiles(photos, tmp_path, tiny_backbone, capsys):
    """--tile 64 is too small to overlap, 128 works and gives the same size."""
    photo, out = tmp_path / "wide.png", tmp_path / "wide_x4.png"
    write_image(torch.rand(1, 3, 40, 50, generator=torch.Generator().manual_seed(0)), photo)
    argv = ["upscale", str(photo), str(out), "--model", str(tiny_backbone)]
    assert "multiples of 64" in error([*argv, "--tile", "64"], capsys)
    assert main([*argv, "--tile", "128"]) == 0 and read_image(out).rgb.shape == (1, 3, 160, 200)
    tiled = read_image(out).rgb
    assert main([*argv, "--tile", "0", "--overwrite"]) == 0
    # norms see tiles: another answer, so the option did something
    assert not torch.equal(read_image(out).rgb, tiled)


def test_gamma_blends_the_ends(photos, tmp_path):
    """Pixels are (1 - gamma) x_fid + gamma x_real, to 16-bit rounding."""
    assert upscale_folder(Bicubic(), {photos / "b.tif": tmp_path / "b.tif"}, 0.25) == 0
    expected = upsample(read_image(photos / "b.tif").rgb) * (0.75 + 0.125)
    assert (read_image(tmp_path / "b.tif").rgb - expected).abs().max() <= 0.5 / 65535 + 1e-6


def test_tiny_image_is_skipped_by_name(tmp_path, capsys):
    write_image(torch.rand(1, 3, 15, 40), tmp_path / "small.png")
    assert upscale_folder(Bicubic(), {tmp_path / "small.png": tmp_path / "out.png"}, 0.5) == 1
    said = capsys.readouterr().err
    assert "small.png is 40x15 pixels; allowed: 16 or more" in said and not (tmp_path / "out.png").exists()


def test_full_disk_stops_with_one_error_and_no_remains(photos, tmp_path, monkeypatch):
    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    (tmp_path / "out").mkdir()
    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="no disk space"):
        upscale_folder(
            Bicubic(), {photos / n: tmp_path / "out" / f"{n}.png" for n in ("a.png", "c.jpg")}, 0.5
        )
    assert names(tmp_path / "out") == []


def test_output_files_are_named_after_the_photos(photos, tmp_path):
    for p in ("d.png", "b.tif"):
        (photos / p).unlink()
    out = tmp_path / "new"
    assert [p.name for p in output_files(photos, out).values()] == ["a.png", "c.png"]
    assert [p.name for p in output_files(photos, out, "webp").values()] == ["a.webp", "c.webp"]
    assert output_files(photos / "c.jpg", out) == {photos / "c.jpg": out / "c.png"}
    assert output_files(photos / "c.jpg", tmp_path / "x.bmp") == {photos / "c.jpg": tmp_path / "x.bmp"}
    assert output_files(photos / "c.jpg", tmp_path / "x.jpeg", "jpg") == {
        photos / "c.jpg": tmp_path / "x.jpeg"
    }
    assert output_files(photos / "c.jpg", photos) == {photos / "c.jpg": photos / "c.png"}
    assert not out.exists()


def test_it_refuses_before_a_model_loads(photos, tmp_path, capsys):
    """The model does not exist: had it been asked for, its error would show."""
    (tmp_path / "empty").mkdir()
    (photos / "d.png").unlink()
    new = tmp_path / "new"

    def refuse(*argv):
        return error(["upscale", *argv, "--model", tmp_path / "no-model"], capsys)

    assert "does not exist; pass an image" in refuse(tmp_path / "nowhere", new)
    assert "has no images" in refuse(tmp_path / "empty", new)
    assert "is a folder and" in refuse(photos, tmp_path / "x.png")
    assert "suffix '.gif' is unknown" in refuse(photos / "c.jpg", tmp_path / "x.gif")
    assert "contradicts" in refuse(photos / "c.jpg", tmp_path / "x.png", "--format", "jpg")
    assert "would be replaced" in refuse(photos, photos, "--overwrite")
    assert "would be replaced" in refuse(photos / "a.png", photos / "a.png", "--overwrite")
    assert not new.exists()
    assert "no-model" in refuse(photos / "c.jpg", new)


@pytest.mark.parametrize("gamma", ["1.5", "-0.1", "nan", "inf", "half", ""])
def test_gamma_is_checked_first(gamma, capsys):
    text = usage(["upscale", "nowhere", "out", f"--gamma={gamma}"], capsys)
    assert f"{gamma!r}; allowed: a number from 0 (fidelity) to 1 (realism)" in text


def test_unwritable_folder(photos, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in error(["upscale", photos / "a.png", tmp_path / "file" / "x.png"], capsys)
    if getattr(os, "geteuid", int)():  # root may write anywhere
        (tmp_path / "closed").mkdir(mode=0o555)
        assert "not writable" in error(["upscale", photos / "a.png", tmp_path / "closed"], capsys)


def test_evaluate_prints_and_writes_the_table(tmp_path, capsys):
    """PSNR of a known constant error: grey +10 levels is 10/255 * 219/255 in studio-range luma, 29.45 dB (to
    1e-3).
    """
    for folder, level in (("sr", 110), ("hr", 100)):
        (tmp_path / folder).mkdir()
        for name in ("one", "two"):
            grey = to_tensor(np.full((32, 40, 3), level, np.uint8))
            write_image(grey, tmp_path / folder / f"{name}.{'png' if folder == 'sr' else 'bmp'}")
    table = tmp_path / "t.csv"
    argv = ["evaluate", tmp_path / "sr", tmp_path / "hr", "--metrics", "psnr"]
    assert main([str(a) for a in [*argv, "--out", table]]) == 0
    df = pd.read_csv(table, index_col="image")
    assert list(df.index) == ["one", "two"]
    assert np.allclose(df["psnr"], -20 * np.log10(10 / 255 * 219 / 255), atol=1e-3)
    said = capsys.readouterr().out
    assert "mean of 2 images" in said and "higher is better" in said
    (tmp_path / "hr" / "two.bmp").unlink()
    assert "no reference for 1 of 2 images" in error(argv, capsys)
    assert "unknown" in error([*argv[:-1], "pnsr"], capsys)
    assert ".csv" in error([*argv, "--out", tmp_path / "t.png"], capsys)


def test_evaluate_never_takes_another_photo_s_reference(tmp_path, capsys):
    """photo.jpg and photo.png are scored against their own reference, and the table names them apart."""
    for folder, error_ in (("sr", 10), ("hr", 0)):
        (tmp_path / folder).mkdir()
        for name, level in (("photo.bmp", 60), ("photo.png", 160)):
            write_image(to_tensor(np.full((32, 40, 3), level + error_, np.uint8)), tmp_path / folder / name)
    table, argv = tmp_path / "t.csv", ["evaluate", tmp_path / "sr", tmp_path / "hr", "--metrics", "psnr"]
    assert main([str(a) for a in [*argv, "--out", table]]) == 0
    df = pd.read_csv(table, index_col="image")
    assert list(df.index) == ["photo.bmp", "photo.png"]
    assert np.allclose(df["psnr"], -20 * np.log10(10 / 255 * 219 / 255), atol=1e-3)
    (tmp_path / "hr" / "photo.bmp").rename(tmp_path / "hr" / "photo.tif")
    (tmp_path / "hr" / "photo.png").rename(tmp_path / "hr" / "photo.webp")
    capsys.readouterr()
    assert "give partners the same full name" in error(argv, capsys)


def test_a_tilde_is_the_home_folder(photos, tmp_path, tiny_backbone, monkeypatch, capsys):
    """Python gets "~" where no shell has expanded it: in quotes, in NAME=~/x, from another program."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("IFCSR_CACHE", "~/cache")
    monkeypatch.setenv("IFCSR_RESULTS", "~/results")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(tiny_backbone)
    assert main(["upscale", "~/in/a.png", "~/out/a.png", "--model", "~/model"]) == 0
    assert main(["evaluate", "~/out", "--metrics", "niqe-pocket", "--out", "~/t.csv"]) == 0
    assert main(["explore", "~/in/a.png", "--model", "~/model", "--out", "~/p.html", "--no-open"]) == 0
    assert {"t.csv", "p.html", "out"} <= set(names(tmp_path)) and "~" not in names(tmp_path)
    assert setting("backbone=~/model") == ("backbone", str(tmp_path / "model"))
    from ifcsr_lib.nets import backbone

    assert backbone.cache() == tmp_path / "cache" and resolve("smoke").results == tmp_path / "results/smoke"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_name_that_stdout_cannot_show_decides_nothing(tmp_path, encoding):
    """An umlaut under ASCII, and bytes that are no UTF-8 under UTF-8: escaped where printed, and the table is
    written.
    """
    name, shown = {"ascii": ("gr\u00fcn", b"gr\\xfcn"), "utf-8": ("gr\udcfcn", b"gr\\udcfcn")}[encoding]
    (tmp_path / name).mkdir()
    write_image(torch.full((1, 3, 200, 200), 0.5), tmp_path / name / f"{name}.png")
    argv = [
        sys.executable,
        "-m",
        "ifcsr_lib",
        "evaluate",
        str(tmp_path / name),
        str(tmp_path / name),
        "--metrics",
        "psnr",
    ]
    done = subprocess.run(
        [*argv, "--out", str(tmp_path / name / "t.csv")],
        capture_output=True,
        cwd=ROOT,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0 and b"mean of 1 images" in done.stdout, done.stderr
    assert done.stdout.count(shown) == 2, "the row of the table, and the folder behind 'written:'"
    assert (tmp_path / name / "t.csv").read_text(encoding="utf-8").count("80.0") == 1


def test_three_commands_take_the_same_settings(monkeypatch, capsys):
    """-o and --set, --recipe and --seed: describe shows the config that train and reproduce run."""
    from ifcsr_lib import reproduce
    from ifcsr_lib.cli import describe
    from ifcsr_lib.runs import recipes

    got = []
    monkeypatch.setattr(describe, "describe", lambda cfg: got.append(cfg) or {})
    monkeypatch.setattr(recipes, "run_stage", lambda cfg, stage, on_step: got.append(cfg) or "path")
    monkeypatch.setattr(
        reproduce,
        "reproduce",
        lambda profile, seed, overrides, only, jobs: got.append(resolve(profile, seed, overrides)),
    )
    for command in (["describe"], ["train", "--stage", "1"], ["reproduce"]):
        for option in ("-o", "--set"):
            assert (
                main(
                    [
                        *command,
                        "--profile",
                        "paper",
                        "--seed",
                        "3",
                        "--recipe",
                        "24 GB",
                        option,
                        "k=3",
                        "rank=8",
                    ]
                )
                == 0
            )
    wanted = resolve("paper", 3, {**RECIPES["24 GB"], "k": 3.0, "rank": 8})
    assert got == [wanted] * 6


def test_settings_follow_the_config_types():
    assert setting("k=3") == ("k", 3) and setting("lr=1e-4") == ("lr", 1e-4)
    assert setting("preset=light") == ("preset", "light") and setting("revision=None") == ("revision", None)
    assert setting("backbone=a=b") == ("backbone", "a=b")


def test_reproduce_takes_a_recipe(monkeypatch):
    """Settings of the recipe, --set over them: what `train --recipe` trained is then found by its hash."""
    from ifcsr_lib import reproduce
    from ifcsr_lib.config import RECIPES

    got = {}
    monkeypatch.setattr(reproduce, "reproduce", lambda **kwargs: got.update(kwargs))
    assert main(["reproduce", "--profile", "paper", "--recipe", "24 GB", "--set", "workers=9"]) == 0
    assert got["overrides"] == {**RECIPES["24 GB"], "workers": 9} and got["profile"] == "paper"


def test_reproduce_refuses_before_it_runs(capsys):
    assert setting("gradient_checkpointing=true") == setting("gradient_checkpointing=True")
    switch = "'gradient_checkpointing=1': gradient_checkpointing is a switch; allowed: "
    assert switch in usage(["reproduce", "--set", "gradient_checkpointing=1"], capsys)
    assert "'k=x': k is a number (float)" in usage(["reproduce", "--set", "k=x"], capsys)
    assert "write NAME=VALUE" in usage(["reproduce", "--set", "k"], capsys)
    assert "did you mean 'patch'" in error(["reproduce", "--set", "pach=64"], capsys)
    assert "did you mean 'pocket'" in error(["reproduce", "--profile", "poket"], capsys)
    assert "seed" in error(["reproduce", "--seed", "-1"], capsys)
    assert "pass float" in error(["reproduce", "--set", "k='3'"], capsys)


def test_debug_shows_the_traceback(monkeypatch, tmp_path):
    monkeypatch.setenv("IFCSR_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        main(["upscale", str(tmp_path / "nowhere"), str(tmp_path)])


def test_explore_writes_a_page_and_opens_it(photos, tmp_path, tiny_backbone, capsys, monkeypatch):
    """A photo through a real model, then the pair of the same ends without one; errors come before a model
    loads.
    """
    opened, page = [], tmp_path / "page.html"
    monkeypatch.setattr("webbrowser.open", lambda uri: opened.append(uri) or True)
    assert main(["explore", str(photos / "a.png"), "--model", str(tiny_backbone), "--out", str(page)]) == 0
    assert opened == [page.as_uri()] and f"written: {page}" in capsys.readouterr().out
    assert '"name": "a", "width": 80, "height": 64' in page.read_text(encoding="utf-8")
    pair = Bicubic().endpoints(read_image(photos / "a.png").rgb).save(tmp_path / "p.ifcsr.zip", gamma=0.25)
    monkeypatch.chdir(tmp_path)
    assert main(["explore", str(pair), "--model", "none-such", "--no-open"]) == 0 and len(opened) == 1
    assert '"gammas": [0.25]' in (tmp_path / "p_explore.html").read_text(encoding="utf-8")
    before = names(tmp_path)
    for argv, text in (
        (["none.png"], "none.png does not exist"),
        ([pair, "--out", "x.png"], "allowed: a name that ends in .html"),
        ([photos / "d.png"], "d.png cannot be read"),
        ([photos / "a.png", "--model", "none-such"], "none-such"),
    ):
        assert text in error(["explore", *argv, "--no-open"], capsys)
    assert names(tmp_path) == before


def test_explore_shows_transparency_on_white(tmp_path, monkeypatch):
    """White on transparent black is all white, for the network too."""
    disc, made = np.zeros((16, 20, 4), np.uint8), []
    disc[4:12, 5:15] = 255
    Image.fromarray(disc).save(tmp_path / "disc.png")

    class Page:
        def __init__(self, ends, *_, **__):
            made.append(ends)

        def save_html(self, path):
            path.write_text("")

    monkeypatch.setattr("ifcsr_lib.models.load", lambda name: Bicubic())
    monkeypatch.setattr("ifcsr_lib.explorer.Explorer", Page)
    page = tmp_path / "page.html"
    assert (
        main(["explore", str(tmp_path / "disc.png"), "--no-open", "--backend", "torch", "--out", str(page)])
        == 0
    )
    assert (made[0].x_fid == 1).all()


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["upscale", "--help"],
        ["explore", "--help"],
        ["evaluate", "--help"],
        ["reproduce", "--help"],
        ["train", "--help"],
        ["benchmark", "--help"],
        ["describe", "--help"],
        ["protocol", "--help"],
        ["--version"],
        ["upscale", "a", "b", "--gamma", "2"],
    ],
)
def test_help_is_light(argv):
    """No torch, numpy or pandas: help must come at once."""
    code = (
        "import runpy, sys\nsys.argv[1:] = " + repr(argv) + "\ntry:\n    runpy.run_module('ifcsr_lib', "
        "run_name='__main__')\nfinally:\n    heavy = {'torch', 'numpy', 'pandas', 'PIL'} & set(sys.modules)\n"
        "    print('HEAVY', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "HEAVY []" in done.stdout and "Traceback" not in done.stderr
    assert done.returncode == (2 if argv[-1] == "2" else 0)
    if argv[-1] == "--help":
        assert done.stdout.startswith("usage: python -m ifcsr_lib") and (
            len(argv) == 1 or "example:" in done.stdout
        )
    if argv == ["--version"]:
        assert __version__ in done.stdout
