"""The slider: every frame is E1 in 8 bit, state and controls agree, errors are shown; the page, in a real browser."""

import base64
import io
import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from ifcsr_lib import evaluate, models
from ifcsr_lib.control import Endpoints
from ifcsr_lib.explorer import LIMIT, PRESETS, Explorer, cut
from ifcsr_lib.images import to_uint8, upsample

GAMMAS = [i / 10 for i in range(11)]


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def made(n=1, h=36, w=50, **options) -> Explorer:
    ends = Endpoints(rand(n, 3, h, w), rand(n, 3, h, w, seed=1), rand(n, 3, h, w, seed=2))
    explorer = Explorer(ends, **options)
    explorer.ends = ends  # for the tests only
    explorer.picture._view_count = 1  # what a browser sets when it shows the picture
    return explorer


def shown(explorer) -> np.ndarray:
    """The pixels of the picture that the browser got, through Pillow's BMP reader."""
    return np.asarray(Image.open(io.BytesIO(bytes(explorer.picture.value))).convert("RGB"))


def e1(ends, gamma) -> tuple[np.ndarray, np.ndarray]:
    """E1 in float64 times 255, and where it lies at least 1e-3 of a level from a rounding tie."""
    mix = 255 * ((1 - gamma) * ends.x_fid.double() + gamma * ends.x_real.double())[0].permute(1, 2, 0).numpy()
    return mix, np.abs(mix - np.floor(mix) - 0.5) > 1e-3


@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_picture_is_e1_rounded(gamma):
    """Widths 50 and 49 need BMP row padding. Equal to round(E1) away from ties (1e-3 level), one level at most on them."""
    for w in (50, 49, 52):
        explorer = made(w=w)
        explorer.slider.value = gamma
        picture, (mix, clear) = shown(explorer), e1(explorer.ends, gamma)
        assert explorer.gamma == gamma and picture.shape == (36, w, 3)
        assert np.array_equal(picture, explorer.image()) and np.array_equal(picture, explorer.image(gamma))
        assert np.array_equal(picture, to_uint8(explorer.ends.blend(gamma))[0])
        assert np.array_equal(picture[clear], np.round(mix)[clear]) and clear.mean() > 0.99
        assert np.abs(picture - mix).max() <= 0.501


def test_state_and_controls_follow_each_other():
    explorer = made(n=3)
    explorer.gamma = 0.3
    assert explorer.slider.value == 0.3
    explorer.slider.value = 0.7
    assert explorer.gamma == 0.7
    for g, button in zip(PRESETS, explorer.presets, strict=True):
        button.click()
        assert explorer.gamma == explorer.slider.value == g
        assert np.array_equal(shown(explorer), explorer.image(g))
    explorer.view = (0.25, 0.75, 4)
    assert (explorer.across.value, explorer.down.value, explorer.zoom.value) == (0.25, 0.75, 4)
    explorer.zoom.value = 2
    assert explorer.view == (0.25, 0.75, 2)
    explorer.choice.value = 2
    assert explorer.index == 2 and np.array_equal(explorer.image(0), to_uint8(explorer.ends.x_fid)[2])
    explorer.index = 1
    assert explorer.choice.value == 1
    assert "Explorer(3 images" in repr(explorer)


def test_a_move_runs_no_network(tiny_cfg, monkeypatch):
    model = models.new(tiny_cfg)
    explorer = Explorer(model.endpoints(rand(1, 3, 16, 16)), model=model)
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *a, **k: pytest.fail("a network ran"))
    for gamma in GAMMAS:
        explorer.slider.value = gamma
    explorer.image()


def test_zoom_is_nearest_neighbour_of_e1():
    explorer = made(h=40, w=48)
    explorer.gamma, explorer.view = 0.4, (0.5, 0.5, 4)
    whole = explorer.image()
    want = whole[15:25, 18:30].repeat(4, 0).repeat(4, 1)
    assert np.array_equal(shown(explorer), want)
    explorer.view = (0.0, 1.0, 4)  # a centre at the border: the crop stays inside
    assert np.array_equal(shown(explorer), whole[30:, :12].repeat(4, 0).repeat(4, 1))
    assert explorer.picture.layout.width == "48px"


