"""The report of a run: verdicts come from the tables, the comparison from the reference, nothing is fetched,
and what is damaged is a sentence.
"""

import html
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ifcsr_lib import results
from ifcsr_lib.config import resolve
from ifcsr_lib.report import reference
from ifcsr_lib.report.claims import FAILS, HOLDS, NOT_RUN, judge
from ifcsr_lib.report.notebooks import duration, executed
from ifcsr_lib.report.page import IMAGE_LIMIT, render, shrink, write
from ifcsr_lib.report.tables import read_all

RECIPES = ["single stage, baseline", "two stages, k = 1 (baseline)", "two stages, k = 3", "two stages, k = 7"]
TABLES = {
    "stage1_heldout": {
        "image": ["bicubic", "stage 1 (gamma 0)"],
        "psnr": [22.4, 22.6],
        "ssim": [0.60, 0.61],
    },
    "gamma_heldout": {
        "gamma": [0.0, 0.5, 1.0],
        "psnr": [22.6, 21.0, 19.0],
        "ssim": [0.61, 0.5, 0.4],
        "niqe-pocket": [8.7, 7.5, 7.0],
        "lpips-lite": [5.3, 5.2, 5.6],
    },
    "gamma_released": {
        "gamma": [0.0, 1.0],
        "psnr": [22.7, 22.2],
        "ssim": [0.61, 0.58],
        "niqe-pocket": [8.7, 7.4],
    },
    "ablation": {
        "recipe": RECIPES,
        "seed": [0] * 4,
        "PSNR range (dB)": [0.1, 0.5, 2.8, 3.2],
        "niqe-pocket range": [0.0, 0.3, 2.1, 2.2],
        "lpips-lite range": [0.01, 0.05, 0.3, 0.4],
        "mean |x_real - x_fid| (levels)": [4.0, 5.0, 13.0, 15.0],
    },
    "control_cost": {
        "strategy": ["image blend (IFCSR)", "latent blend", "OSEDiff-like"],
        "set-up": ["E + 2U + 2D", "E + 2U", "E + U + D"],
        "adjustment": ["0", "D", "0"],
        "set-up (s)": [0.6, 0.5, 0.4],
        "E1 pays from N": ["1", "2", "never"],
    },
    "control_smoothness": {
        "strategy": ["image blend (IFCSR)", "latent blend"],
        "largest / mean": [1.0, 2.4],
        "detour": [1.0, 1.2],
    },
    "denoising": {
        "image": ["noisy", "gamma 0", "gamma 1"],
        "psnr": [24.7, 27.2, 22.3],
        "niqe-pocket": [11.2, 6.5, 5.4],
        "lpips-lite": [7.0, 5.9, 5.8],
    },
    "beyond_ghosting_known": {
        "shift (down, right)": ["(0, 1)", "(2, 0)"],
        "E1": [0.3, 0.4],
        "aligned": [0.02, 0.01],
        "ends bit for bit": [True, True],
    },
}


def save(cfg, name, changes=None, **cells):
    """Write the table; cells: {column: its values}, changes: the same for columns that are no identifiers."""
    frame = pd.DataFrame({**TABLES[name], **cells, **(changes or {})})
    return results.write_table(frame, name, cfg)


@pytest.fixture
def cfg():
    return resolve("pocket")


@pytest.fixture
def run(cfg):
    for name in TABLES:
        save(cfg, name)
    return cfg


@pytest.fixture
def kept(run, tmp_path):
    """The reference: the same tables."""
    return shutil.copytree(run.results / "tables", tmp_path / "reference")


def verdicts(cfg):
    """{(start of the claim, table): Verdict}."""
    return {(v.claim.text, v.claim.table): v for v in judge(cfg, read_all(cfg.results / "tables", cfg))}


def plain(page: str) -> str:
    """What a person reads of a page."""
    return html.unescape(re.sub(r"<[^>]*>", " ", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)))


