"""Export the shipped pocket model's graphs to ONNX, for ifcsr_lib/lite.

    pip install onnx onnxruntime
    python tools/pocket/export_onnx.py [--folder data/pocket]

Writes FOLDER/onnx/{encoder,unet,decoder}.onnx and export.json. The graphs hold no weights, so both adapters
share one UNet graph and the files stay under a megabyte; ifcsr_lib/lite fills them from the weights beside
them, with an adapter merged. export.json holds the sha256 of every file that the export belongs to. The same
model gives the same bytes. With onnxruntime installed, the result is compared with torch before it is kept.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ifcsr_lib import models
from ifcsr_lib.config import resolve_model
from ifcsr_lib.files.results import atomic, read_json, sha256, write_json
from ifcsr_lib.lite.model import FORMAT, GRAPHS, POCKET, WEIGHTS, LiteModel, stale_in
from ifcsr_lib.nets.latents import latent_of

OPSET = 18
SIZES = ((33, 47), (64, 64), (20, 90))  # low-resolution sides of the comparison
LEVELS = 1 / 255  # the largest difference from torch that is kept


class Encoder(nn.Module):
    """models.IFCSR.encode at inference."""

    def __init__(self, vae: nn.Module):
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor) -> Tensor:
        return latent_of(self.vae.encode(2 * x - 1)) * self.vae.config.scaling_factor


class Step(nn.Module):
    """models.IFCSR.one_step without an adapter: one is merged into the weights later."""

    def __init__(self, unet: nn.Module, prompt: Tensor, timestep: int):
        super().__init__()
        self.unet, self.timestep = unet, timestep
        self.prompt = nn.Parameter(prompt, requires_grad=False)

    def forward(self, z: Tensor) -> Tensor:
        return z - self.unet(z, self.timestep, self.prompt.expand(len(z), -1, -1)).sample


class Decoder(nn.Module):
    """models.IFCSR.decode."""

    def __init__(self, vae: nn.Module):
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> Tensor:
        return (self.vae.decode(z / self.vae.config.scaling_factor).sample + 1) / 2


def graph(module: nn.Module, x: Tensor) -> tuple[bytes, list[str]]:
    """The ONNX file of module(x) with free height and width, and the names of the weights it wants.

    x: an example. The module's weights are overwritten: distinct noise keeps the exporter from joining
    tensors that happen to be equal, and shows that no weight is in the graph.
    """
    import onnx

    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * 0.02)
    own, axes = dict(module.named_parameters()), {2: "h", 3: "w"}
    with tempfile.TemporaryDirectory(prefix="ifcsr-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, of sizes that are constants here
        torch.onnx.export(
            module.eval(),
            (x,),
            Path(folder, "a.onnx"),
            dynamo=False,
            opset_version=OPSET,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "n"} | axes, "y": {0: "n"} | axes},
            do_constant_folding=False,
        )
        proto = onnx.load(Path(folder, "a.onnx"))
    wanted = []
    for tensor in proto.graph.initializer:
        if tensor.name not in own:
            if np.prod(tensor.dims) > 64:
                raise ValueError(f"the graph holds {tensor.name} {list(tensor.dims)}, which is no weight")
            continue
        wanted.append(tensor.name)
        size = 4 * int(np.prod(tensor.dims))
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "weights"), ("offset", "0"), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)
    for node in proto.graph.node:
        for attribute in node.attribute:  # the exporter counts the axes of a movedim from the end
            if (node.op_type, attribute.name) == ("Transpose", "perm"):
                attribute.ints[:] = [axis % len(attribute.ints) for axis in attribute.ints]
    proto.producer_version = ""
    return proto.SerializeToString(deterministic=True), sorted(wanted)


def export(folder: Path) -> dict:
    """Write folder/onnx for the model in folder (unet/, vae/, empty_prompt.safetensors, adapters/); returns
    export.json's content.
    """
    cfg = resolve_model(read_json(folder / "adapters" / "ifcsr.json")["model"])
    model = models.new(cfg.replace(backbone=str(folder) if folder != POCKET else "pocket"))
    unet, *_ = models.load_backbone(model.cfg)  # a second one, without adapters
    unet = unet.float().requires_grad_(False)
    about = {"vae_factor": model.vae_factor, "multiple": model.multiple}
    side = 8 * model.multiple
    z = torch.zeros(1, unet.config.in_channels, side // model.vae_factor, 3 * side // model.vae_factor // 2)
    vae = model.vae.float().to(memory_format=torch.contiguous_format)
    parts = {
        "encoder": (Encoder(vae), torch.zeros(1, 3, side, 3 * side // 2)),
        "unet": (Step(unet, model.prompt.clone(), cfg.timestep), z),
        "decoder": (Decoder(vae), z),
    }
    names, target = {}, folder / "onnx"
    for part in GRAPHS:
        data, names[part] = graph(*parts[part])
        with atomic(target / f"{part}.onnx") as tmp:
            tmp.write_bytes(data)
    files = [f"onnx/{part}.onnx" for part in GRAPHS]
    card = {
        "format": FORMAT,
        **about,
        "weights": {name: sha256(folder / name) for name in WEIGHTS},
        "graphs": {name: sha256(folder / name) for name in files},
        "initializers": names,
    }
    write_json(card, target / "export.json")
    return card


def difference(folder: Path, model: models.IFCSR) -> float:
    """The largest difference of both ends between ONNX Runtime and torch over SIZES of smooth noise, in [0,
    1]; tiled too.
    """
    lite, worst = LiteModel(folder), 0.0
    draw = np.random.default_rng(0)
    for tile in (model.cfg.tile, 128):
        for m in (lite, model):
            m.cfg = m.cfg.replace(tile=tile, tile_overlap=min(64, model.cfg.tile_overlap))
        for h, w in SIZES:
            lq = (
                draw.random((1, 3, h // 4 + 1, w // 4 + 1), np.float32).repeat(4, 2).repeat(4, 3)[..., :h, :w]
            )
            ours, torchs = lite.endpoints(lq), model.endpoints(torch.from_numpy(lq.copy()))
            for end in ("x_fid", "x_real"):
                worst = max(worst, float(np.abs(getattr(ours, end) - getattr(torchs, end).numpy()).max()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=POCKET, help="the model (default data/pocket)")
    folder = parser.parse_args().folder
    folder = POCKET if folder.resolve() == POCKET.resolve() else folder
    export(folder)
    total = sum(p.stat().st_size for p in (folder / "onnx").iterdir())
    print(f"written: {folder / 'onnx'}, {total / 1e6:.2f} MB")
    if reason := stale_in(folder):
        raise SystemExit(f"error: {reason}")
    try:
        worst = difference(folder, models.load("pocket" if folder == POCKET else folder / "adapters", "cpu"))
    except ImportError as error:
        print(f"not compared with torch: {error}")
        return
    print(f"largest difference from torch: {255 * worst:.4f} of 255 levels")
    if worst > LEVELS:
        (folder / "onnx" / "export.json").unlink()
        raise SystemExit(
            "error: more than one level; export.json is removed, so that nothing uses the graphs"
        )


if __name__ == "__main__":
    main()
