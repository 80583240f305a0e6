"""Every benchmark, one table each: printed, and written to results/pocket/tables/bench_*.csv with its
provenance.

    python benchmarks/run_all.py [names, such as blend size; default all] [--tiny]

Close other programs first. --tiny runs the smallest settings, which only shows that everything works. Run by
themselves: slider.py (needs a browser), tiling.py (minutes), against_teacher.py (needs its weights),
gpu_proof.py (needs a GPU), full_size_cpu.py (13 GB of memory, a quarter of an hour).
"""

from __future__ import annotations

import argparse
import importlib
import time

from common import machine, show

from ifcsr_lib.config import resolve
from ifcsr_lib.files.results import write_table

NAMES = ("startup", "photo", "blend", "endpoints", "degradation", "training_step", "size")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=", ".join(NAMES))
    parser.add_argument("--tiny", action="store_true", help="smallest settings, written as profile smoke")
    args = parser.parse_args(argv)
    if unknown := [n for n in args.names if n not in NAMES]:
        parser.error(f"{unknown[0]!r} is no benchmark; allowed: {', '.join(NAMES)}")
    cfg = resolve("smoke" if args.tiny else "pocket")
    for name in args.names or NAMES:
        module = importlib.import_module(name)
        start = time.perf_counter()
        table = show(
            module.__doc__.splitlines()[0], lambda m=module: m.table(**(m.TINY if args.tiny else {}))
        )
        table["machine"] = machine()
        print(
            f"written: {write_table(table, f'bench_{name}', cfg, seconds=time.perf_counter() - start)}\n",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
