"""Runs write where git ignores it; the tool that keeps a run's tables and figures as the reference."""

import importlib
import json
import shutil
import subprocess

import pandas as pd
import pytest
from PIL import Image

from ifcsr_lib import results
from ifcsr_lib.config import ROOT, resolve


@pytest.fixture
def tool(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    tool = importlib.import_module("keep_reference")
    monkeypatch.setattr(tool, "REFERENCE", tmp_path / "reference")
    return tool


@pytest.fixture
def run():
    """results/pocket of a run: a table and a figure."""
    cfg = resolve("pocket")
    results.write_table(pd.DataFrame({"gamma": [0, 1], "psnr": [22.5, 21.0]}), "gamma", cfg)
    results.write_figure(Image.new("RGB", (4, 4)), "strip", cfg)
    return cfg.results


def git(*args):
    return subprocess.run(["git", "-C", ROOT, *args], capture_output=True, text=True, check=False).stdout


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="no git checkout")
def test_git_ignores_what_runs_write_and_tracks_the_reference():
    written = ["tables/a.csv", "figures/a.png", "report.html", "pairs/LR/a.png", "new/a.txt"]
    written = [f"results/{profile}/{name}" for profile in ("pocket", "smoke", "paper") for name in written]
    assert git("check-ignore", "--no-index", *written).split() == written
    kept = ["results/README.md", "results/reference/pocket/tables/new.csv"]
    assert git("check-ignore", "--no-index", *kept) == ""
    tracked = git("ls-files", "results").split()
    assert len(tracked) > 50 and all(name == kept[0] or "/reference/" in name for name in tracked)


def test_every_reference_is_the_file_that_its_record_describes():
    found = [p for kind in ("tables/*.csv", "figures/*.png") for p in results.REFERENCE.glob(f"*/{kind}")]
    assert len(found) > 40
    for path in found:
        record = results.read_json(results.sidecar(path))
        assert record["profile"] == path.parts[-3], path.name
        assert record.get("sha256") in (None, results.sha256(path)), path.name


def test_tables_and_figures_are_kept_once(tool, run, tmp_path, capsys):
    assert tool.main([]) == 0 and "2 kept" in capsys.readouterr().out
    reference = tmp_path / "reference" / "pocket"
    for name in ("tables/gamma.csv", "tables/gamma.json", "figures/strip.png", "figures/strip.json"):
        assert (reference / name).read_bytes() == (run / name).read_bytes()
    record = reference / "tables" / "gamma.json"  # another time and commit, the same numbers
    record.write_text(json.dumps(json.loads(record.read_text()) | {"time": "before"}))
    assert tool.main([]) == 0 and "0 kept" in capsys.readouterr().out
    assert json.loads(record.read_text())["time"] == "before"
    results.write_table(pd.DataFrame({"gamma": [0], "psnr": [20.0]}), "gamma", resolve("pocket"))
    results.write_figure(Image.new("RGB", (5, 5)), "strip", resolve("pocket"))
    assert tool.main(["gamma"]) == 0 and "1 kept" in capsys.readouterr().out
    assert "20" in (reference / "tables" / "gamma.csv").read_text()
    assert Image.open(reference / "figures" / "strip.png").size == (4, 4)


@pytest.mark.parametrize(
    "args, words", [(["gama"], "'gama' is not in"), (["--profile", "paper"], "no tables and no figures")]
)
def test_what_is_not_there_is_said(tool, run, args, words, capsys, tmp_path):
    assert tool.main(args) == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "reference").exists()


@pytest.mark.parametrize("damage", ["table", "record", "profile"])
def test_a_file_that_its_record_does_not_describe_is_refused_before_any_is_kept(
    tool, run, damage, capsys, tmp_path
):
    table, record = run / "tables" / "gamma.csv", run / "tables" / "gamma.json"
    if damage == "table":
        table.write_text("gamma,psnr\n0,99\n")
    elif damage == "record":
        record.unlink()
    else:
        record.write_text(json.dumps(json.loads(record.read_text()) | {"profile": "smoke"}))
    assert tool.main([]) == 2
    assert "gamma" in capsys.readouterr().err and not (tmp_path / "reference").exists()
