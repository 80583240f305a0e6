"""describe: what a profile builds, as JSON."""

from __future__ import annotations

import argparse
import json

from .options import add_run_options, config

TEXT = "Print sizes, adapters, backbone and settings of a profile as JSON."
STORY = """\
Parameters of UNet, VAE and one adapter, the number of adapted modules, the backbone with the
sha256 of its files where they are here, the config and its hash. Nothing is downloaded: the
shapes of SD 2.1-base, SD-Turbo and SD 1.5 are known, and the network is built without weights."""
EXAMPLE = "python -m ifcsr_lib describe --profile paper"


def add(p: argparse.ArgumentParser) -> None:
    add_run_options(p, "rank=8 backbone=stabilityai/sd-turbo")


def describe(cfg) -> dict:
    """Sizes, adapters and backbone of a Config as a JSON-ready dict; the network is built on the meta device.

    Downloads nothing: a backbone that is not here is described by its published shape, with hash None.
    """
    import torch

    from ..nets.backbone import shapes
    from .dry_run import shaped

    unet_config, _, source, where = shapes(cfg)
    with torch.device("meta"):
        model = shaped(cfg)
    adapter = model.adapter("fidelity")
    size = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    added = sum(p.numel() for name in model.adapters for p in model.adapter(name).values())
    return {
        "profile": cfg.profile,
        "backbone": source or {"id": cfg.backbone, "revision": cfg.revision, "hash": None, "files": None},
        "configuration": where,
        "parameters": {
            "unet": size["unet"] - added,
            "vae": size["vae"],
            "adapter": sum(p.numel() for p in adapter.values()),
        },
        "lora": {
            "adapters": list(model.adapters),
            "modules": len({key.split(".lora_")[0] for key in adapter}),
            "rank": cfg.rank,
            "alpha": cfg.lora_alpha,
        },
        "prompt_width": unet_config["cross_attention_dim"],
        "vae_factor": model.vae_factor,
        "multiple": model.multiple,
        "config_hash": cfg.hash,
        "config": cfg.asdict(),
    }


def run(args: argparse.Namespace) -> int:
    print(json.dumps(describe(config(args)), indent=1))
    return 0
