"""Every benchmark runs at its smallest settings and gives a table; the reference degradation is what it says.
No time is asserted.
"""

import importlib
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from ifcsr_lib import degradation
from ifcsr_lib.config import ROOT

NAMES = ("startup", "photo", "blend", "endpoints", "degradation", "training_step", "size")


@pytest.fixture(autouse=True)
def _found(monkeypatch):
    """The scripts find each other in their own folder, as when they are run; their plain names must not stay
    importable.
    """
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield
    for name in set(sys.modules) - before:
        if str(ROOT / "benchmarks") in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def script(name):
    return importlib.import_module(name)


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_its_table_has_rows(name, capsys):
    module = script(name)
    table = script("common").show(name, lambda: module.table(**module.TINY))
    shown = capsys.readouterr().out
    assert len(table) and "machine: " in shown and all(str(row) in shown for row in table.columns)
    numbers = table.select_dtypes("number")
    assert numbers.size and np.isfinite(numbers).all(axis=None)


def test_the_teacher_and_both_ends_are_timed_in_turns():
    class Slow(torch.nn.Module):
        def forward(self, x):
            for _ in range(20):
                x = x.flip(3).sort(3).values
            return x

    table = script("against_teacher").table(Slow(), side=16, repeats=1)
    ratio = table["Real-ESRGAN (s)"] / table["both ends (s)"]
    assert (table["Real-ESRGAN / both ends"] == ratio).all() and (ratio > 0).all()


def test_run_all_writes_a_table_with_its_machine(capsys, monkeypatch):
    module = script("run_all")
    assert set(module.NAMES) == set(NAMES)
    helpers = {"common", "run_all", "reference_degradation", "random_sd"}
    own = helpers | {"slider", "tiling", "gpu_proof", "full_size_cpu", "against_teacher"}  # by themselves
    scripts = {p.stem for p in (ROOT / "benchmarks").glob("*.py")} - own
    assert scripts == set(NAMES), "a benchmark that run_all does not know"
    assert module.main(["blend", "--tiny"]) == 0
    path = capsys.readouterr().out.rpartition("written: ")[2].strip()
    table = pd.read_csv(path)
    assert (
        len(table) == 2
        and table["machine"].str.contains("torch").all()
        and path.endswith("smoke/tables/bench_blend.csv")
    )
    with pytest.raises(SystemExit):
        module.main(["blnd"])
    assert "'blnd' is no benchmark; allowed: startup, photo" in capsys.readouterr().err


def test_startup_sees_torch():
    """`load("pocket")`, the dearest row, is run by test_start.py."""
    table = script("startup").table(
        repeats=1, commands=("python -c pass", "ifcsr_lib --help", "import torch")
    )
    assert table["torch"].tolist() == [False, False, True], "--help must not import torch"


def test_size_says_what_does_not_fit(monkeypatch):
    module = script("size")
    monkeypatch.setattr(module, "free_memory", lambda: 1.0)
    table = module.table(sides=(16, 32), repeats=1)
    assert table["note"].iloc[0] == "" and table["note"].iloc[1].startswith("not run: wants")


def test_mac_ratio_is_that_of_three_equal_networks():
    """(E + 2U + 2D) / 2 (E + U + D) is 5/6 where the three cost the same."""

    class Model:
        w = torch.rand(8, 8)

        def encode(self, x):
            return x @ self.w

        def eps(self, z, adapter):
            return z @ self.w

        decode = encode

    assert abs(script("endpoints").mac_ratio(Model(), torch.rand(8, 8)) - 5 / 6) < 1e-12


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(33, 20), (64, 48), (101, 77)])
def test_reference_resize_is_torchs(mode, size):
    x = np.random.default_rng(0).random((64, 48, 3))
    ours = script("reference_degradation").resize(x, *size, mode=mode)
    theirs = F.interpolate(torch.from_numpy(x).permute(2, 0, 1)[None], size=size, mode=mode)[0].permute(
        1, 2, 0
    )
    assert np.abs(ours - theirs.numpy()).max() < 1e-12


def test_reference_filters_agree_with_each_other_and_with_the_kit():
    reference = script("reference_degradation")
    x, k = np.random.default_rng(0).random((40, 52, 3)), reference.sinc_kernel(13, 1.7)
    direct, fft = (reference.filter_(x, k, how) for how in ("direct", "fft"))
    assert np.abs(direct - fft).max() < 1e-12
    kit = degradation.blur(torch.from_numpy(x).permute(2, 0, 1)[None], torch.from_numpy(k)[None])[0].permute(
        1, 2, 0
    )
    assert np.abs(direct - kit.numpy()).max() < 1e-12


def test_reference_kernels_are_the_kits():
    reference = script("reference_degradation")
    for n, cutoff in ((7, 1.2), (21, 3.0)):
        assert (
            np.abs(reference.sinc_kernel(n, cutoff) - degradation.sinc_kernel(n, cutoff).numpy()).max() < 1e-6
        )
    rng = np.random.default_rng(0)
    for _ in range(30):
        k = reference.any_kernel(rng, (0.2, 3.0))
        assert k.shape == (21, 21) and abs(k.sum() - 1) < 1e-12


