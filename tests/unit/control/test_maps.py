"""Gamma maps without seams, bands that add up, points of a simplex, and errors for what cannot be meant."""

import math

import pytest
import torch

from ifcsr_lib import maps
from ifcsr_lib.control import Endpoints, ManyEndpoints, blend, check_same_scene
from ifcsr_lib.control.maps import bands, from_disagreement, from_mask, from_texture
from ifcsr_lib.data import low_quality

torch.manual_seed(0)
SCENE = maps.smooth(torch.rand(2, 3, 64, 80), 3.0) * 4 - 1.5
SCENE = SCENE.clamp(0.1, 0.9)
A, B, C = ((SCENE + 0.05 * torch.randn_like(SCENE)).clamp(0, 1) for _ in "ABC")
ENDS = Endpoints(A, B, x_L=C)


def jump(x):
    """The largest difference of horizontal or vertical neighbours."""
    return max(x.diff(dim=d).abs().max().item() for d in (2, 3))


@pytest.mark.parametrize("feather", [1.5, 4.0, 8.0])
def test_a_feathered_mask_shows_no_seam(feather):
    """No step of the map above its bound, and none of the blend above the ends' own plus that bound times
    their distance.
    """
    mask = torch.zeros(64, 80, dtype=torch.bool)
    mask[10:40, 20:60] = True
    mask[::7, ::9] = True  # single pixels, the worst case for a bound
    gamma = from_mask(mask, inside=0.9, outside=0.1, feather=feather)
    bound = 0.8 / (math.sqrt(2 * math.pi) * feather)
    assert gamma.shape == (1, 1, 64, 80) and gamma.min() >= 0.1 and gamma.max() <= 0.9
    # the sampled Gaussian of sigma 1.5 sums to 1 only within a percent
    assert 0 < jump(gamma) <= bound * 1.02
    assert jump(ENDS.blend(gamma)) <= max(jump(A), jump(B)) + 1.02 * bound * (A - B).abs().max()
    hard = from_mask(mask, 0.9, 0.1, feather=0)
    assert jump(hard) == pytest.approx(0.8, abs=1e-6) and jump(hard) > 2 * jump(gamma)


def test_a_mask_sets_gamma_far_from_its_edge_only():
    mask = torch.zeros(2, 1, 64, 80)
    mask[0, :, :, 40:] = 1
    gamma = from_mask(mask, feather=2.0)
    assert torch.allclose(gamma[0, 0, :, :30], torch.zeros(64, 30)) and torch.allclose(
        gamma[0, 0, :, 50:], torch.ones(64, 30)
    )
    assert not gamma[1].any() and torch.equal(ENDS.blend(gamma)[1], A[1])


def test_texture_gets_more_gamma_than_flat_ground_and_straight_edges():
    x = torch.full((1, 3, 96, 192), 0.4)
    x[..., :, 96:] = 0.7  # one straight edge at column 96
    generator = torch.Generator().manual_seed(1)
    x[..., 140:] += 0.1 * torch.randn(1, 1, 96, 52, generator=generator)
    gamma = from_texture(x.clamp(0, 1))[0, 0]
    assert gamma[:, :60].max() < 0.02 and gamma[20:76, 92:100].max() < 0.05 and gamma[:, 160:].min() > 0.5
    assert jump(from_texture(x.clamp(0, 1))) < 0.1  # no seam where flat ground ends
    low = from_texture(x.clamp(0, 1), low=0.6, high=0.2)[0, 0]
    assert low[:, :60].min() > 0.59 and low[:, 160:].max() < 0.4


def test_gamma_falls_where_the_ends_disagree():
    real = SCENE.clone()
    real[..., 40:] = (real[..., 40:] + 0.3 * torch.randn(2, 3, 64, 40)).clamp(0, 1)
    gamma = from_disagreement(Endpoints(SCENE, real))
    assert gamma[..., :10].min() > 0.98 and gamma[..., 60:].max() < 0.4 and jump(gamma) < 0.1


@pytest.mark.parametrize("size", [(64, 80), (37, 51), (8, 200)])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_bands_add_up(n, size):
    """To 1e-6; each finer band is blind to a constant, the coarsest one keeps it."""
    x = torch.rand(1, 3, *size)
    parts = bands(x, n)
    assert len(parts) == n and all(p.shape == x.shape for p in parts)
    assert (sum(parts) - x).abs().max() < 1e-6
    constant = bands(torch.full_like(x, 0.3), n)
    assert (constant[0] - 0.3).abs().max() < 1e-6 and all(p.abs().max() < 1e-6 for p in constant[1:])