def test_every_claim_holds_where_the_numbers_say_so(run):
    found = verdicts(run)
    open_ones = {table for (_, table), v in found.items() if v.word != HOLDS}
    assert len(found) > 15 and open_ones == {"reported_realsr", "reported_drealsr", "gamma_released"}
    assert [v.why for v in found.values() if v.claim.table == "gamma_released" and v.word != HOLDS] == [
        "gamma_released.csv has none of lpips, dists, lpips-lite for every gamma"
    ]


@pytest.mark.parametrize(
    "table, changes, falls",
    [
        ("stage1_heldout", {"psnr": [22.4, 22.3]}, ["closer to the photograph"]),
        ("stage1_heldout", {"ssim": [0.62, 0.61]}, ["closer to the photograph"]),
        ("gamma_heldout", {"psnr": [22.6, 22.7, 19.0]}, ["PSNR falls along"]),
        ("gamma_heldout", {"psnr": [22.6, 22.6, 19.0]}, ["PSNR falls along"]),
        ("gamma_heldout", {"ssim": [0.4, 0.5, 0.6]}, ["SSIM falls along"]),
        ("gamma_heldout", {"niqe-pocket": [8.7, 6.0, 7.0]}, ["NIQE falls along"]),
        ("gamma_heldout", {"niqe": [8.0, 9.0, 7.0]}, ["NIQE falls along"]),
        ("gamma_heldout", {"lpips-lite": [5.1, 5.2, 5.6]}, ["perceptual distance"]),
        ("gamma_released", {"psnr": [22.0, 22.2]}, ["PSNR falls along"]),
        ("ablation", {"PSNR range (dB)": [0.1, 0.05, 2.8, 3.2]}, ["wider than one"]),
        ("ablation", {"niqe-pocket range": [0.0, 0.3, 2.1, 0.2]}, ["loss are wider than with"]),
        # the sign of the single stage's range is chance, and a range below nought is none
        ("ablation", {"PSNR range (dB)": [-0.6, 0.5, 2.8, 3.2]}, ["wider than one"]),
        (
            "ablation",
            {"lpips-lite range": [0.01, 0.05, 0.3, -0.1]},
            ["wider than with", "wider than a single"],
        ),
        (
            "ablation",
            {"niqe-pocket range": [0.25, 0.3, 2.1, 0.2]},
            ["wider than with", "wider than a single"],
        ),
        ("ablation", {"mean |x_real - x_fid| (levels)": [8.0, 5.0, 13.0, 15.0]}, ["tell its ends apart"]),
        ("control_cost", {"adjustment": ["D", "D", "0"]}, ["calls no network"]),
        ("control_cost", {"E1 pays from N": ["1", "never", "never"]}, ["costs less than control"]),
        ("control_smoothness", {"largest / mean": [1.2, 2.4]}, ["alike, on a straight line"]),
        ("denoising", {"psnr": [28.0, 27.2, 22.3]}, ["beats the noisy input"]),
        ("denoising", {"niqe-pocket": [11.2, 5.5, 6.4]}, ["NIQE fall from"]),
        ("denoising", {"lpips-lite": [7.0, 5.9, 6.0]}, ["NIQE fall from"]),
        ("beyond_ghosting_known", {"aligned": [0.02, 0.5]}, ["doubles it less"]),
        ("beyond_ghosting_known", {"ends bit for bit": [True, False]}, ["doubles it less"]),
    ],
)
def test_a_verdict_flips_with_its_numbers(run, table, changes, falls):
    before = verdicts(run)
    save(run, table, changes)
    changed = {key: v for key, v in verdicts(run).items() if v.word != before[key].word}
    assert {v.word for v in changed.values()} == {FAILS} and len(changed) == len(falls)
    assert all(table == key[1] for key in changed)
    assert all(any(words in key[0] for key in changed) for words in falls), changed


def test_several_seeds_must_agree(run):
    frame = pd.DataFrame(TABLES["ablation"])
    other = frame.assign(seed=1, **{"niqe-pocket range": [0.4, 0.3, 2.1, 2.2]})
    cfg = resolve("pocket", overrides={"seeds_ablation": 2})
    results.write_table(pd.concat([frame, other]), "ablation_seeds", cfg)
    found = {text: v for (text, table), v in verdicts(cfg).items() if table == "ablation_seeds"}
    one = next(v for text, v in found.items() if "wider than one" in text)
    assert one.word == FAILS and "1 of 2 seeds" in one.why
    assert [v.word for v in found.values()].count(HOLDS) == 3


