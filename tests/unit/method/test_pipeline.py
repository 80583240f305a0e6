"""The adapters in stock diffusers, IFCSRPipeline written and read again, and why a gamma is no single
network.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.pipeline_loading_utils import variant_compatible_siblings
from helpers import randomised
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

import ifcsr_lib as ifcsr
from ifcsr_lib import models
from ifcsr_lib.files.images import is_grey, to_uint8
from ifcsr_lib.pipeline import IFCSRPipeline, plain_unet

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`")


@pytest.fixture
def model(tiny_cfg):
    """Untrained adapters would be zero and equal; these do something, and differ."""
    return randomised(models.new(tiny_cfg))


@pytest.fixture
def lq():
    return torch.rand(1, 3, 16, 20, generator=torch.Generator().manual_seed(0))


def same(a, b):
    return torch.equal(a.x_fid, b.x_fid) and torch.equal(a.x_real, b.x_real)


def stock(tiny_backbone):
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=6, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
    )
    vae = models.load_backbone(ifcsr.resolve("smoke", overrides={"backbone": str(tiny_backbone)}))[1]
    unet = UNet2DConditionModel.from_pretrained(tiny_backbone / "unet")
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=None,
        unet=unet,
        safety_checker=None,
        feature_extractor=None,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        requires_safety_checker=False,
    )


def test_adapters_in_a_stock_pipeline(model, tiny_backbone, tmp_path):
    """load_lora_weights of StableDiffusionPipeline reads both files, and its UNet then predicts what ours
    does.
    """
    folder, pipe = model.save(tmp_path / "saved"), stock(tiny_backbone)
    z = torch.randn(1, 4, 8, 8)
    for name in models.ADAPTERS:
        pipe.load_lora_weights(str(folder), weight_name=f"{name}.safetensors", adapter_name=name)
    for name in models.ADAPTERS:
        pipe.set_adapters(name)
        with torch.inference_mode():
            assert (
                pipe.unet(z, model.cfg.timestep, model.prompt).sample - model.eps(z, name)
            ).abs().max() < 1e-5


def test_no_mix_of_the_adapters_is_the_blend_of_the_images(model, tiny_backbone, tmp_path, lq):
    """No LoRA weights (1 - g, g) give the blend of the images, so there is no network to export."""
    folder, pipe = model.save(tmp_path / "saved"), stock(tiny_backbone)
    x_L = ifcsr.images.upsample(lq)[..., :64]
    with torch.inference_mode():
        z = model.encode(x_L)
        ends = [model.decode(model.one_step(z, name)) for name in models.ADAPTERS]
        for name in models.ADAPTERS:
            pipe.load_lora_weights(str(folder), weight_name=f"{name}.safetensors", adapter_name=name)
        pipe.set_adapters(list(models.ADAPTERS), [0.5, 0.5])
        mixed = model.decode(z - pipe.unet(z, model.cfg.timestep, model.prompt).sample)
    assert (mixed - (ends[0] + ends[1]) / 2).abs().max() > 1e-3


def test_round_trip(model, tmp_path, lq):
    """Written and read again: the same bits out, the same settings, and no path of this machine in what is
    published.
    """
    pipe = IFCSRPipeline.of(model)
    assert same(pipe.endpoints(lq), model.endpoints(lq))
    pipe.save_pretrained(tmp_path / "pipe")
    again = IFCSRPipeline.from_pretrained(tmp_path / "pipe")
    assert same(again.endpoints(lq), model.endpoints(lq))
    assert again.ifcsr.cfg.replace(backbone=model.cfg.backbone) == model.cfg
    assert again.ifcsr.source["hash"] == model.source["hash"]
    written = sorted(
        p.relative_to(tmp_path / "pipe").as_posix() for p in (tmp_path / "pipe").rglob("*") if p.is_file()
    )
    weights = [f"{part}/diffusion_pytorch_model.safetensors" for part in ("adapters", "unet", "vae")]
    assert set(written) >= {*weights, "README.md", "model_index.json"}
    # a download keeps them
    assert set(weights) == variant_compatible_siblings(written, variant=None, ignore_patterns=[])[0]
    for name in written:
        if not name.endswith(".safetensors"):
            assert str(tmp_path.parent.parent) not in (tmp_path / "pipe" / name).read_text()
    plain = UNet2DConditionModel.from_pretrained(tmp_path / "pipe" / "unet")
    assert not any("lora" in k or "base_layer" in k for k in plain.state_dict())
    again.save_pretrained(tmp_path / "pipe")  # over itself
    assert same(IFCSRPipeline.from_pretrained(tmp_path / "pipe").endpoints(lq), model.endpoints(lq))


def test_pocket_as_a_pipeline(tmp_path, lq):
    """The shipped model with its own kind of VAE; the card says backbone, hashes and licence."""
    model = ifcsr.load("pocket", device="cpu")
    IFCSRPipeline.of(model).save_pretrained(tmp_path / "pipe")
    assert same(IFCSRPipeline.from_pretrained(tmp_path / "pipe").endpoints(lq), model.endpoints(lq))
    card = (tmp_path / "pipe" / "README.md").read_text()
    assert card.startswith("---\n") and "license: apache-2.0" in card and "library_name: diffusers" in card
    assert model.cfg.hash in card and model.source["hash"] in card and "Apache-2.0" in card


def test_from_the_hub_cache(model, tmp_path, lq):
    """A repository as huggingface_hub caches it, read offline by diffusers' own from_pretrained."""
    repo, commit = tmp_path / "hub" / "models--owner--pipe", "c" * 40
    IFCSRPipeline.of(model).save_pretrained(repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    pipe = IFCSRPipeline.from_pretrained("owner/pipe", cache_dir=tmp_path / "hub", local_files_only=True)
    assert same(pipe.endpoints(lq), model.endpoints(lq))


def test_the_card_of_another_backbone(model):
    model.source |= {"id": "owner/sd"}
    card = str(IFCSRPipeline.of(model).card())
    assert "base_model: owner/sd" in card and "license: other" in card and "its own licence" in card


def test_a_pipeline_without_its_index_does_not_load(model, tmp_path):
    IFCSRPipeline.of(model).save_pretrained(tmp_path / "pipe")
    (tmp_path / "pipe" / "model_index.json").unlink()
    with pytest.raises(OSError, match="model_index.json"):
        IFCSRPipeline.from_pretrained(tmp_path / "pipe")


def test_what_goes_in_and_comes_out(model, lq):
    pipe = IFCSRPipeline.of(model)
    pixels = to_uint8(lq)[0]
    eight = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    expected = model.endpoints(eight).blend(0.25)
    for image in (Image.fromarray(pixels), pixels, eight, eight[0], [Image.fromarray(pixels)]):
        assert torch.equal(pipe(image, gamma=0.25, output_type="pt").images, expected)
    (pil,) = pipe(pixels, gamma=0.25).images
    assert pil.size == (80, 64) and np.array_equal(np.asarray(pil), to_uint8(expected)[0])
    array = pipe(pixels, gamma=0.25, output_type="np").images
    assert array.shape == (1, 64, 80, 3) and np.array_equal(array[0], expected[0].permute(1, 2, 0).numpy())
    assert pipe([pixels, pixels], output_type="pt").images.shape == (2, 3, 64, 80)
    assert pipe(pixels[..., 0], output_type="pt").images.shape == (1, 3, 64, 80)
    gammas = torch.tensor([0.0, 1.0])
    ends = pipe.endpoints([pixels, pixels], colour_fix="none")
    both = pipe([pixels, pixels], gammas, colour_fix="none", output_type="pt").images
    assert torch.equal(both[0], ends.x_fid[0]) and torch.equal(both[1], ends.x_real[1])


def test_grey_in_grey_out(model, lq):
    """One channel in, as PIL or array of any depth: PIL "L" out, else three equal channels; lists may mix."""
    pipe, pixels = IFCSRPipeline.of(model), to_uint8(lq)[0]
    one, wide = pixels[..., 0], pixels[..., 0].astype(np.uint16) * 257
    for image in (
        Image.fromarray(one),
        Image.fromarray(one).convert("LA"),
        Image.fromarray(one).convert("1"),
        Image.fromarray(wide),
        one,
        wide,
        pixels[..., :1],
        np.dstack([one, one]),
    ):
        (pil,) = pipe(image).images
        assert pil.mode == "L" and pil.size == (80, 64)
        assert bool(is_grey(pipe(image, output_type="pt").images))
    assert torch.equal(
        pipe(Image.fromarray(wide), output_type="pt").images, pipe(wide, output_type="pt").images
    )
    grey, colour = pipe([Image.fromarray(one), Image.fromarray(pixels)]).images
    assert (grey.mode, colour.mode) == ("L", "RGB")
    (equal,) = pipe(np.repeat(pixels[..., :1], 3, 2)).images
    assert equal.mode == "RGB" and np.ptp(np.asarray(equal).astype(int), -1).max() == 0
    ends = pipe.endpoints(one)
    assert bool(is_grey(ends.x_fid)) and bool(is_grey(ends.x_real))
    with pytest.raises(ValueError, match="pixel mode F; allowed: 1, L"):
        pipe(Image.fromarray(one).convert("F"))


def test_what_transparency_hides_does_not_reach_the_network(model, lq):
    """Two pictures that differ only below alpha 0 give one answer, in every way to pass alpha."""
    pipe, pixels = IFCSRPipeline.of(model), to_uint8(lq)[0]
    alpha = np.full(pixels.shape[:2], 255, np.uint8)
    alpha[:6] = 0
    for colours in (pixels, pixels[..., :1]):
        answers = []
        for hidden in (0, 255):
            array = np.dstack([colours, alpha])
            array[:6, :, :-1] = hidden
            answers += [pipe(image, output_type="pt").images for image in (array, Image.fromarray(array))]
        assert all(torch.equal(one, answers[0]) for one in answers)


@pytest.mark.parametrize(
    "call, error",
    [
        (dict(image="photo.jpg"), "came as str"),
        (dict(image=[]), "0 images"),
        (dict(image=[np.zeros((16, 16, 3), np.uint8), np.zeros((16, 20, 3), np.uint8)]), "16x16, 20x16"),
        (dict(image=torch.rand(1, 3, 16, 16), output_type="jpg"), "pil, np, pt"),
        (dict(image=torch.rand(1, 3, 16, 16), gamma=2.0), "gamma=2"),
        (dict(image=torch.rand(1, 3, 8, 16)), "16 or more"),
    ],
)
def test_bad_calls(model, call, error):
    with pytest.raises((ValueError, TypeError), match=error):
        IFCSRPipeline.of(model)(**call)


def test_bad_parts(model, tmp_path):
    pipe = IFCSRPipeline.of(model)
    with pytest.raises(ValueError, match="carries adapters already"):
        IFCSRPipeline(**pipe.components)
    with pytest.raises(ValueError, match="float32"):
        pipe.to(torch.float16).endpoints(torch.rand(1, 3, 16, 16))
    pipe = IFCSRPipeline.of(model)
    pipe.save_pretrained(tmp_path / "pipe")
    path = tmp_path / "pipe" / "adapters" / "config.json"
    config = json.loads(path.read_text())
    config["settings"]["rank"] = 8
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="adapters/.*shape.*rank"):
        IFCSRPipeline.from_pretrained(tmp_path / "pipe")


