"""The Python side of the slider, without a browser: state, numbers, messages, files. The page itself:
tests/browser/test_page.py.
"""

import base64
import hashlib
import io
import json
import re
import zipfile

import numpy as np
import pytest
import torch
from helpers import rand
from PIL import Image
from traitlets import TraitError

from ifcsr_lib import evaluate, models
from ifcsr_lib.control import Endpoints
from ifcsr_lib.explorer import Explorer, compare
from ifcsr_lib.files.images import decode_image, encode_png, to_uint8, upsample

GAMMAS = [i / 10 for i in range(11)]


def pair(n=1, h=36, w=50, seed=0):
    return Endpoints(*(rand(n, 3, h, w, seed=seed + k) for k in range(3)))


def talk(explorer, monkeypatch) -> list:
    """What the explorer sends to a page from now on: [(content, buffers), ...]."""
    sent = []
    monkeypatch.setattr(explorer, "send", lambda content, buffers=None: sent.append((content, buffers)))
    return sent


SVG = "http://www.w3.org/2000/svg"  # the name of SVG's elements; nothing is fetched from it


def addresses(page: str) -> list[str]:
    """Whatever in a page could be fetched: every address with a scheme or a bare //host, src, href, url() and
    import.
    """
    found = re.findall(
        r"(?:https?|wss?|ftp):/\S+|[\"'`(=]//\w[\w.-]*\.\w+\S*", page.replace(f'const SVG = "{SVG}";', "")
    )
    return found + re.findall(
        r"\s(?:src|href)=\S+|url\([^)]*\)|@import\b.*|^\s*import\b.*|\bimport\(.*", page, re.MULTILINE
    )


# state ------------------------------------------------------------------------------------------------------


def test_image_is_e1_rounded():
    """Equal to round(E1) in float64, away from ties by 1e-3 level, at 11 gammas."""
    ends = pair()
    explorer = Explorer(ends)
    for gamma in GAMMAS:
        explorer.gamma = gamma
        mix = (
            255
            * ((1 - gamma) * ends.x_fid.double() + gamma * ends.x_real.double())[0].permute(1, 2, 0).numpy()
        )
        clear = np.abs(mix - np.floor(mix) - 0.5) > 1e-3
        assert np.array_equal(explorer.image()[clear], np.round(mix)[clear]) and clear.mean() > 0.99


def test_gamma_of_one_image_or_of_all():
    explorer = Explorer(pair(3))
    explorer.gamma = 0.3
    assert explorer.same_gamma and explorer.gammas == (0.3,) * 3
    explorer.same_gamma = False
    explorer.index, explorer.gamma = 1, 0.7
    assert explorer.gammas == (0.3, 0.7, 0.3)
    explorer.index = 2
    assert explorer.gamma == 0.3
    explorer.gammas = [0.1, 0.2, 0.9]
    assert explorer.gamma == 0.9
    explorer.same_gamma = True
    assert explorer.gammas == (0.9,) * 3


def test_a_page_moves_python():
    """set_state is what a comm message calls: all traits at once, as the front end sends them."""
    explorer = Explorer(pair(2), hr=rand(2, 3, 36, 50, seed=9))
    seen = []
    explorer.observe(lambda change: seen.append(change.new), "gamma")
    state = {"gamma": 0.25, "gammas": [0.5, 0.25], "same_gamma": False, "index": 1, "view": [0.2, 0.8, 4]}
    explorer.set_state(state)
    assert (explorer.gamma, explorer.gammas, explorer.index, explorer.view) == (
        0.25,
        (0.5, 0.25),
        1,
        (0.2, 0.8, 4),
    )
    assert seen == [0.25]
    with pytest.raises(ValueError, match="gamma"):
        explorer.set_state({"gamma": 2})
    assert "gamma=2; allowed: 0 to 1" in explorer.error and explorer.gamma == 0.25


def test_a_failing_callback_is_shown_and_raised():
    explorer = Explorer(pair())

    def broken(change):
        raise RuntimeError("no <memory> left")

    explorer.observe(broken, "gamma")
    with pytest.raises(RuntimeError, match="memory"):
        explorer.gamma = 0.9
    assert explorer.error == "RuntimeError: no <memory> left"
    explorer.unobserve(broken, "gamma")
    explorer.gamma = 0.8
    assert explorer.error == ""


