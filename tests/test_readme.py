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
