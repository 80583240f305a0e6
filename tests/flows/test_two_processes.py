"""Two CPU processes with half the batch each see the same samples and losses as one process with
the whole.
"""

import ast
import os
import signal
import subprocess
import sys

import helpers
import pytest
import torch

from ifcsr_lib.config import ROOT

SCRIPT = """
import os, sys, numpy as np, torch
from ifcsr_lib import data, loss, models, trainer
from ifcsr_lib.config import resolve
from ifcsr_lib.nets.features import PocketFeatures

torch.set_num_threads(1)
folder, backbone, batch, passes = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
cfg = resolve("smoke", overrides={"backbone": backbone, "batch": batch, "gradient_accumulation": passes})
image = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
torch.manual_seed(3)
net = PocketFeatures((8, 16, 24, 32))
distance = loss.FeatureDistance(net, [torch.ones(c) for c in net.channels])
stage = trainer.Stage1(models.new(cfg), distance)
history = trainer.train(stage, data.Crops({"a": image}, 64, seed=0), cfg, folder, steps=3)
if os.environ.get("RANK", "0") == "0":
    print([row["loss"] for row in history])
"""


def losses(command: list[str], folder, *args) -> list[float]:
    script = folder.parent / "train.py"
    script.write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*command, str(script), str(folder), *args]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return ast.literal_eval(next(line for line in done.stdout.splitlines() if line.startswith("[0")))


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
# on CPUs too
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]


def test_two_processes_equal_one_with_twice_the_batch(tiny_backbone, tmp_path):
    """Within 1e-5 relative: only the order of float32 sums differs. By both launchers, the second in two
    passes of one image.
    """
    whole = losses([sys.executable], tmp_path / "one", str(tiny_backbone), "4", "1")
    assert losses(TORCHRUN, tmp_path / "two", str(tiny_backbone), "2", "1") == pytest.approx(whole, rel=1e-5)
    assert losses(ACCELERATE, tmp_path / "passes", str(tiny_backbone), "1", "2") == pytest.approx(
        whole, rel=1e-5
    )


def test_the_train_command_under_accelerate_writes_one_adapter(tiny_backbone, tmp_path):
    command = helpers.train_command(*ACCELERATE, backbone=tiny_backbone)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "IFCSR_RESULTS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("written: ") == 1 and done.stdout.count("step 4/4") == 1
    adapters = tmp_path / "smoke" / "adapters"
    assert {p.name for p in adapters.iterdir()} == {"fidelity.safetensors", "fidelity.json"}


def test_sigterm_stops_both_processes_after_the_same_step(tiny_backbone, tmp_path):
    long = ("steps_fidelity=3000", "checkpoint_every=3000")
    command = helpers.train_command(*ACCELERATE, backbone=tiny_backbone, settings=long)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "IFCSR_RESULTS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=env, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert "stage1: new run, because" in run.stdout.readline()
        assert "stage1 step 1/3000" in run.stdout.readline()
        run.send_signal(signal.SIGTERM)  # the launcher passes it on to both
        _, text = run.communicate(timeout=120)
    assert run.returncode and text.count("stopped by SIGTERM after step") == 1, text[-2000:]
    (last,) = tmp_path.glob("smoke/runs/stage1-*/last.pt")
    done = torch.load(last, weights_only=True)["step"]
    assert 1 <= done < 3000 and f"after step {done};" in text
