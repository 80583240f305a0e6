"""IFCSR as a diffusers pipeline: one folder or hub repository with backbone and adapters, and a
model card.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DiffusionPipeline,
    ImagePipelineOutput,
    ModelMixin,
    UNet2DConditionModel,
)
from diffusers.configuration_utils import ConfigMixin, register_to_config
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from . import __version__
from .config import Config, resolve_model
from .control import Endpoints
from .files.images import bleed, of_pil, to_tensor, to_uint8
from .files.results import atomic, read_json, write_json
from .models import IFCSR
from .nets.backbone import read_safetensors

# the only name of weights that a download through diffusers keeps
WEIGHTS = "diffusion_pytorch_model.safetensors"


class Adapters(ModelMixin, ConfigMixin):
    """Both LoRA adapters and the empty prompt as one component of the pipeline.

    settings: Config.model; backbone: IFCSR.source. state: {"prompt" or "<adapter>.<key>": tensor}.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(self, settings: dict, backbone: dict):
        super().__init__()
        self.register_buffer("prompt", torch.empty(0))
        self.state: dict[str, Tensor] = {}

    @classmethod
    def of(cls, model: IFCSR) -> Adapters:
        """A copy of what a model's adapters hold now."""
        self = cls(settings=model.cfg.model, backbone=model.source)
        self.prompt = model.prompt.detach().cpu().clone()
        parts = {f"{name}.{k}": p for name in model.adapters for k, p in model.adapter(name).items()}
        self.state = {
            k: p.detach().float().cpu().clone(memory_format=torch.contiguous_format) for k, p in parts.items()
        }
        return self

    def save_pretrained(self, save_directory: str | Path, **_) -> None:
        folder = Path(save_directory)
        public = Adapters(_public(self.config.settings), _public(self.config.backbone))
        public.save_config(folder)
        with atomic(folder / WEIGHTS) as tmp:
            save_file(
                {"prompt": self.prompt.float().cpu().contiguous(), **self.state},
                tmp,
                metadata={"format": "pt"},
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **_) -> Adapters:
        folder = Path(pretrained_model_name_or_path)
        self = cls.from_config(cls.load_config(folder, local_files_only=True))
        self.state = read_safetensors(folder / WEIGHTS)
        if "prompt" not in self.state:
            raise ValueError(
                f"{folder / WEIGHTS}: no empty prompt in it; write the pipeline again with save_pretrained"
            )
        # as stored in the file, kernels may sum it in another order
        self.prompt = self.state.pop("prompt").clone()
        return self

    def cfg(self) -> Config:
        """The Config of the model these adapters make, of an older pipeline too.

        Raises ValueError when it is damaged, or has grain, which was removed.
        """
        if self.config.settings.get("grain") or any(k.startswith("grain.") for k in self.state):
            raise ValueError(
                "adapters/ has layers on pixels (grain) behind the realism adapter, a kind of model that was "
                'removed from this kit; use "pocket", or a model trained without them'
            )
        try:
            return resolve_model(self.config.settings)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"adapters/config.json is damaged or of another version of this kit: {error}"
            ) from error


