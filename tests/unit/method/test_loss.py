"""E4-E6 in numbers, and the LPIPS form of the layer distances against the reference implementation."""

from types import SimpleNamespace

import helpers
import pytest
import torch

from ifcsr_lib.config import resolve
from ifcsr_lib.loss import (
    FeatureDistance,
    depth_weights,
    feature_distance,
    specialised_loss,
)
from ifcsr_lib.nets.features import POCKET_FEATURES, VGG16Features, lpips_lins


def test_weights_mirror_each_other_and_k7_is_the_stated_row():
    down, up = depth_weights(7, "fidelity"), depth_weights(7, "realism")
    assert torch.allclose(down, up.flip(0), atol=1e-12)
    stated = torch.tensor([0.85715, 0.12245, 0.01749, 0.00250, 0.00036, 0.00005], dtype=torch.float64)
    assert (down - stated).abs().max() < 6e-6  # `stated` has five decimals
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
    """With the same (random) VGG16 under both, sum_l D_l equals the lpips package's own distance
    within 1e-5.
    """
    import lpips
    from torchvision.models import vgg

    layers = vgg.make_layers(vgg.cfgs["D"])
    monkeypatch.setattr(lpips.pretrained_networks.tv, "vgg16", lambda **_: SimpleNamespace(features=layers))
    reference = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    net = VGG16Features(pretrained=False)
    net.stages.load_state_dict(
        {f"{s}.{n}": p for s, part in enumerate(_slices(reference)) for n, p in part.items()}
    )
    a, b = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    ours = FeatureDistance(net, lpips_lins())(a, b)
    with torch.inference_mode():
        want = reference(a, b, normalize=True).mean()
    assert ours[1:].sum().item() == pytest.approx(want.item(), rel=1e-5)
    assert ours[0].item() == pytest.approx(4 * (a - b).square().mean().item(), rel=1e-6)


def _slices(reference):
    return [getattr(reference.net, f"slice{i}").state_dict() for i in range(1, 6)]


def test_the_distance_is_frozen_and_reaches_the_image():
    distance = helpers.distance()
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
