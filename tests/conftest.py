"""Shared fixtures, and the marker of each folder. Nothing here needs a network, a GPU or a file outside the
repository.
"""

import os
from pathlib import Path

import pytest

from ifcsr_lib.config import ROOT

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """tests/unit/... is marked `unit`, tests/flows/... `flows`, and so on (pyproject.toml lists the
    markers).
    """
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(item.path.relative_to(HERE).parts[0])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With -n 2 a file stays in one process, and the notebooks, which read what earlier ones wrote, share one
    with the browser's tests.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            together = nodeid.startswith(("notebooks/", "tests/browser/"))
            return "together" if together else super()._split_scope(nodeid)

    return Scheduling(config, log)


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


@pytest.fixture
def crops():
    import helpers

    return helpers.noise_crops()


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory) -> Path:
    """A very small SD-shaped backbone with random weights, in diffusers' layout: a real UNet and a real
    AutoencoderKL.
    """
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors.torch import save_file

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny_sd")
    UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
        use_linear_projection=True,
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
    ).save_pretrained(folder / "vae")
    save_file({"prompt": torch.randn(1, 3, 16)}, folder / "empty_prompt.safetensors")
    return folder


@pytest.fixture
def tiny_cfg(tiny_backbone):
    """smoke settings on the tiny backbone: 64-pixel patches, batch 2."""
    from ifcsr_lib.config import resolve

    return resolve("smoke", overrides={"backbone": str(tiny_backbone), "rank": 4})