def test_large_images_are_reduced_until_zoomed_into():
    """A box average of both ends; blending it is the box average of the blend, within 1e-6."""
    x, y = rand(1, 3, 70, 131), rand(1, 3, 70, 131, seed=1)
    small = [cut(v, (0.5, 0.5, 1), limit=64) for v in (x, y)]
    assert small[0].shape == (1, 3, 18, 33)  # 131 -> 131 / 4, the last column from three pixels
    assert torch.allclose(small[0][..., 0, 0], x[..., :4, :4].mean((2, 3)), atol=1e-6)
    assert torch.allclose(small[0][..., 0, -1], x[..., :4, 128:].mean((2, 3)), atol=1e-6)
    mixed = cut(torch.lerp(x, y, 0.3), (0.5, 0.5, 1), limit=64)
    assert torch.allclose(torch.lerp(*small, 0.3), mixed, atol=1e-6)
    assert torch.equal(cut(x, (0.0, 0.0, 4), limit=64), x[..., :17, :32])  # zoom 4 of a picture reduced by 4: as it is
    assert max(cut(rand(1, 3, 16, 5000), (0.5, 0.5, 1)).shape[2:]) <= LIMIT


def test_compare_with_the_input_or_the_reference():
    lq, hr = rand(1, 3, 16, 20, seed=3), rand(1, 3, 64, 80, seed=4)
    explorer = made(h=64, w=80, lq=lq, hr=hr)
    assert [name for name, _ in explorer.against.options] == ["nothing", "bicubic", "HR"]
    explorer.gamma, explorer.wipe.value = 0.6, 0.25
    blend = explorer.image()
    for name, x in (("bicubic", upsample(lq)), ("HR", hr)):
        explorer.against.value = name
        picture = shown(explorer)
        assert np.array_equal(picture[:, :19], to_uint8(x)[0][:, :19]) and (picture[:, 19] == 255).all()
        assert np.array_equal(picture[:, 20:], blend[:, 20:])
    assert np.array_equal(explorer.image(), blend)  # what is exported has no wipe
    explorer.wipe.value = 0.0
    assert np.array_equal(shown(explorer), blend)
    explorer.wipe.value, explorer.against.value = 1.0, ""
    assert np.array_equal(shown(explorer), blend)


def test_without_lq_the_endpoints_own_input_is_compared():
    explorer = made()
    explorer.against.value, explorer.wipe.value = "bicubic", 1.0
    assert np.array_equal(shown(explorer)[:, :-1], to_uint8(explorer.ends.x_L)[0][:, :-1])
    bare = Explorer(Endpoints(rand(1, 3, 20, 20), rand(1, 3, 20, 20)))
    assert [name for name, _ in bare.against.options] == ["nothing"]


def test_images_of_different_sizes():
    parts = [Endpoints(rand(2, 3, 32, 48), rand(2, 3, 32, 48, seed=1)), Endpoints(rand(1, 3, 64, 20), rand(1, 3, 64, 20))]
    hr = [rand(1, 3, 32, 48), rand(1, 3, 32, 48), rand(1, 3, 64, 20, seed=5)]
    explorer = Explorer(parts, hr=hr, names=["a", "b", "c"])
    explorer.against.value = "HR"
    assert [explorer.image().shape for explorer.index in range(3)] == [(32, 48, 3), (32, 48, 3), (64, 20, 3)]
    assert explorer.against.value == "HR" and explorer.numbers()["difference"] == 0
    assert explorer.choice.layout.display is None and made().choice.layout.display == "none"
    assert made().zoom.layout.display is None  # hiding the choice hides nothing else


def test_numbers_are_the_closed_form():
    """Against evaluate.psnr_curve and evaluate.best_gamma, 1e-6 dB and 1e-6."""
    hr = rand(2, 3, 36, 50, seed=4)
    explorer = made(n=2, hr=hr)
    explorer.index = 1
    curve = evaluate.psnr_curve(explorer.ends, hr, GAMMAS, per_image=True)["psnr"].xs(1, level="image")
    for gamma in GAMMAS:
        explorer.gamma = gamma
        n = explorer.numbers()
        assert n["psnr"] == pytest.approx(curve[gamma], abs=1e-6) and f"PSNR {n['psnr']:.2f} dB" in explorer.readout.value
    assert n["best_gamma"] == pytest.approx(evaluate.best_gamma(explorer.ends, hr)[1].item(), abs=1e-6)
    assert n["best_psnr"] >= curve.max()
    difference = 255 * (explorer.ends.x_real - explorer.ends.x_fid)[1].abs().mean().item()
    assert n["difference"] == pytest.approx(difference, rel=1e-6)
    bare = made()
    assert set(bare.numbers(0.2)) == {"gamma", "difference"} and "levels" in bare.readout.value