@pytest.mark.parametrize(
    "gamma, error",
    [
        (-0.1, ValueError),
        (1.01, ValueError),
        (float("nan"), ValueError),
        ("0.5", TypeError),
        (True, TypeError),
    ],
)
def test_bad_gamma_changes_nothing(gamma, error):
    explorer = Explorer(pair())
    for call in (
        lambda: setattr(explorer, "gamma", gamma),
        lambda: explorer.image(gamma),
        lambda: Explorer(pair(), gamma=gamma),
    ):
        with pytest.raises(error, match="gamma"):
            call()
    assert explorer.gamma == 0.5 and explorer.gammas == (0.5,)


@pytest.mark.parametrize(
    "options, error, match",
    [
        ({"hr": rand(1, 3, 36, 51)}, ValueError, "allowed: .1, 3, 36, 50."),
        ({"hr": rand(2, 3, 36, 50)}, ValueError, "hr has 2"),
        ({"lq": rand(1, 3, 36, 50)}, ValueError, r"endpoints' size / 4"),
        ({"hr": 3}, TypeError, "hr came as int"),
        ({"names": ["a", "b"]}, ValueError, "2 names"),
        ({"model": 7}, TypeError, "model came as int"),
    ],
)
def test_bad_input(options, error, match):
    with pytest.raises(error, match=match):
        Explorer(pair(), **options)


def test_more_bad_input(tmp_path):
    with pytest.raises(TypeError, match="ends came as Tensor"):
        Explorer(rand(1, 3, 20, 20))
    with pytest.raises(ValueError, match="empty"):
        Explorer([])
    explorer = Explorer(pair(2))
    wrong = {
        "index": (2, -1, True, 0.0),
        "view": ((0.5, 0.5, 33), (0.5, 0.5), (0.5, 2.0, 1), 1),
        "gammas": ([0.5], 0.5, [0, 2]),
        "gamma_map": (rand(1, 1, 36, 51), 2 * torch.ones(1, 1, 36, 50), torch.full((36, 50), torch.nan)),
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError, match=name.rstrip("s")):
                setattr(explorer, name, value)
    assert explorer.index == 0 and explorer.view == (0.5, 0.5, 0) and explorer.gamma_map is None
    for save, name in (
        (explorer.save_png, "x.jpg"),
        (explorer.save_html, "x.png"),
        (explorer.save_map, "x.jpg"),
    ):
        with pytest.raises(ValueError, match="allowed: .(png|html)"):
            save(tmp_path / name)
    with pytest.raises(ValueError, match="bits=12"):
        explorer.save_png(tmp_path / "x.png", bits=12)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, error", [("gamma", TypeError), ("gammas", ValueError), ("index", ValueError), ("view", ValueError)]
)
def test_none_is_refused_from_either_side(name, error):
    """Set from Python or sent by a page, alone or among good values: an error that says what is allowed, and
    nothing moves.
    """
    explorer = Explorer(pair(2), names=["a", "b"])
    before = {key: getattr(explorer, key) for key in ("gamma", "gammas", "same_gamma", "index", "view")}
    changes = []
    explorer.observe(changes.append, list(before))
    good = {"gamma": 0.25, "gammas": [0.5, 0.25], "same_gamma": False, "index": 1, "view": [0.2, 0.8, 4]}
    for call in (
        lambda: setattr(explorer, name, None),
        lambda: explorer.set_state({name: None}),
        lambda: explorer.set_state(good | {name: None}),
    ):
        explorer.error = ""
        with pytest.raises(error, match=f"{name}.*None.*(allowed|pass a number)"):
            call()
        assert {key: getattr(explorer, key) for key in before} == before and not changes
    assert name in explorer.error and "None" in explorer.error
    explorer.set_state(good)
    assert (explorer.gamma, explorer.gammas, explorer.index, explorer.view) == (
        0.25,
        (0.5, 0.25),
        1,
        (0.2, 0.8, 4),
    )


