"""Seconds and peak memory of `endpoints` for large and for long thin photographs, with and without tiles,
pocket weights.

python benchmarks/tiling.py [HEIGHTxWIDTH of the LQ ...] [--whole]
Default sizes: 256x256 512x512 1024x1024 16x600. --whole: without tiles too, which takes all the memory there
is. Every size runs in a process of its own, since only its peak can be asked for.
"""

import argparse
import platform
import resource
import subprocess
import sys
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("sizes", nargs="*", default=["256x256", "512x512", "1024x1024", "16x600"])
parser.add_argument("--whole", action="store_true")
parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # the tile, in a child
args = parser.parse_args()

if args.one is None:
    print(f"{platform.machine()}; peak: of the whole process", flush=True)
    for size in args.sizes:
        for tile in (1024, 0) if args.whole else (1024,):
            subprocess.run([sys.executable, __file__, size, "--one", str(tile)], check=True)
    sys.exit()

import torch

import ifcsr_lib as ifcsr

h, w = (int(v) for v in args.sizes[0].split("x"))
model = ifcsr.load("pocket", device="cpu")
model.cfg = model.cfg.replace(tile=args.one)
lq = torch.rand(1, 3, h // 8 + 1, w // 8 + 1, generator=torch.Generator().manual_seed(0))
lq = torch.nn.functional.interpolate(lq, (h, w), mode="bicubic").clamp(0, 1)
unit = 1e9 if sys.platform == "darwin" else 1e6  # ru_maxrss: bytes there, kilobytes on Linux
start = time.perf_counter()
ends = model.endpoints(lq)
seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
assert ends.x_fid.shape == (1, 3, 4 * h, 4 * w)
print(
    f"{w} x {h} -> {4 * w} x {4 * h}, {f'tile {args.one}' if args.one else 'whole'}: {seconds:.1f} s, peak "
    f"{peak:.2f} GB, {torch.get_num_threads()} threads",
    flush=True,
)
