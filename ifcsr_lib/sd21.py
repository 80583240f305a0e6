"""The published shapes of SD 2.1-base, so that counts, tests and dry runs need no download. Plain dictionaries."""

from __future__ import annotations


def unet_config() -> dict:
    """Keywords of diffusers.UNet2DConditionModel: SD 2.1-base, 865,910,724 parameters."""
    return dict(
        sample_size=64, in_channels=4, out_channels=4, block_out_channels=[320, 640, 1280, 1280], layers_per_block=2,
        attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024, use_linear_projection=True,
        down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    )  # fmt: skip


def vae_config() -> dict:
    """Keywords of diffusers.AutoencoderKL: SD's, 83,653,863 parameters."""
    return dict(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=[128, 256, 512, 512], layers_per_block=2,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4, sample_size=768,
    )  # fmt: skip
