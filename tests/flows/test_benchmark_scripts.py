"""Every benchmark runs at its smallest settings and gives a table; the reference degradation is what it says.
No time is asserted.
"""

import importlib
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from ifcsr_lib import degradation
from ifcsr_lib.config import ROOT

NAMES = ("startup", "blend", "endpoints", "degradation", "training_step", "size")


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
    # the last four: by themselves
    own = {"common", "run_all", "reference_degradation", "slider", "tiling", "gpu_proof", "against_teacher"}
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
    assert "'blnd' is no benchmark; allowed: startup, blend" in capsys.readouterr().err


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