@pytest.mark.parametrize(
    "name, value",
    [
        ("gammas", [0.5, None]),
        ("gammas", [0.5, "1"]),
        ("view", [None, 0.5, 1]),
        ("view", [0.5, 0.5, None]),
        ("view", "abc"),
        ("index", "1"),
        ("index", 1.5),
    ],
)
def test_none_inside_is_refused_too(name, value):
    explorer = Explorer(pair(2))
    before = getattr(explorer, name)
    for call in (lambda: setattr(explorer, name, value), lambda: explorer.set_state({name: value})):
        with pytest.raises((TypeError, ValueError), match=r"allowed|pass a number"):
            call()
        assert getattr(explorer, name) == before
    assert "allowed" in explorer.error or "pass a number" in explorer.error


def test_same_gamma_none_from_a_page_changes_nothing():
    explorer = Explorer(pair(2))
    with pytest.raises(TraitError, match="same_gamma"):
        explorer.set_state({"gamma": 0.1, "same_gamma": None})
    assert explorer.same_gamma is True and explorer.gamma == 0.5 and "same_gamma" in explorer.error


def test_a_move_runs_no_network(tiny_cfg, monkeypatch):
    model = models.new(tiny_cfg)
    explorer = Explorer(model.endpoints(rand(1, 3, 16, 16)), model=model)
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *a, **k: pytest.fail("a network ran"))
    sent = talk(explorer, monkeypatch)
    for gamma in GAMMAS:
        explorer.gamma = gamma
    explorer.image()
    assert not sent  # nor did a picture travel


# numbers ----------------------------------------------------------------------------------------------------


def test_numbers_are_the_closed_form():
    """Against evaluate.psnr_curve and evaluate.best_gamma, 1e-6 dB and 1e-6; LQ consistency against its
    definition, 1e-3 dB.
    """
    hr, lq = rand(2, 3, 64, 80, seed=4), rand(2, 3, 16, 20, seed=5)
    ends = pair(2, 64, 80)
    explorer = Explorer(ends, lq, hr)
    explorer.index = 1
    curve = evaluate.psnr_curve(ends, hr, GAMMAS, per_image=True)["psnr"].xs(1, level="image")
    luma = torch.tensor(evaluate.LUMA).view(3, 1, 1)
    for gamma in GAMMAS:
        explorer.gamma = gamma
        n = explorer.numbers()
        assert n["psnr"] == pytest.approx(curve[gamma], abs=1e-6)
        error = ((torch.nn.functional.avg_pool2d(ends.blend(gamma)[1], 4) - lq[1]) * luma).sum(0)
        assert n["consistency"] == pytest.approx(-10 * torch.log10(error.square().mean()).item(), abs=1e-3)
    assert (
        n["best_gamma"] == pytest.approx(evaluate.best_gamma(ends, hr)[1].item(), abs=1e-6)
        and n["best_psnr"] >= curve.max()
    )
    assert n["difference"] == pytest.approx(255 * (ends.x_real - ends.x_fid)[1].abs().mean().item(), rel=1e-6)
    assert set(Explorer(Endpoints(ends.x_fid, ends.x_real)).numbers(0.2)) == {"gamma", "difference"}


def test_measured_curves_are_the_sweep():
    hr, ends = rand(1, 3, 64, 64, seed=4), pair(1, 64, 64)
    explorer = Explorer(ends, hr=hr)
    explorer.measure([0.0, 0.5, 1.0], ["ssim", "niqe-pocket"])
    curves = explorer._spec["images"][0]["panes"][0]["curves"]
    table = evaluate.sweep(ends, hr, [0.0, 0.5, 1.0], ["ssim"])
    assert (
        curves["SSIM"]["points"] == [[g, pytest.approx(v)] for g, v in table["ssim"].items()]
        and not curves["SSIM"]["lower"]
    )
    assert curves["niqe-pocket"] == {
        "points": [],
        "note": "not run: image under 192 pixels a side",
        "lower": True,
    }


# the gamma map ----------------------------------------------------------------------------------------------