def test_the_finest_band_is_a_pattern_of_single_pixels_and_the_coarsest_a_slow_wave():
    grid = (torch.arange(64) % 2).float().expand(1, 1, 64, 64)
    wave = torch.sin(torch.arange(64) * 2 * math.pi / 64).expand(1, 1, 64, 64)
    energy = {
        name: [p[..., 8:-8, 8:-8].square().mean() for p in bands(x - x.mean(), 3)]
        for name, x in (("grid", grid), ("wave", wave))
    }
    assert energy["grid"][2] > 0.95 * sum(energy["grid"]) and energy["wave"][0] > 0.95 * sum(energy["wave"])


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 1.0])
def test_equal_bands_are_e1(gamma):
    """And values that are all but equal too, which go through the bands: 1e-6 beside the 1e-7 of the
    difference.
    """
    assert torch.equal(ENDS.blend([gamma] * 3), ENDS.blend(gamma))
    near = [abs(gamma - 1e-7), gamma, abs(gamma - 2e-7)]
    assert (ENDS.blend(near) - ENDS.blend(gamma)).abs().max() < 1e-6
    split = A + sum(gamma * band for band in bands(B - A, 3))
    assert (split - ENDS.blend(gamma)).abs().max() < 1e-6


def test_bands_move_what_they_name():
    """Fine texture from x_real, structure from x_fid: the coarsest band of the result is x_fid's, the finest
    x_real's.
    """
    low, real = SCENE * 0.5 + 0.2, B * 0.5 + 0.3
    x = blend(low, real, (0, 0, 1))
    for band, want in ((0, low), (2, real)):
        inside = (bands(x, 3)[band] - bands(want, 3)[band])[..., 12:-12, 12:-12]
        other = (bands(low, 3)[band] - bands(real, 3)[band])[..., 12:-12, 12:-12]
        assert inside.square().mean() < 0.2 * other.square().mean()
    extreme = blend(torch.zeros(1, 3, 64, 64), (torch.rand(1, 3, 64, 64) > 0.5).float(), [0.0, 0.0, 1.0])
    assert extreme.min() >= 0 and extreme.max() <= 1


@pytest.mark.parametrize(
    "gamma, error, text",
    [
        ([], ValueError, "0 bands"),
        ([0.5] * 9, ValueError, "allowed: 1 to 6"),
        ([0.5, 1.2], ValueError, "in each band"),
        ([0.5, float("nan")], ValueError, "in each band"),
        ([0.5, "1"], TypeError, "one float per band"),
        ([True, 0.5], TypeError, "bool"),
    ],
)
def test_bad_bands(gamma, error, text):
    with pytest.raises(error, match=text):
        ENDS.blend(gamma)


@pytest.mark.parametrize(
    "call, error, text",
    [
        (lambda: from_mask(torch.full((8, 8), 255.0)), ValueError, r"spans \[255, 255\]"),
        (lambda: from_mask(torch.full((8, 8), float("nan"))), ValueError, "no NaN"),
        (lambda: from_mask(torch.full((8, 8), 255, dtype=torch.uint8)), TypeError, "divide by 255"),
        (lambda: from_mask([[0, 1]]), TypeError, "list"),
        (lambda: from_mask(torch.zeros(3, 8, 8)), ValueError, r"allowed: \(H, W\)"),
        (lambda: from_mask(torch.zeros(0, 8)), ValueError, r"allowed: \(H, W\)"),
        (lambda: from_mask(torch.zeros(8, 8), inside=1.5), ValueError, "inside=1.5"),
        (lambda: from_mask(torch.zeros(8, 8), feather=-1), ValueError, "feather=-1"),
        (lambda: from_texture(A * 255), ValueError, "Divide 8 bit"),
        (lambda: from_texture(A, high=2), ValueError, "high=2"),
        (lambda: from_texture(A, half=0), ValueError, "half=0"),
        (lambda: from_disagreement(ENDS, sigma=-1), ValueError, "sigma=-1"),
        (lambda: from_disagreement(Endpoints(A, A.flip(3))), ValueError, "different images"),
        (lambda: ENDS.blend(from_mask(torch.zeros(8, 8))), ValueError, r"shape \(1, 1, 8, 8\)"),
    ],
)
def test_bad_maps(call, error, text):
    with pytest.raises(error, match=text):
        call()


THREE = ManyEndpoints({"fidelity": A, "realism": B, "texture": C})


def test_corners_of_the_simplex_are_the_endpoints_bit_for_bit():
    for name, corner in (("fidelity", (1, 0, 0)), ("realism", (0, 1, 0)), ("texture", (0, 0, 1))):
        assert torch.equal(THREE.blend(corner), THREE.images[name])
        assert torch.equal(THREE.blend(dict(zip(THREE.images, corner))), THREE.images[name])