class IFCSRPipeline(DiffusionPipeline):
    """4x super-resolution with gamma from 0 (fidelity) to 1 (realism): `pipe(image, gamma=0.5).images[0]`.

    unet, vae: the plain backbone in float32; unet is given the adapters here. adapters: see `Adapters`.
    Make one from a model with `IFCSRPipeline.of(ifcsr.load(...))`, or with `from_pretrained`. `pipe.ifcsr` is
    the model.
    """

    def __init__(self, unet: UNet2DConditionModel, vae: AutoencoderKL | AutoencoderTiny, adapters: Adapters):
        super().__init__()
        if getattr(unet, "peft_config", None):
            raise ValueError(
                f"unet carries adapters already ({', '.join(unet.peft_config)}); pass the plain backbone's "
                "UNet"
            )
        for p in (*unet.parameters(), *vae.parameters()):
            # mapped from a file without alignment, for which kernels sum in another order
            if p.data_ptr() % 64:
                p.data = p.data.clone()
        model = IFCSR(adapters.cfg(), unet, vae, adapters.prompt.float(), dict(adapters.config.backbone))
        for name in model.adapters:
            mark = f"{name}."
            state = {k.removeprefix(mark): v for k, v in adapters.state.items() if k.startswith(mark)}
            model.fill_adapter(name, state, f"adapters/{WEIGHTS}, {name}")
        self.ifcsr = model
        self.register_modules(unet=unet, vae=vae, adapters=adapters)

    @classmethod
    def of(cls, model: IFCSR) -> IFCSRPipeline:
        """A pipeline of a model; it shares the frozen weights and copies the adapters."""
        return cls(plain_unet(model.unet), model.vae, Adapters.of(model)).to(model.prompt.device)

    @torch.inference_mode()
    def endpoints(self, image, colour_fix: str | None = None) -> Endpoints:
        """Both endpoints of the slider, as IFCSR.endpoints; the only place where a network runs.

        image: a PIL image, an array (H, W), (H, W, C) or (N, H, W, C) of uint8, uint16 or float in [0, 1], a
            float32 tensor (3, h, w) or (N, 3, h, w) in [0, 1], or a list of images of one size. Alpha is
            dropped, and where it is 0 the colours of the nearest visible pixels are taken. Grey becomes RGB,
            and its endpoints are grey.
        """
        self.ifcsr.to(self.unet.device)  # `pipe.to` moves the components, and the prompt is no component
        if self.unet.dtype != torch.float32 or self.vae.dtype != torch.float32:
            raise ValueError(
                f"unet is {self.unet.dtype}, vae {self.vae.dtype}; load the pipeline in float32 and call it "
                "under torch.autocast for half precision"
            )
        return self.ifcsr.endpoints(_batch(image)[0], colour_fix)

    def __call__(
        self, image, gamma: float | Tensor = 0.5, colour_fix: str | None = None, output_type: str = "pil"
    ) -> ImagePipelineOutput:
        """The image, four times as large, at gamma (E1). For several gammas call `endpoints` once, and blend.

        image: see `endpoints`. gamma: a float, (N,) or a map (N, 1, 4h, 4w). colour_fix: "none" or "adain";
        None takes the model's. output_type: "pil" (8 bit; mode "L" where the image came with one colour
        channel, else "RGB"), "np" (N, 4h, 4w, 3) or "pt" (N, 3, 4h, 4w), float32 in [0, 1].
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type={output_type!r}; allowed: pil, np, pt")
        lq, grey = _batch(image)
        x = self.endpoints(lq, colour_fix).blend(gamma)
        if output_type == "pil":
            arrays = zip(to_uint8(x), grey, strict=True)
            return ImagePipelineOutput([Image.fromarray(a[..., 0] if one else a) for a, one in arrays])
        return ImagePipelineOutput(x if output_type == "pt" else x.permute(0, 2, 3, 1).cpu().numpy())

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write unet/, vae/ (without adapters), adapters/, README.md and, last, model_index.json, so that a
        folder with it is complete.

        Upload the folder as it is. For stock diffusers write LoRA files with `pipe.ifcsr.save(folder)`.
        """
        folder = Path(save_directory)
        (folder / self.config_name).unlink(missing_ok=True)
        for name, part in (("unet", plain_unet(self.unet)), ("vae", self.vae)):
            part.save_pretrained(folder / name)
            config = read_json(folder / name / "config.json")
            write_json(
                {k: v for k, v in config.items() if k != "_name_or_path"}, folder / name / "config.json"
            )
        self.adapters = Adapters.of(self.ifcsr)
        self.adapters.save_pretrained(folder / "adapters")
        with atomic(folder / "README.md") as tmp:
            Path(tmp).write_text(str(self.card()) + "\n", encoding="utf-8")
        index = json.loads(self.to_json_string())
        write_json({k: v for k, v in index.items() if k != "_name_or_path"}, folder / self.config_name)

    def card(self) -> ModelCard:
        """The model card of README.md: what it is, how to load it, config and hash, licence."""
        cfg, source = self.ifcsr.cfg, self.ifcsr.source
        local = source["id"] == "pocket" or Path(source["id"]).exists()
        data = ModelCardData(
            library_name="diffusers",
            pipeline_tag="image-to-image",
            tags=["super-resolution", "ifcsr", "lora"],
            license="apache-2.0" if source["id"] == "pocket" else "other",
            base_model=None if local else source["id"],
        )
        licence = (
            "Apache-2.0, code and weights."
            if source["id"] == "pocket"
            else "Code and adapters: Apache-2.0. The backbone in unet/ and vae/ keeps its own licence "
            "(Stable Diffusion 2.1 and SD-Turbo: see their pages; SD 1.5: CreativeML Open RAIL-M), "
            "whose use restrictions go on to what is built on it."
        )
        name = Path(source["id"]).name if local else source["id"]  # no folder of this machine
        text = _CARD.format(
            data=data.to_yaml(),
            version=__version__,
            backbone=name,
            hash=source["hash"],
            config=cfg.hash,
            profile=cfg.profile,
            rank=cfg.rank,
            alpha=cfg.lora_alpha,
            timestep=cfg.timestep,
            licence=licence,
        )
        return ModelCard(text)


