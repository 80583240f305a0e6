"""How the shipped pocket backbone is made: feature network, autoencoder, denoising UNet. Used by notebook 90
only.

The three objectives run in trainer.train, like the stages of the method.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from ..config import Config
from ..data import low_quality, normal, uniform
from ..files.checks import check_pointer
from ..files.results import atomic, read_json, write_json
from ..loss import FeatureDistance, unit
from ..trainer import Step
from .features import PocketFeatures
from .schedule import noise_schedule

PROMPT_TOKENS, PROMPT_WIDTH = 4, 64


def new_autoencoder(latent_channels: int = 16, width: int = 32) -> AutoencoderTiny:
    """f = 4: (N, 3, H, W) -> (N, 16, H/4, W/4). About 0.4 M parameters."""
    return AutoencoderTiny(
        encoder_block_out_channels=(width,) * 3,
        decoder_block_out_channels=(width,) * 3,
        num_encoder_blocks=(1, 3, 3),
        num_decoder_blocks=(3, 3, 1),
        latent_channels=latent_channels,
    )


def new_unet(
    latent_channels: int = 16, widths: tuple[int, int, int] = (64, 128, 192)
) -> UNet2DConditionModel:
    """SD-shaped: three levels, cross-attention at the deepest, an empty prompt of 4 learned tokens."""
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        block_out_channels=widths,
        layers_per_block=1,
        cross_attention_dim=PROMPT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
        use_linear_projection=True,
    )


class Autoencode:
    """L1 + MSE reconstruction (+ deep feature distance), with latents kept small and tolerant of small
    errors.
    """

    name = "autoencoder"

    def __init__(self, vae: AutoencoderTiny, seed: int, distance=None, feature_weight: float = 0.0):
        self.vae, self.seed, self.distance, self.feature_weight = vae.train(), seed, distance, feature_weight

    def modules(self) -> list[nn.Module]:
        return [self.vae] + ([self.distance] if self.distance else [])

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.vae.named_parameters())

    def loss(self, batch: dict) -> Step:
        x = batch["x_H"].contiguous(memory_format=torch.channels_last)
        z = self.vae.encode(2 * x - 1).latents
        noise = normal(self.seed, batch["index"], z.shape[1:]).to(z)
        y = (self.vae.decode(z + 0.03 * noise).sample + 1) / 2
        mse = F.mse_loss(y, x)
        loss = F.l1_loss(y, x) + 5 * mse + 1e-4 * z.square().mean()
        if self.feature_weight:
            loss = loss + self.feature_weight * self.distance(y, x)[1:].mean()
        return Step(loss, {"psnr": -10 * math.log10(mse.item())})


class Prior:
    """What stands in for SD's knowledge of photographs: noise prediction, and the one step of E7 without an
    adapter.

    In every batch the first round(cfg.prior_restoring * N) samples restore: the target at t = cfg.timestep,
    given z_L, is z_L - z_H. The others predict noise, eps(z_t, t, prompt) with t uniform above cfg.timestep
    up to 999. Both are the mean squared error on latents; cfg.prior_pixels adds the restored images' own, on
    [-1, 1]. The prompt tokens are learned along.
    """

    # DECISION D26: 10 M parameters hold too little for rank 4 to find restoration in them, so the backbone
    # has seen it
    name = "prior"

    def __init__(self, unet: UNet2DConditionModel, prompt: nn.Parameter, vae: AutoencoderTiny, cfg: Config):
        self.unet, self.prompt, self.vae, self.cfg = unet.train(), prompt, vae.eval(), cfg
        self.schedule = noise_schedule()

    def modules(self) -> list[nn.Module]:
        return [self.unet, self.vae, nn.ParameterList([self.prompt])]

    def trainable(self) -> dict[str, nn.Parameter]:
        return {**{f"unet.{n}": p for n, p in self.unet.named_parameters()}, "prompt": self.prompt}

    def loss(self, batch: dict) -> Step:
        x_H, index, cfg = batch["x_H"], batch["index"], self.cfg
        n = round(cfg.prior_restoring * len(x_H))
        with torch.no_grad():
            z_H = self._encode(x_H)
            z_L = z_H[:0]
            if n:
                z_L = self._encode(
                    batch["x_L"][:n] if "x_L" in batch else low_quality(x_H[:n], cfg, index[:n])[1]
                )
        noise = normal(cfg.seed, index[n:], z_H.shape[1:]).to(z_H)
        t = (cfg.timestep + 1 + (999 - cfg.timestep) * uniform(cfg.seed, index)).long()
        t[:n] = cfg.timestep
        t = t.to(z_H.device)
        z_in = torch.cat([z_L, self.schedule.add_noise(z_H[n:], noise, t[n:])])
        target = torch.cat([z_L - z_H[:n], noise])
        eps = self.unet(z_in, t, self.prompt.expand(len(z_H), -1, -1)).sample
        each = (eps - target).square().mean((1, 2, 3))
        logs = {name: part.mean().item() for name, part in (("restoring", each[:n]), ("noise", each[n:]))}
        if not (cfg.prior_pixels and n):
            return Step(each.mean(), logs)
        x = self.vae.decode((z_L - eps[:n]) / self.vae.config.scaling_factor).sample
        pixels = F.mse_loss(x, 2 * x_H[:n] - 1)
        return Step(each.mean() + cfg.prior_pixels * pixels, logs | {"pixels": pixels.item()})

    def _encode(self, x: Tensor) -> Tensor:
        x = (2 * x - 1).contiguous(memory_format=torch.channels_last)
        return self.vae.encode(x).latents * self.vae.config.scaling_factor


def teacher_features(path: Path) -> nn.Module:
    """The VGG16 convolutions conv1_1 .. conv4_3 of a .npz (keys as in data/README.md) as a module giving 4
    maps.

    Input RGB in [0, 1]; the file's network wants BGR 0-255 minus (104.007, 116.669, 122.679).
    """
    check_pointer(path)
    return _Teacher(np.load(path, allow_pickle=False))


class _Teacher(nn.Module):
    def __init__(self, arrays):
        super().__init__()
        stages = []
        for block, count in enumerate((2, 2, 3, 3), 1):
            layers = []
            for i in range(1, count + 1):
                w, b = (
                    torch.from_numpy(np.array(arrays[f"conv{block}_{i}.{s}"], dtype=np.float32))
                    for s in ("weight", "bias")
                )
                conv = nn.Conv2d(w.shape[1], w.shape[0], 3, padding=1)
                conv.weight.data, conv.bias.data = w, b
                layers += [conv, nn.ReLU()]
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        self.register_buffer("mean", torch.tensor([104.007, 116.669, 122.679]).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> list[Tensor]:
        f, maps = 255 * x.flip(1) - self.mean, []
        for i, stage in enumerate(self.stages):
            f = stage(F.max_pool2d(f, 2) if i else f)
            maps.append(f)
        return maps


class Distil:
    """The student's stage l predicts the teacher's unit-normalised stage l, on photographs and on their
    degraded x_L, and the squared distance between the two comes out as the teacher's.

    Stage 5 has no teacher layer: its target is the local energy of the teacher's deepest two stages, pooled
    to stride 16, a description of texture that ignores where exactly each stroke lies.
    """

    name = "features"

    def __init__(self, student: PocketFeatures, teacher: nn.Module, cfg: Config):
        self.student, self.teacher, self.cfg = student.train(), teacher, cfg

    def modules(self) -> list[nn.Module]:
        return [self.student, self.teacher]

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.student.named_parameters())

    def loss(self, batch: dict) -> Step:
        n = len(batch["x_H"])
        x = torch.cat([batch["x_H"], low_quality(batch["x_H"], self.cfg, batch["index"])[1]])
        with torch.no_grad():
            maps = self.teacher(x)
            energy = [F.avg_pool2d(m.square(), s).add(1e-6).sqrt() for m, s in ((maps[2], 4), (maps[3], 2))]
            targets = [unit(m) for m in (*maps, torch.cat([unit(e) for e in energy], 1))]
        total, logs = 0.0, {}
        for i, (f, t) in enumerate(zip(map(unit, self.student(x)), targets, strict=True), 1):
            cosine = (f * t).sum(1).mean()
            own, wanted = ((m[:n] - m[n:]).square().sum(1).mean((1, 2)) for m in (f, t))
            total = total + 1 - cosine + (own - wanted).square().mean()
            logs |= {f"cos{i}": cosine.item(), f"gap{i}": (own - wanted).abs().mean().item()}
        return Step(total / len(targets), logs)


def equal_lins(net: PocketFeatures, crops, cfg: Config, count: int = 64) -> list[Tensor]:
    """One weight per stage, the same for its channels: each D_l is 0.1 on average between bicubic x_L
    and x_H.
    """
    # DECISION D25: LPIPS fits these to human judgements, which we lack; equal strength per depth leaves the
    # balance to k
    ones = FeatureDistance(net, [torch.ones(c) for c in net.channels])
    total = torch.zeros(len(net.channels) + 1)
    for i in range(count):
        x_H = crops[i]["x_H"][None]
        _, x_L = low_quality(x_H, cfg, [i])
        with torch.inference_mode():
            total += ones(x_L, x_H)
    return [torch.full((c,), 0.1 * count / d.item()) for c, d in zip(net.channels, total[1:], strict=True)]


def save_features(net: PocketFeatures, lins: list[Tensor], folder: Path) -> Path:
    """features.safetensors: the convolutions as float16, the five `lin` weights as float32."""
    state = {k: v.half() for k, v in net.state_dict().items()} | {f"lin{i}": w for i, w in enumerate(lins)}
    return _save(state, folder / "features.safetensors")


def save_autoencoder(vae: AutoencoderTiny, crops, folder: Path, count: int = 48) -> AutoencoderTiny:
    """vae/ in diffusers' layout, float16; scaling_factor makes the latents of `count` crops unit-variance, as
    in SD.
    """
    vae = vae.eval()
    with torch.inference_mode():
        z = torch.cat([vae.encode(2 * crops[i]["x_H"][None] - 1).latents for i in range(count)])
    vae.register_to_config(scaling_factor=round(1 / z.std().item(), 4))
    vae.half().save_pretrained(folder / "vae")
    _tidy(folder / "vae" / "config.json", "block_out_channels")  # diffusers warns of it when it reads it
    return vae.float()


def save_prior(unet: UNet2DConditionModel, prompt: Tensor, folder: Path) -> None:
    """unet/ in diffusers' layout, float16, and empty_prompt.safetensors (1, 4, 64)."""
    unet.half().save_pretrained(folder / "unet")
    _tidy(folder / "unet" / "config.json")
    _save({"prompt": prompt.detach().half().contiguous()}, folder / "empty_prompt.safetensors")


def _tidy(config: Path, *dropped: str) -> None:
    """Drop keys of a config.json that diffusers wrote, and where on this machine the model came from."""
    write_json({k: v for k, v in read_json(config).items() if k not in ("_name_or_path", *dropped)}, config)


def _save(state: dict[str, Tensor], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as tmp:
        save_file({k: v.contiguous() for k, v in state.items()}, tmp)  # trained weights are channels last
    return path
