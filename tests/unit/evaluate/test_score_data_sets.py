"""Benchmarks at scale, on a tiny real model and five pairs: what is kept, what is never done twice, who may
compare.
"""

import os
import subprocess
import sys

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import randomised

from ifcsr_lib import benchmark, data, models, results
from ifcsr_lib.cli import main
from ifcsr_lib.config import ROOT, resolve
from ifcsr_lib.control import Endpoints
from ifcsr_lib.evaluate import metrics as evaluate
from ifcsr_lib.files.images import list_images, read_image, write_image

GAMMAS, METRICS = (0, 0.5, 1), ["psnr", "ssim"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """$IFCSR_DATA/realsr with five pairs, 16 x 20 and 64 x 80."""
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "TORCH_HOME": tmp_path / "torch",
        "IFCSR_DATA": tmp_path / "data",
    }.items():
        monkeypatch.setenv(name, str(value))
    g = torch.Generator().manual_seed(0)
    for i in range(5):
        hr = torch.nn.functional.interpolate(
            torch.rand(1, 3, 8, 10, generator=g), (64, 80), mode="bicubic"
        ).clamp(0, 1)
        write_image(hr, tmp_path / "data" / "realsr" / "HR" / f"{i}.png")
        write_image(hr[..., ::4, ::4].contiguous(), tmp_path / "data" / "realsr" / "LR" / f"{i}.png")
    return tmp_path / "data" / "realsr"


@pytest.fixture
def model(tiny_cfg):
    return randomised(models.new(tiny_cfg))


@pytest.fixture
def passes(model):
    """The encoder's calls so far, one per image; a CPU calls the UNet once an end."""
    out = []
    model.vae.encoder.register_forward_hook(lambda m, a, o: out.append(1))
    return out


@pytest.fixture
def scored(monkeypatch):
    """The scores computed so far."""
    out, one = [], evaluate.score_one
    monkeypatch.setattr(
        evaluate, "score_one", lambda metric, *rest: (out.append(metric.name), one(metric, *rest))[1]
    )
    return out


def kept(model, name="realsr"):
    return model.cfg.results / "endpoints" / f"{name}-{benchmark.key(model)}"


def test_the_scores_are_those_of_the_endpoints(model, folder):
    """Bit for bit those of the endpoints as kept; within a thousandth of a dB those of the float ones."""
    table = benchmark.run(model, "realsr", GAMMAS, METRICS)
    assert table.index.names == ["gamma", "image"] and list(table.columns) == METRICS
    assert table.attrs["lower_better"] == {"psnr": False, "ssim": False}
    lq = list_images(folder / "LR")
    ends = [benchmark.endpoints(model, p, kept(model)).colour_fixed() for p in lq]
    expected = evaluate.sweep(ends, list_images(folder / "HR"), GAMMAS, METRICS, True, [p.stem for p in lq])
    pd.testing.assert_frame_equal(table, expected, check_exact=True)
    fresh = [model.endpoints(read_image(p).rgb) for p in lq]
    near = evaluate.sweep(fresh, list_images(folder / "HR"), GAMMAS, METRICS, True, [p.stem for p in lq])
    assert (table - near).abs().max().max() < 1e-3
    rows = pd.read_csv(kept(model) / "scores.csv", dtype={"image": str}, float_precision="round_trip")
    assert list(rows.columns) == ["image", "gamma", "colour_fix", "metric", "value"] and len(rows) == 30
    long = rows.pivot(index=["gamma", "image"], columns="metric", values="value")
    assert (long[METRICS].to_numpy() == table.to_numpy()).all()


def test_nothing_is_done_twice(model, passes, scored):
    benchmark.run(model, "realsr", (0, 1), ["psnr"])
    assert (len(passes), len(scored)) == (5, 10)
    again = benchmark.run(model, "realsr", (0, 1), ["psnr"])
    assert (len(passes), len(scored)) == (5, 10)  # all from disk
    more = benchmark.run(model, "realsr", (0, 0.3, 1), ["psnr"])
    assert (len(passes), len(scored)) == (5, 15)  # another gamma
    benchmark.run(model, "realsr", (0, 0.3, 1), METRICS)
    assert (len(passes), len(scored)) == (5, 30) and set(scored[15:]) == {"ssim"}  # another metric
    plain = benchmark.run(model, "realsr", (0,), ["psnr"], colour_fix="none")
    assert (len(passes), len(scored)) == (5, 35)  # without the colour fix
    assert (more.loc[[0, 1]] == again).all().all() and not (plain == again.loc[[0]]).all().all()


