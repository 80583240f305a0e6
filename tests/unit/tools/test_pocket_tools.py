"""The tools that make the pocket backbone: the teacher's loader, its tiles, the objective."""

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ifcsr_lib import config, models, trainer

sys.path.insert(0, str(Path(__file__).parents[3] / "tools" / "pocket"))
import real_esrgan
import teacher_tiles
import train_adapters
import train_backbone


@pytest.fixture
def bin_file(tmp_path):
    """(path, network): a file in the published layout with random weights."""
    torch.manual_seed(0)
    net = real_esrgan.RealESRGAN().eval()
    parts = []
    for conv in (m for m in net.modules() if isinstance(m, nn.Conv2d)):
        conv.weight.data = conv.weight.data.half().float()  # what the file can hold
        weights = conv.weight.detach().half().numpy().tobytes()
        parts += [real_esrgan.FP16_TAG.to_bytes(4, "little"), weights, b"\0" * (-len(weights) % 4)]
        parts.append(conv.bias.detach().numpy().tobytes())
    path = tmp_path / "realesrgan-x4plus.bin"
    path.write_bytes(b"".join(parts))
    return path, net


def test_loader_reads_every_weight(bin_file):
    path, net = bin_file
    read = real_esrgan.load(path)
    assert sum(p.numel() for p in read.parameters()) == 16_697_987  # RRDBNet with 23 blocks, as published
    for (name, a), b in zip(net.state_dict().items(), read.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    x = torch.rand(1, 3, 16, 16)
    with torch.inference_mode():
        assert read(x).shape == (1, 3, 64, 64) and torch.equal(read(x), net(x))


CHANGES = {
    "short": (lambda data: data[:-1], "buffer"),
    "long": (lambda data: data + b"\0" * 4, "4 bytes are left over"),
    "another tag": (lambda data: b"\1" + data[1:], "no float16 weights at byte 0"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_loader_refuses_another_file(bin_file, change, message):
    path, _ = bin_file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        real_esrgan.load(path)


class Double(nn.Module):
    """A teacher that can be checked by eye: four times the size, nearest."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.gain * nn.functional.interpolate(x, scale_factor=4, mode="nearest")


def test_pictures_are_made_again_for_another_lq(tmp_path, monkeypatch):
    from ifcsr_lib import images

    runs = []
    monkeypatch.setattr(real_esrgan, "load", lambda path: runs.append(path) or Double())
    lq = [images.write_image(torch.full((1, 3, 4, 6), g), tmp_path / "lq" / f"{g}.png") for g in (0.2, 0.4)]
    made = real_esrgan.upscaled(Path("a.bin"), lq, tmp_path / "out")
    assert [images.read_image(p).rgb.shape for p in made] == [(1, 3, 16, 24)] * 2
    first, times = made[0].read_bytes(), [p.stat().st_mtime_ns for p in made]
    assert real_esrgan.upscaled(Path("a.bin"), lq, tmp_path / "out") == made and len(runs) == 1
    images.write_image(torch.full((1, 3, 4, 6), 0.8), lq[0])
    real_esrgan.upscaled(Path("a.bin"), lq, tmp_path / "out")
    assert made[0].read_bytes() != first and made[1].stat().st_mtime_ns == times[1] and len(runs) == 2
    with pytest.raises(ValueError, match="one name without suffix"):
        real_esrgan.upscaled(Path("a.bin"), [Path("a/x.png"), Path("b/x.jpg")], tmp_path / "out")


@pytest.fixture
def tiles(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_tiles, "SHARD", 2)
    cfg = config.resolve("pocket", 0, {"patch": teacher_tiles.SIDE})

    def crop(i):
        yy, xx = torch.meshgrid(torch.linspace(0, 1, 256), torch.linspace(0, 1, 256), indexing="ij")
        return {"x_H": torch.stack([yy, xx, (yy * xx * (i + 1)).frac()])}

    class Crops:
        def __getitem__(self, i):
            return crop(i)

    paths = teacher_tiles.write_tiles(Double(), Crops(), cfg, tmp_path / "tiles", 4, lambda line: None)
    return tmp_path / "tiles", paths, cfg, Crops()


def test_tiles_are_aligned_and_a_stopped_run_continues(tiles):
    folder, paths, cfg, crops = tiles
    kept, second = paths[0].read_bytes(), np.load(paths[1])["lq"]
    arrays = np.load(paths[0])
    assert arrays["x_H"].shape == (2, 3, 256, 256) and arrays["lq"].shape == (2, 3, 64, 64)
    assert np.array_equal(arrays["x_T"], arrays["lq"].repeat(4, 2).repeat(4, 3)), (
        "the teacher saw another picture"
    )
    paths[1].unlink()
    teacher_tiles.write_tiles(Double(), crops, cfg, folder, 4, lambda line: None)
    assert np.array_equal(np.load(paths[1])["lq"], second) and paths[0].read_bytes() == kept


def test_crops_of_tiles_belong_together(tiles):
    folder, *_ = tiles
    crops = train_backbone.Tiles(folder, 96, 0, 4)
    again = train_backbone.Tiles(folder, 96, 0, 4)
    for i in range(6):
        sample = crops[i]
        assert sample["x_H"].shape == sample["x_L"].shape == sample["x_T"].shape == (3, 96, 96)
        assert all(torch.equal(sample[k], again[i][k]) for k in ("x_H", "x_L", "x_T"))
        small = nn.functional.avg_pool2d(sample["x_T"][None], 4)
        assert (nn.functional.avg_pool2d(sample["x_L"][None], 4) - small).abs().mean() < 0.05, (
            "turned differently"
        )
    with pytest.raises(ValueError, match="has 4 tiles, 5 are wanted"):
        train_backbone.Tiles(folder, 96, 0, 5)


def test_a_teacher_that_painted_something_else_is_refused(tiles):
    folder, paths, *_ = tiles
    arrays = dict(np.load(paths[1]))
    arrays["x_T"][1] = 255 - arrays["x_T"][1]
    np.savez(paths[1], **arrays)
    with pytest.raises(ValueError, match=f"{paths[1].name}: the teacher's picture of tile 1 is .* levels"):
        train_backbone.Tiles(folder, 96, 0, 4)


def test_autoencoder_starts_as_a_rearrangement():
    vae, x = (
        train_backbone.new_autoencoder(),
        torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)),
    )
    with torch.inference_mode():
        z = vae.encode(2 * x - 1).latent
        y = (vae.decode(z).sample + 1) / 2
    assert z.shape == (2, 48, 16, 24)
    assert torch.equal(z.flatten().sort().values, (2 * x - 1).flatten().sort().values), (
        "not the pixels themselves"
    )
    assert -10 * torch.log10((x - y).square().mean()) > 45
    with pytest.raises(ValueError, match="multiples of 12"):
        train_backbone.new_autoencoder(25)


def test_backbone_learns_and_keeps_its_encoder(tiles, tmp_path):
    folder, *_ = tiles
    cfg = config.resolve("smoke", 0, {"patch": 64, "batch": 3, "lr": 2e-3, "weight_decay": 0.0})
    torch.manual_seed(0)
    prompt, vae = nn.Parameter(torch.randn(1, 4, 64)), train_backbone.new_autoencoder()
    objective = train_backbone.Backbone(train_backbone.new_unet((16, 16, 32)), prompt, vae, cfg, noisy=1)
    encoder = {k: v.clone() for k, v in vae.encoder.state_dict().items()}
    history = trainer.train(objective, train_backbone.Tiles(folder, 64, 0, 4), cfg, tmp_path / "run", 30)
    assert all(torch.equal(v, encoder[k]) for k, v in vae.encoder.state_dict().items())
    first, last = (sum(row["pixels"] for row in rows) for rows in (history[:10], history[-10:]))
    assert last < 0.8 * first
    train_backbone.save(tmp_path / "saved", objective.unet, objective.prompt, objective.vae)
    assert {p.name for p in (tmp_path / "saved").iterdir()} == {"unet", "vae", "empty_prompt.safetensors"}
    # and the kit loads what was saved: a backbone with AutoencoderDC makes endpoints, saves and loads
    made = config.resolve("smoke", 0, {"backbone": str(tmp_path / "saved")})
    model = models.new(made)
    lq = torch.rand(1, 3, 16, 24)
    ends = model.endpoints(lq)
    assert ends.x_fid.shape == (1, 3, 64, 96) and model.vae_factor == 4
    assert torch.equal(ends.x_fid, ends.x_real), "untrained adapters are the backbone itself"
    again = models.load(model.save(tmp_path / "model"))
    assert torch.equal(again.endpoints(lq).x_fid, ends.x_fid)
    assert (ends.x_fid - ends.x_L).abs().mean() < 0.2


def test_latents_alone_measure_what_pixels_measure(tiles):
    """While the decoder gives pixels back, the L1 of latents is the L1 of pictures, and features are left
    out.
    """
    folder, *_ = tiles
    cfg = config.resolve("smoke", 0, {"patch": 64, "batch": 3})
    batch = torch.utils.data.default_collate([train_backbone.Tiles(folder, 64, 0, 4)[i] for i in range(3)])
    prompt, vae = nn.Parameter(torch.zeros(1, 4, 64)), train_backbone.new_autoencoder()
    unet = train_backbone.new_unet((16, 16, 32))
    both = [
        train_backbone.Backbone(unet, prompt, vae, cfg, noisy=1, latents_only=alone)
        for alone in (False, True)
    ]
    pixels, latents = (objective.loss(batch).logs["pixels"] for objective in both)
    assert latents == pytest.approx(pixels, rel=0.02)
    assert {name.split(".")[0] for name in both[1].trainable()} == {"unet", "prompt"}


def test_a_run_with_another_option_has_another_name():
    def name(**options):
        given = {"out": Path("a/b"), "steps": 3, "tiles": Path("a/tiles"), "weave": 0.0} | options
        return train_backbone.named("stage2", argparse.Namespace(**given))

    assert name() == name(out=Path("c"), steps=9) == name(tiles=Path("b/tiles"))
    assert len({name(), name(weave=6.0), name(tiles=Path("a/others"))}) == 3


def test_a_share_of_the_targets_is_the_teachers(tiles):
    folder, *_ = tiles
    crops = train_backbone.Tiles(folder, 64, 0, 4)
    photographs, taught, half = (train_adapters.Targets(crops, share) for share in (0.0, 1.0, 0.5))
    for i in range(8):
        x_H, x_T = crops[i]["x_H"], crops[i]["x_T"]
        assert torch.equal(photographs[i]["x_H"], x_H) and torch.equal(taught[i]["x_H"], x_T)
        assert "x_T" not in half[i] and torch.equal(half[i]["x_L"], crops[i]["x_L"])
    first, second = ([torch.equal(half[i]["x_H"], crops[i]["x_T"]) for i in range(60)] for _ in range(2))
    assert 15 < sum(first) < 45 and first == second
    with pytest.raises(ValueError, match="share=2"):
        train_adapters.Targets(crops, 2)