def test_a_run_of_one_notebook(cfg):
    save(cfg, "stage1_heldout")
    found = verdicts(cfg)
    assert {v.word for (_, table), v in found.items() if table == "stage1_heldout"} == {HOLDS}
    assert {v.word for (_, table), v in found.items() if table != "stage1_heldout"} == {NOT_RUN}
    said = plain(write(cfg, ["02_stage1_fidelity", "05_ablations"]).read_text())
    assert "1 hold, 0 do not hold" in said and "05_ablations not run" in re.sub(r"\s+", " ", said)
    assert "needs notebook 05" in said and "not run: needs notebook 06" in said


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda p: p.write_text("gamma,psnr\n0,99\n"), "is not the file that gamma_heldout.json describes"),
        (lambda p: p.with_suffix(".json").unlink(), "has no gamma_heldout.json"),
        (lambda p: p.with_suffix(".json").write_text("{"), "is not valid JSON"),
        (lambda p: p.with_suffix(".json").write_text("[]"), "is no provenance record"),
        (lambda p: rewritten(p, b""), "is no table"),
        (lambda p: rewritten(p, b"\xff\xfe\x00\x01,\x80\n"), "is no table"),
        (lambda p: rewritten(p, b'a,b\n"1,2\n'), "is no table"),
        (lambda p: rewritten(p, b"gamma,psnr\n"), "has no rows"),
        (lambda p: rewritten(p, b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
        (lambda p: rewritten(p, b"gamma,ssim\n0,1\n1,0.5\n"), "has no column 'psnr'"),
        (lambda p: rewritten(p, b"gamma,psnr\n0,nan\n1,1\n"), "has 'nan' in the column 'psnr'"),
        (lambda p: rewritten(p, b"gamma,psnr\n0,inf\n1,1\n"), "has inf in the column 'psnr'"),
        (lambda p: rewritten(p, b"gamma,psnr\n0,not run: needs x\n1,1\n"), "has 'not run: needs x'"),
    ],
)
def test_a_damaged_table_is_a_sentence(run, kept, damage, words):
    damage(run.results / "tables" / "gamma_heldout.csv")
    psnr = verdicts(run)["PSNR falls along gamma", "gamma_heldout"]
    assert psnr.word == NOT_RUN and words in psnr.why
    said = plain(render(run, (), kept))
    assert words in said and "Traceback" not in said


def rewritten(path, data):
    """Other bytes, with a record that fits them."""
    path.write_bytes(data)
    record = json.loads(path.with_suffix(".json").read_text()) | {"sha256": results.sha256(path)}
    path.with_suffix(".json").write_text(json.dumps(record))


def test_tables_of_other_settings_are_left_out(run):
    other = resolve("pocket", overrides={"k": 3.0})
    found = verdicts(other)
    assert {v.word for v in found.values()} == {NOT_RUN}
    assert "was made with k=7.0, this run has k=3.0" in found["PSNR falls along gamma", "gamma_heldout"].why


def compared(cfg, folder):
    return {c.table: c for c in reference.compare(cfg, read_all(cfg.results / "tables", cfg), folder)}


def test_the_same_tables_are_within_the_tolerance(run, kept):
    found = compared(run, kept)
    assert found.pop("control_cost").why == "it has no numbers but times"
    assert {c.word for c in found.values()} == {reference.WITHIN}
    assert found["gamma_heldout"].rows == 3 and found["gamma_heldout"].absolute == "none"


