"""Metrics against published scores, independent arithmetic and closed forms."""

import json
import os
import warnings

import numpy as np
import pandas as pd
import pytest
import skimage.data
import torch

from ifcsr_lib.config import ROOT
from ifcsr_lib.control import Endpoints
from ifcsr_lib.evaluate import METRICS, score, sweep
from ifcsr_lib.evaluate import metrics as evaluate
from ifcsr_lib.files.checks import POINTER
from ifcsr_lib.files.images import list_images, to_tensor, write_image
from ifcsr_lib.files.results import sha256


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.delenv("IFCSR_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))  # an empty cache


@pytest.fixture(scope="module")
def photo():
    return to_tensor(skimage.data.astronaut())[..., 64:320, 64:320].contiguous()  # face and suit, 256 x 256


@pytest.fixture(scope="module")
def pair():
    """Three made-up endpoint pairs and references, 48 x 40; references are 8-bit, endpoints any float."""
    g = torch.Generator().manual_seed(0)
    hr = (torch.rand(3, 3, 48, 40, generator=g) * 255).round() / 255
    shared = torch.randn(hr.shape, generator=g) * 0.05
    ends = [(hr + shared + torch.randn(hr.shape, generator=g) * s).clamp(0, 1) for s in (0.04, 0.08)]
    return Endpoints(*ends), hr


def luma(x):
    """Studio-range Y in [0, 1] of an 8-bit version of x, in numpy and float64."""
    r, g, b = np.moveaxis(np.round(np.asarray(x, np.float64) * 255) / 255, -3, 0)
    return (65.481 * r + 128.553 * g + 24.966 * b + 16) / 255


def published(folder):
    table = pd.read_csv(folder / "realsr" / "osediff_published_metrics.csv")
    return table.assign(image=table["image"].str.removesuffix(".png")).set_index("image")


def test_published_scores_recomputed(shared_data, monkeypatch):
    """PSNR and SSIM within 1e-4, NIQE within .05 of what OSEDiff published; 3 images, all 34 when
    IFCSR_SLOW=1.
    """
    monkeypatch.setenv("IFCSR_DATA", str(shared_data))
    files = list_images(shared_data / "realsr" / "osediff")
    files = files if os.environ.get("IFCSR_SLOW") == "1" else files[::12]
    names = ["psnr", "ssim"] + (["niqe"] if not evaluate.missing("niqe") else [])
    df = score(files, [shared_data / "realsr" / "HR" / f.name for f in files], names)
    golden = published(shared_data).loc[df.index]
    for name, tolerance in zip(names, (1e-4, 1e-4, 0.05), strict=False):
        worst = (df[name] - golden[name.upper()]).abs().max()
        assert worst < tolerance, f"{name} differs by {worst} from the published scores"


def test_psnr_is_the_studio_luma_of_8_bit_images(pair):
    ends, hr = pair
    got = score(ends.x_fid, hr, ["psnr"])["psnr"]
    mse = ((luma(ends.x_fid) - luma(hr)) ** 2).mean((-2, -1))
    assert np.allclose(got, -10 * np.log10(mse), atol=2e-4)  # pyiqa computes in float32


def test_ssim_agrees_with_scikit_image(photo):
    from skimage.metrics import structural_similarity

    noisy = (photo + 0.1 * torch.randn(photo.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    a, b = (np.round(luma(v[0]) * 255) for v in (noisy, photo))
    _, full = structural_similarity(
        a,
        b,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        win_size=11,
        use_sample_covariance=False,
        full=True,
    )
    # ours clips each at 0
    assert abs(score(noisy, photo, ["ssim"])["ssim"][0] - full[5:-5, 5:-5].mean()) < 1e-3


def test_the_fast_ssim_is_pyiqas(photo):
    """Within 1e-8 on a photo with noise, blur, a flat half, odd sizes, and its negative (terms below 0,
    clipped).
    """
    import pyiqa

    slow = pyiqa.create_metric("ssim", device=torch.device("cpu"), **METRICS["ssim"].options)
    g = torch.Generator().manual_seed(1)
    flat = photo.clone()
    flat[..., :128, :] = 0.5
    cases = [
        (photo + 0.1 * torch.randn(photo.shape, generator=g)).clamp(0, 1),
        flat,
        1 - photo,
        photo,
        torch.nn.functional.avg_pool2d(photo, 5, 1, 2),
    ]
    for x in cases:
        for cut in (slice(None), slice(3, 100)):
            a, b = ((v[..., cut, :] * 255).round() / 255 for v in (x, photo))
            assert abs(evaluate._ssim(a, b) - float(slow(a, b))) < 1e-8
    assert evaluate.create("ssim", "cpu") is evaluate._ssim


def test_closed_form_is_the_measured_psnr(pair):
    """Within .01 dB: the measured images are rounded to 8 bit, the closed form is not."""
    ends, hr = pair
    gammas = (0, 0.25, 0.5, 1)
    measured, exact = (
        f(ends, hr, gammas, per_image=True, **kw)
        for f, kw in ((sweep, {"metrics": ["psnr"]}), (evaluate.psnr_curve, {}))
    )
    assert list(measured.index) == list(exact.index)
    assert measured.index.names == ["gamma", "image"]
    assert np.abs(measured["psnr"] - exact["psnr"]).max() < 0.01
    means = evaluate.psnr_curve(ends, hr, gammas)
    assert np.allclose(means["psnr"], exact["psnr"].groupby(level="gamma").mean())


def test_best_gamma_tops_a_fine_curve(pair):
    ends, hr = pair
    best = evaluate.best_gamma(ends, hr)
    fine = evaluate.psnr_curve(ends, hr, np.linspace(0, 1, 201), per_image=True)["psnr"].unstack("image")
    assert torch.allclose(best, torch.tensor(fine.idxmax().to_numpy(), dtype=torch.float32), atol=0.0026)
    assert ends.blend(best).shape == hr.shape
    # clipped: fidelity is perfect
    assert evaluate.best_gamma(Endpoints(hr, ends.x_real), hr).tolist() == [0, 0, 0]
    assert evaluate.best_gamma(Endpoints(ends.x_fid, hr), hr).tolist() == [1, 1, 1]
    assert evaluate.best_gamma(Endpoints(hr, hr), hr).tolist() == [0, 0, 0]


def test_sweep_table_and_streaming_agree(pair):
    ends, hr = pair
    table = sweep(ends, hr, (0, 1), ["psnr", "ssim"], names=["a", "b", "c"])
    assert (
        table.index.name == "gamma"
        and list(table.index) == [0, 1]
        and list(table.columns) == ["psnr", "ssim"]
    )
    assert table.attrs["lower_better"] == {"psnr": False, "ssim": False}
    assert table["psnr"][0] == pytest.approx(score(ends.x_fid, hr, ["psnr"])["psnr"].mean(), abs=1e-9)
    one_by_one = sweep([ends[i] for i in range(3)], list(hr), (0, 1), ["psnr", "ssim"])
    pd.testing.assert_frame_equal(table, one_by_one)


def test_missing_weights_read_not_run(pair, monkeypatch):
    """Said in the table at once, without a network and without pyiqa."""
    ends, hr = pair
    monkeypatch.setenv("HF_HUB_CACHE", "nowhere")
    names = ["lpips", "dists", "niqe", "musiq", "maniqa", "clipiqa", "fid"]
    df = score(ends.x_fid, hr, names)
    for name in names:
        assert evaluate.missing(name)
        assert df[name].tolist() == [f"not run: needs {', '.join(evaluate.missing(name))}"] * 3
        assert evaluate.summary(df)[name] == df[name][0]
    assert df["niqe"][0] == "not run: needs niqe_modelparameters.mat"
    assert sweep(ends, hr, (0, 1), ["psnr", "lpips"])["lpips"].str.startswith("not run: needs LPIPS").all()


def test_weights_in_the_data_folder_are_found_and_damage_is_told(pair, monkeypatch, tmp_path):
    monkeypatch.setenv("IFCSR_DATA", str(tmp_path))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "niqe_modelparameters.mat").write_bytes(b"not a mat file")
    assert evaluate.missing("niqe") == []
    x = torch.rand(1, 3, 192, 192)
    assert score(x, metrics=["niqe"])["niqe"][0].startswith("not run: needs niqe (MatReadError")


def test_niqe_pocket_prefers_the_clean_photo(photo):
    blurred = torch.nn.functional.avg_pool2d(photo, 5, 1, 2, count_include_pad=False)
    noisy = (photo + 0.1 * torch.randn(photo.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    clean, blur, noise = score(torch.cat([photo, blurred, noisy]), metrics=["niqe-pocket"])["niqe-pocket"]
    assert clean + 0.5 < min(blur, noise), (clean, blur, noise)


def test_niqe_pocket_is_the_file_its_record_describes():
    path = ROOT / "data" / "pocket" / "niqe_pocket.mat"
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["sha256"] == sha256(path)
    assert record["blocks"] == sum(p["blocks"] for p in record["photos"])
    assert {p["licence"] for p in record["photos"]} == {"CC BY-SA 4.0", "CC0", "Unsplash licence"}


def test_fitting_a_pristine_model(photo, tmp_path, monkeypatch):
    """The tool's features are the ones pyiqa's niqe compares: with every block kept, their mean has distance
    0.
    """
    import scipy.io
    from pyiqa.archs.niqe_arch import calculate_niqe

    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import fit_niqe_pocket as tool

    rows = tool.sharp_features(photo, sharpness=0)
    assert rows.shape == (4, 36)  # 2 x 2 blocks of 96
    distance = calculate_niqe(photo, mu_pris_param=torch.tensor(rows.mean(0)), cov_pris_param=torch.eye(36))
    assert float(distance) < 1e-4
    files = [
        write_image(to_tensor(getattr(skimage.data, n)()), tmp_path / f"{n}.png")
        for n in ("coffee", "astronaut")
    ]
    blocks = tool.fit(files, tmp_path / "m.mat", sharpness=0.1)
    model = scipy.io.loadmat(tmp_path / "m.mat")
    assert sum(blocks.values()) >= 37
    assert model["mu_prisparam"].shape == (1, 36) and model["cov_prisparam"].shape == (36, 36)
    with pytest.raises(ValueError, match="37 or more"):
        tool.fit(files[1:], tmp_path / "m2.mat", sharpness=0.9)
    assert not (tmp_path / "m2.mat").exists()


def test_graphics_are_told_from_photographs(photo, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import fit_niqe_pocket as tool

    chart = torch.ones(1, 3, 96, 96)
    chart[..., 40:60, 30:50] = 0.2
    assert tool.flat_share(chart) > 0.8 > tool.FLAT > tool.flat_share(photo)


def test_directions_and_defaults(photo):
    better_low = {m for m, metric in METRICS.items() if metric.lower_better}
    assert better_low == {"lpips", "lpips-lite", "dists", "niqe", "fid", "niqe-pocket"}
    assert {m for m, metric in METRICS.items() if metric.reference} == {
        "psnr",
        "ssim",
        "lpips",
        "lpips-lite",
        "dists",
        "fid",
    }
    df = score(photo)  # without hr: all metrics that need none
    assert list(df.columns) == ["niqe", "musiq", "maniqa", "clipiqa", "niqe-pocket"]
    assert df.attrs["lower_better"]["niqe-pocket"] and not df.attrs["lower_better"]["musiq"]
    assert df.index.name == "image"


def test_folders_are_matched_by_name(pair, tmp_path):
    ends, hr = pair
    for i, name in enumerate("abc"):
        write_image(hr[i : i + 1], tmp_path / "hr" / f"{name}.png")
        if i:
            write_image(ends.x_fid[i : i + 1], tmp_path / "sr" / f"{name}.bmp")
    df = score(tmp_path / "sr", tmp_path / "hr", ["psnr"])
    assert list(df.index) == ["b", "c"]
    assert np.allclose(df["psnr"], score(ends.x_fid, hr, ["psnr"])["psnr"][1:])
    with pytest.raises(ValueError, match="no reference for 1 of 3"):
        score(tmp_path / "hr", tmp_path / "sr", ["psnr"])


@pytest.mark.parametrize("metric", ["niqe-pocket"])
@pytest.mark.parametrize(
    "odd, words",
    [
        (torch.zeros(3, 192, 192), "one colour"),
        (torch.ones(3, 192, 192), "one colour"),
        (torch.full((3, 192, 192), 0.5), "one colour"),
        (torch.tensor([0.1, 0.5, 0.9]).view(3, 1, 1).expand(3, 192, 192), "one colour"),
        (torch.rand(3, 100, 192), "image under 192 pixels a side"),
    ],
)
def test_an_image_without_a_score_leaves_the_mean_of_the_rest(photo, metric, odd, words):
    """And no noise but one line that names it, with the reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        df = score([photo, odd, photo], metrics=[metric], names=["a", "sky", "c"])
    assert evaluate._lacks(df[metric]["sky"]) and isinstance(df[metric]["a"], float)
    if words == "one colour":
        assert np.isnan(df[metric]["sky"]) and words in df.attrs["reasons"][metric]["sky"]
    with pytest.warns(UserWarning, match=rf"mean of 2 of 3 images, without sky \(.*{words}") as said:
        assert evaluate.summary(df)[metric] == df[metric]["a"]
    assert len(said) == 1 and "\n" not in str(said[0].message)
    assert evaluate.left_out(df)[metric] == str(said[0].message)
    assert evaluate.summary(df, strict=True)[metric] == "not run: 1 of 3 images"
    alone = score([odd], metrics=[metric])
    assert words in evaluate.summary(alone)[metric] and not evaluate.left_out(alone)


def test_a_metric_that_breaks_on_one_image(photo, monkeypatch):
    """Not undefined but broken, such as out of memory: the reason stays in the table, readable."""
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    def maker(x):
        if x.mean() > 0.9:
            raise full
        return x.mean()

    monkeypatch.setattr(evaluate, "create", lambda name, device: maker)
    df = score([photo, torch.ones(3, 192, 192)], metrics=["niqe-pocket"])
    assert df["niqe-pocket"][1] == "not run: out of memory"
    with pytest.warns(UserWarning, match=r"without 1 \(out of memory\)"):
        assert evaluate.summary(df)["niqe-pocket"] == df["niqe-pocket"][0]


def test_means_over_some_of_the_images():
    """In `score`'s table and in a sweep's, where one image lacks a score at one gamma: the curve is of the
    others.
    """
    df = pd.DataFrame(
        {"psnr": [27.0, float("nan"), 29.0], "ssim": [0.5, 0.6, 0.7], "fid": [float("nan")] * 3}
    )
    with pytest.warns(UserWarning, match="psnr: mean of 2 of 3 images, without 1"):
        means = evaluate.summary(df)
    assert means["psnr"] == 28 and means["fid"] == "not run: 3 of 3 images"
    assert means["ssim"] == pytest.approx(0.6)
    both = pd.concat({0.0: df, 1.0: df.fillna(1)}, names=["gamma", "image"])
    with pytest.warns(UserWarning, match="without 1"):
        table = evaluate.summary(both)
    assert table["psnr"].tolist() == [28, 28], "not 28 and 19: image 1 would come and go"
    assert table["ssim"].tolist() == pytest.approx([0.6, 0.6])
    assert table["fid"].tolist() == ["not run: 3 of 3 images", 1.0]
    assert evaluate.summary(both, strict=True)["psnr"].tolist() == ["not run: 1 of 3 images", 19.0]


def test_pointers_instead_of_images_and_weights(tmp_path, monkeypatch, photo):
    data = POINTER + b"\noid sha256:00\nsize 1\n"
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.png is a git-LFS pointer"):
        score(tmp_path, metrics=["niqe-pocket"])
    monkeypatch.setenv("IFCSR_DATA", str(tmp_path))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "niqe_modelparameters.mat").write_bytes(data)
    assert "git lfs pull" in score(photo, metrics=["niqe"])["niqe"][0]


X = torch.rand(2, 3, 32, 32)
BAD_SCORE = {
    "unknown": (ValueError, "did you mean 'psnr'", (X, X, ["pnsr"])),
    "needs hr": (ValueError, "'ssim' compares with a reference; pass hr", (X, None, ["ssim"])),
    "text": (TypeError, r"pass a list such as \['psnr'\]", (X, X, "psnr")),
    "twice": (ValueError, "each once", (X, X, ["psnr", "psnr"])),
    "none": (ValueError, "one name or more", (X, X, [])),
    "shape": (ValueError, r"\(2, 32, 32\)", (X[:, 0], X, ["psnr"])),
    "range": (ValueError, r"\[0, 1\]", (X * 255, X, ["psnr"])),
    "nan": (ValueError, "NaN", (X, X * float("nan"), ["psnr"])),
    "dtype": (TypeError, "float64", (X.double(), X, ["psnr"])),
    "kind": (TypeError, "int", (3, X, ["psnr"])),
    "size": (ValueError, "allowed: the same size", (X, X[..., :16], ["psnr"])),
    "number": (ValueError, "2 images came with 2 names and 1 references", (X, X[:1], ["psnr"])),
    "names": (ValueError, "2 images came with 1 names", (X, X, ["psnr"], ["a"])),
    "batch in a list": (ValueError, "single images", ([X], [X], ["psnr"])),
    "empty": (ValueError, "at least one", ([], [], ["psnr"])),
}


@pytest.mark.parametrize("case", BAD_SCORE)
def test_score_refuses(case):
    error, text, args = BAD_SCORE[case]
    with pytest.raises(error, match=text):
        score(*args)


def test_score_refuses_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a folder"):
        score(tmp_path / "none", metrics=["niqe"])


@pytest.mark.parametrize("gammas", [[1.5], [-0.1], [float("nan")], ["0.5"], "0.5", [True], [], [0.5, 0.5]])
def test_sweep_refuses_gammas(pair, gammas):
    for f in (sweep, evaluate.psnr_curve):
        with pytest.raises(ValueError, match="gamma"):
            f(*pair, gammas)


def test_numbers_of_numpy_are_shown_as_numbers(pair):
    for gammas in ([np.float64(1.5)], [np.float32(-1)], np.array([0.5, 0.5])):
        with pytest.raises(ValueError) as info:
            evaluate.psnr_curve(*pair, gammas)
        assert "np." not in str(info.value) and "gamma" in str(info.value)


def test_reported_numbers():
    table = evaluate.reported()
    assert list(table.columns) == ["benchmark", "method", "gamma", "metric", "value", "source"]
    assert set(table["metric"]) <= set(METRICS) - {"niqe-pocket", "lpips-lite"}
    assert not table.duplicated(["method", "gamma", "metric", "source"]).any()
    ours = table[(table["method"] == "IFCSR") & (table["metric"] == "psnr")].drop_duplicates("gamma")
    assert ours.set_index("gamma")["value"].sort_index().tolist() == [
        28.0,
        27.34,
        25.89,
        25.14,
        24.41,
        23.13,
        22.1,
    ]
    assert len(evaluate.reported(None)) == len(table) + len(evaluate.reported("DRealSR"))
    with pytest.raises(ValueError, match="did you mean 'RealSR'"):
        evaluate.reported("RealSRR")


def test_reported_osediff_is_the_mean_of_its_images(shared_data):
    """To the digits printed; NIQE 5.648 and the rest of the published row."""
    row = evaluate.reported().query("method == 'OSEDiff' and source == 'published row of the method'")
    row, means = row.set_index("metric")["value"], published(shared_data).mean()
    for name, digits in {
        "psnr": 2,
        "ssim": 4,
        "lpips": 4,
        "dists": 4,
        "niqe": 3,
        "musiq": 2,
        "maniqa": 4,
        "clipiqa": 4,
    }.items():
        assert abs(row[name] - means[name.upper()]) <= 0.51 * 10**-digits, name