@pytest.mark.parametrize("preset", ["x4plus", "light"])
def test_reference_damages_as_much_as_the_kit(preset):
    """Two programs of one description: the mean error against a plain x1/4 agrees within a third over 60
    draws each.

    Sampling error: the errors spread by about their mean, so each mean of 60 is off by 13 % (one standard
        deviation).
    """
    reference = script("reference_degradation")
    g = torch.Generator().manual_seed(0)
    x = F.interpolate(torch.rand(1, 3, 12, 12, generator=g), size=(96, 96), mode="bicubic").clamp(0, 1)
    array = x[0].permute(1, 2, 0).double().numpy()
    small = F.interpolate(x, scale_factor=0.25, mode="area")[0]
    kit = [(degradation.degrade(x, 0, preset, i)[0] - small).abs().mean().item() for i in range(60)]
    theirs = []
    for i in range(60):
        out = reference.degrade(array, (0, i), preset, "fft")
        assert out.shape == (24, 24, 3) and 0 <= out.min() and out.max() <= 1
        theirs.append(np.abs(out - small.permute(1, 2, 0).numpy()).mean())
    assert 0.75 < np.mean(theirs) / np.mean(kit) < 1.33, (np.mean(theirs), np.mean(kit))


def test_full_size_cpu_goes_the_whole_way_with_tiny_networks(tmp_path, monkeypatch):
    """Both layouts; the table has every step, and the two agree. The second runs in this process, which has
    imported everything already: half of the seconds are imports.
    """
    module, start = script("full_size_cpu"), subprocess.run

    def here(command, **options):
        if "file" not in command:
            return start(command, **options)
        monkeypatch.setenv("IFCSR_CACHE", options["env"]["IFCSR_CACHE"])
        return subprocess.CompletedProcess(command, module.main(command[2:]))

    monkeypatch.setattr(module.subprocess, "run", here)
    work = tmp_path / "work"
    work.mkdir()
    command = ["--tiny", "--layout", "both", "--out", str(tmp_path / "out"), "--work", str(work)]
    assert module.main(command) == 0
    path = tmp_path / "out" / "smoke" / "tables" / "full_size_cpu.csv"
    table = pd.read_csv(path)
    assert path.with_suffix(".json").exists() and not list(work.iterdir()), "the checkpoints are removed"
    steps = [(layout, step) for layout in module.LAYOUTS for step in (*module.STEPS, "the whole process")]
    assert list(zip(table["layout"], table["step"], strict=True)) == [*steps, ("both", "endpoints")]
    assert set(table["weights"]) == {"random weights"} and table["machine"].str.contains("torch").all()
    for layout, rows in table.groupby("layout"):
        if layout != "both":
            whole = rows.iloc[-1]
            assert (rows["minutes"] > 0).all() and (rows["peak_gb"] > 0.1).all()
            assert whole["minutes"] >= rows["minutes"].iloc[:-1].sum()
            assert whole["peak_gb"] == rows["peak_gb"].iloc[:-1].max()
    assert module.faults(table) == []


def proof_table(module):
    """A table in which all is well."""
    what = {
        "endpoints": "how far the ends of 16x16 pixels are apart",
        "endpoints again": "largest difference from the ends before",
        "the whole process": "status of the process, 0: all steps done",
    }
    steps = (*module.STEPS, "the whole process")
    rows = [
        {"layout": "file", "step": s, "peak_gb": 2.0, "what": what.get(s, "x"), "value": 0.0} for s in steps
    ]
    return pd.DataFrame(rows).set_index("step", drop=False)


@pytest.mark.parametrize(
    "step, column, value, words",
    [
        (
            "endpoints again",
            "value",
            0.01,
            "largest difference from the ends before is 0.01, allowed is 0.001",
        ),
        ("endpoints again", "value", float("nan"), "is nan"),
        ("endpoints", "value", 0.005, "the ends are only 0.005 apart"),
        ("the whole process", "value", -9, "ended with status -9"),
        ("load", "peak_gb", 20.1, "20.1 GB, allowed are 20"),
    ],
)
def test_full_size_cpu_says_what_is_wrong(step, column, value, words):
    module = script("full_size_cpu")
    table = proof_table(module)
    table.loc["endpoints", "value"] = 0.5
    assert module.faults(table) == []
    table.loc[step, column] = value
    (text,) = module.faults(table)
    assert text.startswith(f"file, {step}: ") and words in text


def test_full_size_cpu_misses_a_step():
    module = script("full_size_cpu")
    table = proof_table(module)
    table.loc["endpoints", "value"] = 0.5
    assert module.faults(table.drop("save")) == ["file: 'save' did not finish"]


def test_full_size_cpu_keeps_the_rows_of_a_process_that_died(tmp_path, monkeypatch):
    module = script("full_size_cpu")

    def dies(command, **_):
        folder = tmp_path / "file"
        with module.Record("file", folder / "rows.jsonl").step("load") as row:
            row |= {"what": "x", "value": 1}
        return subprocess.CompletedProcess(command, -9)

    monkeypatch.setattr(module.subprocess, "run", dies)
    first, whole = module.run("file", tmp_path / "file", tiny=True)
    assert (first["step"], first["value"]) == ("load", 1) and first["peak_gb"] == whole["peak_gb"] > 0
    assert (whole["step"], whole["value"]) == ("the whole process", -9)


def test_the_peak_is_of_its_own_step():
    """Where Linux can forget the peak, a step after a large one tells less memory."""
    module = script("full_size_cpu")
    large = np.ones(30_000_000)  # 240 MB
    before = module.peak_gb()
    del large
    after = module.peak_gb(reset=True)
    assert 0.05 < after <= before
    if sys.platform == "linux":
        assert after < before - 0.1
