"""PiSA-SR and OSEDiff files, written here in their layout with tiny models, on our backbone: formulas and
refusals.
"""

import pickle

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from ifcsr_lib import peers
from ifcsr_lib.control import adain
from ifcsr_lib.files.images import upsample

pytestmark = pytest.mark.filterwarnings(
    "ignore:Already found a `peft_config`", "ignore:Detected pickle protocol"
)
NAMES = [
    "to_k",
    "to_q",
    "to_v",
    "to_out.0",
    "conv",
    "conv1",
    "conv2",
    "conv_in",
    "conv_shortcut",
    "conv_out",
    "proj_out",
    "proj_in",
    "ff.net.2",
    "ff.net.0.proj",
]


def modules_of(unet):
    """The three lists both peers keep: weights with one of NAMES in them, by where they lie."""
    lists = {part: [] for part in peers.PARTS}
    for n, _ in unet.named_parameters():
        if n.endswith("weight") and "norm" not in n and any(name in n for name in NAMES):
            part = (
                "encoder"
                if "down_blocks" in n or "conv_in" in n
                else "decoder"
                if "up_blocks" in n or "conv_out" in n
                else "others"
            )
            lists[part].append(n.removesuffix(".weight"))
    return lists


def filled(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if ".lora_" in n:
                p.copy_(0.05 * torch.randn(p.shape, generator=generator))


def add(model, lists, rank, ends=""):
    for part, modules in lists.items():
        model.add_adapter(
            LoraConfig(r=rank, init_lora_weights="gaussian", target_modules=modules),
            adapter_name=f"default_{part}{ends}",
        )


def nets(tiny_backbone):
    return UNet2DConditionModel.from_pretrained(tiny_backbone / "unet"), AutoencoderKL.from_pretrained(
        tiny_backbone / "vae"
    )


@pytest.fixture
def pisasr(tiny_backbone, tmp_path):
    """(path, the network that was saved)"""
    unet, _ = nets(tiny_backbone)
    lists = modules_of(unet)
    for ends in ("_pix", "_sem"):
        add(unet, lists, {"_pix": 4, "_sem": 2}[ends], ends)
    filled(unet, 1)
    state = {k: v for k, v in unet.state_dict().items() if "lora" in k}
    file = {
        f"unet_lora_{part}_modules_{kind}": lists[part] for part in peers.PARTS for kind in ("pix", "sem")
    }
    torch.save(
        file | {"lora_rank_unet_pix": 4, "lora_rank_unet_sem": 2, "state_dict_unet": state},
        tmp_path / "pisa_sr.pkl",
    )
    return tmp_path / "pisa_sr.pkl", unet


@pytest.fixture
def osediff(tiny_backbone, tmp_path):
    unet, vae = nets(tiny_backbone)
    lists = modules_of(unet)
    coder = [
        n.removesuffix(".weight")
        for n, _ in vae.named_parameters()
        if n.endswith("weight") and "norm" not in n and n.startswith(("encoder.", "quant_conv"))
    ]
    add(unet, lists, 4)
    vae.add_adapter(
        LoraConfig(r=4, init_lora_weights="gaussian", target_modules=coder), adapter_name="default_encoder"
    )
    filled(unet, 1)
    filled(vae, 2)
    with torch.no_grad():
        unet.conv_in.base_layer.weight.mul_(1.1)  # OSEDiff trains the base's conv_in too
    file = {f"unet_lora_{part}_modules": lists[part] for part in peers.PARTS} | {
        "vae_lora_encoder_modules": coder,
        "rank_unet": 4,
        "rank_vae": 4,
        "state_dict_unet": {k: v for k, v in unet.state_dict().items() if "lora" in k or "conv_in" in k},
        "state_dict_vae": {k: v for k, v in vae.state_dict().items() if "lora" in k},
    }
    torch.save(file, tmp_path / "osediff.pkl")
    return tmp_path / "osediff.pkl", unet, vae


def prompt_of(tiny_backbone):
    return load_file(tiny_backbone / "empty_prompt.safetensors")["prompt"]


def test_pisasr(pisasr, tiny_cfg, tiny_backbone):
    """Their adjustable inference merges the pixel adapters into the base, then adds the semantic ones; ours
    adds both.
    """
    path, theirs = pisasr
    model, prompt = peers.import_pisasr(path, tiny_cfg), prompt_of(tiny_backbone)
    z = torch.randn(1, 4, 8, 8)
    pix, sem = ([f"default_{part}_{kind}" for part in peers.PARTS] for kind in ("pix", "sem"))
    with torch.inference_mode():
        theirs.set_adapter(pix)
        e_pix = theirs(z, 1, prompt).sample
        theirs.set_adapter(pix + sem)
        e_full = theirs(z, 1, prompt).sample
        assert (e_full - e_pix).abs().max() > 1e-3
        assert torch.allclose(model.one_step(z), z - e_full, atol=1e-5)
        for a, b in ((1.0, 0.0), (0.3, 1.2)):
            assert torch.allclose(model.one_step(z, a, b), z - (a * e_pix + b * (e_full - e_pix)), atol=1e-5)
        for layer in (m for m in theirs.modules() if isinstance(m, LoraLayer)):
            for name in set(pix) & set(layer.lora_A):
                layer.get_base_layer().weight += layer.get_delta_weight(name)
        theirs.set_adapter(sem)
        assert torch.allclose(theirs(z, 1, prompt).sample, e_full, atol=1e-4)
    assert model.source["peer"] == "PiSA-SR" and model.source["file"] == "pisa_sr.pkl"
    assert not any(p.requires_grad for p in model.parameters())


def test_osediff(osediff, tiny_cfg, tiny_backbone):
    """x0 at t = 999 as diffusers' own scheduler has it, with the adapted encoder and its own conv_in."""
    path, unet, vae = osediff
    model = peers.import_osediff(path, tiny_cfg)
    assert (round(model.alpha, 5), round(model.sigma, 5)) == (0.06826, 0.99767)
    x = torch.rand(1, 3, 64, 64)
    schedule = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    with torch.inference_mode():
        z = vae.encode(2 * x - 1).latent_dist.mode() * vae.config.scaling_factor
        assert torch.allclose(model.encode(x), z, atol=1e-5)
        plain = AutoencoderKL.from_pretrained(tiny_backbone / "vae")
        assert (plain.encode(2 * x - 1).latent_dist.mode() * vae.config.scaling_factor - z).abs().max() > 1e-3
        unet.set_adapter([f"default_{part}" for part in peers.PARTS])
        eps = unet(z, 999, prompt_of(tiny_backbone)).sample
        x0 = schedule.step(eps, 999, z).pred_original_sample
        assert torch.allclose(model.one_step(z), x0, rtol=1e-4, atol=1e-3)


def test_upscale(pisasr, osediff, tiny_cfg):
    lq = torch.rand(2, 3, 17, 21)
    for model in (peers.import_pisasr(pisasr[0], tiny_cfg), peers.import_osediff(osediff[0], tiny_cfg)):
        x = model.upscale(lq)
        assert x.shape == (2, 3, 68, 84) and x.min() >= 0 and x.max() <= 1
        assert torch.equal(x, model.upscale(lq))  # the mode of z_L: no chance in it
        assert torch.equal(adain(model.upscale(lq, "none"), upsample(lq)), x)
        noise = torch.randn(
            2, 4, *(-(-s * 4 // model.multiple) * model.multiple // model.vae_factor for s in (17, 21))
        )
        assert not torch.equal(model.upscale(lq, noise=noise), x)
    model = peers.import_pisasr(pisasr[0], tiny_cfg)
    assert not torch.equal(model.upscale(lq, lambda_sem=0.0), model.upscale(lq))
    with pytest.raises(ValueError, match="adain, none"):
        model.upscale(lq, "wavelet")


class Stranger:
    def __reduce__(self):
        return (print, ("a pickle ran code",))


def change(path, edit):
    file = torch.load(path, weights_only=True)
    edit(file)
    torch.save(file, path)


KEY = "conv_in.lora_A.default_encoder.weight"


@pytest.mark.parametrize(
    "edit, error",
    [
        (lambda f: f.pop("rank_vae"), "1 keys missing .'rank_vae'"),
        (lambda f: f.update(state_dict_text={}), "1 keys unknown .'state_dict_text'"),
        (lambda f: f["state_dict_unet"].pop(KEY), f"UNet2DConditionModel: 1 keys missing .'{KEY}'"),
        (
            lambda f: f["state_dict_unet"].pop("conv_in.base_layer.bias"),
            "1 keys missing .'conv_in.base_layer.bias'",
        ),
        (lambda f: f["state_dict_vae"].update(odd=torch.zeros(1)), "AutoencoderKL: .*1 keys unknown .'odd'"),
        (lambda f: f["state_dict_unet"].update({KEY: torch.zeros(1)}), f"{KEY} has shape"),
        (lambda f: f["state_dict_unet"][KEY].fill_(float("nan")), f"{KEY} holds NaN"),
        (
            lambda f: f["unet_lora_others_modules"].append("mid_block.nothing"),
            "default_others adapts mid_block.nothing",
        ),
        (lambda f: f.update(rank_unet="4"), "rank_unet came as str"),
        (lambda f: f.update(unet_lora_others_modules=[]), "default_others adapts no module"),
    ],
)
def test_files_that_are_refused(osediff, tiny_cfg, edit, error):
    change(osediff[0], edit)
    with pytest.raises(ValueError, match=error):
        peers.import_osediff(osediff[0], tiny_cfg)


def test_no_code_is_run(tmp_path, tiny_cfg, capsys):
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"state_dict_unet": Stranger()}))
    torch.save({"state_dict_unet": Stranger()}, tmp_path / "evil2.pkl")
    for name in ("evil.pkl", "evil2.pkl"):
        with pytest.raises(ValueError, match=f"{name} holds more than tensors"):
            peers.import_pisasr(tmp_path / name, tiny_cfg)
    assert "ran code" not in capsys.readouterr().out
    path.write_bytes(b"no pickle at all")
    with pytest.raises(ValueError, match="damaged"):
        peers.import_pisasr(path, tiny_cfg)
    with pytest.raises(FileNotFoundError, match="gone.pkl"):
        peers.import_pisasr(tmp_path / "gone.pkl", tiny_cfg)


def test_the_other_peers_file(pisasr, osediff, tiny_cfg):
    with pytest.raises(ValueError, match="another model's file"):
        peers.import_osediff(pisasr[0], tiny_cfg)
    with pytest.raises(ValueError, match="another model's file"):
        peers.import_pisasr(osediff[0], tiny_cfg)
