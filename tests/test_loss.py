"""E4-E6 in numbers, and the LPIPS form of the layer distances against the reference implementation."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from ifcsr_lib.config import resolve
from ifcsr_lib.loss import (
    POCKET_FEATURES,
    Discriminator,
    FeatureDistance,
    PocketFeatures,
    VGG16Features,
    coarse,
    depth_weights,
    feature_distance,
    hinge,
    lattice_share,
    lpips_lins,
    specialised_loss,
    texture_distance,
)  # fmt: skip


def test_weights_mirror_each_other_and_k7_is_the_stated_row():
    down, up = depth_weights(7, "fidelity"), depth_weights(7, "realism")
    assert torch.allclose(down, up.flip(0), atol=1e-12)
    stated = torch.tensor([0.85715, 0.12245, 0.01749, 0.00250, 0.00036, 0.00005], dtype=torch.float64)
    assert (down - stated).abs().max() < 6e-6  # method.md prints five decimals
    assert down.sum().item() == pytest.approx(1, abs=1e-12)


def test_k1_is_uniform_so_the_loss_is_lpips_plus_mse():
    w = depth_weights(1, "realism")
    assert torch.allclose(w, torch.full((6,), 1 / 6, dtype=torch.float64))
    d = torch.rand(6)
    assert specialised_loss(d, w).item() == pytest.approx(((d[0] + d[1:].sum()) / 6).item(), rel=1e-6)


@pytest.mark.parametrize("k, direction", [(0.5, "fidelity"), (float("nan"), "realism"), (7, "sideways")])
def test_bad_weights(k, direction):
    with pytest.raises(ValueError, match="allowed"):
        depth_weights(k, direction)


def test_normalised_loss_ignores_the_weights_scale():
    d, w = torch.rand(6), depth_weights(3, "realism")
    assert specialised_loss(d, 10 * w).item() == pytest.approx(specialised_loss(d, w).item(), rel=1e-6)


def test_layer_distances_are_lpips(monkeypatch):
    """With the same (random) VGG16 under both, sum_l D_l equals the lpips package's own distance within 1e-5."""
    import lpips
    from torchvision.models import vgg

    layers = vgg.make_layers(vgg.cfgs["D"])
    monkeypatch.setattr(lpips.pretrained_networks.tv, "vgg16", lambda **_: SimpleNamespace(features=layers))
    reference = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    net = VGG16Features(pretrained=False)
    net.stages.load_state_dict({f"{s}.{n}": p for s, part in enumerate(_slices(reference)) for n, p in part.items()})
    a, b = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    ours = FeatureDistance(net, lpips_lins())(a, b)
    with torch.inference_mode():
        want = reference(a, b, normalize=True).mean()
    assert ours[1:].sum().item() == pytest.approx(want.item(), rel=1e-5)
    assert ours[0].item() == pytest.approx(4 * (a - b).square().mean().item(), rel=1e-6)


def _slices(reference):
    return [getattr(reference.net, f"slice{i}").state_dict() for i in range(1, 6)]


def test_the_distance_is_frozen_and_reaches_the_image():
    distance = FeatureDistance(PocketFeatures(), [torch.ones(c) for c in PocketFeatures.channels])
    x = torch.rand(1, 3, 32, 32, requires_grad=True)
    distance(x, torch.rand(1, 3, 32, 32)).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in distance.parameters())
    assert distance(x, x).abs().max() < 1e-9


