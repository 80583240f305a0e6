"""What one photograph costs: seconds and peak memory of `endpoints`, pocket weights, this machine.

python benchmarks/endpoints.py [side of the LQ, default 128] [repeats, default 5]
"""

import platform
import resource
import statistics
import sys
import time

import torch

import ifcsr_lib as ifcsr

side, repeats = (int(v) for v in (sys.argv[1:] + ["128", "5"][len(sys.argv) - 1 :]))
unit = 1e9 if sys.platform == "darwin" else 1e6  # ru_maxrss: bytes there, kilobytes on Linux
start = time.perf_counter()
model = ifcsr.load("pocket", device="cpu")
loaded, base = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
lq, times = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)), []
for _ in range(repeats + 1):
    start = time.perf_counter()
    model.endpoints(lq)
    times.append(time.perf_counter() - start)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
print(f"machine: {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
print(f"load the model: {loaded:.2f} s, {base:.2f} GB so far")
print(f"endpoints {side} x {side} -> {4 * side} x {4 * side}: first {times[0]:.2f} s, then median "
      f"{statistics.median(times[1:]):.2f} s of {repeats}; peak {peak:.2f} GB")  # fmt: skip
