"""E1: exact at the ends, linear between, and errors for anything outside."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from ifcsr_lib.control import Endpoints, ManyEndpoints, adain, blend
from ifcsr_lib.files.images import is_grey

torch.manual_seed(0)
A, B = torch.rand(2, 3, 20, 24), torch.rand(2, 3, 20, 24)


def test_ends_are_bit_for_bit():
    assert torch.equal(blend(A, B, 0.0), A) and torch.equal(blend(A, B, 1.0), B)
    assert torch.equal(blend(A, B, 0), A) and torch.equal(blend(A, B, torch.ones(2, 1, 20, 24)), B)


@pytest.mark.parametrize("gamma", [0.1, 0.25, 0.5, 0.75, 0.9])
def test_e1(gamma):
    """Within 2e-7, two units in the last place of float32 below 1."""
    exact = (1 - gamma) * A.double() + gamma * B.double()
    assert (blend(A, B, gamma) - exact).abs().max() < 2e-7
    assert blend(A, B, gamma).min() >= 0 and blend(A, B, gamma).max() <= 1


def test_one_gamma_an_image_and_a_map():
    both = blend(A, B, torch.tensor([0.0, 1.0]))
    assert torch.equal(both[0], A[0]) and torch.equal(both[1], B[1])
    half = torch.zeros(2, 1, 20, 24)
    half[..., 12:] = 1
    mixed = blend(A, B, half)
    assert torch.equal(mixed[..., :12], A[..., :12]) and torch.equal(mixed[..., 12:], B[..., 12:])


@pytest.mark.parametrize("gamma", [0.3, torch.rand(2, 1, 20, 24), [0.2, 0.9]])
def test_blend_writes_where_it_is_told(gamma):
    out = torch.full_like(A, 9.0)
    got = Endpoints(A, B).blend(gamma, out)
    assert got.data_ptr() == out.data_ptr() and torch.equal(out, blend(A, B, gamma))


def test_bad_out():
    a, b = A.clone(), B.clone()
    for out, what in (
        (A[:1].clone(), "endpoints are"),
        (A.double(), "float64"),
        (a, "out is an end"),
        (b, "out is an end"),
    ):
        with pytest.raises(ValueError, match=what):
            blend(a, b, 0.5, out)
    assert torch.equal(a, A) and torch.equal(b, B)


@pytest.mark.parametrize(
    "gamma, error",
    [
        (-0.1, ValueError),
        (1.5, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        ("0.5", TypeError),
        (None, TypeError),
        (True, TypeError),
        (torch.tensor([0.5] * 3), ValueError),
        (torch.rand(2, 1, 5, 5), ValueError),
        (torch.rand(2, 3, 20, 24), ValueError),
        (torch.full((2, 1, 20, 24), 2.0), ValueError),
    ],
)
def test_bad_gamma(gamma, error):
    with pytest.raises(error, match="gamma"):
        blend(A, B, gamma)


@pytest.mark.parametrize(
    "kind", [np.float16, np.float32, np.float64, np.int64, np.uint8, float, int, Fraction]
)
def test_a_number_of_any_kind_is_a_gamma(kind, tmp_path):
    """0 and 1 of each kind, and a half of those that have one; a numpy truth value is none."""
    for value in (0, 1, *([] if isinstance(kind(0), (int, np.integer)) else [0.5])):
        assert torch.equal(blend(A, B, kind(value)), blend(A, B, float(value)))
        assert torch.equal(blend(A, B, [kind(value), kind(value)]), blend(A, B, float(value)))
        path = Endpoints(A, B).save(tmp_path / "p.ifcsr.zip", gamma=kind(value), bits=8)
        assert Endpoints.load(path).made_by["gamma"] == value
    with pytest.raises(TypeError, match="gamma"):
        blend(A, B, np.bool_(True))


@pytest.mark.parametrize("made_in", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("shape", [(), (2,), (2, 1, 20, 24), (1, 1, 20, 24)])
def test_gradients_reach_gamma(made_in, shape):
    """d/dgamma of sum |blend - c|^2 / 2 is <blend - c, x_real - x_fid>, from endpoints of any mode (1e-4)."""
    with made_in():
        ends = Endpoints(A.clone(), B.clone())
    gamma = torch.full(shape, 0.3, requires_grad=True)
    ((ends.blend(gamma) - 0.4) ** 2).sum().div(2).backward()
    each = (blend(A, B, 0.3) - 0.4) * (B - A)
    want = {0: each.sum(), 1: each.sum((1, 2, 3)), 4: each.sum(1, keepdim=True)}[len(shape)]
    want = want.sum(0, keepdim=True) if shape[:1] == (1,) else want
    assert torch.allclose(gamma.grad, want, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="detach gamma"):
        ends.blend(gamma, out=torch.empty_like(A))
    with torch.no_grad():
        assert torch.equal(ends.blend(gamma, out=torch.empty_like(A)), blend(A, B, 0.3))
    assert torch.equal(ends.blend(gamma.detach()), blend(A, B, 0.3))


def test_gradients_reach_the_weights_of_many_ends():
    with torch.inference_mode():
        ends = ManyEndpoints({"a": A.clone(), "b": A * 0.9, "c": A * 0.8})
    w = torch.tensor([0.2, 0.3, 0.5], requires_grad=True)
    ends.blend(w).sum().backward()
    # on the simplex only differences count: from a to c the sum falls by a fifth of A's
    assert torch.allclose(w.grad[2] - w.grad[0], -0.2 * A.sum(), rtol=1e-3)


def test_one_endpoint_missing():
    for call in (lambda: Endpoints(A, None), lambda: blend(A, None, 0.5)):
        with pytest.raises(TypeError, match="x_real"):
            call()
    with pytest.raises(TypeError, match="x_fid"):
        blend(None, B, 0.5)


def test_endpoints_of_different_sizes():
    with pytest.raises(ValueError, match="differ in shape"):
        Endpoints(A, B[..., :16])
    with pytest.raises(ValueError, match="differ in shape"):
        blend(A, B[:1], 0.5)


@pytest.mark.parametrize("x_L", [B[..., :16], B[:1], B[:, :1]])
def test_an_input_of_another_size(x_L):
    with pytest.raises(ValueError, match="x_L has shape .*; pass the input enlarged"):
        Endpoints(A, B, x_L)


def test_indexing_and_colour_fix():
    ends = Endpoints(A, B, x_L=B * 0.5 + 0.25)
    assert torch.equal(ends[1].x_fid, A[1:]) and torch.equal(ends[-1].x_real, B[1:])
    fixed = adain(A * 0.5 + 0.2, ends.x_L)
    assert torch.allclose(fixed.mean((2, 3)), ends.x_L.mean((2, 3)), atol=1e-3)
    assert torch.equal(ends.colour_fixed().blend(0), adain(A, ends.x_L))
    with pytest.raises(ValueError, match="x_L"):
        Endpoints(A, B).colour_fixed()


def test_grey_as_input_takes_the_tint_off_grey_images_only(tmp_path):
    """An image whose x_L has three equal channels gets the luma of its ends; its neighbour stays."""
    x_L = B.clone()
    x_L[1] = x_L[1, :1]
    ends = Endpoints(A, B, x_L)
    grey = ends.grey_as_input()
    assert torch.equal(grey.x_fid[0], A[0]) and torch.equal(grey.x_real[0], B[0])
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    assert torch.allclose(grey.x_fid[1], (A[1] * weights).sum(0).expand(3, -1, -1), atol=1e-6)
    # E1 of the luma is the luma of E1
    luma = (ends.blend(0.3)[1] * weights).sum(0).expand(3, -1, -1)
    assert torch.allclose(grey.blend(0.3)[1], luma, atol=1e-6)
    back = Endpoints.load(ends.save(tmp_path / "p.ifcsr.zip"))
    assert is_grey(back.x_fid).tolist() == is_grey(back.x_real).tolist() == [False, True]
    assert Endpoints(A, B).grey_as_input().x_fid is A, "without x_L nothing is known"