def test_map_from_python(monkeypatch, tmp_path):
    ends = pair()
    explorer = Explorer(ends)
    sent = talk(explorer, monkeypatch)
    explorer.gamma_map = rand(36, 50, seed=7)
    value = explorer.gamma_map
    assert value.shape == (1, 1, 36, 50) and (value - rand(36, 50, seed=7)).abs().max() <= 0.5 / 255 + 1e-6
    assert np.array_equal(explorer.image(), to_uint8(ends.blend(value))[0])
    assert np.array_equal(explorer.image(0.2), to_uint8(ends.blend(0.2))[0])
    [(content, [png])] = sent
    photo = decode_image(png, "map")
    assert content == {"kind": "map", "image": 0, "view": None} and (photo.rgb == 1).all()
    assert np.array_equal(to_uint8(photo.alpha), to_uint8(value)) and explorer._spec["images"][0]["map"]
    explorer.save_map(tmp_path / "map.png")
    explorer.gamma_map = None
    assert explorer.gamma_map is None and sent[-1][1] is None and not explorer._spec["images"][0]["map"]
    explorer.load_map(tmp_path / "map.png")
    assert torch.equal(explorer.gamma_map, value)


def test_map_from_a_page(monkeypatch):
    """A painted part holds its gamma, the rest follows the slider: ((255 - cover) g + paint) / 255."""
    explorer = Explorer(pair(2))
    sent = talk(explorer, monkeypatch)
    planes = torch.zeros(1, 2, 36, 50)
    planes[:, 0, :10], planes[:, 1, :10] = 200 / 255, 150 / 255
    png = encode_png(planes)
    half = len(png) // 2
    content = {"kind": "map", "image": 0, "clear": False, "view": "me", "id": "me-1", "parts": 2}
    explorer.receive(content | {"part": 1}, [memoryview(png)[half:]])
    assert explorer.gamma_map is None
    explorer.receive(content | {"part": 0}, [memoryview(png)[:half]])
    assert explorer.error == ""
    for g in (0.5, 0.2):
        explorer.gamma = g
        assert torch.allclose(explorer.gamma_map[0, 0, :10], torch.tensor((55 * g + 150) / 255), atol=1e-6)
        assert torch.allclose(explorer.gamma_map[0, 0, 10:], torch.tensor(g), atol=1e-6)
    assert [c["view"] for c, _ in sent] == ["me"]  # told to other views of the same widget
    explorer.index = 1
    assert explorer.gamma_map is None
    explorer.index = 0
    assert explorer.gamma_map is not None
    explorer.receive(content | {"clear": True, "parts": 1, "part": 0}, [])
    assert explorer.gamma_map is None and explorer.error == ""
    explorer.receive(content | {"parts": 1, "part": 0}, [png[:60]])
    assert "the gamma map" in explorer.error


# messages ---------------------------------------------------------------------------------------------------


def test_pictures_travel_as_png_when_asked_for(monkeypatch):
    hr = rand(2, 3, 64, 80, seed=4)
    ends = pair(2, 64, 80)
    explorer = Explorer(ends, lq=rand(2, 3, 16, 20), hr=hr)
    sent = talk(explorer, monkeypatch)
    wanted = {
        "1/0/fid": ends.x_fid[1:],
        "0/0/real": ends.x_real[:1],
        "1/HR": hr[1:],
        "0/bicubic": upsample(rand(2, 3, 16, 20))[:1],
    }
    for key, x in wanted.items():
        explorer.receive({"kind": "picture", "key": key, "part": 0, "parts": 1}, [])
        content, [png] = sent.pop()
        assert content == {"kind": "picture", "key": key} and np.array_equal(
            np.asarray(Image.open(io.BytesIO(png))), to_uint8(x)[0]
        )
    explorer.receive({"kind": "picture", "key": "0/map"}, [])
    assert "KeyError" in sent.pop()[0]["error"]
    explorer.receive({"kind": "nonsense"}, [])
    assert "nonsense" in explorer.error


def test_no_picture_is_in_the_state():
    """What a notebook stores of a 512x512 pair: the front end's text and a few numbers."""
    state = Explorer(pair(1, 512, 512), hr=rand(1, 3, 512, 512)).get_state()
    front = len(state["_esm"]) + len(state["_css"])
    assert (
        front < 120_000
        and len(json.dumps({k: v for k, v in state.items() if k not in ("layout", "comm")}, default=str))
        < front * 1.1 + 4000
    )