@pytest.mark.parametrize(
    "table, changes, word",
    [
        ("gamma_heldout", {"psnr": [22.6, 21.0, 19.5]}, reference.WITHIN),  # trained in the run
        ("gamma_heldout", {"psnr": [22.6, 21.0, 18.3]}, reference.BEYOND),
        ("gamma_released", {"psnr": [22.7, 22.24]}, reference.WITHIN),
        ("gamma_released", {"psnr": [22.7, 22.3]}, reference.BEYOND),  # no training explains it
        ("ablation", {"niqe-pocket range": [0.0, 0.3, 2.1, 9.0]}, reference.BEYOND),
        ("control_cost", {"set-up (s)": [60.0, 50.0, 40.0]}, reference.NOT_COMPARED),  # times alone
        ("denoising", {"psnr": ["not run", 27.2, 22.3]}, reference.WITHIN),
    ],
)
def test_a_verdict_of_the_comparison_flips_with_its_numbers(run, kept, table, changes, word):
    save(run, table, changes)
    found = compared(run, kept)
    assert found[table].word == word, found[table]
    assert {c.word for name, c in found.items() if name not in (table, "control_cost")} == {reference.WITHIN}


def test_the_comparison_names_the_largest_differences(run, kept):
    save(run, "gamma_heldout", {"psnr": [22.6, 21.0, 17.0], "ssim": [0.61, 0.5, 0.1]})
    one = compared(run, kept)["gamma_heldout"]
    assert one.absolute == "2 (psnr, 1)" and one.relative == "75.00% (ssim, 1)"
    assert one.tolerance == "0.3 of 0.02 (ssim, 1)" and "2 of 12 numbers; furthest: ssim, 1" in one.why
    page = render(run, (), kept)
    assert "1 of 7 tables are beyond the tolerance of another processor: gamma_heldout" in plain(page)


def test_rows_are_compared_by_name(run, kept):
    frame = pd.DataFrame(TABLES["ablation"])
    results.write_table(frame.iloc[::-1].iloc[:3], "ablation", run)
    one = compared(run, kept)["ablation"]
    assert one.word == reference.WITHIN and one.rows == 3 and "1 rows of the reference are not" in one.why


def test_what_cannot_be_compared_says_why(run, kept):
    (run.results / "tables" / "ablation.csv").write_text("broken")
    (kept / "denoising.csv").write_text("broken")
    (kept / "stage1_heldout.csv").unlink()
    found = compared(run, kept)
    assert "this run's is not the file" in found["ablation"].why
    assert "the reference is not the file" in found["denoising"].why
    assert found["stage1_heldout"].why == "there is no reference"
    other = resolve("pocket", overrides={"k": 3.0})
    save(other, "gamma_heldout")
    why = compared(other, kept)["gamma_heldout"].why
    assert why == "the reference was made with k=7.0, this run has k=3.0"


def test_the_shipped_reference_can_be_compared(cfg):
    kept = read_all(results.REFERENCE / "pocket" / "tables", cfg)
    assert {"gamma_heldout", "gamma_released", "ablation", "control_spectrum", "denoising"} <= set(
        kept.frames
    )


def noise(side):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), "uint8"))


def test_figures_are_inside_and_small(run, tmp_path):
    results.write_figure(noise(32), "small", run)
    results.write_figure(noise(700), "large", run)
    page = render(run)
    found = dict(re.findall(r'<img src="(data:[^"]+)" alt="(\w+)"', page))
    assert sorted(found.values()) == ["large", "small"]
    for source in found:
        assert len(source.partition(",")[2]) <= IMAGE_LIMIT
    kind, data = shrink(run.results / "figures" / "small.png")
    assert kind == "image/png" and data == (run.results / "figures" / "small.png").read_bytes()
    (run.results / "figures" / "large.png").write_bytes(b"no picture")
    assert "large.png is not the file that large.json describes: left out" in plain(render(run))
    results.write_sidecar(run.results / "figures" / "large.png", run)
    assert "large.png cannot be read" in plain(render(run))


def test_the_slider_is_inside(run):
    folder = run.results / "explorer"
    folder.mkdir(parents=True)
    page = '<!DOCTYPE html><p title="a & b">slider</p><script>1 < 2</script>'
    (folder / "one_page.html").write_text(page)
    assert "<iframe" not in render(run)  # nothing says how it was made
    results.write_sidecar(folder / "one_page.html", run)
    inside = re.search(r'<iframe [^>]*srcdoc="([^"]*)"', render(run))[1]
    assert html.unescape(inside) == page
    assert "<iframe" not in render(resolve("pocket", overrides={"k": 3.0}))


