"""The release tool that writes data/pocket/onnx, on the shipped model and on one of another pocket shape."""

import shutil
import sys

import numpy as np
import pytest
import torch

from ifcsr_lib import models
from ifcsr_lib.config import ROOT, resolve
from ifcsr_lib.lite import missing
from ifcsr_lib.lite import model as lite_model

pytest.importorskip("onnx")
sys.path.insert(0, str(ROOT / "tools" / "pocket"))
import export_onnx
import train_backbone


def test_the_tool_writes_the_repositorys_files(tmp_path):
    """The export is deterministic, and holds no weight: the copy's are other ones."""
    folder = tmp_path / "pocket"
    shutil.copytree(lite_model.POCKET, folder, ignore=shutil.ignore_patterns("onnx"))
    card = export_onnx.export(folder)
    assert lite_model.stale_in(folder) == ""
    for name in lite_model.GRAPHS:
        file = f"onnx/{name}.onnx"
        assert (folder / file).read_bytes() == (lite_model.POCKET / file).read_bytes(), name
    assert card["multiple"] == 16 and card["vae_factor"] == 4


@pytest.mark.skipif("onnxruntime is not" in missing("pocket"), reason=missing("pocket"))
def test_a_model_with_a_deep_compression_autoencoder(tmp_path):
    """48 latent channels, UNet widths 64, 64, 128: the same tool, the same parity."""
    torch.manual_seed(0)
    vae, unet = train_backbone.new_autoencoder(), train_backbone.new_unet()
    with torch.no_grad():
        for p in [*vae.parameters(), *unet.parameters()]:
            p.add_(0.02 * torch.randn_like(p))
    train_backbone.save(tmp_path, unet, torch.randn(1, 4, train_backbone.PROMPT_WIDTH), vae)
    net = models.new(resolve("pocket", overrides={"backbone": str(tmp_path)}))
    with torch.no_grad():
        for name in net.adapters:
            for p in net.adapter(name).values():
                p.add_(0.02 * torch.randn_like(p))
    net.save(tmp_path / "adapters")
    export_onnx.export(tmp_path)
    assert lite_model.stale_in(tmp_path) == ""
    assert export_onnx.difference(tmp_path, net) < 0.1 / 255
    ends = lite_model.LiteModel(tmp_path).endpoints(
        np.random.default_rng(0).random((1, 3, 20, 20), np.float32)
    )
    assert np.abs(ends.x_fid - ends.x_real).max() > 1e-3
