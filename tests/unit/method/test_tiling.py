"""Inference of any size: tiles equal the whole where the receptive field allows it, and show no seam where it
does not.
"""

import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from torch import nn

import ifcsr_lib as ifcsr
from ifcsr_lib import models
from ifcsr_lib.config import resolve
from ifcsr_lib.nets import tiling


def _without_norms(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        setattr(module, name, nn.Identity()) if isinstance(child, nn.GroupNorm) else _without_norms(child)
    return module


@pytest.fixture(scope="module")
def _local():
    """A real UNet and AutoencoderTiny without attention and without norms: it looks 45 pixels far at most."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        cross_attention_dim=16,
        norm_num_groups=4,
    )
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=4,
    )
    cfg = resolve("smoke", overrides={"tile": 448, "tile_overlap": 192, "colour_fix": "none"})
    model = models.IFCSR(cfg, _without_norms(unet), vae, torch.randn(1, 3, 16), {"id": "local", "hash": "0"})
    with torch.no_grad():
        for name in models.ADAPTERS:
            for p in model.adapter(name).values():
                p.normal_(std=0.1)
    return model


@pytest.fixture
def local(_local):
    _local.cfg = _local.cfg.replace(tile=448)
    return _local


def whole(model, lq, fix=None):
    """The same model's endpoints without tiles."""
    cfg = model.cfg
    try:
        model.cfg = cfg.replace(tile=0)
        return model.endpoints(lq, fix)
    finally:
        model.cfg = cfg


def photo(h, w, seed=0):
    """Smooth colours with some texture, (1, 3, h, w)."""
    g = torch.Generator().manual_seed(seed)
    base = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 4, generator=g), (h, w), mode="bicubic")
    return (base + 0.05 * torch.randn(1, 3, h, w, generator=g)).clamp(0, 1)


def calls(model):
    out = []
    hook = model.unet.register_forward_hook(lambda m, a, o: out.append(tuple(a[0].shape[-2:])))
    return out, hook


def test_the_receptive_field_is_under_a_quarter_of_the_overlap(local):
    """What the next test rests on: a pixel changes nothing further than 48 pixels away."""
    x = torch.rand(1, 3, 128, 128)
    y = x.clone()
    y[..., 64, 64] = 1 - y[..., 64, 64]
    with torch.inference_mode():
        moved = (local.both(local.encode(x))[1] - local.both(local.encode(y))[1]).abs().amax((0, 1))
    far = torch.nonzero(moved > 1e-6) - 64
    assert 8 < far.abs().max() < local.cfg.tile_overlap / 4


@pytest.mark.parametrize("h, w", [(128, 160), (150, 113), (16, 600), (600, 16)])
def test_tiles_equal_the_whole(local, h, w):
    """Under 1e-3 is asked; only the order of float32 sums differs, so 1e-5 holds, up to the image's
    border.
    """
    lq = photo(h, w)
    seen, hook = calls(local)
    if min(h, w) == 16:  # 64 x 2400 pixels are few: a lower limit, so that they are tiled all the same
        local.cfg = local.cfg.replace(tile=384)
    ends = local.endpoints(lq)
    hook.remove()
    assert len(seen) > 1
    expected = whole(local, lq)
    assert ends.x_fid.shape == (1, 3, 4 * h, 4 * w)
    for name in ("x_fid", "x_real"):
        assert (getattr(ends, name) - getattr(expected, name)).abs().max() < 1e-5, name
    assert torch.equal(ends.x_L, expected.x_L)


def test_a_batch_is_tiled_image_by_image(local):
    lq = torch.cat([photo(120, 120), photo(120, 120, 1)])
    ends = local.endpoints(lq)
    for i in range(2):
        alone = local.endpoints(lq[i : i + 1])
        assert (ends.x_real[i : i + 1] - alone.x_real).abs().max() < 1e-6


