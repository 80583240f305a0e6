"""The method's network: one frozen SD UNet, two LoRA adapters, one diffusion step each (E7)."""

from __future__ import annotations

import contextlib
import json
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from .config import Config, resolve, resolve_model
from .control import Endpoints
from .data import POCKET
from .files.images import check_images, upsample
from .files.results import atomic, recorded, sha256
from .nets.backbone import load_backbone, locate, read_safetensors, shapes
from .nets.latents import latent_of, pixels_per_latent
from .nets.tiling import tiled

ADAPTERS = ("fidelity", "realism")
SHIPPED = {"pocket": POCKET / "adapters"}

# DECISION D3: the module names both peers adapt, 258 modules of SD 2.1-base; no norms, no time embedding
LORA_TARGETS = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "conv",
    "conv1",
    "conv2",
    "conv_in",
    "conv_out",
    "conv_shortcut",
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
]


class IFCSR(nn.Module):
    """f_theta and f_phi: `endpoints` for use, `restore` for training.

    unet, vae and prompt are frozen; only the two adapters ever train. provenance: how they were trained,
    which `save` keeps.
    """

    def __init__(self, cfg: Config, unet: UNet2DConditionModel, vae: nn.Module, prompt: Tensor, source: dict):
        super().__init__()
        self.cfg, self.source = cfg, source
        self.provenance = {"config": recorded(cfg), "hash": cfg.hash}
        # DECISION D8: the VAE stays frozen on both sides (OSEDiff adapts its encoder)
        self.unet, self.vae = unet.requires_grad_(False), vae.requires_grad_(False)
        self.register_buffer("prompt", prompt)  # (1, T, D): the text encoder's output for ""
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # two adapters are the point
            torch.manual_seed(cfg.seed)
            self.adapters = ADAPTERS  # what is trained, saved, and makes a picture
            for name in self.adapters:
                self.unet.add_adapter(
                    LoraConfig(  # DECISION D4: alpha 8 and Gaussian A, zero B, as both peers
                        r=cfg.rank,
                        lora_alpha=cfg.lora_alpha,
                        init_lora_weights="gaussian",
                        target_modules=LORA_TARGETS,
                    ),
                    adapter_name=name,
                )
        self._lora = [m for m in self.unet.modules() if isinstance(m, LoraLayer)]
        self._active = self._chosen = None
        self.train_only()
        # a quarter less time for both ends on a CPU, most of it in encoder and decoder
        # (benchmarks/endpoints.py)
        self.to(memory_format=torch.channels_last)
        self.eval()

    def adapter(self, name: str) -> dict[str, nn.Parameter]:
        """The LoRA weights of "fidelity" or "realism", {key in the saved file: parameter}."""
        if name not in self.adapters:
            raise ValueError(f"adapter {name!r} is unknown; allowed: {', '.join(self.adapters)}")
        mark = f".{name}."
        return {f"unet.{n.replace(mark, '.')}": p for n, p in self.unet.named_parameters() if mark in n}

    def train_only(self, *names: str) -> dict[str, nn.Parameter]:
        """Let only these adapters' weights take gradients; returns them as {"<adapter>.<key>": parameter}."""
        self.requires_grad_(False)
        out = {f"{name}.{k}": p for name in names for k, p in self.adapter(name).items()}
        for p in out.values():
            p.requires_grad_(True)
        return out

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> scaled latents z.

        With noise (latent-shaped, standard normal) z is a sample of the VAE's posterior, without it the mode.
        A VAE without a posterior ignores the noise (nets/latents.py).
        """
        # DECISION D9: sampled in training, the mode at inference, one z_L for both ends
        z = latent_of(self.vae.encode(2 * x - 1), noise)
        return z * self.vae.config.scaling_factor

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents -> images (N, 3, H, W); not clamped."""
        return (self.vae.decode(z / self.vae.config.scaling_factor).sample + 1) / 2

    def eps(self, z: Tensor, adapters: str | list[str]) -> Tensor:
        """The UNet's prediction for z (N, C, h, w) at cfg.timestep: one adapter for all, or one name an
        image.
        """
        with self.using(adapters):
            return self.unet(z, self.cfg.timestep, self.prompt.expand(len(z), -1, -1)).sample

    @contextlib.contextmanager
    def using(self, adapters: str | list[str]):
        """What runs inside goes through these adapters: one for all images, or one name an image."""
        hooks, self._chosen = [], adapters
        if isinstance(adapters, str):
            self._switch(adapters)
        else:

            def choose(module, args, kwargs):
                return args, {**kwargs, "adapter_names": adapters}

            hooks = [m.register_forward_pre_hook(choose, with_kwargs=True) for m in self._lora]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def checkpoint_gradients(self, on: bool = True) -> None:
        """Keep no activations of UNet and VAE but those between blocks; the backward pass computes the rest
        again.
        """

        def checkpoint(block, *args):
            chosen = self._chosen

            def again(*args):  # a backward pass comes after other adapters have run
                if chosen is None:
                    return block(*args)
                with self.using(chosen):
                    return block(*args)

            return torch.utils.checkpoint.checkpoint(again, *args, use_reentrant=False)

        for net in (self.unet, self.vae):
            if on:
                net.enable_gradient_checkpointing(checkpoint)
            else:
                net.disable_gradient_checkpointing()

    def _switch(self, name: str) -> None:
        if self._active != name:
            # peft's set_adapter makes what it activates trainable, which must not thaw theta in stage 2
            frozen = {p: p.requires_grad for a in self.adapters for p in self.adapter(a).values()}
            self.unet.set_adapter(name)
            for p, flag in frozen.items():
                p.requires_grad_(flag)
            self._active = name

    def one_step(self, z_L: Tensor, adapters: str | list[str]) -> Tensor:
        """E7: z_H = z_L - eps(z_L, t, empty prompt), t = cfg.timestep."""
        return z_L - self.eps(z_L, adapters)

    def restore(self, x_L: Tensor, adapter: str, noise: Tensor | None = None) -> Tensor:
        """f_theta or f_phi for training: x_L (N, 3, H, W) in [0, 1] -> image, not clamped. Sides:
        multiples of `multiple`. Gradients reach whatever `train_only` allows."""
        with torch.no_grad():
            z_L = self.encode(x_L, noise)
        return self.decode(self.one_step(z_L, adapter))

    def restore_both(self, x_L: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x_fid, x_real from one z_L; not clamped. A GPU, and any training, takes both adapters in one batch;
        a CPU takes them in turn, which spares peft's sorting of a mixed batch and half of the memory
        (benchmarks/endpoints.py).
        """
        with torch.no_grad():
            z_L = self.encode(x_L, noise)
        if z_L.device.type == "cpu" and not torch.is_grad_enabled():
            return tuple(self.decode(self.one_step(z_L, name)) for name in ADAPTERS)
        n = len(z_L)
        names = [a for a in ADAPTERS for _ in range(n)]
        return self.decode(self.one_step(torch.cat([z_L, z_L]), names)).split(n)

    @property
    def vae_factor(self) -> int:
        """Pixels a latent cell spans on a side: 8 for SD, 4 for pocket."""
        return pixels_per_latent(self.vae)

    @property
    def multiple(self) -> int:
        """Output sides are padded to multiples of this many pixels: VAE factor x UNet factor."""
        return self.vae_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @torch.inference_mode()
    def endpoints(self, lq: Tensor, colour_fix: str | None = None) -> Endpoints:
        """Both ends of the slider from one encoding, UNet and decoder for both adapters (`restore_both`).

        lq: (N, 3, h, w) float32 RGB in [0, 1], low resolution, h and w at least 16, any size above.
        colour_fix: "none" or "adain" on both ends (control.adain); None takes cfg.colour_fix.
        Returns Endpoints with images of (N, 3, 4h, 4w) on lq's device. Equal to two separate passes within
        1e-5 (before the colour fix). More than cfg.tile x cfg.tile output pixels are made tile by tile
        (nets/tiling.py), so that memory stays bounded.
        """
        check_images(lq, "lq")
        fix = self.cfg.replace(colour_fix=colour_fix or self.cfg.colour_fix).colour_fix
        large = 0 < self.cfg.tile**2 < lq.shape[-2] * lq.shape[-1] * self.cfg.scale**2
        # a tiled image stays where lq is, and only its tiles travel to the networks
        x_L = upsample(lq if large else lq.to(self.prompt.device), self.cfg.scale)
        h, w = x_L.shape[-2:]
        # DECISION D17: reflect cfg.border pixels on every side, then to the next multiple; crop after
        # decoding
        b, m = self.cfg.border, self.multiple
        padded = F.pad(x_L, (b, b + -(w + 2 * b) % m, b, b + -(h + 2 * b) % m), mode="reflect")
        both = self._tiled(padded) if large else self.restore_both(padded)
        del padded
        # DECISION D16: clamp at inference only; in training a clamp would stop gradients
        x_fid, x_real = (
            x[..., b : b + h, b : b + w].float().clamp(0, 1).contiguous().to(lq.device) for x in both
        )
        del both
        ends = Endpoints(x_fid, x_real, x_L.to(lq.device))
        return ends.colour_fixed() if fix == "adain" else ends

    def _tiled(self, x_L: Tensor) -> tuple[Tensor, ...]:
        def both(x):
            return self.restore_both(x.to(self.prompt.device))

        return tiled(both, x_L, self.cfg.tile, self.cfg.tile_overlap, self.multiple, images=2)

    def save_adapter(self, name: str, path: str | Path) -> Path:
        """Write one adapter as safetensors in the diffusers/peft LoRA layout (`unet.` keys, LoRA settings
        inside).
        """
        config = self.unet.peft_config[name]
        lora = {k: v for k, v in config.to_dict().items() if isinstance(v, (int, float, str, bool))}
        lora["target_modules"] = sorted(config.target_modules)
        settings = json.dumps({f"unet.{k}": v for k, v in lora.items()}, sort_keys=True)
        tensors = {k: p.detach().float().cpu().contiguous() for k, p in self.adapter(name).items()}
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as tmp:
            save_file(tensors, tmp, metadata={"format": "pt", "lora_adapter_metadata": settings})
        return path

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Read an adapter written by `save_adapter`. Refuses pickles, and missing, extra or misshaped keys by
        name.
        """
        self.fill_adapter(name, read_safetensors(Path(path)), path)

    def fill_adapter(self, name: str, new: dict[str, Tensor], path: str | Path = "the adapter") -> None:
        """Copy these tensors, {key in the saved file: tensor}, into an adapter; `path` is for the errors."""
        own = self.adapter(name)
        missing, extra = sorted(set(own) - set(new)), sorted(set(new) - set(own))
        if missing or extra:
            raise ValueError(
                f"{path} does not fit this backbone: {len(missing)} keys missing {missing[:2]}, {len(extra)} "
                f"keys unknown {extra[:2]}. Load it on the backbone it was trained on (see ifcsr.json beside "
                "it)."
            )
        for key, p in own.items():
            if p.shape != new[key].shape:
                raise ValueError(
                    f"{path}: {key} has shape {tuple(new[key].shape)}, this model wants {tuple(p.shape)}; "
                    f"its rank is {self.cfg.rank}, set the override rank to the file's"
                )
            if not new[key].isfinite().all():
                raise ValueError(f"{path}: {key} holds NaN or infinity; the file is damaged, get it again")
        with torch.no_grad():
            for key, p in own.items():
                p.copy_(new[key])

    def save(self, folder: str | Path, provenance: dict | None = None) -> Path:
        """Write fidelity.safetensors, realism.safetensors and, last, ifcsr.json.

        ifcsr.json holds the backbone, hashes, Config.model and the provenance.

        provenance: results.provenance of the training; None keeps what this model was loaded with, else its
            Config.
        """
        folder = Path(folder)
        files = {name: self.save_adapter(name, folder / f"{name}.safetensors") for name in self.adapters}
        card = {
            "format": "ifcsr 2",
            "backbone": self.source,
            "model": self.cfg.model,
            "adapters": {name: {"file": p.name, "sha256": sha256(p)} for name, p in files.items()},
            "provenance": provenance or self.provenance,
        }
        with atomic(folder / "ifcsr.json") as tmp:
            Path(tmp).write_text(json.dumps(card, indent=1, sort_keys=True) + "\n")
        return folder


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
    if name == "pocket-texture":
        raise ValueError('the model "pocket-texture" was removed from this kit; use "pocket"')
    folder = SHIPPED[name] if name in SHIPPED else locate(str(name))
    if (folder / "ifcsr.json").exists():
        model = _load_saved(folder, backbone)
    else:
        model = new(resolve("paper", overrides={"backbone": str(name)}))
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _load_saved(folder: Path, backbone: str | None = None) -> IFCSR:
    try:
        card = json.loads((folder / "ifcsr.json").read_text())
        # "ifcsr 1" had the whole Config of its time
        settings = card["model"] if "model" in card else card["config"]
        cfg = resolve_model(settings | ({"backbone": str(backbone)} if backbone else {}))
        adapters, source = card["adapters"], card["backbone"]
        grain = settings.get("grain") or "grain" in adapters or (folder / "grain.safetensors").exists()
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{folder / 'ifcsr.json'} is damaged or of another version of this kit: {e}") from e
    if grain:
        raise ValueError(
            f"{folder} has layers on pixels (grain) behind its realism end, a kind of model that was "
            'removed from this kit; use "pocket", or a model trained without them'
        )
    model = new(cfg)
    if "config" in card:
        model.provenance = {"config": card["config"], "hash": card.get("config_hash")}
    model.provenance = card.get("provenance") or model.provenance
    if model.source["hash"] != source["hash"]:
        here, there = model.source["files"], source.get("files", {})
        changed = [name for name in there if there[name] != here.get(name)]
        raise ValueError(
            f"{folder} was trained on backbone {source['id']} with hash {source['hash']}; {cfg.backbone} "
            f"here has {model.source['hash']}{', ' + changed[0] + ' differs' if changed else ''}. Get that "
            "backbone, or train the adapters again on this one."
        )
    for name in model.adapters:
        path = folder / Path(adapters[name]["file"]).name
        if path.exists() and path.suffix == ".safetensors" and sha256(path) != adapters[name]["sha256"]:
            raise ValueError(
                f"{path} is not the file that ifcsr.json describes (sha256 differs); get it again"
            )
        model.load_adapter(name, path)
    return model


def describe(cfg: Config) -> dict:
    """Sizes, adapters and backbone of a Config as a JSON-ready dict; the network is built on the meta device.

    Downloads nothing: a backbone that is not here is described by its published shape, with hash None.
    """
    unet_config, vae_config, source, where = shapes(cfg)
    vae_class = AutoencoderTiny if vae_config.get("_class_name") == "AutoencoderTiny" else AutoencoderKL
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel.from_config(unet_config), vae_class.from_config(vae_config)
        counts = {
            name: sum(p.numel() for p in part.parameters()) for name, part in (("unet", unet), ("vae", vae))
        }
        width = unet_config["cross_attention_dim"]
        model = IFCSR(cfg, unet, vae, torch.empty(1, 1, width), source or {})
    adapter = model.adapter("fidelity")
    return {
        "profile": cfg.profile,
        "backbone": source or {"id": cfg.backbone, "revision": cfg.revision, "hash": None, "files": None},
        "configuration": where,
        "parameters": {
            **counts,
            "adapter": sum(p.numel() for p in adapter.values()),
        },
        "lora": {
            "adapters": list(ADAPTERS),
            "modules": len({key.split(".lora_")[0] for key in adapter}),
            "rank": cfg.rank,
            "alpha": cfg.lora_alpha,
        },
        "prompt_width": width,
        "vae_factor": model.vae_factor,
        "multiple": model.multiple,
        "config_hash": cfg.hash,
        "config": cfg.asdict(),
    }
