"""Stable Diffusion checkpoints with random weights, as a folder in diffusers' layout and as a single file in
LDM's. Of the true shapes, or so small that tests make them.
"""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from ifcsr_lib import results, sd21

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
PIPELINE = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": diffusers.__version__,
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def shapes(shape: str = "sd21", tiny: bool = False) -> dict[str, dict]:
    """{"unet", "vae", "text_encoder": keywords of the configuration} of "sd21" or "sd15".

    tiny: one level of attention, as small as the classes allow. What differs between the two shapes is what
    differs in full size.
    """
    if not tiny:
        return {
            "unet": sd21.unet_config(shape),
            "vae": sd21.vae_config(shape),
            "text_encoder": sd21.text_config(shape),
        }
    own = {
        "sd21": dict(attention_head_dim=[2, 4], cross_attention_dim=16, use_linear_projection=True),
        "sd15": dict(attention_head_dim=8, cross_attention_dim=24, use_linear_projection=False),
    }[shape]
    unet = dict(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **own,
    )
    vae = dict(
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        layers_per_block=1,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
    )
    text = dict(
        vocab_size=6,
        hidden_size=own["cross_attention_dim"],
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        hidden_act="gelu" if shape == "sd21" else "quick_gelu",
        projection_dim=16,
    )
    return {"unet": unet, "vae": vae, "text_encoder": text}


def write_folder(
    folder: Path, shape: str = "sd21", tiny: bool = False, dtype: torch.dtype = torch.float32
) -> Path:
    """A checkpoint in diffusers' layout, seed 0: UNet, VAE, text encoder, tokenizer, scheduler and
    model_index.json, weights in `dtype`.

    The tokenizer knows the empty prompt alone: its words are made up, the markers are where CLIP has them.
    """
    config = shapes(shape, tiny)
    torch.manual_seed(0)
    # one net after the other, so that one alone is in memory
    UNet2DConditionModel(**config["unet"]).to(dtype).save_pretrained(folder / "unet")
    AutoencoderKL(**config["vae"]).to(dtype).save_pretrained(folder / "vae")
    text = CLIPTextConfig(**config["text_encoder"])
    CLIPTextModel(text).to(dtype).save_pretrained(folder / "text_encoder")
    PNDMScheduler(steps_offset=1, skip_prk_steps=True).save_pretrained(folder / "scheduler")
    results.write_json(PIPELINE, folder / "model_index.json")
    # "!" is 0 and the markers are last, as in CLIP's
    words = ["!", *(f"w{i}" for i in range(text.vocab_size - 3)), "<|startoftext|>", "<|endoftext|>"]
    start, end = words[-2:]
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": text.max_position_embeddings,
        "bos_token": start,
        "eos_token": end,
        "unk_token": end,
        "pad_token": words[0] if shape == "sd21" else end,
    }
    tokenizer = folder / "tokenizer"
    results.write_json({word: i for i, word in enumerate(words)}, tokenizer / "vocab.json")
    results.write_json(settings, tokenizer / "tokenizer_config.json")
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    return folder


def write_file(folder: Path, path: Path, shape: str = "sd21") -> Path:
    """The weights of `write_folder`'s folder as one file in LDM layout, in the folder's precision.

    Of the true shape it also has what SD 2.1's own file has and nobody reads: a 24th layer of text, the
    projection of texts, and the noise schedule.
    """
    config = {part: json.loads((folder / part / "config.json").read_text()) for part in WEIGHTS}
    state = {part: load_file(folder / part / name) for part, name in WEIGHTS.items()}
    levels, layers = len(config["unet"]["block_out_channels"]), config["unet"]["layers_per_block"]
    out = unet_to_ldm(state["unet"], levels, layers)
    out |= vae_to_ldm(state["vae"], len(config["vae"]["block_out_channels"]))
    out |= text_to_ldm(state["text_encoder"], shape)
    if shape == "sd21" and config["text_encoder"]["num_hidden_layers"] == 23:
        model = "cond_stage_model.model"
        for key in [k for k in out if k.startswith(f"{model}.transformer.resblocks.22.")]:
            out[key.replace(".resblocks.22.", ".resblocks.23.")] = out[key].clone()
        width = config["text_encoder"]["hidden_size"]
        out[f"{model}.text_projection"] = torch.zeros(width, width)
        out[f"{model}.logit_scale"] = torch.tensor(4.6)
        out["betas"] = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        out["alphas_cumprod"] = (1 - out["betas"]).cumprod(0)
    save_file({k: v.contiguous() for k, v in out.items()}, path)
    return path