def test_an_older_pipeline_is_read_and_one_with_grain_refused(model, tmp_path, lq):
    """Until "ifcsr 2" settings held every field of the Config of their time, removed ones too."""
    IFCSRPipeline.of(model).save_pretrained(tmp_path / "pipe")
    path = tmp_path / "pipe" / "adapters" / "config.json"
    config = json.loads(path.read_text())
    assert config["settings"] == model.cfg.model | {"backbone": Path(model.cfg.backbone).name}
    config["settings"] = {
        **model.cfg.asdict(),
        "backbone": config["settings"]["backbone"],
        "k": 2.0,
        "texture": 0.5,
        "grain": False,
    }
    path.write_text(json.dumps(config))
    again = IFCSRPipeline.from_pretrained(tmp_path / "pipe")
    assert same(again.endpoints(lq), model.endpoints(lq)) and again.ifcsr.cfg.k == 7.0
    config["settings"]["grain"] = True
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match='grain.*was removed from this kit; use "pocket"'):
        IFCSRPipeline.from_pretrained(tmp_path / "pipe")


def test_the_plain_unet_is_the_backbone(model, tiny_backbone):
    plain, before = plain_unet(model.unet), UNet2DConditionModel.from_pretrained(tiny_backbone / "unet")
    assert plain.state_dict().keys() == before.state_dict().keys()
    assert all(torch.equal(v, before.state_dict()[k]) for k, v in plain.state_dict().items())
