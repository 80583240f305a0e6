"""Train the next pocket backbone: one step of its UNet makes the teacher's picture from the LQ.

    python tools/pocket/train_backbone.py --tiles FOLDER --out FOLDER --steps 8500 --latents
    python tools/pocket/train_backbone.py --tiles FOLDER --out OTHER --init FOLDER --steps 2000 --features 5

The first trains most of the UNet's steps on latents alone, the second goes on with pictures and the loss
network's features. The same command continues a stopped run, on a CPU or a GPU. Writes last.pt (the run),
history.json, and at the end unet/, vae/ and empty_prompt.safetensors in the layout of data/pocket.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from ifcsr_lib import config, data, images, loss, results, trainer
from ifcsr_lib.nets.schedule import noise_schedule

LATENTS = 48  # per cell of 4 x 4 pixels in three colours: as many numbers as the cell has
SCALE = 2.0  # of the latents; they are pixels on [-1, 1], whose standard deviation is about 0.5
WIDTHS = (64, 64, 128)
PROMPT_TOKENS, PROMPT_WIDTH = 4, 64


def new_autoencoder(width: int = 24) -> AutoencoderDC:
    """(N, 3, H, W) on [-1, 1] <-> (N, 48, H/4, W/4). Untrained it is a rearrangement of pixels and nearly its
    inverse.

    The encoder starts as two pixel-unshuffles and stays so. The decoder starts as their inverse; the norm
    before its last convolution divides every pixel's channels by their length, so half of the channels hold a
    large constant, which keeps that length within 0.5 % of the same value everywhere. The other layers start
    as identities and can learn.
    width: channels of the decoder at half size, a multiple of 12 from 24 up.
    """
    if width % 12 or width < 24:
        raise ValueError(f"width={width}; allowed: multiples of 12 from 24 up")
    vae = AutoencoderDC(
        latent_channels=LATENTS,
        encoder_block_out_channels=(12, 12, LATENTS),
        decoder_block_out_channels=(width, width, LATENTS),
        encoder_layers_per_block=(0, 1, 1),
        decoder_layers_per_block=(0, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        scaling_factor=SCALE,
    )
    enc, dec = vae.encoder, vae.decoder
    up, constant = dec.up_blocks[1][0].conv, 6.0
    length = math.sqrt((width - 12) * constant**2 / width)
    with torch.no_grad():
        for block in (m for m in vae.modules() if type(m).__name__ == "ResBlock"):
            block.norm.weight.zero_()
            block.norm.bias.zero_()
        for conv in (
            enc.conv_in.conv,
            enc.down_blocks[1][-1].conv,
            enc.conv_out,
            dec.conv_in,
            up,
            dec.conv_out.conv,
        ):
            conv.weight.zero_()
            conv.bias.zero_()
        enc.conv_in.conv.weight[:, :, 1, 1] = torch.eye(3)
        up.weight[:LATENTS, :, 1, 1] = torch.eye(LATENTS)
        up.weight[:, :, 1, 1] -= torch.eye(LATENTS).repeat_interleave(
            4 * width // LATENTS, 0
        )  # its shortcut's part
        up.bias[LATENTS:] = constant
        dec.norm_out.weight.fill_(1.0)
        dec.norm_out.bias.fill_(0.5)  # a ReLU follows
        dec.conv_out.conv.weight[torch.arange(12), torch.arange(12), 1, 1] = length
        dec.conv_out.conv.bias.fill_(-0.5 * length)
    return vae


def new_unet(widths: tuple[int, ...] = WIDTHS) -> UNet2DConditionModel:
    """SD-shaped, three levels, cross-attention at the deepest. Its first step changes nothing: conv_out
    starts at zero.
    """
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=LATENTS,
        out_channels=LATENTS,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        block_out_channels=widths,
        layers_per_block=1,
        cross_attention_dim=PROMPT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
        use_linear_projection=True,
    )
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return unet


WINDOW = 64  # pixels a side that the loss network sees
APART = 40  # levels of 255 between teacher and photograph, both shrunk four times; right ones have up to 31


def shrunk(x: np.ndarray) -> np.ndarray:
    """uint8 (N, 3, H, W) -> float32 means of 4 x 4 pixels."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 4, 4, w // 4, 4).mean((3, 5), dtype=np.float32)