def test_only_what_changed_is_done_again(model, folder, passes):
    benchmark.run(model, "realsr", (0,), ["psnr"])
    write_image(read_image(folder / "LR" / "3.png").rgb.flip(-1), folder / "LR" / "3.png")
    benchmark.run(model, "realsr", (0,), ["psnr"])
    assert len(passes) == 6
    for name in model.adapters:
        before = benchmark.key(model)
        with torch.no_grad():
            next(iter(model.adapter(name).values())).add_(0.1)
        assert benchmark.key(model) != before  # other adapters: another folder
    benchmark.run(model, "realsr", (0,), ["psnr"], limit=2)
    assert len(passes) == 8
    model.cfg = model.cfg.replace(border=20)
    assert benchmark.run(model, "realsr", (0,), ["psnr"], limit=2).shape == (2, 1) and len(passes) == 10


def test_an_interrupted_run_goes_on(model, passes, monkeypatch):
    """Stopped in the third image: two are whole, nothing is half-written, and the end is that of an unbroken
    run.
    """

    def stop(*_):
        if len(passes) == 3:
            raise KeyboardInterrupt

    hook = model.vae.decoder.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        benchmark.run(model, "realsr", GAMMAS, METRICS)
    hook.remove()
    left = sorted(p.name for p in kept(model).iterdir())
    assert len(left) == 4 and sum(n.endswith(".csv") for n in left) == 2
    once = benchmark.run(model, "realsr", GAMMAS, METRICS)
    assert len(passes) == 3 + 3
    scores = (kept(model) / "scores.csv").read_bytes()
    monkeypatch.setenv("IFCSR_RESULTS", str(model.cfg.results.parent / "other"))
    pd.testing.assert_frame_equal(benchmark.run(model, "realsr", GAMMAS, METRICS), once, check_exact=True)
    assert (kept(model) / "scores.csv").read_bytes() == scores


def test_stopped_between_two_gammas(model, passes, scored, monkeypatch):
    counted = evaluate.score_one

    def stop(*args):
        if len(scored) == 3:
            raise KeyboardInterrupt
        return counted(*args)

    monkeypatch.setattr(evaluate, "score_one", stop)
    with pytest.raises(KeyboardInterrupt):
        benchmark.run(model, "realsr", GAMMAS, METRICS, limit=1)  # in the second metric of the second gamma
    monkeypatch.setattr(evaluate, "score_one", counted)
    benchmark.run(model, "realsr", GAMMAS, METRICS, limit=1)
    assert len(passes) == 1 and len(scored) == 3 + 4  # the first gamma's two were kept


def test_two_processes_equal_one(model, tmp_path, monkeypatch, capsys):
    """Byte for byte, scores and means, each process with one thread; the images are shared, none is done
    twice.
    """
    saved = model.save(tmp_path / "model")
    argv = ["benchmark", "realsr", "--model", str(saved), "--gammas", "0", "0.5", "1", "--metrics", *METRICS]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main(argv) == 0
    torch.set_num_threads(threads)
    text = capsys.readouterr().out
    assert "means of 5 images" in text and "written: " in text
    one = model.cfg.results
    monkeypatch.setenv("IFCSR_RESULTS", str(tmp_path / "two"))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "ifcsr_lib", *argv, "--processes", "2"],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("means of 5 images") == 1
    two = tmp_path / "two" / "smoke"
    for pattern in ("endpoints/*/*.csv", "endpoints/*/*.zip", "tables/*.csv"):
        a, b = ({p.name: p.read_bytes() for p in root.glob(pattern)} for root in (one, two))
        assert a and a == b, pattern


def test_ranks_share_the_images(model, passes, monkeypatch):
    """The second of two processes computes images 1 and 3, and finds the rest when it is there."""
    benchmark.run(model, "realsr", (0,), ["psnr"], limit=1)
    monkeypatch.setattr(benchmark, "processes", lambda: (1, 2, lambda: None))
    table = benchmark.run(model, "realsr", (0,), ["psnr"])
    assert len(passes) == 1 + 2 and table["psnr"].notna().sum() == 3


def test_scores_that_the_first_process_does_not_see_are_an_error(model, monkeypatch):
    """Two machines with a disk each: the first of two processes has images 0, 2 and 4, and forms no mean of
    them.
    """
    monkeypatch.setattr(benchmark, "processes", lambda: (0, 2, lambda: None))
    with pytest.raises(
        OSError, match=r"scores of 2 of 5 images \(1, 3\) are missing in .*realsr-.*must share.*IFCSR_RESULTS"
    ):
        benchmark.run(model, "realsr", (0,), ["psnr", "lpips"])
    assert not (kept(model) / "scores.csv").exists()