def test_inside_it_is_the_weighted_mean():
    """Within 1e-6: for all images alike, one point an image, and as maps."""
    w = torch.rand(2, 3)
    w = w / w.sum(1, keepdim=True)
    for weights, n in ((w[0], 0), (w, 1), (w[:, :, None, None].expand(2, 3, 64, 80), 1)):
        x = THREE.blend(weights)
        for i in range(2):
            exact = sum(w[i if n else 0, k].double() * e[i].double() for k, e in enumerate((A, B, C)))
            assert (x[i] - exact).abs().max() < 1e-6
    assert (
        THREE.blend([0.2, 0.3, 0.5]) - THREE.blend({"texture": 0.5, "fidelity": 0.2, "realism": 0.3})
    ).abs().max() == 0


@pytest.mark.parametrize("gamma", [0.0, 0.25, 0.6, 1.0])
def test_two_ends_are_e1(gamma):
    two = ManyEndpoints({"fidelity": A, "realism": B})
    assert (two.blend((1 - gamma, gamma)) - ENDS.blend(gamma)).abs().max() < 2e-7
    assert gamma not in (0.0, 1.0) or torch.equal(two.blend((1 - gamma, gamma)), ENDS.blend(gamma))


@pytest.mark.parametrize(
    "weights, text",
    [
        ([], "shape"),
        ([0.5, 0.5], "shape"),
        ([0, 0, 0], "sum 1"),
        ([0.5, 0.6, 0.5], "divide by the sum"),
        ([1.5, -0.5, 0], "0 or more"),
        ([float("nan"), 0.5, 0.5], "0 or more"),
        ({"fidelity": 1.0}, "each endpoint"),
        ({"fidelity": 0.5, "realism": 0.25, "x": 0.25}, "each endpoint"),
    ],
)
def test_bad_weights(weights, text):
    with pytest.raises(ValueError, match=text):
        THREE.blend(weights)


def test_bad_simplex():
    for images in ({}, {"fidelity": A}, [A, B], None):
        with pytest.raises(ValueError, match="two or more"):
            ManyEndpoints(images)
    with pytest.raises(TypeError, match="realism came as NoneType"):
        ManyEndpoints({"fidelity": A, "realism": None})
    with pytest.raises(ValueError, match="differ in shape"):
        ManyEndpoints({"fidelity": A, "realism": B[..., :40]})
    with pytest.raises(ValueError, match="fidelity and texture show different images .number 0 of 2"):
        ManyEndpoints({"fidelity": A, "realism": B, "texture": C.flip(3)})
    with pytest.raises(ValueError, match="x_L show different"):
        ManyEndpoints({"fidelity": A, "realism": B}, x_L=C.flip(2))


def test_different_scenes_are_told_from_different_ends(shared_data):
    """On Kodak: each photograph passes with itself blurred, noisy and darker, and is refused with each of the
    23 others.
    """
    from ifcsr_lib.files.images import list_images, read_image

    if not (shared_data / "kodak").is_dir():
        pytest.skip("no kodak/ in IFCSR_DATA")
    x = torch.cat([read_image(p).rgb[..., :512, :512] for p in list_images(shared_data / "kodak")])
    other = ((maps.smooth(x, 4.0) + 25 / 255 * torch.randn_like(x)) * 0.9).clamp(0, 1)
    check_same_scene({"x": x, "other": other})
    for i in range(len(x)):
        for j in set(range(len(x))) - {i}:
            with pytest.raises(ValueError, match="different images"):
                check_same_scene({"a": x[i : i + 1], "b": other[j : j + 1]})


def test_the_other_task_keeps_the_size(tiny_cfg):
    """Noise of 15 to 50 levels, of (seed, index) alone; lq is x_L."""
    cfg = tiny_cfg.replace(preset="noise", scale=1)
    x_H = torch.full((3, 3, 64, 64), 0.5)
    lq, x_L = low_quality(x_H, cfg, [0, 1, 2])
    assert torch.equal(lq, x_L) and x_L.shape == x_H.shape
    spread = 255 * (x_L - x_H).std((1, 2, 3))
    assert spread.min() > 14 and spread.max() < 51 and spread.unique().numel() == 3
    assert torch.equal(low_quality(x_H[1:2], cfg, [1])[1], x_L[1:2])
    for change in ({"scale": 1}, {"preset": "noise"}):
        with pytest.raises(ValueError, match="scale=. with preset="):
            tiny_cfg.replace(**change)