def test_colour_fix_uses_the_whole_image(local):
    """adain's mean and deviation are the image's, not a tile's: the channel means are x_L's."""
    lq = photo(128, 144)
    fixed, plain = local.endpoints(lq, "adain"), local.endpoints(lq, "none").colour_fixed()
    assert torch.equal(fixed.x_fid, plain.x_fid) and torch.equal(fixed.x_real, plain.x_real)
    assert (fixed.x_fid - whole(local, lq, "adain").x_fid).abs().max() < 1e-4


def test_small_images_take_the_old_path_bit_for_bit(local):
    lq = photo(112, 112)  # 448 x 448, exactly the limit
    seen, hook = calls(local)
    ends = local.endpoints(lq)
    hook.remove()
    assert len(seen) == 2 and len(set(seen)) == 1  # two adapters, no tile
    expected = whole(local, lq)
    assert torch.equal(ends.x_fid, expected.x_fid) and torch.equal(ends.x_real, expected.x_real)


@pytest.mark.parametrize(
    "side, tile, overlap",
    [
        (448, 448, 64),
        (449, 448, 64),
        (1000, 256, 128),
        (2400, 384, 192),
        (700, 128, 64),
        (130, 128, 64),
        (800, 256, 0),
    ],
)
def test_weights_sum_to_one(side, tile, overlap):
    total = torch.zeros(side)
    windows = tiling.windows(side, tile, overlap)
    for i, (start, w) in enumerate(windows):
        assert len(w) == min(side, tile) and 0 <= start <= side - len(w)
        total[start : start + len(w)] += w
        if overlap and i > 0:
            assert (w[: overlap // 4] == 0).all()
        if overlap and i < len(windows) - 1:
            assert (w[len(w) - overlap // 4 :] == 0).all()
    assert (total - 1).abs().max() < 1e-6


def test_no_seam_with_the_pocket_weights():
    """The pocket UNet has attention and group norms, so that tiles differ. On a smooth image the jumps
    between the columns where two tiles are joined are no larger than elsewhere (by the 99th percentile and
    the mean), nor than in the same columns of the untiled image.
    """
    model = ifcsr.load("pocket", device="cpu")
    model.cfg = model.cfg.replace(tile=256, tile_overlap=128, colour_fix="none")
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 128), indexing="ij")
    lq = torch.stack([0.2 + 0.5 * x, 0.3 + 0.4 * y, 0.6 - 0.3 * x * y])[None].float()
    ends, untiled = model.endpoints(lq), whole(model, lq)
    b = model.cfg.border
    joins = torch.zeros(512, dtype=torch.bool)
    for start, w in tiling.windows(512 + 2 * b, 256, 128):
        mixed = torch.nonzero((w > 0) & (w < 1)).flatten() + start - b
        joins[mixed[(mixed >= 0) & (mixed < 512)]] = True
    assert 0.2 < joins.float().mean() < 0.8
    inner = torch.zeros(512, dtype=torch.bool)
    inner[16:-16] = True  # away from the image's border, whose own jumps are larger
    for name in ("x_fid", "x_real"):
        tiles = getattr(ends, name)
        step = tiles.diff(dim=3).abs().mean((0, 1, 2))  # 511 columns
        at, off = step[joins[1:] & inner[1:]], step[~joins[1:] & inner[1:]]
        # without tiles
        same = getattr(untiled, name).diff(dim=3).abs().mean((0, 1, 2))[joins[1:] & inner[1:]]
        assert at.mean() <= 1.1 * same.mean(), name
        assert at.mean() <= 1.1 * off.mean() and at.quantile(0.99) <= 1.1 * off.quantile(0.99), name
        assert (tiles - getattr(untiled, name)).abs().max() < 0.05, name


def test_the_tile_must_fit_the_backbone(local):
    for bad in ({"tile": 100}, {"tile_overlap": 32}, {"tile": 192, "tile_overlap": 128}):
        with pytest.raises(ValueError, match="multiples of 64"):
            local.cfg.replace(**bad)
