"""Facts of the two-adapter model: what is adapted, what one step is, what saving keeps, what
loading refuses.
"""

import json
import shutil
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from helpers import randomised
from safetensors.torch import load, load_file, save_file

import ifcsr_lib as ifcsr
from ifcsr_lib import models, sd21
from ifcsr_lib.config import MODEL_FIELDS, resolve
from ifcsr_lib.files.images import upsample
from ifcsr_lib.files.results import sha256
from ifcsr_lib.nets.adapters import LORA_TARGETS


@pytest.fixture
def model(tiny_cfg):
    return randomised(models.new(tiny_cfg))


def test_sd21_counts_on_the_meta_device():
    from peft import LoraConfig

    with torch.device("meta"):
        unet = UNet2DConditionModel(**sd21.unet_config())
        assert sum(p.numel() for p in unet.parameters()) == 865_910_724
        unet.add_adapter(LoraConfig(r=4, target_modules=LORA_TARGETS), adapter_name="fidelity")
    lora = {n: p for n, p in unet.named_parameters() if "lora_" in n}
    assert sum(p.numel() for p in lora.values()) == 4_055_712
    assert len({n.split(".lora_")[0] for n in lora}) == 258
    assert not any("norm" in n or "time_emb" in n for n in lora)


def test_one_step_is_plain_subtraction(model):
    z = torch.randn(1, 4, 8, 8)
    model.unet.set_adapter("realism")
    eps = model.unet(z, 1, model.prompt).sample
    assert torch.equal(model.one_step(z, "realism"), z - eps)


def test_endpoints_equal_separate_passes(model):
    """Both ends at once, in turn (CPU) or in one batch (GPU), against two passes of one adapter each, within
    1e-5.
    """
    lq = torch.rand(2, 3, 16, 16)
    ends, b = model.endpoints(lq, colour_fix="none"), model.cfg.border
    assert b == 16  # smoke's; sides of 64 + 2 * 16 are multiples of 16 already
    with torch.inference_mode():
        for name, x in zip(models.ADAPTERS, (ends.x_fid, ends.x_real)):
            z = model.encode(F.pad(upsample(lq), (b,) * 4, mode="reflect"))
            alone = model.decode(model.one_step(z, name)).clamp(0, 1)[..., b:-b, b:-b]
            assert (alone - x).abs().max() < 1e-5
    z = model.encode(upsample(lq))
    with torch.no_grad():
        batched = model.one_step(torch.cat([z, z]), [a for a in models.ADAPTERS for _ in lq])
        assert (batched - torch.cat([model.one_step(z, a) for a in models.ADAPTERS])).abs().max() < 1e-5
    assert (ends.x_fid - ends.x_real).abs().max() > 1e-2


def test_endpoints_encode_once_and_moving_gamma_calls_no_network(model):
    images = Counter()
    for part in (model.unet, model.vae.encoder, model.vae.decoder):
        part.register_forward_hook(lambda m, a, o: images.update({type(m).__name__: len(a[0])}))
    ends = model.endpoints(torch.rand(1, 3, 16, 16))
    once = {"Encoder": 1, "UNet2DConditionModel": 2, "Decoder": 2}
    assert images == once
    for g in torch.linspace(0, 1, 11):
        ends.blend(float(g))
    assert images == once


@pytest.mark.parametrize("h, w", [(16, 16), (17, 23), (16, 61)])
def test_any_size(model, h, w):
    ends = model.endpoints(torch.rand(1, 3, h, w))
    assert ends.x_fid.shape == ends.x_real.shape == (1, 3, 4 * h, 4 * w)


@pytest.mark.parametrize(
    "lq, error",
    [
        (torch.rand(1, 3, 15, 20), "16"),
        (torch.rand(3, 20, 20), "shape"),
        (torch.rand(1, 3, 20, 20) * 255, "range|\\[0, 1\\]"),
        (torch.full((1, 3, 20, 20), float("nan")), "NaN|finite"),
        (torch.zeros(1, 3, 20, 20, dtype=torch.float64), "float32"),
    ],
)
def test_bad_input(model, lq, error):
    with pytest.raises((ValueError, TypeError), match=error):
        model.endpoints(lq)


def test_only_the_named_adapter_trains(model):
    trained = model.train_only("realism")
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in trained.values()}
    model.eps(model.encode(torch.rand(1, 3, 64, 64)), "fidelity")  # switching adapters must thaw nothing
    model.endpoints(torch.rand(1, 3, 16, 16))
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in trained.values()}


