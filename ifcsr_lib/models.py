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

from .config import Config, resolve
from .control import Endpoints
from .data import POCKET
from .files.images import check_images, upsample
from .files.results import atomic, sha256
from .loss import coarse
from .nets.backbone import load_backbone, locate, read_safetensors, shapes

ADAPTERS = ("fidelity", "realism")
SHIPPED = {"pocket": POCKET / "adapters", "pocket-texture": POCKET / "adapters_texture"}

# DECISION D3: the module names both peers adapt, 258 modules of SD 2.1-base; no norms, no time embedding
LORA_TARGETS = [
    "to_q", "to_k", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_in", "conv_out", "conv_shortcut",
    "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
]  # fmt: skip


class IFCSR(nn.Module):
    """f_theta and f_phi: `endpoints` for use, `restore` for training.

    unet, vae and prompt are frozen; only the two adapters ever train, and with cfg.grain (not from the paper) the grain.
    """

    def __init__(self, cfg: Config, unet: UNet2DConditionModel, vae: nn.Module, prompt: Tensor, source: dict):
        super().__init__()
        self.cfg, self.source = cfg, source
        # DECISION D8: the VAE stays frozen on both sides (OSEDiff adapts its encoder)
        self.unet, self.vae = unet.requires_grad_(False), vae.requires_grad_(False)
        self.register_buffer("prompt", prompt)  # (1, T, D): the text encoder's output for ""
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # two adapters are the point
            torch.manual_seed(cfg.seed)
            # cfg.vsd (not from the paper) wants a third adapter; it comes last, so the first two start as without it
            self.adapters = ADAPTERS + (("score",) if cfg.vsd else ())
            for name in self.adapters:
                self.unet.add_adapter(
                    LoraConfig(  # DECISION D4: alpha 8 and Gaussian A, zero B, as both peers
                        r=cfg.rank, lora_alpha=cfg.lora_alpha, init_lora_weights="gaussian", target_modules=LORA_TARGETS
                    ),
                    adapter_name=name,
                )
            self.grain = Grain(self.vae_factor) if cfg.grain else None
        self.parts = ADAPTERS + (("grain",) if cfg.grain else ())  # what is trained, and saved
        self._lora = [m for m in self.unet.modules() if isinstance(m, LoraLayer)]
        self._active = self._chosen = None
        self.train_only()
        # a quarter less time for both ends on a CPU, most of it in encoder and decoder (benchmarks/endpoints.py)
        self.to(memory_format=torch.channels_last)
        self.eval()

    def adapter(self, name: str) -> dict[str, nn.Parameter]:
        """The LoRA weights of "fidelity" or "realism", or those of "grain" (cfg.grain), {key in the saved file: parameter}."""
        allowed = dict.fromkeys((*self.adapters, *self.parts))
        if name not in allowed:
            raise ValueError(f"adapter {name!r} is unknown; allowed: {', '.join(allowed)}")
        if name == "grain":
            return dict(self.grain.named_parameters())
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

        With noise (latent-shaped, standard normal) z is a sample of the VAE's posterior, without it the mode. An
        AutoencoderTiny has no posterior and ignores the noise.
        """
        # DECISION D9: sampled in training, the mode at inference, one z_L for both ends
        code = self.vae.encode(2 * x - 1)
        if isinstance(self.vae, AutoencoderTiny):
            z = code.latents
        else:
            post = code.latent_dist
            z = post.mode() if noise is None else post.mean + post.std * noise
        return z * self.vae.config.scaling_factor

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents -> images (N, 3, H, W); not clamped."""
        return (self.vae.decode(z / self.vae.config.scaling_factor).sample + 1) / 2

    def eps(self, z: Tensor, adapters: str | list[str], t: Tensor | None = None, prompt: Tensor | None = None) -> Tensor:
        """The UNet's prediction for z (N, C, h, w): one adapter for all, or one name an image ("__base__": none of them).

        t: (N,) timesteps, default cfg.timestep. prompt: (1, T, D), default the empty prompt's.
        """
        prompt = (self.prompt if prompt is None else prompt).expand(len(z), -1, -1)
        with self.using(adapters):
            return self.unet(z, self.cfg.timestep if t is None else t, prompt).sample

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
        """Keep no activations of UNet and VAE but those between blocks; the backward pass computes the rest again."""

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
        """f_theta or f_phi for training: x_L (N, 3, H, W) in [0, 1] -> image, not clamped, without grain. Sides:
        multiples of `multiple`. Gradients reach whatever `train_only` allows."""
        with torch.no_grad():
            z_L = self.encode(x_L, noise)
        return self.decode(self.one_step(z_L, adapter))

    def restore_both(
        self, x_L: Tensor, noise: Tensor | None = None, place: tuple[int, int] = (0, 0)
    ) -> tuple[Tensor, Tensor]:
        """x_fid, x_real from one z_L; not clamped. A GPU, and any training, takes both adapters in one batch; a CPU takes
        them in turn, which spares peft's sorting of a mixed batch and half of the memory (benchmarks/endpoints.py).
        place: where x_L's first pixel lies in the whole image, for the grain's noise."""
        with torch.no_grad():
            z_L = self.encode(x_L, noise)
        if z_L.device.type == "cpu" and not torch.is_grad_enabled():
            x_fid, x_real = (self.decode(self.one_step(z_L, name)) for name in ADAPTERS)
        else:
            n = len(z_L)
            names = [a for a in ADAPTERS for _ in range(n)]
            x_fid, x_real = self.decode(self.one_step(torch.cat([z_L, z_L]), names)).split(n)
        return x_fid, self.grain(x_real, x_L, place) if self.grain else x_real

    @property
    def vae_factor(self) -> int:
        """Pixels a latent cell spans on a side: 8 for SD, 4 for pocket."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def multiple(self) -> int:
        """Output sides are padded to multiples of this many pixels: VAE factor x UNet factor."""
        return self.vae_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @torch.inference_mode()
    def endpoints(self, lq: Tensor, colour_fix: str | None = None) -> Endpoints:
        """Both ends of the slider from one encoding, UNet and decoder for both adapters (`restore_both`).

        lq: (N, 3, h, w) float32 RGB in [0, 1], low resolution, h and w at least 16, any size above.
        colour_fix: "none" or "adain" on both ends (control.adain); None takes cfg.colour_fix.
        Returns Endpoints with images of (N, 3, 4h, 4w) on lq's device. Equal to two separate passes within 1e-5 (before
        the colour fix). More than cfg.tile x cfg.tile output pixels are made tile by tile (`_tiled`), so that memory
        stays bounded.
        """
        check_images(lq, "lq")
        fix = self.cfg.replace(colour_fix=colour_fix or self.cfg.colour_fix).colour_fix
        tiled = 0 < self.cfg.tile**2 < lq.shape[-2] * lq.shape[-1] * self.cfg.scale**2
        # a tiled image stays where lq is, and only its tiles travel to the networks
        x_L = upsample(lq if tiled else lq.to(self.prompt.device), self.cfg.scale)
        h, w = x_L.shape[-2:]
        # DECISION D17: reflect cfg.border pixels on every side, then to the next multiple; crop after decoding
        b, m = self.cfg.border, self.multiple
        padded = F.pad(x_L, (b, b + -(w + 2 * b) % m, b, b + -(h + 2 * b) % m), mode="reflect")
        both = self._tiled(padded) if tiled else self.restore_both(padded)
        del padded
        # DECISION D16: clamp at inference only; in training a clamp would stop gradients
        x_fid, x_real = (x[..., b : b + h, b : b + w].float().clamp(0, 1).contiguous().to(lq.device) for x in both)
        del both
        ends = Endpoints(x_fid, x_real, x_L.to(lq.device))
        return ends.colour_fixed() if fix == "adain" else ends

    def _tiled(self, x_L: Tensor) -> tuple[Tensor, Tensor]:
        """`restore_both` of x_L (N, 3, H, W), sides multiples of `multiple`, by overlapping tiles; on x_L's device.

        Each tile goes through encoder, UNet and decoder, image by image, and is added with a weight from `_windows`.
        Equal to `restore_both` where no layer looks further than a quarter of cfg.tile_overlap; attention and group
        norms do, and there the overlap joins two slightly different answers smoothly.
        """
        if self.cfg.tile % self.multiple or self.cfg.tile_overlap % self.multiple:
            raise ValueError(
                f"tile={self.cfg.tile}, tile_overlap={self.cfg.tile_overlap}; this backbone wants multiples of "
                f"{self.multiple}"
            )
        rows, columns = (_windows(side, self.cfg.tile, self.cfg.tile_overlap) for side in x_L.shape[-2:])
        both = torch.zeros_like(x_L), torch.zeros_like(x_L)
        for n in range(len(x_L)):
            for top, u in rows:
                for left, v in columns:
                    place = (slice(n, n + 1), slice(None), slice(top, top + len(u)), slice(left, left + len(v)))
                    weight = (u[:, None] * v).to(x_L)
                    for whole, part in zip(both, self.restore_both(x_L[place].to(self.prompt.device), place=(top, left)), strict=True):
                        whole[place].addcmul_(part.to(x_L), weight)
        return both

    def save_adapter(self, name: str, path: str | Path) -> Path:
        """Write one adapter as safetensors in the diffusers/peft LoRA layout (`unet.` keys, LoRA settings inside), or "grain"."""
        meta = {"format": "pt"}
        if name != "grain":
            config = self.unet.peft_config[name]
            lora = {k: v for k, v in config.to_dict().items() if isinstance(v, (int, float, str, bool))}
            lora["target_modules"] = sorted(config.target_modules)
            meta["lora_adapter_metadata"] = json.dumps({f"unet.{k}": v for k, v in lora.items()}, sort_keys=True)
        tensors = {k: p.detach().float().cpu().contiguous() for k, p in self.adapter(name).items()}
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as tmp:
            save_file(tensors, tmp, metadata=meta)
        return path

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Read an adapter written by `save_adapter`. Refuses pickles, and missing, extra or misshaped keys by name."""
        self.fill_adapter(name, read_safetensors(Path(path)), path)

    def fill_adapter(self, name: str, new: dict[str, Tensor], path: str | Path = "the adapter") -> None:
        """Copy these tensors, {key in the saved file: tensor}, into an adapter; `path` is for the errors."""
        own = self.adapter(name)
        missing, extra = sorted(set(own) - set(new)), sorted(set(new) - set(own))
        if missing or extra:
            raise ValueError(
                f"{path} does not fit this backbone: {len(missing)} keys missing {missing[:2]}, {len(extra)} keys "
                f"unknown {extra[:2]}. Load it on the backbone it was trained on (see ifcsr.json beside it)."
            )
        for key, p in own.items():
            if p.shape != new[key].shape:
                raise ValueError(
                    f"{path}: {key} has shape {tuple(new[key].shape)}, this model wants {tuple(p.shape)}; its rank is "
                    f"{self.cfg.rank}, set the override rank to the file's"
                )
            if not new[key].isfinite().all():
                raise ValueError(f"{path}: {key} holds NaN or infinity; the file is damaged, get it again")
        with torch.no_grad():
            for key, p in own.items():
                p.copy_(new[key])

    def merge(self, gamma: float) -> None:
        """Refused: no single network makes the picture of a gamma. Always raises ValueError, which says what to do."""
        raise ValueError(
            f"gamma={gamma} cannot be merged into one network: IFCSR blends two decoded images (E1), and the blend of two "
            "outputs is not the output of blended weights. Keep both adapters (endpoints once, then blend costs nothing), "
            "or save the pair with ends.save. An end alone is a network: load fidelity.safetensors or realism.safetensors "
            "into a stock pipeline and fuse it there. Blended LoRA weights, pipe.set_adapters([...], [1 - gamma, gamma]), "
            "are another control strategy (weight mix) with other pictures."
        )

    def save(self, folder: str | Path, provenance: dict | None = None) -> Path:
        """Write fidelity.safetensors, realism.safetensors, with cfg.grain grain.safetensors and, last, ifcsr.json (backbone,
        hashes, config)."""
        folder = Path(folder)
        files = {name: self.save_adapter(name, folder / f"{name}.safetensors") for name in self.parts}
        card = {
            "format": "ifcsr 1",
            "backbone": self.source,
            "config": self.cfg.asdict(),
            "config_hash": self.cfg.hash,
            "adapters": {name: {"file": p.name, "sha256": sha256(p)} for name, p in files.items()},
            "provenance": provenance or {},
        }
        with atomic(folder / "ifcsr.json") as tmp:
            Path(tmp).write_text(json.dumps(card, indent=1, sort_keys=True) + "\n")
        return folder


