"""Make data/pocket/features.safetensors, the loss network of the pocket profile.

    python tools/pocket/features.py --vgg hed_vgg16_conv1_to_4_bgr_caffe_fp16.npz [--photos FOLDER]

Writes VGG16's convolutions conv1_1 to conv4_3 (float16, as they come) and one strength per depth.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from ifcsr_lib import config, data, images, results
from ifcsr_lib.files.checks import check_pointer
from ifcsr_lib.loss import FeatureDistance
from ifcsr_lib.nets.features import POCKET_FEATURES, PocketFeatures


def read_vgg(path: Path) -> dict[str, Tensor]:
    """The state of PocketFeatures from the .npz (keys as in data/README.md): float16 weights, OIHW."""
    check_pointer(path)
    arrays, state = np.load(path, allow_pickle=False), {}
    for block, count in enumerate((2, 2, 3, 3)):
        for i in range(count):
            for part in ("weight", "bias"):
                array = arrays[f"conv{block + 1}_{i + 1}.{part}"]
                state[f"blocks.{block}.{2 * i}.{part}"] = torch.from_numpy(array.astype(np.float16))
    return state


def strengths(net: PocketFeatures, crops, cfg: config.Config, count: int = 64) -> Tensor:
    """(5,) weights with which each D_l is 0.1 on average between bicubic x_L and x_H, over `count` crops."""
    # DECISION D25: LPIPS fits these to human judgements, which we lack; equal strength per depth leaves the
    # balance to k
    ones, total = FeatureDistance(net, [torch.ones(c) for c in net.channels]), torch.zeros(6)
    for i in range(count):
        x_H = crops[i]["x_H"][None]
        with torch.inference_mode():
            total += ones(data.low_quality(x_H, cfg, [i])[1], x_H)
    return 0.1 * count / total[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vgg", type=Path, required=True)
    parser.add_argument("--photos", type=Path, help="a folder; default: the photographs of the wheels")
    parser.add_argument("--out", type=Path, default=POCKET_FEATURES)
    args = parser.parse_args()
    cfg, state, net = config.resolve("pocket"), read_vgg(args.vgg), PocketFeatures()
    net.load_state_dict({name: value.float() for name, value in state.items()} | {"mean": net.mean})
    paths = images.list_images(args.photos) if args.photos else [p.path for p in data.photos("train")]
    crops = data.Crops(data.load_images(paths, 128), 128, cfg.seed)
    state["strength"] = strengths(net, crops, cfg)
    print("strength per depth:", [round(w, 4) for w in state["strength"].tolist()])
    with results.atomic(args.out) as tmp:
        save_file(state, tmp)


if __name__ == "__main__":
    main()
