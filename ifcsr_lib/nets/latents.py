"""The one place that knows how diffusers' autoencoders hand out latents."""

from __future__ import annotations

from diffusers import AutoencoderDC, AutoencoderTiny
from torch import Tensor, nn

from ..data import normal


def has_posterior(vae: nn.Module) -> bool:
    """Whether the encoder gives a distribution (AutoencoderKL) rather than one latent (AutoencoderTiny,
    AutoencoderDC).
    """
    return not isinstance(vae, (AutoencoderTiny, AutoencoderDC))


def posterior_noise(vae: nn.Module, x: Tensor, seed: int, index) -> Tensor | None:
    """Standard normal noise for `latent_of`, one latent per image of x (N, 3, H, W); None without a
    posterior.

    Image i's is a function of (seed, index[i]) alone.
    """
    if not has_posterior(vae):
        return None
    side = pixels_per_latent(vae)
    shape = vae.config.latent_channels, x.shape[-2] // side, x.shape[-1] // side
    return normal(seed, index, shape).to(x)


def latent_of(code, noise: Tensor | None = None) -> Tensor:
    """The latent (N, C, h, w), not scaled, in what a VAE's `encode` returned.

    AutoencoderKL: a sample of the posterior with this noise (latent-shaped, standard normal), its mode
    without. AutoencoderTiny and AutoencoderDC have no posterior, so the noise is ignored. Raises TypeError
    for another kind of output.
    """
    if hasattr(code, "latent_dist"):
        post = code.latent_dist
        return post.mode() if noise is None else post.mean + post.std * noise
    for name in ("latents", "latent"):  # AutoencoderTiny, AutoencoderDC
        if hasattr(code, name):
            return getattr(code, name)
    raise TypeError(
        f"encode returned {type(code).__name__}; allowed: an output with latent_dist, latents or latent"
    )


def pixels_per_latent(vae: nn.Module) -> int:
    """Pixels along one side of a latent position: 8 for SD, 4 for pocket."""
    key = "encoder_block_out_channels" if isinstance(vae, AutoencoderDC) else "block_out_channels"
    return 2 ** (len(vae.config[key]) - 1)
