"""Pairs with known shifts: the flow finds them, the aligned blend draws edges once, and the ends stay bit for
bit.
"""

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage import data as skimage_data

from ifcsr_lib import ghosting
from ifcsr_lib.control import Endpoints
from ifcsr_lib.control.ghosting import align, double_edges
from ifcsr_lib.control.maps import smooth

torch.set_num_threads(1)
SHIFTS = [(0.0, 0.5), (0.3, -0.6), (1.0, 0.0), (0.7, -2.0), (3.0, 0.0), (0.0, 4.0)]  # down, right, in pixels
PHOTO = torch.from_numpy(skimage_data.astronaut()[40:168, 150:278].copy()).permute(2, 0, 1)[None] / 255


def pair(shift, x=PHOTO):
    """x, and x moved by shift with a spline of order 5 (nothing of ghosting.py takes part)."""
    moved = ndimage.shift(x.numpy(), (0, 0, *shift), order=5, mode="reflect")
    return Endpoints(x, torch.from_numpy(moved.astype(np.float32)).clamp(0, 1))


@pytest.fixture(scope="module", params=SHIFTS, ids=str)
def known(request):
    ends = pair(request.param)
    return request.param, ends, align(ends)


def test_double_edge_energy_falls_by_more_than_half(known):
    _, ends, aligned = known
    for gamma in (0.25, 0.5, 0.75):
        plain = double_edges(ends.blend(gamma), ends, gamma)
        assert plain > 0.01
        assert double_edges(aligned.blend(gamma), ends, gamma) < 0.5 * plain
    held = aligned.held_gamma(0.5)
    assert double_edges(ends.blend(held), ends, held) < 0.5 * double_edges(ends.blend(0.5), ends, 0.5)
    far = smooth(aligned.shift, 2.0) > 1
    assert held.max() <= 0.5 and (held[far] < 0.01).all(), (
        "where structures differ by a pixel, the fidelity end stays"
    )


def test_gamma_0_and_1_are_the_endpoints_bit_for_bit(known):
    _, ends, aligned = known
    for gamma, end in ((0.0, ends.x_fid), (1.0, ends.x_real)):
        for g in (gamma, torch.tensor([gamma]), torch.full((1, 1, 128, 128), gamma)):
            assert torch.equal(aligned.blend(g), end) and torch.equal(ends.blend(aligned.held_gamma(g)), end)
    half = torch.zeros(1, 1, 128, 128)
    half[..., 64:] = 1.0
    half[..., :10] = 0.5
    mixed = aligned.blend(half)
    assert torch.equal(mixed[..., 10:64], ends.x_fid[..., 10:64]) and torch.equal(
        mixed[..., 64:], ends.x_real[..., 64:]
    )


def test_the_map_shows_the_shift_in_pixels(known):
    shift, ends, aligned = known
    inside = aligned.flow[..., 12:-12, 12:-12]
    textured = ghosting._edges(ends.x_fid)[:, 0, 12:-12, 12:-12] > (8 / 255) ** 2
    error = (inside - torch.tensor(shift).view(1, 2, 1, 1)).norm(dim=1)[textured]
    assert error.median() < 0.15
    assert aligned.shift.shape == (1, 1, 128, 128) and aligned.shift.max() < ghosting.MAX_SHIFT + 1
    assert aligned.shift[..., 12:-12, 12:-12][:, :, textured[0]].median() == pytest.approx(
        np.hypot(*shift), abs=0.15
    )


def test_the_aligned_blend_is_the_picture_halfway(known):
    """At 1/2 both ends meet at half the shift: nearer to the photograph moved by that than E1 is, by 3 dB or
    more from a pixel on. Below that E1 itself lies within a level of it, and nearer must do.
    """
    shift, ends, aligned = known
    halfway = pair([s / 2 for s in shift]).x_real
    plain, moved = (
        ((x - halfway)[..., 12:-12, 12:-12] ** 2).mean() for x in (ends.blend(0.5), aligned.blend(0.5))
    )
    assert moved < (0.5 if np.hypot(*shift) >= 1 else 1) * plain


@pytest.mark.parametrize("photo, place", [("chelsea", (80, 120)), ("coffee", (120, 250))])
def test_other_photographs(photo, place):
    top, left = place
    x = (
        torch.from_numpy(getattr(skimage_data, photo)()[top : top + 128, left : left + 128].copy()).permute(
            2, 0, 1
        )[None]
        / 255
    )
    for shift in ((0.0, 1.0), (2.0, -1.0)):
        ends = pair(shift, x)
        assert double_edges(align(ends).blend(0.5), ends, 0.5) < 0.5 * double_edges(
            ends.blend(0.5), ends, 0.5
        )


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.0, 1.0), (2.0, 0.0)], ids=str)
def test_ends_of_unequal_sharpness_are_never_worse_than_e1(shift):
    """As the ends of a model are: the realism end has more contrast. Where flow would make edges weaker, E1
    stays.
    """
    sharp = pair(shift).x_real
    ends = Endpoints(smooth(PHOTO, 1.0), (sharp + 0.8 * (sharp - smooth(sharp, 1.5))).clamp(0, 1))
    aligned = align(ends)
    assert double_edges(aligned.blend(0.5), ends, 0.5) <= 1.001 * double_edges(ends.blend(0.5), ends, 0.5)


