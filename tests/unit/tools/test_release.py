"""The release tool's tables, at small size."""

import sys
from pathlib import Path

import pytest
import torch

from ifcsr_lib import models
from ifcsr_lib.files import images

sys.path.insert(0, str(Path(__file__).parents[3] / "tools" / "pocket"))
import release


@pytest.mark.parametrize("kind", release.MILD)
def test_mild_damage_is_mild_and_the_same_each_time(kind):
    x = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    x = torch.nn.functional.interpolate(x, 192, mode="bilinear")
    lq = release.mild(x, kind, 3)
    assert lq.shape == (1, 3, 48, 48) and torch.equal(lq, release.mild(x, kind, 3))
    assert torch.equal((lq * 255).round(), lq * 255), "not whole levels"
    plain = release.mild(x, "bicubic", 3)
    assert (lq - plain).abs().mean() < 0.06 and (kind == "bicubic" or not torch.equal(lq, plain))


def test_tables_hold_every_row(tiny_cfg, tmp_path, monkeypatch):
    """Along gamma with another method beside, and on the published images alone."""
    monkeypatch.setattr(release, "METRICS", ["psnr", "ssim"])
    monkeypatch.setattr(release, "GAMMAS", (0.0, 1.0))
    model, files = models.new(tiny_cfg), {"LR": [], "HR": []}
    for i in range(2):
        x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(i))
        for side, picture in (("LR", x), ("HR", images.upsample(x, 4).clamp(0, 1))):
            files[side].append(images.write_image(picture, tmp_path / side / f"{i}.png"))
    lq, hr = files["LR"], files["HR"]
    table, ends = release.along_gamma(model, lq, hr, {"other": hr})
    assert [*table.index.get_level_values("model")] == ["bicubic", "pocket", "pocket", "other"]
    assert table.loc["other", "psnr"].iloc[0] > table.loc["bicubic", "psnr"].iloc[0] > 45
    both = {"bicubic": [e.x_L for e in ends], "other": hr}
    published = release.on_published(both, hr, {hr[1].name: hr[1]})
    assert (published["images"] == 1).all() and "OSEDiff, published" in published.index
    assert published.loc["other", "psnr"] == published.loc["OSEDiff, published", "psnr"]


def test_the_strip_shows_one_photograph_after_two_damages(tiny_cfg):
    rows = release.strip_rows(models.new(tiny_cfg))
    (light, beside), (hard, again) = rows.values()
    x_H, again = beside["HR"], again["HR"]
    assert torch.equal(x_H, again) and light.x_fid.shape == hard.x_real.shape == x_H.shape
    errors = [(e.x_L - x_H).square().mean() for e in (light, hard)]
    assert errors[0] < errors[1], "the hard damage is not the harder one"