def test_png_round_trip(tiny_cfg, tmp_path):
    model = models.new(tiny_cfg)
    explorer = Explorer(model.endpoints(rand(1, 3, 16, 20)), names=["photo"], model=model, folder=tmp_path / "out")
    explorer.gamma = 0.35
    path = explorer.save_png(tmp_path / "new" / "x.png")
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), explorer.image(0.35)) and image.mode == "RGB"
        assert float(image.text["gamma"]) == 0.35 and image.text["image"] == "photo"
        assert tiny_cfg.hash in image.text["model"] and len(image.text["hash"]) == 16
        assert "/" not in image.text["model"]  # no path of this machine
        before = image.text["hash"]
    explorer.export.click()
    exported = tmp_path / "out" / "photo_gamma_0.350.png"
    assert exported.exists() and exported.name in explorer.written.value
    assert [p.name for p in exported.parent.iterdir()] == [exported.name]
    with torch.no_grad():
        next(iter(model.adapter("realism").values())).add_(1e-3)
    assert Explorer(explorer._ends, model=model).model["hash"] != before


def test_a_failing_callback_is_shown_and_raised(monkeypatch, tmp_path):
    explorer = made(names=["<i>x"], folder=tmp_path / "file")
    (tmp_path / "file").write_text("in the way")

    def broken(gamma, wipe):
        raise RuntimeError("no <memory> left")

    monkeypatch.setattr(explorer._screen, "bmp", broken)
    with pytest.raises(RuntimeError, match="memory"):
        explorer.slider.value = 0.9
    assert "RuntimeError: no &lt;memory&gt; left" in explorer.message.value and "alert" in explorer.message.value
    monkeypatch.undo()
    explorer.slider.value = 0.8
    assert explorer.message.value == "" and np.array_equal(shown(explorer), explorer.image(0.8))
    explorer.export.click()  # ipywidgets keeps what a button's callback raises to itself: the line is all one sees
    assert "cannot write" in explorer.message.value and explorer.written.value == ""


@pytest.mark.parametrize("gamma, error", [(-0.1, ValueError), (1.01, ValueError), (float("nan"), ValueError),
                                          ("0.5", TypeError), (True, TypeError), (None, TypeError)])  # fmt: skip
def test_bad_gamma_changes_nothing(gamma, error, tmp_path):
    explorer = made()
    with pytest.raises(error, match="gamma"):
        explorer.gamma = gamma
    for call in (lambda: made(gamma=gamma), *([] if gamma is None else [lambda: explorer.image(gamma)])):
        with pytest.raises(error, match="gamma"):
            call()
    assert explorer.gamma == explorer.slider.value == 0.5


@pytest.mark.parametrize("options, error, match", [
    ({"hr": rand(1, 3, 36, 51)}, ValueError, "allowed: .1, 3, 36, 50."), ({"hr": rand(2, 3, 36, 50)}, ValueError, "hr has 2"),
    ({"lq": rand(1, 3, 36, 50)}, ValueError, r"endpoints' size / 4"), ({"hr": 3}, TypeError, "hr came as int"),
    ({"names": ["a", "b"]}, ValueError, "2 names"), ({"model": 7}, TypeError, "model came as int"),
])  # fmt: skip
def test_bad_input(options, error, match):
    with pytest.raises(error, match=match):
        made(**options)


def test_more_bad_input(tmp_path):
    with pytest.raises(TypeError, match="ends came as Tensor"):
        Explorer(rand(1, 3, 20, 20))
    with pytest.raises(ValueError, match="empty"):
        Explorer([])
    explorer = made(n=2)
    for name, values in {"index": (2, -1, True, 0.0), "view": ((0.5, 0.5, 3), (0.5, 0.5), (0.5, 2.0, 1), 1)}.items():
        for value in values:
            with pytest.raises(ValueError, match=name):
                setattr(explorer, name, value)
    assert explorer.index == 0 and explorer.view == (0.5, 0.5, 1)
    for save, name in ((explorer.save_png, "x.jpg"), (explorer.save_html, "x.png")):
        with pytest.raises(ValueError, match="allowed: .(png|html)"):
            save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_no_picture_goes_into_the_notebook_unless_it_is_displayed():
    explorer = made()
    explorer.picture._view_count, explorer.picture.value = 0, b""
    explorer.gamma, explorer.view = 0.1, (0.5, 0.5, 2)
    assert len(explorer.picture.value) == 0
    explorer.picture._view_count = 1
    assert len(explorer.picture.value) > 54


# the page -----------------------------------------------------------------------------------------------------------


def test_page_holds_everything(tmp_path):
    explorer = made(n=2, names=["a</script>", "b"], hr=rand(2, 3, 36, 50, seed=4))
    page = explorer.save_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("</script>") == 1 and "http://" not in page and "https://" not in page and " src=" not in page
    start = page.index("const data = ") + len("const data = ")
    data = json.loads(page[start : page.index(";\n", start)])
    assert data["images"][0]["name"] == "a</script>" and data["gamma"] == 0.5
    for i, image in enumerate(data["images"]):
        for key, x in (("fid", explorer.ends.x_fid), ("real", explorer.ends.x_real)):
            kind, _, code = image[key].partition(",")
            picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(code))))
            assert kind == "data:image/png;base64" and np.array_equal(picture, to_uint8(x)[i])