class Tiles(Dataset):
    """Crops of teacher_tiles.py's tiles: {"x_H", "x_L", "x_T": (3, patch, patch) in [0, 1], "index", "name"}.

    Crop i depends on (seed, i) and the first `count` tiles alone; flipped and turned at random. Raises
    ValueError when there are too few tiles, or when a teacher's picture is not of its photograph: 0.7 % of
    such tiles, from a damaged run, held back all training before they were noticed.
    """

    def __init__(self, folder: Path, patch: int, seed: int, count: int):
        self.patch, self.seed, self.tiles = patch, seed, []
        for file in sorted(Path(folder).glob("tiles-*.npz")):
            if len(self.tiles) < count:
                arrays = np.load(file)
                apart = np.abs(shrunk(arrays["x_T"]) - shrunk(arrays["x_H"])).mean((1, 2, 3))
                if (apart > APART).any():
                    raise ValueError(
                        f"{file}: the teacher's picture of tile {int(apart.argmax())} is {apart.max():.0f} "
                        f"levels from its photograph, allowed: {APART}; delete the file and run "
                        "tools/pocket/teacher_tiles.py again"
                    )
                self.tiles += list(zip(arrays["x_H"], arrays["lq"], arrays["x_T"], strict=True))
        if len(self.tiles) < count:
            raise ValueError(
                f"{folder} has {len(self.tiles)} tiles, {count} are wanted; run tools/pocket/teacher_tiles.py"
            )
        self.tiles = self.tiles[:count]

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, i: int) -> dict:
        rng = np.random.default_rng([self.seed, i])
        n = int(rng.integers(len(self.tiles)))
        x_H, lq, x_T = self.tiles[n]
        side = self.patch // 4
        top, left = (int(s) for s in rng.integers(lq.shape[-1] - side + 1, size=2))
        # the bicubic filter is four wide: two more pixels of context, where the tile has them
        a, b = max(top - 2, 0), max(left - 2, 0)
        piece = torch.from_numpy(lq[:, a : top + side + 2, b : left + side + 2].copy())[None].float() / 255
        x_L = images.upsample(piece, 4)[0, :, 4 * (top - a) :, 4 * (left - b) :][
            :, : self.patch, : self.patch
        ]
        here = (slice(None), slice(4 * top, 4 * (top + side)), slice(4 * left, 4 * (left + side)))
        x_H, x_T = (torch.from_numpy(x[here].copy()).float() / 255 for x in (x_H, x_T))
        x = torch.rot90(torch.stack([x_H, x_L, x_T]), int(rng.integers(4)), (2, 3))
        x = (x.flip(3) if rng.integers(2) else x).contiguous()
        return {"x_H": x[0], "x_L": x[1], "x_T": x[2], "index": i, "name": f"tile {n}"}


class Backbone:
    """UNet and prompt learn, in pixels; the autoencoder stays the rearrangement of pixels that it is.

    A decoder that learned along lost 20 dB of its round trip in 600 steps, drew a weave of 4 pixels and let
    the run diverge (results/pocket/LOG.md, 2026-11-28).

    latents_only: no decoder and no features; the L1 is then that of latents, which is the same number while
    the decoder gives pixels back, and a step takes half of the time.
    loss = 10 L1(x, x_T) + 10 even * L1(means of 6 x 6 cells of latents) + features * mean_l D(x, x_T, l)
    + 0.1 MSE(eps, n), x = decode(z_L - eps(z_L, t)) at t = cfg.timestep of all samples but the last `noisy`,
    which predict noise n at a larger t. The features are those of one window of 64 pixels of the first
    `looked` samples: the loss network costs seven times as much as the UNet.
    distance: loss.feature_distance to the teacher's picture, or None.
    """

    name = "backbone"

    def __init__(
        self,
        unet,
        prompt: nn.Parameter,
        vae,
        cfg,
        distance=None,
        features: float = 0.0,
        noisy: int = 2,
        latents_only: bool = False,
        looked: int = 6,
        even: float = 1.0,
    ):
        self.unet, self.prompt, self.vae, self.cfg = unet.train(), prompt, vae.eval(), cfg
        self.distance, self.features, self.noisy, self.latents_only = distance, features, noisy, latents_only
        self.looked, self.even = looked, even
        self.schedule = noise_schedule()
        vae.requires_grad_(False)

    def modules(self) -> list[nn.Module]:
        return [self.unet, self.vae, nn.ParameterList([self.prompt]), *filter(None, [self.distance])]

    def trainable(self) -> dict[str, nn.Parameter]:
        return {f"unet.{n}": p for n, p in self.unet.named_parameters()} | {"prompt": self.prompt}

    def loss(self, batch: dict) -> trainer.Step:
        cfg, index, n = self.cfg, batch["index"], len(batch["x_H"])
        m = n - self.noisy
        x_H, x_L, x_T = (
            batch[name].contiguous(memory_format=torch.channels_last) for name in ("x_H", "x_L", "x_T")
        )
        with torch.no_grad():
            z = self.vae.encode(2 * torch.cat([x_L[:m], x_H[m:]]) - 1).latent * SCALE
            z_T = self.vae.encode(2 * x_T[:m] - 1).latent * SCALE
        noise = data.normal(cfg.seed, index[m:], z.shape[1:]).to(z)
        t = (cfg.timestep + 1 + (999 - cfg.timestep) * data.uniform(cfg.seed, index)).long()
        # DECISION D26: most of a batch restores at t = 1, the rest predicts noise
        t[:m] = cfg.timestep
        z_in = torch.cat([z[:m], self.schedule.add_noise(z[m:], noise, t[m:])])
        eps = self.unet(z_in, t.to(z.device), self.prompt.expand(n, -1, -1)).sample
        if self.latents_only:
            parts = {"pixels": F.l1_loss(z[:m] - eps[:m], z_T) / (2 * SCALE)}
            total = 10 * parts["pixels"]
        else:
            x = (self.vae.decode((z[:m] - eps[:m]) / SCALE).sample + 1) / 2
            parts = {"pixels": F.l1_loss(x, x_T[:m])}
            # a weave is the same error in many cells: their mean shows it, and hardly anything else
            apart = F.avg_pool2d(z[:m] - eps[:m] - z_T, 6, 3) / (2 * SCALE)
            parts["weave"] = apart.abs().mean()
            total = 10 * (parts["pixels"] + self.even * parts["weave"])
            if self.features:
                # a window at any offset: cut along the cells of 4 pixels, the loss network's pools lie on the
                # same places of every cell, and a weave of that period pleases them
                top, left = (
                    int(u * (x.shape[-1] - WINDOW + 1)) for u in data.uniform(cfg.seed + 1, index[:2])
                )
                seen = (slice(self.looked), slice(None), slice(top, top + WINDOW), slice(left, left + WINDOW))
                parts["features"] = self.distance(x[seen], x_T[:m][seen])[1:].mean()
                total = total + self.features * parts["features"]
        if self.noisy:
            parts["noise"] = F.mse_loss(eps[m:], noise)
            total = total + 0.1 * parts["noise"]
        return trainer.Step(total, {name: value.item() for name, value in parts.items()})


