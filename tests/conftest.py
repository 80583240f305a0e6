"""Shared fixtures. Nothing here needs a network, a GPU or a file outside the repository."""

import os
from pathlib import Path

import pytest

from ifcsr_lib.config import ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder with realsr/, kodak/, weights/: $IFCSR_DATA, or shared/data beside the checkout."""
    for folder in (os.environ.get("IFCSR_DATA"), ROOT.parent / "shared" / "data"):
        if folder and (Path(folder) / "realsr").is_dir():
            return Path(folder)
    pytest.skip("no RealSR data: set IFCSR_DATA to a folder with realsr/{LR,HR} (see data/README.md)")


@pytest.fixture(autouse=True)
def _results_elsewhere(tmp_path, monkeypatch):
    """Tests never write to a tracked file."""
    monkeypatch.setenv("IFCSR_RESULTS", str(tmp_path / "results"))
