"""Published PiSA-SR and OSEDiff checkpoints on our backbone, to compare with. Written from the layout of
their files.

Both files are pickles of a dictionary: LoRA ranks, lists of adapted modules, and state dictionaries. They are
read with torch.load(weights_only=True), which runs no code. Sources: the PiSA-SR (CVPR 2025) and OSEDiff
(NeurIPS 2024) repositories.
"""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig
from torch import Tensor, nn

from ..config import Config, resolve
from ..control import adain
from ..files.images import check_images, upsample
from ..files.results import sha256
from ..models import IFCSR
from ..nets.adapters import Adapters
from ..nets.backbone import load_backbone
from ..nets.schedule import noise_schedule

PARTS = ("encoder", "decoder", "others")


class Peer(nn.Module):
    """A one-step model: encode, `one_step`, decode. Everything is frozen.

    prompt: (1, T, D) embedding; source: the backbone's, with "peer", "file" and "sha256" of the checkpoint.
    """

    # DECISION D34: the empty prompt and the mode of z_L, as IFCSR; OSEDiff's code asks a tagger and both
    # sample z_L
    timestep: int
    encode, decode, vae_factor, multiple = IFCSR.encode, IFCSR.decode, IFCSR.vae_factor, IFCSR.multiple

    def __init__(self, unet: nn.Module, vae: nn.Module, prompt: Tensor, source: dict):
        super().__init__()
        self.unet, self.vae, self.source = unet.requires_grad_(False), vae.requires_grad_(False), source
        self.register_buffer("prompt", prompt)
        self.eval()

    def eps(self, z: Tensor, adapters: list[str]) -> Tensor:
        """The UNet's prediction for z (N, C, h, w) with these adapters active together."""
        with Adapters(self.unet).using(dict.fromkeys(adapters, 1.0)):
            return self.unet(z, self.timestep, self.prompt.expand(len(z), -1, -1)).sample

    @torch.inference_mode()
    def upscale(
        self, lq: Tensor, colour_fix: str = "adain", noise: Tensor | None = None, **control: float
    ) -> Tensor:
        """lq (N, 3, h, w) float32 RGB in [0, 1], sides of 16 or more -> (N, 3, 4h, 4w) in [0, 1], on lq's
        device.

        colour_fix: "adain", as both peers publish, or "none". noise: latent-shaped, to sample z_L as their
            code does.
        control: keywords of `one_step`. The image is made whole, without tiles.
        """
        check_images(lq, "lq")
        if colour_fix not in ("adain", "none"):
            raise ValueError(f"colour_fix={colour_fix!r}; allowed: adain, none")
        x_L = upsample(lq.to(self.prompt.device))
        h, w = x_L.shape[-2:]
        m = self.multiple
        padded = F.pad(x_L, (0, -w % m, 0, -h % m), mode="reflect")
        x = self.decode(self.one_step(self.encode(padded, noise), **control))[..., :h, :w].clamp(0, 1)
        return (adain(x, x_L) if colour_fix == "adain" else x).to(lq.device)


class PiSASR(Peer):
    """PiSA-SR: z_H = z_L - eps at t = 1 with eps = lambda_pix e_pix + lambda_sem (e_full - e_pix)."""

    timestep = 1

    def one_step(self, z_L: Tensor, lambda_pix: float = 1.0, lambda_sem: float = 1.0) -> Tensor:
        """z_L (N, C, h, w) -> z_H; e_pix with the pixel adapters, e_full with pixel and semantic ones
        together.
        """
        pix = [f"default_{part}_pix" for part in PARTS]
        e_full = self.eps(z_L, pix + [f"default_{part}_sem" for part in PARTS])
        if lambda_pix == lambda_sem == 1:  # their default mode: one pass
            return z_L - e_full
        e_pix = self.eps(z_L, pix)
        return z_L - (lambda_pix * e_pix + lambda_sem * (e_full - e_pix))


class OSEDiff(Peer):
    """OSEDiff: z_H = (z_L - sigma eps) / alpha at t = 999, LoRA on UNet and VAE encoder, and its
    own conv_in.
    """

    timestep = 999

    def __init__(self, *parts):
        super().__init__(*parts)
        # SD's schedule; the formula itself, since DDPMScheduler.step fails at t = 999 after set_timesteps(1)
        schedule = noise_schedule()
        kept = schedule.alphas_cumprod[self.timestep].item()
        self.alpha, self.sigma = kept**0.5, (1 - kept) ** 0.5

    def one_step(self, z_L: Tensor) -> Tensor:
        """z_L (N, C, h, w) -> z_H."""
        return (z_L - self.sigma * self.eps(z_L, [f"default_{part}" for part in PARTS])) / self.alpha