_CARD = """\
---
{data}
---
# IFCSR, 4x super-resolution

Two LoRA adapters on one frozen UNet, one diffusion step each; the picture is
(1 - gamma) x_fid + gamma x_real, in pixels, from gamma 0 (fidelity) to 1 (realism). Written by
ifcsr_lib {version}, an independent reproduction of IFCSR (CVPR 2026).

```python
from ifcsr_lib.pipeline import IFCSRPipeline

pipe = IFCSRPipeline.from_pretrained("this folder or repository")
ends = pipe.endpoints(image)             # the networks run once
ends.blend(0.5)                          # any gamma, no network
pipe(image, gamma=0.5).images[0]         # both in one call
pipe.ifcsr.save("lora")                  # LoRA files for load_lora_weights of stock diffusers
```

| | |
|---|---|
| backbone | {backbone}, hash {hash} |
| config | {config}, profile {profile}; what makes the model is in adapters/config.json |
| LoRA | rank {rank}, alpha {alpha}, adapters fidelity and realism |
| one step | z_H = z_L - eps(z_L, t = {timestep}, empty prompt) |

No scores are claimed here; measure with `python -m ifcsr_lib evaluate`.

## Licence

{licence}
"""


def _public(record: dict) -> dict:
    """Without folders of this machine, which nobody else has: the last part of an absolute path."""
    return {k: Path(v).name if isinstance(v, str) and Path(v).is_absolute() else v for k, v in record.items()}


def plain_unet(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The UNet without its adapters, sharing the frozen weights."""
    state = {k.replace(".base_layer.", "."): v for k, v in unet.state_dict().items() if ".lora_" not in k}
    with torch.device("meta"):
        plain = UNet2DConditionModel.from_config(unet.config)
    plain.load_state_dict(state, assign=True)
    return plain.requires_grad_(False).eval()


def _batch(image) -> tuple[Tensor, list[bool]]:
    """(N, 3, h, w), and which of them came with one colour channel."""
    if isinstance(image, (list, tuple)):
        parts = [_batch(one) for one in image]
        if not parts or len({p.shape[-2:] for p, _ in parts}) > 1:
            sizes = ", ".join(f"{p.shape[-1]}x{p.shape[-2]}" for p, _ in parts[:4])
            raise ValueError(
                f"{len(parts)} images of sizes {sizes}; pass images of one size, or call once for each"
            )
        return torch.cat([p for p, _ in parts]), [one for _, grey in parts for one in grey]
    if isinstance(image, Image.Image):
        photo = of_pil(image)
        return bleed(photo.rgb, photo.alpha), [photo.grey]
    grey = False
    if isinstance(image, np.ndarray):
        image = to_tensor(image)
        grey, alpha = image.shape[1] < 3, image[:, -1:] if image.shape[1] in (2, 4) else None
        image = bleed(image[:, :1].expand(-1, 3, -1, -1) if grey else image[:, :3], alpha)
    if not isinstance(image, Tensor):
        raise TypeError(
            f"image came as {type(image).__name__}; pass a PIL image, an array, a tensor or a list of them"
        )
    image = image[None] if image.ndim == 3 else image
    return image, [grey] * len(image)
