"""Stable Diffusion's noise schedule, the one copy of it in the kit."""

from diffusers import DDPMScheduler


def noise_schedule() -> DDPMScheduler:
    """SD's: 1000 steps, scaled-linear beta from 0.00085 to 0.012, noise prediction."""
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