def import_pisasr(path: str | Path, cfg: Config | None = None) -> PiSASR:
    """PiSA-SR's checkpoint (pisa_sr.pkl) on the backbone of cfg (default: profile paper, SD 2.1-base).

    Raises FileNotFoundError, or ValueError naming the first key that is missing, unknown or does not fit.
    """
    kinds = ("pix", "sem")
    lists = {f"default_{part}_{kind}": f"unet_lora_{part}_modules_{kind}" for kind in kinds for part in PARTS}
    ranks = {f"default_{part}_{kind}": f"lora_rank_unet_{kind}" for kind in kinds for part in PARTS}
    file = _read(Path(path), {*lists.values(), *ranks.values(), "state_dict_unet"})
    unet, vae, prompt, source = load_backbone(cfg or resolve("paper"))
    _adapt(
        unet,
        {name: (file[key], file[ranks[name]]) for name, key in lists.items()},
        file["state_dict_unet"],
        path,
    )
    return PiSASR(unet, vae, prompt, source | _origin("PiSA-SR", path))


def import_osediff(path: str | Path, cfg: Config | None = None) -> OSEDiff:
    """OSEDiff's checkpoint (osediff.pkl) on the backbone of cfg (default: profile paper, SD 2.1-base).

    Raises FileNotFoundError, or ValueError naming the first key that is missing, unknown or does not fit.
    """
    lists = {f"default_{part}": f"unet_lora_{part}_modules" for part in PARTS}
    wanted = {
        *lists.values(),
        "rank_unet",
        "rank_vae",
        "vae_lora_encoder_modules",
        "state_dict_unet",
        "state_dict_vae",
    }
    file = _read(Path(path), wanted)
    unet, vae, prompt, source = load_backbone(cfg or resolve("paper"))
    modules = {name: (file[key], file["rank_unet"]) for name, key in lists.items()}
    _adapt(unet, modules, file["state_dict_unet"], path, also="conv_in")
    _adapt(
        vae,
        {"default_encoder": (file["vae_lora_encoder_modules"], file["rank_vae"])},
        file["state_dict_vae"],
        path,
    )
    return OSEDiff(unet, vae, prompt, source | _origin("OSEDiff", path))


def _origin(peer: str, path: str | Path) -> dict:
    return {"peer": peer, "file": Path(path).name, "sha256": sha256(path)}


def _read(path: Path, wanted: set[str]) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; pass the checkpoint that the authors publish")
    try:
        file = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        text = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path} holds more than tensors, lists and numbers, or is damaged ({text}); get it again"
        ) from error
    if not isinstance(file, dict):
        raise ValueError(  # noqa: TRY004
            f"{path} holds a {type(file).__name__}; wanted a dictionary with {', '.join(sorted(wanted))}"
        )
    _same_keys(file, wanted, path, "")
    for key, value in file.items():
        kind = (
            "rank" if "rank" in key else "modules" if key.endswith(("modules", "_pix", "_sem")) else "tensors"
        )
        good = {
            "rank": lambda v: type(v) is int and v > 0,
            "modules": lambda v: isinstance(v, (list, tuple)) and all(isinstance(n, str) for n in v),
            "tensors": lambda v: isinstance(v, dict) and all(isinstance(t, Tensor) for t in v.values()),
        }[kind]
        if not good(value):
            raise ValueError(f"{path}: {key} came as {type(value).__name__}; wanted {kind}")
    return file


def _same_keys(found, wanted, path, where: str) -> None:
    missing, unknown = sorted(set(wanted) - set(found)), sorted(map(str, set(found) - set(wanted)))
    if missing or unknown:
        raise ValueError(
            f"{path}{where}: {len(missing)} keys missing {missing[:2]}, {len(unknown)} keys unknown "
            f"{unknown[:2]}; this is another model's file, or its backbone is another"
        )


def _adapt(
    model: nn.Module, adapters: dict[str, tuple[list[str], int]], state: dict[str, Tensor], path, also=""
) -> None:
    """Add adapters {name: (modules, rank)} with peft's default alpha of 8 and fill them from `state`, which
    must hold their weights and, where `also` is given, the parameters with this in their name, and nothing
    else.
    """
    own = dict(model.named_modules())
    for name, (modules, rank) in adapters.items():
        if strangers := [m for m in modules if m not in own]:
            raise ValueError(
                f"{path}: {name} adapts {strangers[0]}, which this backbone lacks; use the backbone it was "
                "made on"
            )
        if not modules:
            raise ValueError(f"{path}: {name} adapts no module; the file is damaged")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            model.add_adapter(
                LoraConfig(r=rank, lora_alpha=8, target_modules=list(modules)), adapter_name=name
            )
    targets = {n: p for n, p in model.named_parameters() if ".lora_" in n or also and also in n}
    _same_keys(state, targets, path, f", {type(model).__name__}")
    for name, p in targets.items():
        if p.shape != state[name].shape:
            raise ValueError(
                f"{path}: {name} has shape {tuple(state[name].shape)}, this backbone wants {tuple(p.shape)}"
            )
        if not state[name].isfinite().all():
            raise ValueError(f"{path}: {name} holds NaN or infinity; the file is damaged, get it again")
        with torch.no_grad():
            p.copy_(state[name])
    model.set_adapter(list(adapters))
