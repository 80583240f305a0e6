"""The method's network: one frozen SD UNet, two LoRA adapters, one diffusion step each (E7)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .config import Config, resolve
from .control import Endpoints
from .data import POCKET
from .images import check_images, upsample
from .results import atomic, sha256

ADAPTERS = ("fidelity", "realism")

# DECISION D3: the module names both peers adapt, 258 modules of SD 2.1-base; no norms, no time embedding
LORA_TARGETS = [
    "to_q", "to_k", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_in", "conv_out", "conv_shortcut",
    "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
]  # fmt: skip


class IFCSR(nn.Module):
    """f_theta and f_phi: `endpoints` for use, `restore` for training.

    unet, vae and prompt are frozen; only the two adapters ever train.
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
        self._lora = [m for m in self.unet.modules() if isinstance(m, LoraLayer)]
        self._active = self._chosen = None
        self.train_only()
        self.eval()

    def adapter(self, name: str) -> dict[str, nn.Parameter]:
        """The LoRA weights of "fidelity" or "realism", {key in the saved file: parameter}."""
        if name not in self.adapters:
            raise ValueError(f"adapter {name!r} is unknown; allowed: {', '.join(self.adapters)}")
        mark = f".{name}."
        return {f"unet.{n.replace(mark, '.')}": p for n, p in self.unet.named_parameters() if mark in n}

    def train_only(self, *names: str) -> dict[str, nn.Parameter]:
        """Let only these adapters' weights take gradients; returns them as {"<adapter>.<key>": parameter}."""
        self.unet.requires_grad_(False)
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
        """f_theta or f_phi for training: x_L (N, 3, H, W) in [0, 1] -> image, not clamped. Sides: multiples of
        `multiple`. Gradients reach whatever `train_only` allows."""
        with torch.no_grad():
            z_L = self.encode(x_L, noise)
        return self.decode(self.one_step(z_L, adapter))

    def restore_both(self, x_L: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x_fid, x_real from one z_L, one batched UNet call and one decode; not clamped."""
        with torch.no_grad():
            z_L = self.encode(x_L, noise)
        n = len(z_L)
        names = [a for a in ADAPTERS for _ in range(n)]
        return self.decode(self.one_step(torch.cat([z_L, z_L]), names)).split(n)

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
        """Both ends of the slider: encode once, both adapters in one batched UNet call, decode once.

        lq: (N, 3, h, w) float32 RGB in [0, 1], low resolution, h and w at least 16, any size above.
        colour_fix: "none" or "adain" on both ends (control.adain); None takes cfg.colour_fix.
        Returns Endpoints with images of (N, 3, 4h, 4w) on lq's device. Equal to two separate passes within 1e-5 (before
        the colour fix).
        """
        check_images(lq, "lq")
        fix = self.cfg.replace(colour_fix=colour_fix or self.cfg.colour_fix).colour_fix
        x_L = upsample(lq.to(self.prompt.device), self.cfg.scale)
        h, w = x_L.shape[-2:]
        # DECISION D17: reflect cfg.border pixels on every side, then to the next multiple; crop after decoding
        b, m = self.cfg.border, self.multiple
        padded = F.pad(x_L, (b, b + -(w + 2 * b) % m, b, b + -(h + 2 * b) % m), mode="reflect")
        # DECISION D16: clamp at inference only; in training a clamp would stop gradients
        x_fid, x_real = (x[..., b : b + h, b : b + w].clamp(0, 1).to(lq.device) for x in self.restore_both(padded))
        ends = Endpoints(x_fid, x_real, x_L.to(lq.device))
        return ends.colour_fixed() if fix == "adain" else ends

    def save_adapter(self, name: str, path: str | Path) -> Path:
        """Write one adapter as safetensors in the diffusers/peft LoRA layout (`unet.` keys, LoRA settings inside)."""
        lora = {k: v for k, v in self.unet.peft_config[name].to_dict().items() if isinstance(v, (int, float, str, bool))}
        lora["target_modules"] = sorted(self.unet.peft_config[name].target_modules)
        meta = json.dumps({f"unet.{k}": v for k, v in lora.items()}, sort_keys=True)
        tensors = {k: p.detach().float().cpu().contiguous() for k, p in self.adapter(name).items()}
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as tmp:
            save_file(tensors, tmp, metadata={"format": "pt", "lora_adapter_metadata": meta})
        return path

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Read an adapter written by `save_adapter`. Refuses pickles, and missing, extra or misshaped keys by name."""
        own, new = self.adapter(name), _read_safetensors(Path(path))
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

    def save(self, folder: str | Path, provenance: dict | None = None) -> Path:
        """Write fidelity.safetensors, realism.safetensors and, last, ifcsr.json (backbone, hashes, config)."""
        folder = Path(folder)
        files = {name: self.save_adapter(name, folder / f"{name}.safetensors") for name in ADAPTERS}
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


def new(cfg: Config) -> IFCSR:
    """A model with untrained adapters (both ends equal the frozen backbone) on the backbone of a Config."""
    return IFCSR(cfg, *load_backbone(cfg))