def test_save_and_load(model, tmp_path):
    lq = torch.rand(1, 3, 16, 16)
    again = ifcsr.load(model.save(tmp_path / "m"), device="cpu")
    assert again.cfg == model.cfg
    a, b = model.endpoints(lq), again.endpoints(lq)
    assert torch.equal(a.x_fid, b.x_fid) and torch.equal(a.x_real, b.x_real)
    keys = load_file(tmp_path / "m" / "fidelity.safetensors")
    assert all(k.startswith("unet.") and k.split(".")[-2] in ("lora_A", "lora_B") for k in keys)


def test_equal_weights_give_equal_bytes(model, tmp_path):
    """Hashes of two equal trainings are equal; 12 times, as the order of the metadata was one of chance."""
    saved = {model.save_adapter("fidelity", tmp_path / "a.safetensors").read_bytes() for _ in range(12)}
    assert len(saved) == 1
    (data,) = saved
    assert (
        load(data).keys() == load_file(tmp_path / "a.safetensors").keys() == model.adapter("fidelity").keys()
    )
    assert all(torch.equal(p.detach(), load(data)[k]) for k, p in model.adapter("fidelity").items())
    assert int.from_bytes(data[:8], "little") % 8 == 0, "tensors begin at a multiple of 8 bytes"
    folders = [model.save(tmp_path / name) for name in "bc"]
    first, second = ({p.name: p.read_bytes() for p in folder.iterdir()} for folder in folders)
    assert first == second and len(first) == 3


def test_a_saved_model_finds_its_backbone_elsewhere(tiny_cfg, tiny_backbone, tmp_path):
    shutil.copytree(tiny_backbone, tmp_path / "there")
    randomised(models.new(tiny_cfg.replace(backbone=str(tmp_path / "there")))).save(tmp_path / "m")
    shutil.move(tmp_path / "there", tmp_path / "moved")
    with pytest.raises((ValueError, OSError)):
        models.load(tmp_path / "m", "cpu")
    assert models.load(tmp_path / "m", "cpu", backbone=tmp_path / "moved").cfg.backbone == str(
        tmp_path / "moved"
    )


def test_the_file_loads_through_diffusers(model, tmp_path, tiny_backbone):
    """diffusers' own loader reads the adapter, its alpha included, and gives the same output."""
    path = model.save_adapter("fidelity", tmp_path / "fidelity.safetensors")
    unet = UNet2DConditionModel.from_pretrained(tiny_backbone / "unet")
    unet.load_lora_adapter(str(path.parent), weight_name=path.name, prefix="unet")
    z = torch.randn(1, 4, 8, 8)
    with torch.inference_mode():
        ours = model.eps(z, "fidelity")
        theirs = unet(z, 1, model.prompt).sample
    # without alpha in the file the scale would be another
    assert (ours - theirs).abs().max() < 1e-5


def _broken_json(folder):
    (folder / "ifcsr.json").write_text("{")


def _other_backbone(folder):
    card = json.loads((folder / "ifcsr.json").read_text())
    card["backbone"]["hash"] = "0" * 16
    (folder / "ifcsr.json").write_text(json.dumps(card))


def _rehash(folder):
    card = json.loads((folder / "ifcsr.json").read_text())
    for entry in card["adapters"].values():
        entry["sha256"] = sha256(folder / entry["file"])
    (folder / "ifcsr.json").write_text(json.dumps(card))


def _edit(change):
    def edit(folder):
        state = load_file(folder / "realism.safetensors")
        change(state)
        save_file(state, folder / "realism.safetensors")
        _rehash(folder)

    return edit


def _pickle(folder):
    torch.save(load_file(folder / "realism.safetensors"), folder / "realism.bin")
    card = json.loads((folder / "ifcsr.json").read_text())
    card["adapters"]["realism"]["file"] = "realism.bin"
    (folder / "ifcsr.json").write_text(json.dumps(card))


def _truncate(folder):
    path = folder / "realism.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    _rehash(folder)


def _swap(folder):
    (folder / "realism.safetensors").write_bytes((folder / "fidelity.safetensors").read_bytes())


KEY = "unet.conv_in.lora_A.weight"


@pytest.mark.parametrize(
    "damage, error",
    [
        (_broken_json, "damaged"),
        (_other_backbone, "backbone"),
        (_pickle, "safetensors"),
        (_truncate, "whole safetensors"),
        (_swap, "sha256"),
        (_edit(lambda s: s.pop(KEY)), f"1 keys missing .*{KEY}"),
        (_edit(lambda s: s.update({"unet.new.lora_A.weight": torch.zeros(1)})), "unet.new.lora_A.weight"),
        (_edit(lambda s: s.update({KEY: s[KEY][:2].clone()})), "shape"),
        (_edit(lambda s: s[KEY].fill_(float("nan"))), "NaN"),
    ],
)
def test_loading_refuses(model, tmp_path, damage, error):
    folder = model.save(tmp_path / "m")
    damage(folder)
    with pytest.raises(ValueError, match=error):
        ifcsr.load(folder, device="cpu")