def save(folder: Path, unet, prompt: Tensor, vae) -> None:
    """unet/, vae/ and empty_prompt.safetensors, float16, in diffusers' layout (nets.backbone reads it)."""
    for part, net in (("unet", unet), ("vae", vae)):
        net.half().save_pretrained(folder / part)
        card = folder / part / "config.json"  # without where on this machine the model came from
        results.write_json({k: v for k, v in results.read_json(card).items() if k != "_name_or_path"}, card)
    with results.atomic(folder / "empty_prompt.safetensors") as tmp:
        save_file({"prompt": prompt.detach().half().contiguous()}, tmp)


def options(args: argparse.Namespace) -> dict:
    """What a run was asked for, for names and records: all but --out, paths by name."""
    return {k: v.name if isinstance(v, Path) else v for k, v in vars(args).items() if k != "out"}


def named(name: str, args: argparse.Namespace) -> str:
    """The name of a run with these options, --steps apart, so that one with others does not continue it."""
    return f"{name} {json.dumps({k: v for k, v in options(args).items() if k != 'steps'})}"


def tell(row: dict) -> None:
    """Every 20th step of a training as a line of JSON."""
    if row["step"] % 20 == 0:
        shown = {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}
        print(json.dumps(shown), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiles", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--count", type=int, default=2048, help="tiles to learn from")
    parser.add_argument(
        "--init", type=Path, help="a folder that an earlier run wrote, to start from its weights"
    )
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--batch", type=int, default=18)
    parser.add_argument("--noisy", type=int, default=2, help="samples per batch that predict noise")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--latents", action="store_true", help="train the UNet on latents alone, twice as fast"
    )
    parser.add_argument("--features", type=float, default=0.0, help="weight of the loss network's distance")
    parser.add_argument("--even", type=float, default=1.0, help="weight of the mean error of 6 x 6 cells")
    parser.add_argument("--looked", type=int, default=6, help="samples per batch that the loss network sees")
    args = parser.parse_args()
    if args.features and args.latents:
        parser.error("--latents has no pictures to compare in --features; choose one")
    overrides = dict(patch=args.patch, batch=args.batch, lr=args.lr, weight_decay=0.0, checkpoint_every=100)
    cfg = config.resolve("pocket", args.seed, overrides)
    torch.manual_seed(args.seed)
    unet, prompt, vae, distance = (
        new_unet(),
        torch.randn(1, PROMPT_TOKENS, PROMPT_WIDTH),
        new_autoencoder(),
        None,
    )
    if args.init:
        unet = UNet2DConditionModel.from_pretrained(args.init / "unet").float()
        vae = AutoencoderDC.from_pretrained(args.init / "vae").float()
        prompt = load_file(args.init / "empty_prompt.safetensors")["prompt"].float()
    if args.features:
        distance = loss.feature_distance(cfg)
    objective = Backbone(
        unet,
        nn.Parameter(prompt),
        vae,
        cfg,
        distance,
        args.features,
        args.noisy,
        args.latents,
        args.looked,
        args.even,
    )
    objective.name = named("backbone", args)
    tiles = Tiles(args.tiles, args.patch, args.seed, args.count)
    history = trainer.train(objective, tiles, cfg, args.out, args.steps, tell)
    results.write_json(history, args.out / "history.json")
    save(args.out, objective.unet, objective.prompt, objective.vae)


if __name__ == "__main__":
    main()