class Grain(nn.Module):
    """x_real -> x_real with structure finer than a cell of the latents, which a decoder can only repeat cell by cell; not
    from the paper (cfg.grain, trainer.StageGrain).

    Six 3 x 3 convolutions of `width` channels on pixels. They see x_real, its difference from x_L, and four channels of white
    noise; of what they add, loss.coarse is taken away, so that tone and colour stay those of x_real. The noise is fixed by
    place and repeats every `period` pixels: the same image always gets the same grain. Untrained it changes nothing.
    cell: pixels a latent cell spans on a side.
    Source of the idea: noise at every pixel as an input, StyleGAN (Karras et al. 2019).
    """

    period = 256

    def __init__(self, cell: int, width: int = 32):
        super().__init__()
        self.cell = cell
        self.head = nn.Conv2d(10, width, 3, padding=1)
        self.body = nn.ModuleList(nn.Conv2d(width, width, 3, padding=d, dilation=d) for d in (2, 4, 2, 1))
        self.tail = nn.Conv2d(width, 3, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)
        noise = torch.randn(1, 4, self.period, self.period, generator=torch.Generator().manual_seed(0), device="cpu")
        self.register_buffer("noise", noise, persistent=False)

    def forward(self, x_real: Tensor, x_L: Tensor, place: tuple[int, int] = (0, 0), limit: bool = True) -> Tensor:
        """x_real, x_L: (N, 3, H, W), about [0, 1]; place: row and column of their first pixel in the whole image. Not clamped.

        limit: no pixel leaves the range of its 3 x 3 neighbours in x_real by more than 0.1 / (1 + (r / 0.25)^2), r the range of
        x_real in 9 x 9 pixels. Without it, which is how the layers train, strong edges get a second line beside them.
        """
        h, w = x_real.shape[-2:]
        rows, columns = ((torch.arange(n, device=x_real.device) + start) % self.period for n, start in zip((h, w), place))
        noise = self.noise[:, :, rows][..., columns].expand(len(x_real), -1, -1, -1)
        f = self.head(torch.cat([4 * (x_real - 0.5), 8 * (x_real - x_L), noise], 1))
        for layer in self.body:
            f = f + layer(F.leaky_relu(f, 0.1))
        added = 0.1 * self.tail(F.leaky_relu(f, 0.1))
        out = x_real + added - coarse(added, self.cell)
        if limit:
            (near_low, near_high), (low, high) = (_range(x_real, n) for n in (3, 9))
            margin = 0.1 / (1 + ((high - low).amax(1, keepdim=True) / 0.25).square())
            out = out.clamp(near_low - margin, near_high + margin)
        return out


