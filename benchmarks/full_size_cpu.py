"""The whole way of a Stable Diffusion 2.1-base checkpoint on the CPU, at its true size with random weights.

    python benchmarks/full_size_cpu.py [--layout folder|file|both] [--out RESULTS] [--work FOLDER]

Make the checkpoint (in diffusers' folder layout, or as a single file in LDM layout), `ifcsr_lib.load`, both
endpoints of a 128x128 photograph, `save`, load again, stock diffusers' load_lora_weights, one optimiser step
of each stage at 256x256. Each layout runs in a process of its own. Writes
results/paper/tables/full_size_cpu.csv and its record: minutes and highest resident memory of every step.
VGG16 has random weights, too: nothing is downloaded, and images and losses mean nothing.
Status 1 where a step is missing, a difference is too large, or memory went beyond 20 GB.
`python tools/keep_reference.py full_size_cpu --profile paper` keeps the table. --work takes up to 6 GB.

    python benchmarks/full_size_cpu.py --tiny

The same code with a very small network, written as profile smoke: for tests, its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from common import machine

from ifcsr_lib.config import ADAPTERS, ROOT, Config, resolve
from ifcsr_lib.files.results import write_table

LAYOUTS = ("folder", "file")
STEPS = (
    "make the checkpoint",
    "load",
    "endpoints",
    "save",
    "load again",
    "endpoints again",
    "stock diffusers, load_lora_weights",
    "stage1, one optimiser step",
    "stage2, one optimiser step",
)
DIFFERENCE = "largest difference"  # how `what` begins in a row whose value must be about 0
LIMIT_GB = 20.0
TOLERANCE = 1e-3  # of images in [0, 1] and of predictions near 1; float32 sums in another order give 1e-5
SETTINGS = dict(
    batch=1, precision="no", gradient_checkpointing=True, training_set="shipped", reading="memory"
)
TRUE = dict(lq=128, patch=256)  # pixels
TINY = dict(lq=16, patch=64)


def settings(tiny: bool) -> Config:
    """What the table's record tells: profile paper as a CPU can train it, smoke for `--tiny`."""
    return resolve(
        "smoke" if tiny else "paper", overrides=SETTINGS | {"patch": (TINY if tiny else TRUE)["patch"]}
    )


def peak_gb(reset: bool = False) -> float:
    """GB (1e9 bytes) of this process's highest resident memory, mapped files included: since the last reset
    on Linux, since its start elsewhere.
    """
    status = Path("/proc/self/status")
    if status.exists():
        if reset:
            with contextlib.suppress(OSError):  # man 5 proc: 5 sets VmHWM to what is resident now
                Path("/proc/self/clear_refs").write_text("5")
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e9
    import resource

    # ru_maxrss: bytes on macOS, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def size_gb(folder: Path) -> float:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e9


class Record:
    """The rows of one layout; each goes to a file as soon as its step is done."""

    def __init__(self, layout: str, path: Path):
        self.layout, self.path = layout, path

    @contextlib.contextmanager
    def step(self, name: str):
        """Time and memory of what happens inside; it fills in {"what": a text, "value": a number}."""
        gc.collect()
        peak_gb(reset=True)
        start, row = time.perf_counter(), {"layout": self.layout, "step": name}
        found: dict = {}
        yield found
        row |= {"minutes": (time.perf_counter() - start) / 60, "peak_gb": peak_gb()} | found
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


