"""Gamma chosen by the machine: the closed forms against a search, what cannot be chosen, and the command."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage import data as skimage_data

from ifcsr_lib import auto, evaluate
from ifcsr_lib.cli import main, upscale_folder
from ifcsr_lib.control import Endpoints
from ifcsr_lib.control.auto import auto_gamma, lq_distance
from ifcsr_lib.control.maps import smooth
from ifcsr_lib.files.images import read_image, upsample

HR = torch.from_numpy(skimage_data.astronaut()[40:168, 150:278].copy()).permute(2, 0, 1)[None] / 255
HR = torch.cat([HR, HR.flip(3)])


def noise(seed):
    return torch.randn(HR.shape, generator=torch.Generator().manual_seed(seed))


def measured(ends, gamma):
    """d(gamma) from the blended picture itself, degraded again, without the quadratic: (N,)."""
    _, e = auto._residuals(Endpoints(ends.x_fid, ends.blend(gamma), ends.x_L))
    return e.square().mean((1, 2, 3)).sqrt()


LQ = auto._shrink(smooth(HR, 1.0)).clamp(0, 1)
LQ = (LQ + 0.02 * torch.randn(LQ.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
ENDS = Endpoints(smooth(HR, 0.7), (HR + smooth(noise(2), 2.0) * 0.5).clamp(0, 1), upsample(LQ))


@pytest.mark.parametrize("levels", [0.0, 0.5, 1.0, 4.0])
def test_the_closed_form_is_the_largest_gamma_within_the_limit(levels):
    """Every gamma of a scan below it stays within the limit, every one above leaves it; at it, the limit is met to 1e-6."""
    limit = (measured(ENDS, 0.0) ** 2 + (levels / 255) ** 2).sqrt()
    best = auto_gamma(ENDS, levels)
    assert best.shape == (2,) and best.dtype == torch.float32
    for g in (0.0, 0.01, 0.05, 0.1, 0.3, 0.6, 1.0):
        assert torch.allclose(measured(ENDS, g).float(), lq_distance(ENDS, g), atol=1e-6)
        inside = measured(ENDS, g) <= limit + 1e-7
        assert torch.equal(inside, torch.tensor(g) <= best + 1e-5), (g, best)
    assert (((measured(ENDS, best) - limit).abs() < 1e-6) | (best == 1)).all()
    assert ENDS.blend(best).shape == HR.shape


def test_more_tolerance_gives_more_gamma_and_none_is_the_default():
    gammas = torch.stack([auto_gamma(ENDS, levels) for levels in (0.0, 0.5, 1.0, 3.0, 100.0)])
    assert (gammas.diff(dim=0) >= 0).all() and (gammas[1] > 0.01).all() and (gammas[-1] == 1).all()
    assert torch.equal(auto_gamma(ENDS), auto_gamma(ENDS, auto.TOLERANCE))


def test_invented_detail_that_the_lq_cannot_show_is_free_and_what_it_denies_is_not():
    """A checkerboard of single pixels vanishes when shrunk; a slow wave does not."""
    rows, columns = torch.arange(128).view(-1, 1), torch.arange(128).view(1, -1)
    checks = ((rows + columns) % 2 * 2.0 - 1).expand(1, 3, 128, 128) * 0.1
    wave = torch.sin(columns / 6.0).expand(1, 3, 128, 128) * 0.1
    base, x_L = ENDS.x_fid[:1].clamp(0.2, 0.8), ENDS.x_L[:1]
    free, denied = (auto_gamma(Endpoints(base, (base + extra).clamp(0, 1), x_L)) for extra in (checks, wave))
    assert free == 1 and denied < 0.5


def test_degraded_again_is_a_gaussian_and_a_bicubic_shrink():
    """Against SciPy's Gaussian and Pillow's bicubic resize, away from the border."""
    for sigma in (0.5, 1.5, 3.0):
        ours = auto._shrink(auto._blur(HR[:1].double(), sigma))[0]
        for x, y in zip(HR[0].numpy(), ours, strict=True):
            theirs = Image.fromarray(ndimage.gaussian_filter(x, sigma)).resize((32, 32), Image.Resampling.BICUBIC)
            assert (torch.from_numpy(np.array(theirs)) - y)[4:-4, 4:-4].abs().max() < 2e-3


def test_equal_ends_take_gamma_1():
    assert (auto_gamma(Endpoints(HR, HR, upsample(LQ))) == 1).all()


def test_a_reference_gives_the_psnr_best():
    """The closed form of evaluate.best_gamma; no gamma of a scan scores higher."""
    best = auto_gamma(ENDS, HR)
    assert torch.equal(best, evaluate.best_gamma(ENDS, HR))
    curve = evaluate.psnr_curve(ENDS, HR, [g / 50 for g in range(51)], per_image=True)["psnr"]
    for i in range(2):
        top = evaluate.psnr_curve(ENDS[i], HR[i : i + 1], [float(best[i])])["psnr"].iloc[0]
        assert top >= curve.xs(i, level="image").max() - 1e-6


@pytest.mark.parametrize(
    "ends, target, error, text",
    [
        (Endpoints(HR, HR), None, ValueError, "carry no x_L"),
        (ENDS, -0.1, ValueError, "target=-0.1"),
        (ENDS, float("nan"), ValueError, "target=nan"),
        (ENDS, True, TypeError, "bool"),
        (ENDS, "best", TypeError, "came as str"),
        (ENDS, HR[..., :64], ValueError, "differ in shape"),
        (ENDS, HR[:1], ValueError, "differ in shape"),
        (ENDS, HR.flip(2), ValueError, "x_fid and target show different images"),
        (Endpoints(ENDS.x_fid, ENDS.x_real, ENDS.x_L.flip(2)), None, ValueError, "x_L and x_fid show different images"),
        (Endpoints(ENDS.x_fid, ENDS.x_real.flip(2), ENDS.x_L), None, ValueError, "x_L and x_real show different images"),
        (ENDS, HR * 255, ValueError, "Divide 8 bit"),
    ],
)
def test_bad_input(ends, target, error, text):
    with pytest.raises(error, match=text):
        auto_gamma(ends, target)


class Model:
    """No network: bicubic, and bicubic with noise."""

    def endpoints(self, lq):
        x = upsample(lq)
        extra = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        return Endpoints(x, (x + 0.1 * extra).clamp(0, 1), x)


def test_the_command_chooses_for_each_photo(tmp_path, capsys, monkeypatch):
    for name, i in (("a", 0), ("b", 1)):
        Image.fromarray((LQ[i].permute(1, 2, 0).numpy() * 255).round().astype("uint8")).save(tmp_path / f"{name}.png")
    jobs = {tmp_path / f"{n}.png": tmp_path / f"{n}.tif" for n in "ab"}
    assert upscale_folder(Model(), jobs, "auto") == 0
    said = capsys.readouterr().out
    for source, target in jobs.items():
        ends = Model().endpoints(read_image(source).rgb)
        gamma = auto_gamma(ends)
        assert f"{source.name}: gamma {float(gamma):.2f}" in said and 0 < gamma < 1
        assert (read_image(target).rgb - ends.blend(gamma)).abs().max() <= 0.5 / 255 + 1e-6
    monkeypatch.setattr("ifcsr_lib.models.load", lambda name: Model())
    assert main(["upscale", str(tmp_path / "a.png"), str(tmp_path / "out.png"), "--gamma", "auto"]) == 0
    said = capsys.readouterr().out
    assert "a.png: gamma 0." in said and "1 of 1 photos written" in said and "at gamma auto" in said
    with pytest.raises(SystemExit):
        main(["upscale", "a", "b", "--gamma", "best"])
    assert "'best'; allowed: a number from 0 (fidelity) to 1 (realism), or auto" in capsys.readouterr().err


def test_a_photo_whose_ends_do_not_fit_is_skipped_by_name(tmp_path, capsys):
    class Mixed(Model):
        def endpoints(self, lq):
            ends = super().endpoints(lq)
            return Endpoints(ends.x_fid, ends.x_real.flip(2), ends.x_L)

    Image.fromarray((LQ[0].permute(1, 2, 0).numpy() * 255).round().astype("uint8")).save(tmp_path / "a.png")
    assert upscale_folder(Mixed(), {tmp_path / "a.png": tmp_path / "b.png"}, "auto") == 1
    said = capsys.readouterr().err
    assert "a.png" in said and "show different images" in said and not (tmp_path / "b.png").exists()