def test_a_pair_is_opened(monkeypatch, tmp_path):
    path = pair(1, 40, 44, seed=5).save(tmp_path / "photo.ifcsr.zip", "a model", gamma=0.3)
    explorer = Explorer(pair())
    sent = talk(explorer, monkeypatch)
    explorer.receive(
        {"kind": "open", "name": path.name, "id": "x", "part": 0, "parts": 1}, [path.read_bytes()]
    )
    assert (
        explorer.names == ["0", "photo"]
        and explorer.index == 1
        and explorer.gamma == 0.3
        and explorer.model["model"] == "a model"
    )
    assert explorer.image(1.0).shape == (40, 44, 3) and sent[-1][0] == {
        "kind": "note",
        "text": "opened: photo.ifcsr.zip",
    }
    explorer.receive({"kind": "open", "name": "x.zip"}, [path.read_bytes()[:1000]])
    assert "x.zip is not a whole .ifcsr.zip" in explorer.error and len(explorer.names) == 2
    assert Explorer(Endpoints.load(path)).gamma == 0.3


def test_a_pair_opens_beside_images_of_one_gamma(monkeypatch, tmp_path):
    """The images that were there keep the gamma they shared; the new one starts as its file says."""
    path = pair(2, 40, 44, seed=5).save(tmp_path / "photo.ifcsr.zip", "a model", gamma=0.3)
    explorer = Explorer(pair(2), gamma=0.7)
    talk(explorer, monkeypatch)
    assert explorer.same_gamma
    explorer.receive({"kind": "open", "name": path.name}, [path.read_bytes()])
    assert explorer.error == "" and explorer.names == ["0", "1", "photo 0", "photo 1"]
    assert (
        explorer.gammas == (0.7, 0.7, 0.3, 0.3)
        and (explorer.index, explorer.gamma) == (2, 0.3)
        and not explorer.same_gamma
    )


# files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 16])
def test_png_export(bits, tiny_cfg, tmp_path, monkeypatch):
    model = models.new(tiny_cfg)
    ends = model.endpoints(rand(1, 3, 16, 20))
    explorer = Explorer(ends, names=["photo"], model=model, folder=tmp_path / "out")
    sent = talk(explorer, monkeypatch)
    explorer.gamma = 0.35
    explorer.receive({"kind": "export", "bits": bits}, [])
    path = tmp_path / "out" / "photo_gamma_0.350.png"
    assert str(path) in sent[-1][0]["text"] and [p.name for p in path.parent.iterdir()] == [path.name]
    photo = decode_image(path.read_bytes(), "export")
    assert photo.bits == bits and (photo.rgb - ends.blend(0.35)).abs().max() <= 0.5 / (2**bits - 1) + 1e-6
    with Image.open(path) as image:
        text = image.text
    assert float(text["gamma"]) == 0.35 and text["image"] == "photo" and text["gamma map"] == "none"
    # no path of this machine
    assert tiny_cfg.hash in text["model"] and len(text["hash"]) == 16 and "/" not in text["model"]
    with torch.no_grad():
        next(iter(model.adapter("realism").values())).add_(1e-3)
    assert Explorer(ends, model=model).model["hash"] != text["hash"]