def unet_to_ldm(state: dict[str, Tensor], levels: int, layers: int) -> dict[str, Tensor]:
    """diffusers' UNet keys -> LDM's, written from the two naming schemes and not from diffusers' converter.

    levels: of the UNet; layers: its layers_per_block.
    """
    heads = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    for i in range(levels):
        for j in range(layers + 1):
            n = i * (layers + 1) + j
            heads |= {
                f"down_blocks.{i}.resnets.{j}": f"input_blocks.{n + 1}.0",
                f"up_blocks.{i}.resnets.{j}": f"output_blocks.{n}.0",
                f"down_blocks.{i}.attentions.{j}": f"input_blocks.{n + 1}.1",
                f"up_blocks.{i}.attentions.{j}": f"output_blocks.{n}.1",
            }
        heads[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{(i + 1) * (layers + 1)}.0.op"
        attends = any(k.startswith(f"up_blocks.{i}.attentions") for k in state)
        heads[f"up_blocks.{i}.upsamplers.0.conv"] = (
            f"output_blocks.{(i + 1) * (layers + 1) - 1}.{2 if attends else 1}.conv"
        )
    inner = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1",
        "conv_shortcut": "skip_connection",
    }
    out = {}
    for key, value in state.items():
        head = max((h for h in heads if key.startswith(f"{h}.")), key=len)
        rest = key[len(head) + 1 :]
        first, _, last = rest.partition(".")
        out[
            f"model.diffusion_model.{heads[head]}.{f'{inner[first]}.{last}' if '.resnets.' in head else rest}"
        ] = value
    return out


def vae_to_ldm(state: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """diffusers' VAE keys -> LDM's, its attention as convolutions of one pixel."""
    inner = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    out = {}
    for key, value in state.items():
        new = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        for j in (0, 1):
            new = new.replace(f"mid_block.resnets.{j}.", f"mid.block_{j + 1}.")
        for i in range(levels):
            new = new.replace(f"down_blocks.{i}.resnets.", f"down.{i}.block.").replace(
                f"down_blocks.{i}.downsamplers.0.", f"down.{i}.downsample."
            )
            new = new.replace(f"up_blocks.{i}.resnets.", f"up.{levels - 1 - i}.block.").replace(
                f"up_blocks.{i}.upsamplers.0.", f"up.{levels - 1 - i}.upsample."
            )
        if "mid_block.attentions.0." in new:
            new = new.replace("mid_block.attentions.0.", "mid.attn_1.")
            for theirs, ldm in inner.items():
                new = new.replace(f".{theirs}.", f".{ldm}.")
            value = value[:, :, None, None] if value.ndim == 2 else value
        out[f"first_stage_model.{new}"] = value
    return out


def text_to_ldm(state: dict[str, Tensor], shape: str) -> dict[str, Tensor]:
    """SD 1.5 keeps transformers' names; SD 2.1's are OpenCLIP's, with query, key and value in one matrix."""
    state = {k.removeprefix("text_model."): v for k, v in state.items() if "position_ids" not in k}
    if shape == "sd15":
        return {f"cond_stage_model.transformer.text_model.{k}": v for k, v in state.items()}
    names = {
        "embeddings.position_embedding.weight": "positional_embedding",
        "embeddings.token_embedding": "token_embedding",
        "final_layer_norm": "ln_final",
        "encoder.layers": "transformer.resblocks",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn": "attn",
    }
    out = {}
    for key, value in state.items():
        if ".q_proj." in key:
            kinds = [state[key.replace(".q_proj.", f".{c}_proj.")] for c in "qkv"]
            key, value = key.replace(".q_proj.", ".in_proj_"), torch.cat(kinds)
        elif ".k_proj." in key or ".v_proj." in key:
            continue
        for theirs, ldm in names.items():
            key = key.replace(theirs, ldm)
        out[f"cond_stage_model.model.{key}"] = value
    return out