def test_missing_weights_read_not_run_and_do_nothing(model, passes, scored):
    table = benchmark.run(model, "realsr", (0, 1), ["lpips", "fid"])
    assert table["lpips"].str.startswith("not run: needs LPIPS").all()
    assert table["fid"].str.startswith("not run: needs pt_inception").all()
    assert not passes and not scored
    small = benchmark.run(model, "realsr", (0,), ["niqe-pocket"])["niqe-pocket"]
    assert set(small) == {"not run: image under 192 pixels a side"}
    assert evaluate.summary(table)["fid"].str.startswith("not run").all()


def test_fid_is_one_number_of_the_set_and_kept(model, monkeypatch):
    """Its weights are not here: a distance of folders stands in for the network, the rest is as with it."""
    calls = []

    def distance(sr, hr, **_):
        calls.append(1)
        a, b = (torch.cat([read_image(p).rgb for p in list_images(side)]) for side in (sr, hr))
        assert len(a) == len(b) == 5
        return (a.mean(0) - b.mean(0)).square().sum()

    create = evaluate.create
    monkeypatch.setattr(evaluate, "create", lambda m, device: distance if m == "fid" else create(m, device))
    monkeypatch.setattr(evaluate, "absent", lambda m: None)
    table = benchmark.run(model, "realsr", (0, 1), ["psnr", "fid"])
    fid = table["fid"].unstack("image")
    assert fid.nunique(axis=1).eq(1).all() and fid.iloc[:, 0].nunique() == 2 and len(calls) == 2
    monkeypatch.setattr(benchmark, "processes", lambda: (1, 2, lambda: None))
    more = benchmark.run(model, "realsr", (0, 0.5, 1), ["psnr", "fid"])
    assert len(calls) == 3 and (more.loc[[0, 1], "fid"] == table["fid"]).all()
    assert (
        benchmark.run(model, "realsr", (0, 0.5, 1), ["fid"])["fid"].map(type).eq(float).all()
        and len(calls) == 3
    )


def test_bad_input(model, folder, monkeypatch):
    for name, error, text in [
        ("realsrr", ValueError, "did you mean 'realsr'"),
        ("drealsr", FileNotFoundError, "drealsr/LR"),
    ]:
        with pytest.raises(error, match=text):
            benchmark.run(model, name, (0,), ["psnr"])
    with pytest.raises(ValueError, match="limit=0"):
        benchmark.run(model, "realsr", limit=0)
    with pytest.raises(ValueError, match="gamma=2"):
        benchmark.run(model, "realsr", (2,), ["psnr"])
    with pytest.raises(ValueError, match="did you mean 'psnr'"):
        benchmark.run(model, "realsr", (0,), ["pnsr"])
    with pytest.raises(ValueError, match="colour_fix='adein'"):
        benchmark.run(model, "realsr", (0,), ["psnr"], colour_fix="adein")
    write_image(torch.rand(1, 3, 32, 40), folder / "HR" / "0.png")
    with pytest.raises(ValueError, match="0: HR is .32, 40. and 4 x LR .64, 80."):
        benchmark.run(model, "realsr", (0,), ["psnr"])
    monkeypatch.delenv("IFCSR_DATA")
    with pytest.raises(FileNotFoundError, match="set IFCSR_DATA"):
        benchmark.files("realsr")


def test_damaged_files_are_named(model):
    benchmark.run(model, "realsr", (0,), ["psnr"])
    scores, pair = (next(kept(model).glob(f"0-*{suffix}")) for suffix in (".csv", ".ifcsr.zip"))
    whole = scores.read_text()
    for text in ("gamma,value\n", whole.replace("psnr,", "psnr,x"), whole + "0.5,adain\n"):
        scores.write_text(text)
        with pytest.raises(ValueError, match="damaged.*delete it"):
            benchmark.run(model, "realsr", (0,), ["psnr"])
    scores.unlink()
    pair.write_bytes(pair.read_bytes()[:-50])
    with pytest.raises(ValueError, match="ifcsr.zip.*delete it"):
        benchmark.run(model, "realsr", (0,), ["psnr"])
    pair.unlink()
    assert benchmark.run(model, "realsr", (0,), ["psnr"])["psnr"].notna().all()


def test_command_refuses(capsys, monkeypatch, tmp_path):
    for argv, text in [
        (["nosuch"], "allowed: realsr"),
        (["drealsr"], "set IFCSR_DATA"),
        (["realsr", "--processes", "0"], "1 or more"),
        (["realsr", "--metrics", "pnsr"], "did you mean"),
    ]:
        assert main(["benchmark", *argv]) == 2
        assert text in capsys.readouterr().err
    monkeypatch.setenv("IFCSR_DATA", str(tmp_path))
    assert main(["protocol"]) == 2 and "osediff_published_metrics.csv" in capsys.readouterr().err


