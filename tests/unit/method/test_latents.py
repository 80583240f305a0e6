"""Latents out of each kind of autoencoder that the kit knows (nets/latents.py)."""

import types

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny

from ifcsr_lib.nets.latents import has_posterior, latent_of, pixels_per_latent


def autoencoder_dc():
    """Two levels, so a factor of 2."""
    block = {"encoder_block_types": "ResBlock", "decoder_block_types": "ResBlock"}
    return AutoencoderDC(
        latent_channels=4,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        attention_head_dim=4,
        **block,
    ).eval()


def autoencoder_tiny():
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    ).eval()


@pytest.mark.parametrize(("make", "factor"), [(autoencoder_dc, 2), (autoencoder_tiny, 4)])
def test_without_a_posterior_noise_changes_nothing(make, factor):
    vae, x = make(), torch.rand(2, 3, 16, 24)
    assert not has_posterior(vae)
    assert pixels_per_latent(vae) == factor
    with torch.inference_mode():
        z = latent_of(vae.encode(2 * x - 1))
        assert z.shape == (2, 4, 16 // factor, 24 // factor)
        assert torch.equal(z, latent_of(vae.encode(2 * x - 1), torch.randn_like(z)))
        assert vae.decode(z).sample.shape == x.shape


def test_a_posterior_is_sampled_with_the_noise_given():
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    assert has_posterior(vae)
    assert pixels_per_latent(vae) == 2
    with torch.inference_mode():
        code = vae.encode(torch.rand(1, 3, 16, 16))
    post, noise = code.latent_dist, torch.randn(1, 4, 8, 8)
    assert torch.equal(latent_of(code), post.mean)
    assert torch.equal(latent_of(code, noise), post.mean + post.std * noise)


def test_another_output_is_refused():
    with pytest.raises(TypeError, match="allowed: an output with latent_dist, latents or latent"):
        latent_of(types.SimpleNamespace(sample=0))
