"""A wheel, unpacked elsewhere: it holds every file that the library reads, and works without a checkout."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from PIL import Image

from ifcsr_lib.config import ROOT

FILES = [*(ROOT / "data" / "pocket").rglob("*"), *(ROOT / "data" / "paper").rglob("*")]

USE = """
import json
from pathlib import Path
import torch
import ifcsr_lib
from ifcsr_lib import config, data, evaluate
from ifcsr_lib.data import sets
from ifcsr_lib.reproduce import notebooks

model = ifcsr_lib.load("pocket", device="cpu")
ends = model.endpoints(torch.rand(1, 3, 16, 16))
try:
    notebooks()
    text = "found"
except FileNotFoundError as error:
    text = str(error)
print(json.dumps({
    "library": ifcsr_lib.__file__, "root": str(config.ROOT), "results": str(model.cfg.results),
    "shape": list(ends.x_real.shape), "photos": len(data.photos("heldout")),
    "reported": len(evaluate.reported()),
    "niqe": evaluate.missing("niqe-pocket"), "manifest": (sets.PUBLISHED / "realsr.csv").is_file(),
    "notebooks": text,
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built from a copy: a build writes into its source folder."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("ifcsr_lib", "data"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-q"]
    done = subprocess.run(
        [*command, "-w", made, source], cwd=made, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = made.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def unpacked(wheel):
    with zipfile.ZipFile(wheel) as file:
        file.extractall(wheel.parent / "site")
    return wheel.parent / "site"


def test_the_wheel_holds_every_shipped_file_and_no_second_package(unpacked):
    there = {p.relative_to(ROOT).as_posix(): p.read_bytes() for p in FILES if p.is_file()}
    assert len(there) > 12
    shipped = unpacked / "ifcsr_lib" / "shipped"
    found = {p.relative_to(shipped).as_posix(): p.read_bytes() for p in shipped.rglob("*") if p.is_file()}
    assert found == there
    assert [p.name for p in unpacked.iterdir() if not p.name.endswith(".dist-info")] == ["ifcsr_lib"]
    own = [p for p in (ROOT / "ifcsr_lib").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    packed = [p for p in (unpacked / "ifcsr_lib").rglob("*") if p.is_file() and shipped not in p.parents]
    assert {p.relative_to(ROOT) for p in own} == {p.relative_to(unpacked) for p in packed}


@pytest.mark.parametrize("setting", [None, "mine"])
def test_it_works_from_any_folder(unpacked, tmp_path, setting):
    env = {k: v for k, v in os.environ.items() if k != "IFCSR_RESULTS"} | {"PYTHONPATH": str(unpacked)}
    if setting:
        env["IFCSR_RESULTS"] = str(tmp_path / setting)
    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["library"].startswith(str(unpacked)) and said["root"].startswith(str(unpacked))
    assert said["results"] == str(tmp_path / (setting or "results") / "pocket")
    assert said["shape"] == [1, 3, 64, 64] and said["photos"] > 1 and said["reported"] > 10
    assert said["niqe"] == [] and said["manifest"] and "whole repository" in said["notebooks"]


def test_the_console_command_is_the_command_line(unpacked, monkeypatch, capsys):
    """What an installer is told to make `ifcsr` of, called."""
    (own,) = importlib.metadata.distributions(path=[str(unpacked)])
    (script,) = own.entry_points.select(group="console_scripts")
    assert script.name == "ifcsr"
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/ifcsr", "upscale", "--help"])
    monkeypatch.setenv("OMP_WAIT_POLICY", "x")  # for the end of the test
    monkeypatch.delenv("OMP_WAIT_POLICY")
    with pytest.raises(SystemExit) as end:
        script.load()()
    said = capsys.readouterr().out
    assert end.value.code == 0 and said.startswith("usage: ifcsr upscale")
    assert "\n  ifcsr upscale " in said and "python -m" not in said
    assert os.environ["OMP_WAIT_POLICY"] == "passive"  # as python -m ifcsr_lib does


def test_an_installed_command_upscales_in_any_folder(wheel, tmp_path):
    site = tmp_path / "site"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "-q",
        "--target",
        site,
        wheel,
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    Image.new("RGB", (20, 16), "teal").save(tmp_path / "photo.png")
    env = os.environ | {"PYTHONPATH": str(site), "IFCSR_RESULTS": ""}
    command = [site / "bin" / "ifcsr", "upscale", "photo.png", "photo_x4.png"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "photo_x4.png").size == (80, 64)


def test_the_light_install_alone_works(wheel, tmp_path):
    """pip install of the wheel with what it requires: under 200 MB, no torch, `upscale` and `explore`."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    python = next(p for p in (venv / "bin" / "python", venv / "Scripts" / "python.exe") if p.is_file())
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "IFCSR_RESULTS")}

    def run(*command):
        return subprocess.run(
            [python, *map(str, command)], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )

    before = sum(p.stat().st_size for p in venv.rglob("*") if p.is_file())
    done = run("-m", "pip", "install", "-q", "--timeout", "20", "--retries", "0", f"{wheel}[lite]")
    if any(sign in done.stderr for sign in ("NewConnectionError", "Temporary failure", "No matching dist")):
        pytest.skip("no package registry is reached: " + done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    size = sum(p.stat().st_size for p in venv.rglob("*") if p.is_file() and p.suffix != ".pyc") - before
    assert size < 200e6, size
    assert run("-c", "import torch").returncode == 1
    Image.new("RGB", (20, 16), "teal").save(tmp_path / "photo.png")
    done = run("-m", "ifcsr_lib", "upscale", "photo.png", "photo_x4.png")
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "photo_x4.png").size == (80, 64)
    done = run("-m", "ifcsr_lib", "explore", "photo.png", "--no-open", "--out", "page.html")
    assert done.returncode == 0 and (tmp_path / "page.html").is_file(), done.stderr
    done = run("-c", "import ifcsr_lib; ifcsr_lib.load('pocket')")
    assert done.returncode == 1 and "'torch'; the light install has upscale" in done.stderr, done.stderr
    done = run("-m", "ifcsr_lib", "upscale", "photo.png", "x.png", "--backend", "torch")
    assert done.returncode == 2 and "[full]" in done.stderr, done.stderr