def made_up(images=100, **columns):
    index = pd.MultiIndex.from_product(
        [(0.0, 0.2, 0.3), [f"{i}" for i in range(images)]], names=["gamma", "image"]
    )
    return pd.DataFrame(
        {m: np.broadcast_to(np.asarray(v, dtype=object), len(index)) for m, v in columns.items()}, index
    )


def test_means_beside_the_reported_numbers():
    paper = resolve("paper")
    table = made_up(psnr=27.0, lpips="not run: needs weights", dists=0.2)
    both = benchmark.compare_reported(table.infer_objects(), "realsr", paper)
    assert list(both.columns) == ["gamma", "metric", "measured", "reported", "difference", "source"]
    assert set(both["gamma"]) == {0.0, 0.2} and set(both["metric"]) == {"psnr", "lpips"}  # what both have
    psnr = both[both["metric"] == "psnr"]
    assert psnr["reported"].tolist() == [28.0, 28.0, 27.34] and psnr["source"].nunique() == 3
    assert np.allclose(psnr["difference"].astype(float), [-1, -1, -0.34])
    assert both[both["metric"] == "lpips"]["difference"].isna().all()
    assert set(both[both["metric"] == "lpips"]["measured"]) == {"not run: needs weights"}
    assert benchmark.compare_reported(made_up(3000, psnr=27.0).infer_objects(), "div2k_val", paper).empty
    assert len(benchmark.compare_reported(made_up(93, psnr=27.0).infer_objects(), "drealsr", paper)) == 1


def test_notebook_04_at_paper_scale(tiny_backbone, monkeypatch, capsys):
    """Its benchmark cell, run on a tiny backbone under profile paper: the table, the comparison, what is
    absent.
    """
    nb = nbformat.read(ROOT / "notebooks" / "04_gamma_sweep.ipynb", as_version=4)
    (cell,) = (c.source for c in nb.cells if c.cell_type == "code" and "benchmark.run" in c.source)
    cfg = resolve("paper", overrides={"backbone": str(tiny_backbone)})
    monkeypatch.setattr(benchmark, "BENCHMARKS", {"realsr": ("RealSR", 5), "drealsr": ("DRealSR", 93)})
    names = dict(
        cfg=cfg,
        model=models.new(cfg),
        metrics=METRICS,
        benchmark=benchmark,
        data=data,
        evaluate=evaluate,
        results=results,
    )
    exec(cell, names)  # noqa: S102
    table = pd.read_csv(cfg.results / "tables" / "gamma_realsr.csv")
    assert list(table.columns) == ["gamma", *evaluate.METRICS] and len(table) == 7
    assert table["psnr"].dtype == float and table["fid"].str.startswith("not run: needs").all()
    against = pd.read_csv(cfg.results / "tables" / "reported_realsr.csv")
    psnr = against[against["metric"] == "psnr"].astype({"measured": float})
    assert len(psnr) == 9 and np.allclose(psnr["measured"] - psnr["reported"], psnr["difference"], atol=1e-3)
    assert "drealsr: not run" in capsys.readouterr().out


def test_pocket_numbers_are_never_compared():
    table = made_up(psnr=27.0).infer_objects()
    for profile in ("pocket", "smoke"):
        with pytest.raises(ValueError, match="share no table"):
            benchmark.compare_reported(table, "realsr", resolve(profile))
    with pytest.raises(ValueError, match="34 images came, RealSR has 100"):
        benchmark.compare_reported(made_up(34, psnr=27.0).infer_objects(), "realsr", resolve("paper"))
    with pytest.raises(ValueError, match="did you mean"):
        benchmark.compare_reported(table, "realsrr", resolve("paper"))


def test_stored_endpoints_open_like_any_other(model):
    benchmark.run(model, "realsr", (0,), ["psnr"], limit=1)
    ends = Endpoints.load(next(kept(model).glob("*.ifcsr.zip")))
    assert ends.x_fid.shape == (1, 3, 64, 80) and ends.made_by["bits"] == 16


def test_published_scores_recomputed_by_one_call(shared_data, monkeypatch):
    """Every column that has weights; all 34 outputs when IFCSR_SLOW=1, else two."""
    monkeypatch.setenv("IFCSR_DATA", str(shared_data))
    table = benchmark.protocol(None if os.environ.get("IFCSR_SLOW") == "1" else 2)
    assert set(table.index) == {"psnr", "ssim", "lpips", "dists", "niqe", "musiq", "maniqa", "clipiqa"}
    for metric, tolerance in {"psnr": 1e-4, "ssim": 1e-4, "niqe": 0.05}.items():
        if not evaluate.missing(metric):
            assert table.loc[metric, "largest difference"] < tolerance, metric
    for metric in (m for m in table.index if evaluate.missing(m)):
        assert table.loc[metric, "largest difference"].startswith("not run: needs")
        assert np.isnan(table.loc[metric, "recomputed"])