def test_a_large_slider_is_linked(run, monkeypatch):
    from ifcsr_lib.report import page as module

    (run.results / "explorer").mkdir(parents=True)
    (run.results / "explorer" / "a.html").write_text("<p>slider</p>")
    results.write_sidecar(run.results / "explorer" / "a.html", run)
    monkeypatch.setattr(module, "SLIDER_LIMIT", 5)
    said = render(run)
    assert '<a href="explorer/a.html">' in said and "<iframe" not in said


def test_nothing_is_fetched(run, kept):
    results.write_figure(noise(32), "small", run)
    page = write(run, ["00_start_here"], kept).read_text()
    assert re.findall(r'(?:src|srcset|data|action|poster)="(?!data:)', page) == []
    assert re.findall(r"@import|url\(|<link|<script|<object|<embed", page) == []
    assert {a for a in re.findall(r'<(\w+)[^>]* href="https?:', page)} == {"a"}
    assert "default-src 'none'" in page


def test_the_run_is_described(run):
    folder = run.results / "executed"
    folder.mkdir(parents=True)
    parameters = {"profile": "pocket", "seed": 0, "overrides": {}}
    for name, changes in {"00_a": {}, "01_b": {"overrides": {"k": 3.0}}, "02_c": {"seed": "x"}}.items():
        facts = {"duration": 289.2, "end_time": "2026-01-02T03:04:05.6", "parameters": parameters | changes}
        text = json.dumps({"metadata": {"papermill": facts}, "cells": []})
        (folder / f"{name}.ipynb").write_text(text)
    (folder / "03_d.ipynb").write_text("{")
    (folder / "04_e.failed.ipynb").write_text((folder / "00_a.ipynb").read_text())
    assert list(executed(folder)) == ["00_a", "01_b", "02_c"]
    said = re.sub(r"\s+", " ", plain(render(run, ["00_a", "03_d"])))
    assert "00_a 4 min 49 s 2026-01-02 03:04:05" in said and "03_d not run " in said
    assert "01_b not run with these settings" in said and "together 4 min 49 s" in said
    assert run.hash in said and "seed 0" in said and "torch 2." in said and "processors" in said
    assert "k=3.0" in plain(render(resolve("pocket", overrides={"k": 3.0})))


def test_names_that_are_no_html_stay_text(run):
    cells = TABLES["control_smoothness"] | {"strategy": ["image blend (IFCSR)", "<script>alert(1)</script>"]}
    results.write_table(pd.DataFrame(cells), "control_smoothness", run)
    assert "<script>" not in render(run)


def test_paper_scale_stands_beside_the_reported_numbers():
    cfg = resolve("paper")
    rows = {
        "gamma": [0.0, 0.5],
        "metric": ["psnr", "psnr"],
        "measured": [27.0, 25.14],
        "reported": [28.00, 25.14],
        "difference": [-1.0, 0.0],
        "source": ["IFCSR main table"] * 2,
    }
    results.write_table(pd.DataFrame(rows), "reported_realsr", cfg)
    claim = "The paper's scores on RealSR are reached, each within 5%"
    assert verdicts(cfg)[claim, "reported_realsr"].word == HOLDS
    said = re.sub(r"\s+", " ", plain(render(cfg)))
    assert "0 psnr 28 27 -1.0000 IFCSR main table" in said and "0 ssim 0.7975 not run IFCSR main" in said
    results.write_table(pd.DataFrame(rows | {"measured": [22.0, 25.14]}), "reported_realsr", cfg)
    assert verdicts(cfg)[claim, "reported_realsr"].word == FAILS
    assert "not run: needs profile paper" in plain(render(resolve("pocket")))


@pytest.mark.parametrize(
    "seconds, words", [(0.2, "0 s"), (59.4, "59 s"), (59.7, "1 min 0 s"), (289.2, "4 min 49 s")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words
