"""Switching LoRA adapters: one home, and peft's side effects stay in it."""

import pytest
import torch
from helpers import randomised

from ifcsr_lib import models


@pytest.fixture
def model(tiny_cfg):
    return randomised(models.new(tiny_cfg))


def flags(model):
    return {n for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "adapters",
    ["fidelity", ["fidelity", "realism"], {"fidelity": 0.3, "realism": 0.7}, {}],
    ids=["one", "per image", "sum", "none"],
)
def test_what_takes_gradients_is_left_alone(model, adapters):
    z = torch.rand(2, model.unet.config.in_channels, 16, 16)
    model.train_only("realism")
    before = flags(model)
    with model.lora.using(adapters):
        assert model.lora.chosen == adapters and flags(model) == before
        model.unet(z, 1, model.prompt.expand(2, -1, -1))
    assert flags(model) == before and model.lora.chosen is None


def test_nothing_stays_scaled_or_off(model):
    z = torch.rand(1, model.unet.config.in_channels, 16, 16)
    with torch.no_grad():
        alone = model.eps(z, "realism")
        for other in ({"realism": 0.2, "fidelity": 3.0}, {}, ["fidelity"], "fidelity"):
            with model.lora.using(other):
                changed = model.unet(z, 1, model.prompt).sample
            assert not torch.equal(changed, alone)
            assert torch.equal(model.eps(z, "realism"), alone)


def test_an_error_inside_puts_things_back(model):
    z = torch.rand(1, model.unet.config.in_channels, 16, 16)
    with torch.no_grad():
        alone = model.eps(z, "realism")
        for other in ({"realism": 0.2}, {}, ["fidelity"]):
            with pytest.raises(ZeroDivisionError), model.lora.using(other):
                raise ZeroDivisionError
            assert torch.equal(model.eps(z, "realism"), alone) and model.lora.chosen is None


def test_wrong_names(model):
    with pytest.raises(ValueError, match="'fidelity'.*new name"):
        model.lora.add("fidelity", 4, 8)
    with pytest.raises(ValueError, match="without a dot"):
        model.lora.add("a.b", 4, 8)
    with pytest.raises(ValueError, match="'other' is unknown; allowed: fidelity, realism"):
        model.lora.train_only("other")


def test_a_model_in_half_precision_makes_endpoints(model):
    """Half the memory; the images come back in float32, close to the whole model's."""
    lq = torch.rand(1, 3, 16, 16)
    whole, half = model.endpoints(lq), model.half().endpoints(lq)
    assert half.x_fid.dtype == torch.float32
    assert (half.x_fid - whole.x_fid).abs().mean() < 0.005
