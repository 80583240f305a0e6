"""The environment cannot drift: pyproject, locks, environment.yml, Makefile and what is installed agree."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from ifcsr_lib.config import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, UV = PYPROJECT["project"], PYPROJECT["tool"]["uv"]
EXTRAS = PROJECT["optional-dependencies"]
CUDA_ONLY = re.compile(r"(torch|torchvision|triton|nvidia-.*|cuda-.*)$")
LINUX = {
    "sys_platform": "linux",
    "platform_system": "Linux",
    "os_name": "posix",
    "platform_machine": "x86_64",
}
MACHINES = {
    "linux": LINUX,
    "windows": {
        "sys_platform": "win32",
        "platform_system": "Windows",
        "os_name": "nt",
        "platform_machine": "AMD64",
    },
    "macos": {
        "sys_platform": "darwin",
        "platform_system": "Darwin",
        "os_name": "posix",
        "platform_machine": "arm64",
    },
}


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def pins(name: str) -> dict[str, str]:
    """{requirement: its lines} of a lock file."""
    blocks = re.split(r"\n(?=[^\s#])", "\n" + text(name))[1:]
    return {block.split("\\")[0].strip(): block for block in blocks}


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-cpu.lock", "requirements-headless.lock"])
def test_locks_are_pinned_and_hashed_and_name_no_host_or_folder(name):
    for pin, block in pins(name).items():
        assert re.match(r"[\w.-]+==[\w.+!]+( ;|$)", pin), pin
        assert "--hash=sha256:" in block, f"{pin} has no hash"
    assert not re.search(r"https?://|file:|--(extra-)?index|--find-links|(^|\s)/\w+/", text(name))


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("machine", MACHINES)
def test_lock_satisfies_pyproject(machine, python):
    where = MACHINES[machine] | {"python_version": python, "python_full_version": f"{python}.6"}
    locked = {}
    for pin in map(Requirement, pins("requirements.lock")):
        if pin.marker is None or pin.marker.evaluate(where):
            assert canonicalize_name(pin.name) not in locked, f"{pin.name} is there twice"
            locked[canonicalize_name(pin.name)] = str(pin.specifier).removeprefix("==")
    for pin in map(Requirement, UV["constraint-dependencies"]):
        assert pin.specifier.contains(locked[pin.name]), (
            f"[tool.uv] wants {pin}, the lock has {locked[pin.name]}: make lock"
        )
    assert int(locked["setuptools"].split(".")[0]) < 81, "pyiqa's clipiqa imports pkg_resources"
    for wanted in map(Requirement, PROJECT["dependencies"] + EXTRAS["full"] + EXTRAS["dev"]):
        name = canonicalize_name(wanted.name)
        assert name in locked, f"pyproject wants {wanted}, the lock has none: make lock"
        assert wanted.specifier.contains(locked[name]), (
            f"pyproject wants {wanted}, the lock has {locked[name]}: make lock"
        )


def test_the_two_small_locks_are_parts_of_the_lock():
    lock = pins("requirements.lock")
    rest = {pin: block.strip() for pin, block in lock.items() if not CUDA_ONLY.match(pin.split("==")[0])}
    assert {pin: block.strip() for pin, block in pins("requirements-cpu.lock").items()} == rest, "make lock"
    (pin,) = headless = pins("requirements-headless.lock")
    assert pin.startswith("opencv-python-headless==") and headless[pin].strip() == lock[pin].strip(), (
        "make lock"
    )


def test_the_lock_was_made_by_the_makefile():
    """Its header names the command with the Makefile's options; --upgrade and the order of options may
    differ.
    """
    command = set(re.search(r"^COMPILE := (.*)$", text("Makefile"), re.MULTILINE)[1].split())
    header = set(re.search(r"^#    uv (.*)$", text("requirements.lock"), re.MULTILINE)[1].split())
    assert command <= header and header - command <= {"-o", "requirements.lock", "--upgrade", "-q"}, (
        "make lock"
    )


def test_the_light_install_needs_nothing_heavy():
    light, more = (
        {Requirement(w).name for w in wanted} for wanted in (PROJECT["dependencies"], EXTRAS["full"])
    )
    assert EXTRAS["lite"] == [] and not light & more
    assert {"torch", "scipy", "pandas", "safetensors"} <= more and "onnxruntime" in light


def test_conda_installs_the_very_lock():
    python, pip, packages = yaml.safe_load(text("environment.yml"))["dependencies"]
    assert packages == {"pip": ["-r requirements.lock"]} and pip == "pip"
    name, version = python.split("=")
    assert name == "python" and SpecifierSet(PROJECT["requires-python"]).contains(version)


def test_installed_packages_fit_together():
    """But for what the lock leaves out on purpose."""
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    left_out = {Requirement(text).name for text in UV["override-dependencies"]}
    lines = [
        line
        for line in done.stdout.splitlines()
        if line.split(" requires ")[-1].split(",")[0] not in left_out
    ]
    assert done.stdout and lines in ([], ["No broken requirements found."]), done.stdout + done.stderr


def test_what_needs_care_imports():
    """pyiqa needs pkg_resources (setuptools < 81) and a cv2 that works on a server without libGL."""
    code = (
        "import pyiqa, torchvision, diffusers, peft, pkg_resources, cv2;"
        "assert pyiqa.create_metric('psnr').lower_better is False; print(cv2.getBuildInformation())"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    if sys.platform == "linux":
        how = "python -m pip install --no-deps --force-reinstall -r requirements-headless.lock"
        assert re.search(r"GUI:\s+NONE", done.stdout), f"cv2 is the build that needs libGL; {how}"


def test_the_code_allows_older_torch_and_this_one():
    torch = next(r for r in map(Requirement, EXTRAS["full"]) if r.name == "torch")
    assert torch.specifier.contains("2.9.0") and not torch.specifier.contains("2.8.0")
    assert torch.specifier.contains(importlib.metadata.version("torch"))