@pytest.mark.parametrize("name", ["a/b", "../../x", "..\\x", "/etc/x", "a\x00b", "C:x", ".."])
def test_an_export_stays_in_its_folder(name, tmp_path, monkeypatch):
    """Names of images and of models are text: one file per model, right in the folder, and nothing
    beside it.
    """
    folder = tmp_path / "one" / "two"
    explorer = compare({"A": pair(), "b/../../c": pair(seed=5)}, names=[name], folder=folder)
    sent = talk(explorer, monkeypatch)
    explorer.receive({"kind": "export", "bits": 8}, [])
    assert explorer.error == "" and "written: " in sent[-1][0]["text"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2 and {path.parent for path in files} == {folder}
    assert not any(set(path.name) & set('/\\:*?"<>|\0') for path in files)
    with Image.open(files[0]) as image:
        assert image.text["image"] == name.replace("\0", "") or "\0" in name


def test_export_that_fails_is_shown(tmp_path):
    (tmp_path / "file").write_text("in the way")
    explorer = Explorer(pair(), folder=tmp_path / "file")
    explorer.receive({"kind": "export", "bits": 8}, [])
    assert "cannot write" in explorer.error


def test_compare_is_one_slider_over_models(tmp_path):
    a, b = pair(seed=1), pair(seed=9)
    explorer = compare({"A": a, "B": b}, hr=rand(1, 3, 36, 50), model={"A": "first", "B": "second"})
    explorer.gamma = 0.4
    assert np.array_equal(explorer.image(), to_uint8(a.blend(0.4))[0]) and np.array_equal(
        explorer.image(label="B"), to_uint8(b.blend(0.4))[0]
    )
    assert explorer.numbers(label="B")["psnr"] != explorer.numbers()["psnr"]
    assert [p["model"] for p in explorer._spec["images"][0]["panes"]] == ["first", "second"]
    with Image.open(explorer.save_png(tmp_path / "b.png", label="B")) as image:
        assert image.text["model"] == "second"
    for wrong, error, match in (
        ([a], TypeError, "dict"),
        ({}, ValueError, "empty"),
        ({"A": a, "B": pair(2)}, ValueError, "differ in number or size"),
    ):
        with pytest.raises(error, match=match):
            compare(wrong)
    with pytest.raises(ValueError, match="allowed: 'A', 'B'"):
        explorer.image(label="C")


@pytest.mark.parametrize(
    "planted",
    [
        '<script src="x.js">',
        "<link href=//cdn.example.org/x.css>",
        "fetch('https://example.org/x')",
        'import x from "y";',
        "background: url(//example.org/a.png)",
        'const NS = "http://www.w3.org/2000/svg";',
        "new WebSocket(`wss://example.org`)",
        "await import('./x.js')",
        "@import 'x.css';",
        'fetch("http:/example.org")',
    ],
)
def test_an_address_in_a_page_is_found(planted, tmp_path):
    """The check of test_page_holds_everything sees each kind of address, in the middle of a real page."""
    page = Explorer(pair()).save_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert addresses(page) == [] and addresses(page.replace("</main>", f"\n{planted}\n</main>")) != []


def test_page_holds_everything(tmp_path):
    ends = pair(2)
    explorer = Explorer(ends, names=["a</script>", "b"], hr=rand(2, 3, 36, 50, seed=4))
    page = explorer.save_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("</script>") == 2 and addresses(page) == []
    start = page.index('id="ifcsr-data">') + len('id="ifcsr-data">')
    data = json.loads(page[start : page.index("</script>", start)])
    assert data["spec"]["images"][0]["name"] == "a</script>" and data["state"]["gammas"] == [0.5, 0.5]
    for i in range(2):
        for key, x in (("fid", ends.x_fid), ("real", ends.x_real)):
            png = base64.b64decode(data["pictures"][f"{i}/0/{key}"])
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), to_uint8(x)[i])


# the portable pair ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 16])
def test_pair_round_trip(bits, tmp_path):
    """Within half a step of `bits`; the same pair gives the same bytes."""
    ends = pair(2)
    path = ends.save(tmp_path / "p.ifcsr.zip", "mine", gamma=0.25, bits=bits)
    back = Endpoints.load(path)
    for name in ("x_fid", "x_real", "x_L"):
        assert (getattr(back, name) - getattr(ends, name)).abs().max() <= 0.5 / (2**bits - 1) + 1e-7
    assert back.made_by == {"model": "mine", "hash": "unknown", "gamma": 0.25, "bits": bits}
    if bits == 16:
        assert np.abs(to_uint8(back.blend(0.3)).astype(int) - to_uint8(ends.blend(0.3))).max() <= 1
    again = back.save(tmp_path / "q.ifcsr.zip", gamma=0.25, bits=bits)
    assert again.read_bytes() == path.read_bytes()
    bare = Endpoints.load(Endpoints(ends.x_fid, ends.x_real).save(tmp_path / "r.ifcsr.zip"))
    assert bare.x_L is None and len(bare) == 2