def test_a_step_is_drawn_once():
    """E1 of a step 4 pixels aside has two steepest places, the aligned blend one, halfway."""
    x = torch.full((1, 3, 64, 64), 0.2)
    x[..., 30:] = 0.8
    ends = pair((0.0, 4.0), smooth(x, 0.8))
    rows = {
        name: blend.diff(dim=3)[0, 1, 32]
        for name, blend in (("E1", ends.blend(0.5)), ("aligned", align(ends).blend(0.5)))
    }
    peaks = {
        name: [i for i in range(1, 62) if r[i] > r[i - 1] and r[i] >= r[i + 1] and r[i] > 0.05]
        for name, r in rows.items()
    }
    assert len(peaks["E1"]) == 2 and len(peaks["aligned"]) == 1 and abs(peaks["aligned"][0] - 31) <= 1


def test_the_measure_itself():
    """E1's closed form to 1e-3 of it; 0 for equal ends; more for more shift, up to 2 gamma (1 - gamma) for
    steps apart.
    """
    ends = pair((0.0, 2.0))
    for gamma in (0.2, 0.5):
        own = (1 - gamma) * ghosting._edges(ends.x_fid) + gamma * ghosting._edges(ends.x_real)
        exact = gamma * (1 - gamma) * ghosting._edges(ends.x_real - ends.x_fid).mean() / own.mean()
        assert double_edges(ends.blend(gamma), ends, gamma).item() == pytest.approx(exact.item(), rel=0.02)
    same = Endpoints(PHOTO, PHOTO)
    assert double_edges(same.blend(0.5), same, 0.5) < 1e-6
    growing = [double_edges(e.blend(0.5), e, 0.5).item() for e in (pair((0.0, d)) for d in (0.25, 0.5, 1, 2))]
    assert growing == sorted(growing) and growing[0] < 0.1 < growing[-1]
    x = torch.full((1, 3, 64, 64), 0.2)
    x[..., 30:] = 0.8
    apart = Endpoints(x, x.roll(6, 3).where(torch.arange(64) > 10, x))
    for gamma in (0.25, 0.5):
        assert double_edges(apart.blend(gamma), apart, gamma).item() == pytest.approx(
            2 * gamma * (1 - gamma), abs=1e-3
        )
    shown = double_edges(apart.blend(0.5), apart, 0.5, as_map=True)
    assert shown[..., 29:37].min() > 10 * shown[..., 56:].max()


def test_new_texture_is_left_alone():
    """Ends that differ by content, not by place: no flow to speak of, and E1 within half a level."""
    generator = torch.Generator().manual_seed(0)
    real = (PHOTO + 0.06 * torch.randn(PHOTO.shape, generator=generator)).clamp(0, 1)
    aligned = align(Endpoints(PHOTO, real))
    assert (aligned.shift > 0.25).float().mean() < 0.02
    assert (aligned.blend(0.5) - aligned.ends.blend(0.5)).abs().mean() < 0.5 / 255
    same = align(Endpoints(PHOTO, PHOTO))
    assert not same.flow.any() and torch.equal(same.blend(0.3), PHOTO)


def test_it_gives_the_same_twice_and_each_image_for_itself():
    both = Endpoints(
        *(torch.cat(x) for x in zip(*((e.x_fid, e.x_real) for e in (pair((0.0, 1.0)), pair((2.0, 0.0))))))
    )
    aligned = align(both)
    assert torch.equal(aligned.flow, align(both).flow)
    assert torch.equal(aligned.flow[1:], align(both[1]).flow)
    gammas = torch.tensor([0.0, 0.5])
    assert torch.equal(aligned.blend(gammas)[0], both.x_fid[0])
    assert torch.allclose(aligned.blend(gammas)[1:], align(both[1]).blend(0.5), atol=1e-6)


def test_bad_input():
    ends = pair((0.0, 1.0))
    with pytest.raises(ValueError, match="x_fid and x_real show different images"):
        align(Endpoints(PHOTO, PHOTO.flip(3)))
    with pytest.raises(ValueError, match="32 or more"):
        align(Endpoints(PHOTO[..., :20], PHOTO[..., :20]))
    still = ghosting.Aligned(ends, torch.zeros(1, 2, 128, 128))
    for gamma, error in (
        (1.5, ValueError),
        ([0.2, 0.5], TypeError),
        (torch.rand(1, 1, 5, 5), ValueError),
        ("0.5", TypeError),
    ):
        with pytest.raises(error, match="gamma"):
            still.blend(gamma)
    with pytest.raises(ValueError, match="its endpoints"):
        double_edges(PHOTO[..., :64], ends, 0.5)
    with pytest.raises(ValueError, match="gamma=-1"):
        double_edges(PHOTO, ends, -1.0)