@pytest.mark.skipif(not POCKET_FEATURES.exists(), reason="pocket features not trained yet")
def test_the_shipped_features_order_damage():
    """More blur is further away at every depth, on a photograph."""
    from ifcsr_lib.data import load_photo, photos

    distance = feature_distance(resolve("pocket"))
    x = load_photo(photos("heldout")[0])[..., :128, :128]
    blurred = [torch.nn.functional.avg_pool2d(x, s, 1, s // 2, count_include_pad=False) for s in (3, 7)]
    near, far = (distance(b, x) for b in blurred)
    assert (far > near).all() and (near > 0).all()


def test_texture_distance_measures_strength_and_not_place():
    """Twice the contrast is log 2 away, a shift of brightness nothing, and another draw of a texture is nearer than none."""
    g = torch.Generator().manual_seed(0)
    grain = 0.05 * torch.randn(2, 1, 3, 64, 64, generator=g)
    x, other = 0.5 + grain
    assert texture_distance(x + 0.1, x).item() < 1e-4
    assert texture_distance(0.5 + 2 * grain[0], x).item() == pytest.approx(math.log(2), rel=0.01)
    flat = torch.full_like(x, 0.5)
    assert F.mse_loss(flat, x) < F.mse_loss(other, x)  # an error at every pixel prefers nothing to the wrong grain
    assert texture_distance(other, x).item() < 0.25 * texture_distance(flat, x).item()


def test_texture_distance_sees_a_grid():
    """A pattern of 4 pixels costs more than grain of the same strength does, where the photograph has grain."""
    x, other = 0.5 + 0.05 * torch.randn(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tile = 0.05 * torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    grid = 0.5 + tile.repeat(1, 1, 16, 16)
    assert texture_distance(grid, x).item() > 2 * texture_distance(other, x).item()


@pytest.mark.parametrize("cell", [4, 8])
def test_lattice_share(cell):
    """1 for what repeats with the cells, 1/64 for noise, and a change of tone is no fine structure."""
    g = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, 128).expand(1, 3, 128, 128)
    noise, pattern = torch.randn(4, 3, 128, 128, generator=g), torch.randn(1, 3, cell, cell, generator=g).repeat(1, 1, 128 // cell, 128 // cell)
    assert lattice_share(ramp + pattern, cell).item() == pytest.approx(1, abs=0.05)
    assert lattice_share(0.3 * noise, cell).item() == pytest.approx(1 / 64, rel=0.1)
    inside = (..., slice(cell, -cell), slice(cell, -cell))
    assert (coarse(pattern, cell) - pattern.mean((2, 3), keepdim=True))[inside].abs().max() < 1e-5
    assert (coarse(ramp, cell) - ramp)[inside].abs().max() < 1e-5
    x = (noise[:1] + pattern).requires_grad_()
    lattice_share(x, cell).backward()
    assert lattice_share((x - 1e3 * x.grad).detach(), cell) < lattice_share(x, cell)


def test_the_bounded_layers_of_the_judge_stretch_by_one():
    """Whatever the weights' scale: the matrix of one window, entry by entry, has the largest singular value 1."""
    torch.manual_seed(0)
    bounded = [layer for layer in Discriminator(8).pixels if isinstance(layer, torch.nn.Conv2d)][:-1]
    assert len(bounded) == 4
    for layer in bounded:
        with torch.no_grad():
            layer.weight.mul_(10)
            layer.bias.zero_()
            layer.padding = (0, 0)
            windows = torch.eye(layer.weight[0].numel()).view(-1, *layer.weight[0].shape)
            assert torch.linalg.matrix_norm(layer(windows).flatten(1), 2).item() == pytest.approx(1, abs=0.15)


def test_the_judge_learns():
    """Its loss is a coin's at first; trained alone against images without grain, it wins."""
    torch.manual_seed(0)
    judge, smooth = Discriminator(8), torch.nn.functional.interpolate(torch.rand(64, 3, 8, 8), size=(32, 32), mode="bilinear")
    optimiser, losses = torch.optim.AdamW(judge.parameters(), lr=5e-3), []
    for i in range(48):
        real = smooth[i : i + 8] + 0.2 * torch.randn(8, 3, 32, 32)
        losses.append(hinge(judge, smooth[i + 8 : i + 16], real)[1])
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[0].item() == pytest.approx(2, abs=0.1) and losses[-1].item() < 1
