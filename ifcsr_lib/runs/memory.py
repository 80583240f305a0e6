"""Precision, compilation and gradient checkpointing of a training. Here alone torch's private parts
are used.
"""

from __future__ import annotations

import contextlib

import torch
import torch.utils.checkpoint

from ..config import Config


def precision(cfg: Config, device: torch.device):
    """The networks' autocast: bf16, or none. Degradation and losses leave it again, see `float32`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "bf16")


def float32(device: torch.device):
    """No autocast inside."""
    # DECISION D31: degradation and distances in float32, since a bf16 image has about as few steps as an
    # 8-bit one has errors
    return torch.autocast(device.type, enabled=False)


def checkpoint_gradients(model, on: bool = True) -> None:
    """Keep no activations of UNet and VAE but those between blocks; the backward pass computes the rest
    again.

    model: an IFCSR. The second computation goes through the adapters that the first one went through.
    """

    def checkpoint(block, *args):
        chosen = model.lora.chosen

        def again(*args):  # a backward pass comes after other adapters have run
            if chosen is None:
                return block(*args)
            with model.lora.using(chosen):
                return block(*args)

        return torch.utils.checkpoint.checkpoint(again, *args, use_reentrant=False)

    for net in (model.unet, model.vae):
        if on:
            net.enable_gradient_checkpointing(checkpoint)
        else:
            net.disable_gradient_checkpointing()


@contextlib.contextmanager
def speed_and_memory(objective, cfg: Config):
    """For the time of a training: frozen nets in bf16, checkpointed or compiled as cfg says; afterwards all
    is as it was. An objective without a `model` is left as it is.
    """
    model, kept = getattr(objective, "model", None), {}
    compiled = [] if model is None or cfg.compile == "no" else [model.unet, model.vae.decoder]
    try:
        if model is not None and cfg.precision == "bf16":
            # DECISION D30: frozen UNet and VAE are held in bf16, 2 GB less and no cast per step; put back
            # afterwards
            lora = {id(p) for name in model.adapters for p in model.adapter(name).values()}
            for p in (*model.unet.parameters(), *model.vae.parameters()):
                if id(p) not in lora:
                    kept[p] = p.data.cpu()
                    p.data = p.data.bfloat16()
        if model is not None and cfg.gradient_checkpointing:
            checkpoint_gradients(model)
        for module in compiled:
            module.compile(backend=cfg.compile)
        yield
    finally:
        for module in compiled:
            module._compiled_call_impl = None
        if model is not None and cfg.gradient_checkpointing:
            checkpoint_gradients(model, False)
        for p, value in kept.items():
            p.data = value.to(p.device)