def load(name: str | Path = "pocket", device: str | torch.device | None = None) -> IFCSR:
    """Load a model ready for `endpoints`.

    name: "pocket" (shipped), a folder written by `save`, or a hub id or folder of either a saved model or a backbone
        (unet/ and vae/ in diffusers' layout), which gets untrained adapters.
    device: where to put it; default the GPU when there is one.
    """
    folder = POCKET / "adapters" if name == "pocket" else _folder(str(name), None)
    if (folder / "ifcsr.json").exists():
        model = _load_saved(folder)
    else:
        model = new(resolve("paper", overrides={"backbone": str(name)}))
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _load_saved(folder: Path) -> IFCSR:
    try:
        card = json.loads((folder / "ifcsr.json").read_text())
        fields = dict(card["config"])
        cfg = resolve(fields.pop("profile"), fields.pop("seed"), fields)
        adapters, source = card["adapters"], card["backbone"]
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{folder / 'ifcsr.json'} is damaged or of another version of this kit: {e}") from e
    model = new(cfg)
    if model.source["hash"] != source["hash"]:
        raise ValueError(
            f"{folder} was trained on backbone {source['id']} with hash {source['hash']}; {cfg.backbone} here has "
            f"{model.source['hash']}. Get that backbone, or train the adapters again on this one."
        )
    for name in ADAPTERS:
        path = folder / Path(adapters[name]["file"]).name
        if path.exists() and path.suffix == ".safetensors" and sha256(path) != adapters[name]["sha256"]:
            raise ValueError(f"{path} is not the file that ifcsr.json describes (sha256 differs); get it again")
        model.load_adapter(name, path)
    return model


def load_backbone(cfg: Config) -> tuple[UNet2DConditionModel, nn.Module, Tensor, dict]:
    """UNet, VAE, empty-prompt embedding (1, T, D), all float32, and {"id", "revision", "hash"} of cfg.backbone."""
    folder = POCKET if cfg.backbone == "pocket" else _folder(cfg.backbone, cfg.revision)
    for part in ("unet", "vae"):
        if not (folder / part / "config.json").exists():
            raise FileNotFoundError(
                f"backbone {cfg.backbone!r}: no {part}/config.json; wanted a folder in diffusers' layout with unet/ and vae/"
            )
    kind = json.loads((folder / "vae" / "config.json").read_text()).get("_class_name")
    classes = {c.__name__: c for c in (AutoencoderKL, AutoencoderTiny)}
    if kind not in classes:
        raise ValueError(f"backbone {cfg.backbone!r}: vae is a {kind}; allowed: {', '.join(classes)}")
    options = {"torch_dtype": torch.float32, "use_safetensors": True, "local_files_only": True}
    vae = classes[kind].from_pretrained(folder / "vae", **options)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", **options)
    files = sorted(p for part in ("unet", "vae") for p in (folder / part).glob("*.safetensors"))
    digest = hashlib.sha256("".join(sha256(p) for p in files).encode()).hexdigest()[:16]
    source = {"id": cfg.backbone, "revision": cfg.revision, "hash": digest}
    return unet, vae, _empty_prompt(folder), source


def _empty_prompt(folder: Path) -> Tensor:
    """The stored embedding of "" (empty_prompt.safetensors), else made by the folder's own text encoder."""
    stored = folder / "empty_prompt.safetensors"
    return load_file(stored)["prompt"].float() if stored.exists() else _embed(folder, "")


def embed_prompt(cfg: Config, text: str) -> Tensor:
    """(1, T, D): what the backbone's own text encoder makes of `text`. Only cfg.csd (not from the paper) needs one.

    Raises ValueError for a backbone without a text encoder, such as pocket, whose one prompt is learned.
    """
    folder = POCKET if cfg.backbone == "pocket" else _folder(cfg.backbone, cfg.revision)
    if not (folder / "text_encoder" / "config.json").exists():
        raise ValueError(
            f"csd={cfg.csd:g} needs a text encoder, and backbone {cfg.backbone!r} has none (text_encoder/, tokenizer/); "
            "use SD 2.1-base or csd=0.0"
        )
    return _embed(folder, text)


def _embed(folder: Path, text: str) -> Tensor:
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", use_safetensors=True, local_files_only=True)
    length = tokenizer.model_max_length
    ids = tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    with torch.inference_mode():
        return encoder(ids)[0].float().clone()


def _folder(name: str, revision: str | None) -> Path:
    """A local folder as it is; a hub id through huggingface_hub's cache. One error names the id and the ways out."""
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise FileNotFoundError(f"{name!r} is neither a folder nor a hub id such as owner/model, nor 'pocket'")
    from huggingface_hub import snapshot_download

    wanted = ["ifcsr.json", "*.safetensors", "unet/*", "vae/*", "text_encoder/*", "tokenizer/*"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=["*.bin", "*.ckpt"]))
    except Exception as e:
        raise OSError(
            f"{name!r} (revision {revision or 'default'}) is not in the cache and cannot be fetched: "
            f"{type(e).__name__}. Ways out: go online and try again; log in with `hf auth login` if the model is gated; "
            "or download it elsewhere and pass the folder."
        ) from e


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        raise ValueError(f"{path.name}: only .safetensors is read, a pickle can run code; convert it first")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as f:
            return {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
    except SafetensorError as e:
        raise ValueError(f"{path} is not a whole safetensors file ({e}); get it again") from e