PROBE = """<script>
(async () => {
  const out = {pixels: [], numbers: [], errors: []};
  const wait = () => new Promise(done => setTimeout(done, 0));
  const bytes = () => { let s = ""; for (const v of ifcsr.getPixels()) s += String.fromCharCode(v); return btoa(s); };
  try {
    await ifcsr.ready;
    for (let i = 0; i <= 10; i++) {
      ifcsr.setGamma(i / 10);
      out.pixels.push(bytes());
      out.numbers.push(document.getElementById("numbers").textContent);
    }
    const canvas = document.getElementById("picture"), size = [canvas.width, canvas.height];
    const drawn = canvas.getContext("2d").getImageData(0, 0, ...size).data;
    out.painted = drawn.every((v, i) => v === ifcsr.getPixels()[i]);
    for (const g of [-0.1, 1.1, NaN, "0.5", null]) { try { ifcsr.setGamma(g); } catch (e) { out.errors.push(e.message); } }
    const slider = document.getElementById("gamma");
    slider.value = 0.25;
    slider.dispatchEvent(new Event("input"));
    out.dragged = ifcsr.gamma;
    document.querySelectorAll("#presets button")[3].click();
    out.preset = [ifcsr.gamma, +slider.value];
    const choice = document.getElementById("image");
    choice.value = 1;
    choice.dispatchEvent(new Event("change"));
    await ifcsr.ready;
    ifcsr.setGamma(1);
    out.second = [bytes(), canvas.width, canvas.height];
    setTimeout(() => { throw new Error("shown <here>"); }, 0);
    await wait(); await wait();
    out.message = document.getElementById("message").textContent;
  } catch (error) { out.failed = String(error); }
  const pre = document.createElement("pre");
  pre.id = "probe";
  pre.textContent = btoa(JSON.stringify(out));
  document.body.append(pre);
})();
</script>"""


@pytest.fixture(scope="module")
def in_browser(tmp_path_factory):
    """What headless Chromium reads back from an exported page of two images, and the explorer that wrote it."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no chromium: install it (Debian: apt-get install chromium) to test the page in a browser")
    folder = tmp_path_factory.mktemp("page")
    ends = [Endpoints(rand(1, 3, 36, 50), rand(1, 3, 36, 50, seed=1)), Endpoints(rand(1, 3, 20, 17), rand(1, 3, 20, 17, seed=1))]
    hr = [rand(1, 3, 36, 50, seed=4), rand(1, 3, 20, 17, seed=4)]
    explorer = Explorer(ends, hr=hr, names=["first", "second"])
    page = explorer.save_html(folder / "page.html")
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
               "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND",
               f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000", "--dump-dom", page.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    _, mark, rest = done.stdout.partition('<pre id="probe">')
    assert mark, f"the page did not finish (exit code {done.returncode}): {done.stderr[-800:]}"
    out = json.loads(base64.b64decode(rest.partition("<")[0]))
    assert "failed" not in out, out
    return explorer, out


def test_page_shows_e1(in_browser):
    """All 11 gammas: at most 1 level from E1 of the float endpoints in 8 bit, the ends exact, opaque; canvas = getPixels."""
    explorer, out = in_browser
    for gamma, text, line in zip(GAMMAS, out["pixels"], out["numbers"], strict=True):
        rgba = np.frombuffer(base64.b64decode(text), np.uint8).reshape(36, 50, 4).astype(int)
        distance = np.abs(rgba[..., :3] - explorer.image(gamma).astype(int)).max()
        assert (rgba[..., 3] == 255).all() and distance <= (1 if 0 < gamma < 1 else 0)
        levels = [to_uint8(x)[0].astype(float) for x in (explorer._ends[0].x_fid, explorer._ends[0].x_real)]
        mix = levels[0] + gamma * (levels[1] - levels[0])
        assert np.abs(rgba[..., :3] - mix).max() <= 0.5 + 1e-9  # E1 of the 8-bit endpoints, rounded
        assert line == f"gamma {gamma:.3f}: PSNR {explorer.numbers(gamma)['psnr']:.2f} dB"
    assert out["painted"] is True


def test_page_controls_and_errors(in_browser):
    explorer, out = in_browser
    assert out["dragged"] == 0.25 and out["preset"] == [0.75, 0.75]
    assert len(out["errors"]) == 5 and all("allowed: numbers from 0 to 1" in e for e in out["errors"])
    text, w, h = out["second"]
    rgba = np.frombuffer(base64.b64decode(text), np.uint8).reshape(h, w, 4)
    explorer.index = 1
    assert np.array_equal(rgba[..., :3], explorer.image(1.0))
    assert "shown <here>" in out["message"]
