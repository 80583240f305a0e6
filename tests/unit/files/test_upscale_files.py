"""`upscale` on files: what of a photograph's file comes out again, with a model that needs no network."""

import numpy as np
import pytest
import torch
from PIL import Image

from ifcsr_lib.cli.upscale import upscale_folder
from ifcsr_lib.control import Endpoints
from ifcsr_lib.files.images import is_grey, read_image, upsample

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (20, 24, 4), dtype=np.uint8)


class Tinting:
    """A model that answers every photograph with colours of its own, as a trained network does."""

    def endpoints(self, lq):
        x = upsample(lq)
        tints = (torch.tensor(t).view(1, 3, 1, 1) for t in ((1.0, 0.9, 0.7), (0.6, 0.8, 1.0)))
        return Endpoints(*(x * t for t in tints), x)


def upscaled(image_or_path, folder, suffix="png", **how):
    """The file that `upscale_folder` makes of an image, saved as PNG, or of a file."""
    path = image_or_path
    if isinstance(path, Image.Image):
        path = folder / "source.png"
        image_or_path.save(path, **how)
    out = folder / f"upscaled.{suffix}"
    assert upscale_folder(Tinting(), {path: out}, 0.5) == 0
    return out


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "RGB", "RGBA", "P"])
def test_grey_in_grey_out(tmp_path, mode, suffix):
    """Also a colour file that shows only grey, which keeps its three channels."""
    grey = Image.fromarray(NOISE[..., 0])
    if mode == "I;16":
        image = Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257)
    elif mode == "RGBA":
        image = grey.convert("LA").convert("RGBA")
    else:
        image = grey.convert(mode)
    out = upscaled(image, tmp_path, suffix)
    assert bool(is_grey(read_image(out).rgb))
    one = mode in ("1", "L", "LA", "I;16") and suffix != "webp"
    assert (Image.open(out).mode in ("L", "LA", "I;16")) == one


def test_colour_stays_colour(tmp_path):
    image = Image.fromarray(NOISE[..., :3])
    assert not is_grey(read_image(upscaled(image, tmp_path)).rgb)
    almost = np.repeat(NOISE[..., :1], 3, 2)
    almost[3, 5, 2] ^= 1
    assert not is_grey(read_image(upscaled(Image.fromarray(almost), tmp_path)).rgb)
