"""What a fresh process loads, by the names of modules (no time is asserted), and settles before torch."""

import json
import os
import runpy
import subprocess
import sys

import pytest

from ifcsr_lib.config import ROOT

# no part of the model needs them; peft and diffusers bring transformers, scipy and torchvision themselves
ELSEWHERE = {
    "IPython",
    "anywidget",
    "cv2",
    "datasets",
    "ifcsr_lib.cli",
    "ifcsr_lib.compare",
    "ifcsr_lib.evaluate",
    "ifcsr_lib.explorer",
    "ifcsr_lib.figures",
    "ifcsr_lib.pipeline",
    "ifcsr_lib.reproduce",
    "ifcsr_lib.trainer",
    "ipywidgets",
    "lpips",
    "matplotlib",
    "nbformat",
    "onnxruntime",
    "pandas",
    "papermill",
    "pkg_resources",
    "pyiqa",
    "skimage",
    "sklearn",
    "tensorboard",
    "torch.utils.tensorboard",
}
HEAVY = ELSEWHERE | {
    "PIL",
    "accelerate",
    "bitsandbytes",
    "diffusers",
    "huggingface_hub",
    "numpy",
    "peft",
    "safetensors",
    "scipy",
    "torch",
    "torchvision",
    "tqdm",
    "transformers",
}
TELL = "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
HELP = """import runpy, sys
sys.argv[1:] = ["--help"]
try:
    runpy.run_module("ifcsr_lib", run_name="__main__", alter_sys=True)
except SystemExit as done:
    assert not done.code"""


def loaded(code: str) -> set[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code + TELL], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("code, own", [("import ifcsr_lib", set()), (HELP, {"ifcsr_lib.cli"})])
def test_the_library_and_its_help_load_nothing_heavy(code, own):
    found = loaded(code)
    assert {"ifcsr_lib", *own} <= found and not found & (HEAVY - own)


def test_the_shipped_model_loads_what_it_uses(monkeypatch):
    """The very command that benchmarks/startup.py times."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import startup

    _, code = startup.COMMANDS['load("pocket")']
    found = loaded(code)
    assert {"torch", "diffusers", "peft", "ifcsr_lib.models"} <= found and not found & ELSEWHERE


@pytest.mark.parametrize("users, wanted", [(None, "passive"), ("active", "active")])
def test_the_command_lets_waiting_threads_sleep_unless_told_otherwise(users, wanted, monkeypatch, capsys):
    """Before torch is there, so that libgomp reads it; notebooks and processes of a command inherit it."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "x")  # for the end of the test
    monkeypatch.delenv("OMP_WAIT_POLICY")
    if users:
        monkeypatch.setenv("OMP_WAIT_POLICY", users)
    monkeypatch.setattr(sys, "argv", ["ifcsr_lib", "--version"])
    monkeypatch.setattr("ifcsr_lib.cli.main", lambda: print(os.environ["OMP_WAIT_POLICY"]))
    with pytest.raises(SystemExit):
        runpy.run_module("ifcsr_lib", run_name="__main__")
    assert capsys.readouterr().out.strip() == wanted == os.environ["OMP_WAIT_POLICY"]