def test_a_bad_pair_gives_one_error(tmp_path):
    path = pair().save(tmp_path / "p.ifcsr.zip")
    whole = path.read_bytes()

    def rewritten(change):
        with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(tmp_path / "x.zip", "w") as new:
            parts = {n: old.read(n) for n in old.namelist()}
            change(parts)
            for name, data in parts.items():
                new.writestr(name, data)
        return tmp_path / "x.zip"

    def card(**changes):
        return lambda parts: parts.update(
            {"ifcsr.json": json.dumps(json.loads(parts["ifcsr.json"]) | changes).encode()}
        )

    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 255
    (tmp_path / "y.zip").write_bytes(flipped)
    (tmp_path / "z.zip").write_bytes(whole[: len(whole) // 2])
    cases = {
        "CRC": tmp_path / "y.zip",
        "not a zip": tmp_path / "z.zip",
        "no ifcsr.json": rewritten(lambda p: p.pop("ifcsr.json")),
    }
    for match, file in cases.items():
        with pytest.raises(
            ValueError, match=f"(?s)is not a whole .ifcsr.zip.*{match}.*write it again with ends.save"
        ):
            Endpoints.load(file)
    for match, change in {
        "x_fid of image 0 is missing": lambda p: p.pop("x_fid.png"),
        "sha256": lambda p: p.update({"x_fid.png": p["x_real.png"]}),
        "allowed: 'ifcsr endpoints 1'": card(format="other 2"),
        "gamma": card(gamma=7),
        "no image": card(images=[]),
    }.items():
        with pytest.raises(ValueError, match=match):
            Endpoints.load(rewritten(change))
    for part in ("x_L", "x_real", "x_fid"):
        small = encode_png(rand(1, 3, 36, 40), 16)

        def smaller(parts, part=part, small=small):
            made = json.loads(parts["ifcsr.json"])
            made["images"][0][part]["sha256"] = hashlib.sha256(small).hexdigest()
            parts.update({f"{part}.png": small, "ifcsr.json": json.dumps(made).encode()})

        with pytest.raises(
            ValueError, match=r"x\.zip is not .*\.png is .*40x36.*; allowed: one size"
        ) as info:
            Endpoints.load(rewritten(smaller))
        assert f"{part}.png" in str(info.value) and "\n" not in str(info.value)
        assert "50x36" in str(info.value)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Endpoints.load(tmp_path / "none.ifcsr.zip")
    for wrong in ({"path": tmp_path / "a.zip"}, {"bits": 12}, {"gamma": 2}):
        with pytest.raises(ValueError, match="allowed"):
            pair().save(**{"path": tmp_path / "a.ifcsr.zip"} | wrong)
    assert not (tmp_path / "a.ifcsr.zip").exists()


# grey photographs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", ["x_L of the endpoints", "lq"])
def test_a_grey_photograph_is_grey_on_the_page(known, tmp_path):
    """Every picture that a page asks for, what Python shows, and the written file; a colour photograph beside
    it keeps its colours.
    """
    lq = rand(2, 3, 16, 20)
    lq[0] = lq[0, :1]
    ends = Endpoints(rand(2, 3, 64, 80, seed=1), rand(2, 3, 64, 80, seed=2), upsample(lq))
    if known == "lq":
        ends = Endpoints(ends.x_fid, ends.x_real)
    explorer = Explorer(ends, lq if known == "lq" else None)

    def spread(data):
        return np.ptp(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int), -1).max()

    for i, picture in enumerate(explorer.pictures):
        for key in ("0/fid", "0/real", "bicubic", "thumb_fid"):
            assert (spread(picture.png(key, level=1)) == 0) == (i == 0), key
    for i, shown in enumerate(explorer.pictures):
        explorer.index = i
        assert (np.ptp(explorer.image(0.3).astype(int), -1).max() == 0) == (i == 0)
        assert (spread(explorer.save_png(tmp_path / "a.png").read_bytes()) == 0) == (i == 0), shown.name
    assert (ends.x_L is None) == (explorer.ends().x_L is None)
