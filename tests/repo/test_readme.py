"""README repeats no number that the repository's own tables do not hold."""

import re

import pandas as pd

from ifcsr_lib.config import ROOT


def test_the_table_to_expect_is_the_one_in_results():
    table = pd.read_csv(ROOT / "results" / "pocket" / "tables" / "gamma_released.csv")
    rows = re.findall(r"^\| (0\.\d|1\.0) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    shown = [[float(v) for v in row] for row in rows]
    assert [row[0] for row in shown] == [0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0]
    held = table.set_index(table["gamma"].round(1))
    for gamma, psnr, ssim, niqe in shown:
        row = held.loc[gamma]
        assert abs(row["psnr"] - psnr) <= 0.005 and abs(row["ssim"] - ssim) <= 5e-5 and abs(row["niqe-pocket"] - niqe) <= 0.005


def test_readme_has_what_was_measured_on_a_gpu():
    table = pd.read_csv(ROOT / "results" / "paper" / "tables" / "gpu_proof.csv")
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| stage ([12])(, gradients checkpointed)? \| ([\d.]+) \| ([\d.]+) GB \|", text, re.MULTILINE)
    assert len(rows) == 4
    for stage, checkpointed, seconds, peak in rows:
        row = table[table["what"].str.startswith(f"stage{stage}") & (table["gradient_checkpointing"] == bool(checkpointed)) & (table["compile"] == "no")]
        assert (f"{row['seconds'].item():.2f}", f"{row['peak_gb'].item():.1f}") == (seconds, peak)
    ends = re.search(r"([\d.]+) s and ([\d.]+) GB at 512x512 in float32, ([\d.]+) s and ([\d.]+) GB at 1024x1024", text).groups()
    rows = table[(table["what"] == "endpoints") & (table["precision"] == "no") & (table["compile"] == "no")].sort_values("side")
    assert tuple(f"{row.seconds:.2f} {row.peak_gb:.1f}" for row in rows.itertuples()) == (" ".join(ends[:2]), " ".join(ends[2:]))


def test_readme_has_the_released_model_on_realsr():
    text, table = (ROOT / "README.md").read_text(), pd.read_csv(ROOT / "results" / "pocket" / "tables" / "release_realsr.csv")
    header = "| | gamma 0 | `pocket`, gamma 0.5 | gamma 1 |"
    rows = re.findall(r"\| (PSNR|SSIM|NIQE) \|(.*)\|", text.split(header)[1].split("\n\n")[0])
    assert [name for name, _ in rows] == ["PSNR", "SSIM", "NIQE"]
    for name, cells in rows:
        values = [table.query("model == 'pocket' and gamma == @gamma")[name.lower()].item() for gamma in (0.0, 0.5, 1.0)]
        assert [cell.strip() for cell in cells.split("|")] == [f"{v:.4f}"[1:] if name == "SSIM" else f"{v:.2f}" for v in values]