def _range(x: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each channel in side x side pixels around each pixel of x (N, C, H, W)."""
    return -F.max_pool2d(-x, side, 1, side // 2), F.max_pool2d(x, side, 1, side // 2)


def _windows(side: int, tile: int, overlap: int) -> list[tuple[int, Tensor]]:
    """(start, weights (min(tile, side),)) of the tiles along one axis; at each pixel the weights sum to 1.

    Where a tile meets a neighbour, its outermost overlap / 4 pixels, which the cut may have changed, weigh nothing; a
    raised cosine follows over overlap / 2. At the image's own border the weight is 1.
    """
    if side <= tile:
        return [(0, torch.ones(side))]
    starts = [*range(0, side - tile, tile - overlap), side - tile]
    ramp = ((torch.arange(overlap) + 0.5 - overlap / 4) / (overlap / 2)).clamp(0, 1)
    ramp = torch.sin(ramp * torch.pi / 2) ** 2
    weights, total = [], torch.zeros(side)
    for i, start in enumerate(starts):
        w = torch.ones(tile)
        if i > 0:
            w[:overlap] = ramp
        if i < len(starts) - 1:
            w[tile - overlap :] *= ramp.flip(0)
        weights.append(w)
        total[start : start + tile] += w  # above 1 where the last tile, moved inwards, meets more than `overlap`
    return [(start, w / total[start : start + tile]) for start, w in zip(starts, weights, strict=True)]


def new(cfg: Config) -> IFCSR:
    """A model with untrained adapters (both ends equal the frozen backbone) on the backbone of a Config."""
    return IFCSR(cfg, *load_backbone(cfg))


def load(
    name: str | Path = "pocket", device: str | torch.device | None = None, backbone: str | None = None
) -> IFCSR:
    """Load a model ready for `endpoints`.

    name: "pocket" or "pocket-texture" (both shipped; the second's realism end goes on through `Grain`, which is not from the
        paper), a folder written by `save`, or a hub id or folder of either a saved model or a backbone (unet/ and
        vae/ in diffusers' layout; also a single .safetensors file), which gets untrained adapters.
    device: where to put it; default the GPU when there is one.
    backbone: hub id, folder or file of the backbone, when it is not where it was as the saved model was trained; its hash
        must be the same.
    """
    folder = SHIPPED[name] if name in SHIPPED else locate(str(name))
    if (folder / "ifcsr.json").exists():
        model = _load_saved(folder, backbone)
    else:
        model = new(resolve("paper", overrides={"backbone": str(name)}))
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _load_saved(folder: Path, backbone: str | None = None) -> IFCSR:
    try:
        card = json.loads((folder / "ifcsr.json").read_text())
        fields = dict(card["config"]) | ({"backbone": str(backbone)} if backbone else {})
        cfg = resolve(fields.pop("profile"), fields.pop("seed"), fields)
        adapters, source = card["adapters"], card["backbone"]
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{folder / 'ifcsr.json'} is damaged or of another version of this kit: {e}") from e
    model = new(cfg)
    if model.source["hash"] != source["hash"]:
        here, there = model.source["files"], source.get("files", {})
        changed = [name for name in there if there[name] != here.get(name)]
        raise ValueError(
            f"{folder} was trained on backbone {source['id']} with hash {source['hash']}; {cfg.backbone} here has "
            f"{model.source['hash']}{', ' + changed[0] + ' differs' if changed else ''}. Get that backbone, or train the "
            "adapters again on this one."
        )
    for name in model.parts:
        path = folder / Path(adapters[name]["file"]).name
        if path.exists() and path.suffix == ".safetensors" and sha256(path) != adapters[name]["sha256"]:
            raise ValueError(f"{path} is not the file that ifcsr.json describes (sha256 differs); get it again")
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
        counts = {name: sum(p.numel() for p in part.parameters()) for name, part in (("unet", unet), ("vae", vae))}
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
            **({"grain": sum(p.numel() for p in model.grain.parameters())} if model.grain else {}),
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