def proof(layout: str, work: Path, tiny: bool, record: Record) -> None:
    """All steps of one layout, in the empty folder `work`. Leaves the endpoints in work/ends.safetensors.

    Raises RuntimeError where a training step moved the wrong weights; differences are only recorded.
    """
    import random_sd
    import torch
    from diffusers import StableDiffusionPipeline
    from safetensors.torch import save_file

    import ifcsr_lib as ifcsr
    from ifcsr_lib import data, loss, trainer
    from ifcsr_lib.files.images import is_grey
    from ifcsr_lib.nets import features

    side = TINY if tiny else TRUE
    with record.step(STEPS[0]) as row:
        folder = random_sd.write_folder(work / "sd", tiny=tiny, dtype=torch.float16)
        place = folder
        if layout == "file":
            # its configurations lie beside a tiny file only: a true one is known by its prompts' width
            place = (folder if tiny else work) / "sd.safetensors"
            random_sd.write_file(folder, place)
            for part, name in random_sd.WEIGHTS.items():
                (folder / part / name).unlink()
        row |= {"what": "GB on disk, float16", "value": size_gb(work)}
    with record.step(STEPS[1]) as row:
        model = ifcsr.load(place, device="cpu")
        count = sum(p.numel() for net in (model.unet, model.vae) for p in net.parameters())
        row |= {"what": "million parameters of UNet, VAE and adapters", "value": count / 1e6}
    torch.manual_seed(1)
    with torch.no_grad():  # untrained ends would be equal
        for name in ADAPTERS:
            for key, p in model.adapter(name).items():
                if "lora_B" in key:
                    p.normal_(std=0.05)
    cfg = model.cfg.replace(**SETTINGS, patch=4 * side["lq"])
    crops = data.training_crops(cfg)  # a grey photograph would give grey ends, which differ less
    photo = next(crop for i in range(len(crops)) if not is_grey((crop := crops[i])["x_H"][None]).all())
    lq = data.low_quality(photo["x_H"][None], cfg, [0])[0]
    with record.step(STEPS[2]) as row:
        ends = model.endpoints(lq)
        apart = (ends.x_fid - ends.x_real).abs().max().item()
        row |= {"what": f"how far the ends of {lq.shape[-1]}x{lq.shape[-2]} pixels are apart", "value": apart}
    save_file({"x_fid": ends.x_fid, "x_real": ends.x_real}, work / "ends.safetensors")
    z = torch.randn(1, 4, *(2 * [side["patch"] // model.vae_factor]))
    with torch.inference_mode():
        eps = {name: model.eps(z, name) for name in ADAPTERS}
    with record.step(STEPS[3]) as row:
        saved = model.save(work / "saved")
        row |= {"what": "GB of both adapters", "value": size_gb(saved)}
    del model
    with record.step(STEPS[4]) as row:
        model = ifcsr.load(saved, device="cpu")
        row |= {
            "what": "million weights of an adapter",
            "value": sum(map(torch.numel, model.adapter("fidelity").values())) / 1e6,
        }
    with record.step(STEPS[5]) as row:
        again = model.endpoints(lq)
        images = ((ends.x_fid, again.x_fid), (ends.x_real, again.x_real))
        far = max((a - b).abs().max().item() for a, b in images)
        row |= {"what": f"{DIFFERENCE} from the ends before", "value": far}
    del ends, again, images
    with record.step(STEPS[6]) as row:
        if layout == "folder":
            pipe = StableDiffusionPipeline.from_pretrained(place, torch_dtype=torch.float32)
        else:
            pipe = StableDiffusionPipeline.from_single_file(
                str(place), config=str(folder), torch_dtype=torch.float32, local_files_only=True
            )
        for name in ADAPTERS:
            pipe.load_lora_weights(str(saved), weight_name=f"{name}.safetensors", adapter_name=name)
        far = 0.0
        for name in ADAPTERS:
            pipe.set_adapters(name)
            with torch.inference_mode():
                theirs = pipe.unet(z, model.cfg.timestep, model.prompt).sample
            far = max(far, (theirs - eps[name]).abs().max().item())
        row |= {"what": f"{DIFFERENCE} of its UNet from ours", "value": far}
    del pipe, theirs
    torch.manual_seed(2)
    if tiny:
        net = features.PocketFeatures((8, 16, 24, 32))
        distance = loss.FeatureDistance(net, [torch.ones(c) for c in net.channels])
    else:
        distance = loss.FeatureDistance(features.VGG16Features(pretrained=False), features.lpips_lins())
    cfg = cfg.replace(patch=side["patch"])
    crops = data.training_crops(cfg)
    for name, stage in zip(STEPS[7:], (trainer.Stage1, trainer.Stage2), strict=True):
        before = {a: [p.detach().clone() for p in model.adapter(a).values()] for a in ADAPTERS}
        with record.step(name) as row:
            history = trainer.train(stage(model, distance), crops, cfg, work / stage.name, 1)
            row |= {"what": f"loss at {cfg.patch}x{cfg.patch}", "value": history[0]["loss"]}
        for a in ADAPTERS:
            pairs = zip(before[a], model.adapter(a).values(), strict=True)
            moved = [not torch.equal(old, new) for old, new in pairs]
            if not all(moved) if a in stage.trains else any(moved):
                raise RuntimeError(f"{stage.name}: {sum(moved)} of {len(moved)} weights of {a} moved")


def run(layout: str, work: Path, tiny: bool) -> list[dict]:
    """The rows of one layout, from a process of its own, and one for the whole of it."""
    work.mkdir(parents=True)
    rows, start = work / "rows.jsonl", time.perf_counter()
    rows.touch()
    env = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "IFCSR_CACHE": str(work / "cache"),  # so that the text encoder runs, whatever an earlier run kept
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, __file__, "--one", layout, "--work", str(work), *(["--tiny"] if tiny else [])]
    done = subprocess.run(command, env=env, check=False)
    out = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    total = {
        "layout": layout,
        "step": "the whole process",
        "minutes": (time.perf_counter() - start) / 60,
        "peak_gb": max((row["peak_gb"] for row in out), default=float("nan")),
        "what": "status of the process, 0: all steps done",
        "value": done.returncode,
    }
    return [*out, total]


def compare(folders: list[Path]) -> dict:
    """The row that tells how far the endpoints of the two layouts are apart: the weights are the same."""
    from safetensors.torch import load_file

    a, b = (load_file(folder / "ends.safetensors") for folder in folders)
    far = max((a[name] - b[name]).abs().max().item() for name in a)
    return {
        "layout": "both",
        "step": "endpoints",
        "what": f"{DIFFERENCE} between the layouts",
        "value": far,
    }


def faults(table: pd.DataFrame) -> list[str]:
    """What is wrong with a table, in sentences."""
    out = []
    for layout in [name for name in LAYOUTS if name in set(table["layout"])]:
        there = set(table.loc[table["layout"] == layout, "step"])
        out += [f"{layout}: {step!r} did not finish" for step in STEPS if step not in there]
    for row in table.to_dict("records"):
        name = f"{row['layout']}, {row['step']}"
        if row["what"].startswith(DIFFERENCE) and not row["value"] <= TOLERANCE:
            out.append(f"{name}: {row['what']} is {row['value']:.3g}, allowed is {TOLERANCE}")
        if row["what"].startswith("how far the ends") and not row["value"] > 10 * TOLERANCE:
            out.append(f"{name}: the ends are only {row['value']:.3g} apart, so their comparison says little")
        if row["what"].startswith("status") and row["value"] != 0:
            out.append(f"{name}: it ended with status {row['value']}")
        if row["peak_gb"] > LIMIT_GB:
            out.append(f"{name}: {row['peak_gb']:.1f} GB, allowed are {LIMIT_GB:.0f}")
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layout", choices=(*LAYOUTS, "both"), default="both")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, help="results folder; default $IFCSR_RESULTS, else results/")
    parser.add_argument(
        "--work", type=Path, help="for the checkpoints, removed again; default: a temporary one"
    )
    parser.add_argument("--one", choices=LAYOUTS, help=argparse.SUPPRESS)  # in a child
    args = parser.parse_args(argv)
    if args.one:
        proof(args.one, args.work, args.tiny, Record(args.one, args.work / "rows.jsonl"))
        return 0
    if args.out:
        os.environ["IFCSR_RESULTS"] = str(args.out.resolve())
    print(f"machine: {machine()}", flush=True)
    start, rows = time.perf_counter(), []
    layouts = LAYOUTS if args.layout == "both" else (args.layout,)
    with tempfile.TemporaryDirectory(prefix="ifcsr-", dir=args.work) as made:
        folders = [Path(made).resolve() / layout for layout in layouts]
        for layout, folder in zip(layouts, folders, strict=True):
            rows += run(layout, folder, args.tiny)
            ends = folder / "ends.safetensors"
            for path in [p for p in folder.iterdir() if p != ends]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if layout == layouts[-1] and len(layouts) == 2 and all((f / ends.name).exists() for f in folders):
                rows.append(compare(folders))
            table = pd.DataFrame(rows)
            table["weights"], table["machine"] = "random weights", machine()
            path = write_table(
                table, "full_size_cpu", settings(args.tiny), seconds=time.perf_counter() - start
            )
    print(table.drop(columns=["weights", "machine"]).to_string(float_format="{:.4g}".format))
    print(f"written: {path}")
    for text in (wrong := faults(table)):
        print(f"not as it should be: {text}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