def _older(folder, **changes):
    """The card as "ifcsr 1" had it: every field of the Config of its time, among them some that this kit no
    longer has.
    """
    card = json.loads((folder / "ifcsr.json").read_text())
    fields = (
        resolve("smoke").asdict()
        | card.pop("model")
        | {"k": 2.0, "equivariance": 1.0, "grain": False, "texture": 0.0}
    )
    card |= {"format": "ifcsr 1", "config": fields | changes, "config_hash": "6a1c9f391128", "provenance": {}}
    (folder / "ifcsr.json").write_text(json.dumps(card))
    return card


def test_the_card_holds_what_makes_the_model_and_how_it_was_trained(tiny_cfg, tmp_path):
    cfg = tiny_cfg.replace(k=2.0, lr=0.5, rank=2, tile=512)
    model = randomised(models.new(cfg))
    card = json.loads((model.save(tmp_path / "m") / "ifcsr.json").read_text())
    assert (
        tuple(card["model"]) == tuple(sorted(MODEL_FIELDS))
        and "k" not in card["model"]
        and "config" not in card
    )
    assert card["provenance"]["config"]["k"] == 2.0 and card["provenance"]["hash"] == cfg.hash
    again = ifcsr.load(tmp_path / "m", device="cpu")
    # how it was trained is no setting of what is loaded
    assert again.cfg == tiny_cfg.replace(rank=2, tile=512)
    copy = json.loads((again.save(tmp_path / "copy") / "ifcsr.json").read_text())
    assert {**copy, "adapters": card["adapters"]} == card  # it is told all the same
    made = json.loads((model.save(tmp_path / "p", {"seconds": 1}) / "ifcsr.json").read_text())
    assert made["provenance"] == {"seconds": 1}


def test_an_older_card_is_read(model, tmp_path):
    """Fields that this kit no longer has are left out, as is everything that does not make the model."""
    card = _older(model.save(tmp_path / "m"), rank=4)
    again, lq = ifcsr.load(tmp_path / "m", device="cpu"), torch.rand(1, 3, 16, 16)
    assert again.cfg == model.cfg and torch.equal(again.endpoints(lq).x_real, model.endpoints(lq).x_real)
    assert again.provenance == {"config": card["config"], "hash": "6a1c9f391128"}


@pytest.mark.parametrize("how", ["config", "adapters", "file"])
def test_a_model_with_grain_is_refused(model, tmp_path, how):
    folder = model.save(tmp_path / "m")
    card = _older(folder, grain=how == "config")
    if how == "file":
        shutil.copy(folder / "realism.safetensors", folder / "grain.safetensors")
    if how == "adapters":
        card["adapters"]["grain"] = {"file": "grain.safetensors", "sha256": "0"}
        (folder / "ifcsr.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match='grain.*was removed from this kit; use "pocket"'):
        ifcsr.load(folder, device="cpu")


@pytest.mark.parametrize(
    "wrong",
    [[], {"format": "ifcsr 2"}, {"model": {}}, {"model": {"profile": "smoke", "rank": "four"}}, {"model": 3}],
)
def test_a_card_that_makes_no_sense_is_damaged(model, tmp_path, wrong):
    folder = model.save(tmp_path / "m")
    (folder / "ifcsr.json").write_text(json.dumps(wrong))
    with pytest.raises(ValueError, match="ifcsr.json is damaged or of another version"):
        ifcsr.load(folder, device="cpu")


def test_the_shipped_card_is_of_this_form():
    card = json.loads((models.SHIPPED["pocket"] / "ifcsr.json").read_text())
    assert set(card) == {"format", "backbone", "model", "adapters", "provenance"} and list(
        models.SHIPPED
    ) == ["pocket"]
    assert card["model"] == resolve("pocket").model and card["provenance"]["made"]["k"] == [7.0, 3.0]


def test_the_second_shipped_model_is_gone():
    with pytest.raises(
        ValueError, match='^the model "pocket-texture" was removed from this kit; use "pocket"$'
    ):
        ifcsr.load("pocket-texture")


def test_unknown_names_have_one_clear_error(monkeypatch):
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
        ifcsr.load("no-such-thing")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="owner/nothing.*Ways out"):
        ifcsr.load("owner/nothing")


def test_a_grey_photograph_has_grey_endpoints(model):
    lq = torch.rand(2, 3, 16, 16)
    lq[0] = lq[0, :1]
    ends = model.endpoints(lq)
    for x in (ends.x_fid, ends.x_real):
        assert (x[0] - x[0, :1]).abs().max() == 0 and (x[1] - x[1, :1]).abs().max() > 0.01
