"""The method's network: one frozen SD UNet, two LoRA adapters, one diffusion step each (E7)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from .config import ADAPTERS, Config, resolve
from .control import Endpoints
from .files.images import check_images, upsample
from .files.results import recorded
from .nets import store
from .nets.adapters import Adapters
from .nets.backbone import load_backbone
from .nets.latents import latent_of, pixels_per_latent
from .nets.tiling import tiled

SHIPPED = store.SHIPPED


class IFCSR(store.Saved, nn.Module):
    """f_theta and f_phi: `endpoints` for use; encode, one_step and decode for training.

    unet, vae and prompt are frozen; only the two adapters ever train. lora: the adapters on the UNet.
    provenance: how they were trained, which `save` keeps.
    """

    def __init__(self, cfg: Config, unet: UNet2DConditionModel, vae: nn.Module, prompt: Tensor, source: dict):
        super().__init__()
        self.cfg, self.source, self.adapters = cfg, source, ADAPTERS
        self.provenance = {"config": recorded(cfg), "hash": cfg.hash}
        # DECISION D8: the VAE stays frozen on both sides (OSEDiff adapts its encoder)
        self.unet, self.vae = unet.requires_grad_(False), vae.requires_grad_(False)
        self.register_buffer("prompt", prompt)  # (1, T, D): the text encoder's output for ""
        self.lora = Adapters(self.unet)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cfg.seed)
            for name in self.adapters:
                self.lora.add(name, cfg.rank, cfg.lora_alpha)
        self.train_only()
        # a quarter less time for both ends on a CPU, most of it in encoder and decoder
        # (benchmarks/endpoints.py)
        self.to(memory_format=torch.channels_last)
        self.eval()

    def adapter(self, name: str) -> dict[str, nn.Parameter]:
        """The LoRA weights of "fidelity" or "realism", {key in the saved file: parameter}."""
        if name not in self.adapters:
            raise ValueError(f"adapter {name!r} is unknown; allowed: {', '.join(self.adapters)}")
        return {f"unet.{n.replace(f'.{name}.', '.')}": p for n, p in self.lora.weights(name).items()}

    def train_only(self, *names: str) -> dict[str, nn.Parameter]:
        """Let only these adapters' weights take gradients; returns them as {"<adapter>.<key>": parameter}."""
        self.requires_grad_(False)
        self.lora.train_only(*names)
        return {f"{name}.{k}": p for name in names for k, p in self.adapter(name).items()}

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> scaled latents z (N, C, h, w). Sides: multiples of `multiple`.

        With noise (latent-shaped, standard normal) z is a sample of the VAE's posterior, without it the mode.
        A
        VAE without a posterior ignores the noise (nets/latents.py).
        """
        # DECISION D9: sampled in training, the mode at inference, one z_L for both ends
        z = latent_of(self.vae.encode((2 * x - 1).to(self.vae.dtype)), noise)
        return z * self.vae.config.scaling_factor

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents -> images (N, 3, H, W), float32; not clamped."""
        return (self.vae.decode(z / self.vae.config.scaling_factor).sample.float() + 1) / 2

    def eps(self, z: Tensor, adapters: str | list[str]) -> Tensor:
        """The UNet's prediction for z (N, C, h, w) at cfg.timestep: one adapter for all, or one name per
        image.
        """
        with self.lora.using(adapters):
            return self.unet(z, self.cfg.timestep, self.prompt.expand(len(z), -1, -1)).sample

    def one_step(self, z_L: Tensor, adapters: str | list[str]) -> Tensor:
        """E7: z_H = z_L - eps(z_L, t, empty prompt), t = cfg.timestep."""
        return z_L - self.eps(z_L, adapters)

    def both(self, z_L: Tensor) -> tuple[Tensor, Tensor]:
        """x_fid, x_real from one z_L; not clamped. A GPU, and any training, takes both adapters in one batch.
        A CPU takes them in turn, which spares peft's sorting of a mixed batch and half of the memory
        (benchmarks/endpoints.py).
        """
        if z_L.device.type == "cpu" and not torch.is_grad_enabled():
            return tuple(self.decode(self.one_step(z_L, name)) for name in self.adapters)
        names = [name for name in self.adapters for _ in range(len(z_L))]
        return self.decode(self.one_step(torch.cat([z_L, z_L]), names)).split(len(z_L))

    @property
    def vae_factor(self) -> int:
        """Pixels that a latent position spans on a side: 8 for SD, 4 for pocket."""
        return pixels_per_latent(self.vae)

    @property
    def multiple(self) -> int:
        """Output sides are padded to multiples of this many pixels: VAE factor x UNet factor."""
        return self.vae_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @torch.inference_mode()
    def endpoints(self, lq: Tensor, colour_fix: str | None = None) -> Endpoints:
        """Both endpoints of the slider from one encoding, with one UNet and decoder pass per adapter.

        lq: (N, 3, h, w) float32 RGB in [0, 1], low resolution, h and w at least 16, any size above.
        colour_fix: "none" or "adain" on both ends (control.adain); None takes cfg.colour_fix.
        Returns Endpoints with images of (N, 3, 4h, 4w) on lq's device; grey images stay grey. Equal to two
        separate passes within 1e-5 (before the colour fix). More than cfg.tile x cfg.tile output pixels are
        made tile by tile (nets/tiling.py), so that memory stays bounded.
        """
        check_images(lq, "lq")
        cfg, device = self.cfg, self.prompt.device
        fix = cfg.replace(colour_fix=colour_fix or cfg.colour_fix).colour_fix
        large = 0 < cfg.tile**2 < lq.shape[-2] * lq.shape[-1] * cfg.scale**2
        # a tiled image stays where lq is, and only its tiles travel to the networks
        x_L = upsample(lq if large else lq.to(device), cfg.scale)
        h, w = x_L.shape[-2:]
        # DECISION D17: reflect cfg.border pixels on every side, then to the next multiple; crop after
        # decoding
        b, m = cfg.border, self.multiple
        padded = F.pad(x_L, (b, b + -(w + 2 * b) % m, b, b + -(h + 2 * b) % m), mode="reflect")

        def both(x):
            return self.both(self.encode(x.to(device)))

        images = tiled(both, padded, cfg.tile, cfg.tile_overlap, m, images=2) if large else both(padded)
        del padded
        # DECISION D16: clamp at inference only; in training a clamp would stop gradients
        x_fid, x_real = (x[..., b : b + h, b : b + w].clamp(0, 1).contiguous().to(lq.device) for x in images)
        del images
        ends = Endpoints(x_fid, x_real, x_L.to(lq.device)).grey_as_input()
        return ends.colour_fixed() if fix == "adain" else ends


def new(cfg: Config) -> IFCSR:
    """A model with untrained adapters (both ends equal the frozen backbone) on the backbone of a Config."""
    return IFCSR(cfg, *load_backbone(cfg))


def load(
    name: str | Path = "pocket", device: str | torch.device | None = None, backbone: str | None = None
) -> IFCSR:
    """Load a model ready for `endpoints`.

    name: "pocket" (shipped), a folder written by `save`, or a hub id or folder of either a saved model or a
        backbone (unet/ and vae/ in diffusers' layout; also a single .safetensors file), which gets untrained
        adapters.
    device: where to put it; default the GPU when there is one.
    backbone: hub id, folder or file of the backbone, when it is not where it was as the saved model was
        trained; its hash must be the same.
    Raises ValueError for a file that is damaged or does not fit, and for models that were removed
    ("pocket-texture", and any with grain).
    """
    folder = store.find(name)
    if saved := store.read_card(folder, backbone):
        cfg, card = saved
        model = new(cfg)
        model.fill(folder, card)
    else:
        model = new(resolve("paper", overrides={"backbone": str(name)}))
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
