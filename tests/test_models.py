"""Facts of the two-adapter model: what is adapted, what one step is, what saving keeps, what loading refuses."""

import json
import shutil
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

import ifcsr_lib as ifcsr
from ifcsr_lib import models, sd21
from ifcsr_lib.files.images import upsample


@pytest.fixture
def model(tiny_cfg):
    return randomised(models.new(tiny_cfg))


def randomised(model):
    """Non-zero B, so that the adapters do something and differ."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name in models.ADAPTERS:
            for p in model.adapter(name).values():
                p.normal_(std=0.05)
    return model


def test_sd21_counts_on_the_meta_device():
    from peft import LoraConfig

    with torch.device("meta"):
        unet = UNet2DConditionModel(**sd21.unet_config())
        assert sum(p.numel() for p in unet.parameters()) == 865_910_724
        unet.add_adapter(LoraConfig(r=4, target_modules=models.LORA_TARGETS), adapter_name="fidelity")
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
    """Both ends at once, in turn (CPU) or in one batch (GPU), against two passes of one adapter each, within 1e-5."""
    lq = torch.rand(2, 3, 16, 16)
    ends, b = model.endpoints(lq, colour_fix="none"), model.cfg.border
    assert b == 16  # smoke's; sides of 64 + 2 * 16 are multiples of 16 already
    with torch.inference_mode():
        for name, x in zip(models.ADAPTERS, (ends.x_fid, ends.x_real)):
            alone = model.restore(F.pad(upsample(lq), (b,) * 4, mode="reflect"), name).clamp(0, 1)[..., b:-b, b:-b]
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
    model.restore(torch.rand(1, 3, 64, 64), "fidelity")  # switching adapters must thaw nothing
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


def test_a_saved_model_finds_its_backbone_elsewhere(tiny_cfg, tiny_backbone, tmp_path):
    shutil.copytree(tiny_backbone, tmp_path / "there")
    randomised(models.new(tiny_cfg.replace(backbone=str(tmp_path / "there")))).save(tmp_path / "m")
    shutil.move(tmp_path / "there", tmp_path / "moved")
    with pytest.raises((ValueError, OSError)):
        models.load(tmp_path / "m", "cpu")
    assert models.load(tmp_path / "m", "cpu", backbone=tmp_path / "moved").cfg.backbone == str(tmp_path / "moved")


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
        entry["sha256"] = models.sha256(folder / entry["file"])
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


@pytest.fixture
def grained(tiny_cfg):
    """NOT from the paper: with models.Grain behind x_real, its last layer random."""
    model = randomised(models.new(tiny_cfg.replace(grain=True, colour_fix="none")))
    torch.manual_seed(2)
    model.grain.tail.weight.data.normal_(std=0.05)
    return model


def test_untrained_grain_changes_nothing(tiny_cfg):
    lq = torch.rand(1, 3, 16, 16)
    a, b = (randomised(models.new(tiny_cfg.replace(grain=on))).endpoints(lq) for on in (False, True))
    assert torch.equal(a.x_fid, b.x_fid) and torch.equal(a.x_real, b.x_real)


def test_grain_is_on_the_realism_end_alone_and_fixed_by_place(grained):
    lq = torch.rand(1, 3, 16, 16).expand(2, -1, -1, -1).contiguous()
    ends = grained.endpoints(lq)
    assert torch.equal(ends.x_real[0], ends.x_real[1])  # the same image, the same grain
    grain, grained.grain = grained.grain, None
    plain = grained.endpoints(lq)
    assert torch.equal(plain.x_fid, ends.x_fid) and (plain.x_real - ends.x_real).abs().max() > 1e-2
    x, y, r = torch.rand(1, 3, 80, 90), torch.rand(1, 3, 80, 90), 14  # it looks 13 pixels far
    with torch.no_grad():
        whole, part = grain(x, y), grain(x[..., 16:, 32:], y[..., 16:, 32:], (16, 32))
        assert (whole[..., 16 + r :, 32 + r :] - part[..., r:, r:]).abs().max() < 1e-5
        assert (whole[..., 16 + r :, 32 + r :] - grain(x[..., 16:, 32:], y[..., 16:, 32:])[..., r:, r:]).abs().max() > 1e-2
        again = grain(x, y, (grain.period, 3 * grain.period))
        assert torch.equal(again, whole)
        grain.tail.weight.mul_(20)
        edge = (torch.arange(90) < 45).float().expand(1, 3, 80, 90).contiguous()
        added = (grain(edge, edge) - edge).abs().amax((0, 1, 2))
        assert added[41:43].max() < 0.006 and added[47:49].max() < 0.006  # 0.1 / 17: no second line beside an edge of 1
        assert added[10:20].min() > 0.09 and (grain(edge, edge, limit=False) - edge).abs()[..., 41:43].max() > 0.1
        torch.nn.init.zeros_(grain.tail.weight)
        grain.tail.bias.copy_(torch.tensor([1.0, 0.5, -1]))
        assert (grain(x, y) - x).abs().max() < 1e-6  # tone and colour are x_real's


def test_grain_is_saved_beside_the_adapters(grained, tmp_path):
    folder, lq = grained.save(tmp_path / "m"), torch.rand(1, 3, 16, 16)
    assert torch.equal(ifcsr.load(folder, device="cpu").endpoints(lq).x_real, grained.endpoints(lq).x_real)
    assert all(k.startswith("unet.") for k in load_file(folder / "realism.safetensors"))  # stock diffusers reads that file
    (folder / "grain.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="grain.safetensors"):
        ifcsr.load(folder, device="cpu")


def test_both_shipped_models_share_their_adapters():
    a, b = (models.load(name, "cpu") for name in models.SHIPPED)
    same = {name: all(torch.equal(p, q) for p, q in zip(a.adapter(name).values(), b.adapter(name).values(), strict=True))
            for name in models.ADAPTERS}  # fmt: skip
    assert same == {"fidelity": True, "realism": True} and b.cfg.grain and not a.cfg.grain


def test_unknown_names_have_one_clear_error(monkeypatch):
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
        ifcsr.load("no-such-thing")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="owner/nothing.*Ways out"):
        ifcsr.load("owner/nothing")
