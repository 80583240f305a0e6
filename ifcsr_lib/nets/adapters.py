"""LoRA adapters on one UNet: add them, read their weights, train some, run through some. All of
peft is here.
"""

from __future__ import annotations

import contextlib
import warnings

from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import nn

# DECISION D3: the module names both peers adapt, 258 modules of SD 2.1-base; no norms, no time embedding
LORA_TARGETS = [
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv", "conv1", "conv2", "conv_in", "conv_out", "conv_shortcut"),
]


class Adapters:
    """The adapters of one UNet, by name. The UNet itself stays frozen.

    peft makes trainable what it activates and freezes the rest. Nothing here does: only `train_only` changes
    which weights take gradients. chosen: what `using` has active now, None outside of it.
    """

    def __init__(self, unet: nn.Module):
        self.unet, self.chosen = unet, None
        self._layers: list[LoraLayer] = []  # found once; a pass over all modules costs milliseconds

    @property
    def names(self) -> list[str]:
        """All adapters that are on the UNet, in the order of their adding."""
        return list(getattr(self.unet, "peft_config", {}))

    def add(self, name: str, rank: int, alpha: int) -> None:
        """Put one more untrained adapter on the UNet (Gaussian A from torch's generator, zero B).

        Raises ValueError for a name that is taken or has a dot.
        """
        if "." in name or name in self.names:
            raise ValueError(
                f"adapter {name!r}: allowed is a new name without a dot, it becomes part of the weights' keys"
            )
        # DECISION D4: alpha 8 and Gaussian A, zero B, as both peers
        config = LoraConfig(
            r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=LORA_TARGETS
        )
        with warnings.catch_warnings(), self._flags_kept():
            # several adapters are the point
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            self.unet.add_adapter(config, adapter_name=name)
        self._layers = []

    def weights(self, *names: str) -> dict[str, nn.Parameter]:
        """{key in the UNet: parameter} of these adapters. Raises ValueError for a name that is not there."""
        if lacks := [name for name in names if name not in self.names]:
            raise ValueError(f"adapter {lacks[0]!r} is unknown; allowed: {', '.join(self.names)}")
        marks = [f".{name}." for name in names]
        return {n: p for n, p in self.unet.named_parameters() if any(mark in n for mark in marks)}

    def train_only(self, *names: str) -> dict[str, nn.Parameter]:
        """Let only these adapters' weights take gradients; returns them as `weights` does."""
        self.unet.requires_grad_(False)
        out = self.weights(*names) if names else {}
        for p in out.values():
            p.requires_grad_(True)
        return out

    @contextlib.contextmanager
    def using(self, adapters: str | list[str] | dict[str, float]):
        """What the UNet computes inside goes through these adapters.

        adapters: one name for all images; a list with one name per image of the batch; or {name: weight}, the
        weighted sum in every layer, where {} is the UNet without any.
        """
        before, self.chosen, hooks = self.chosen, adapters, []

        def choose(module, args, kwargs):
            return args, {**kwargs, "adapter_names": adapters}

        try:
            if isinstance(adapters, list):
                self._layers = self._layers or [m for m in self.unet.modules() if isinstance(m, LoraLayer)]
                hooks = [m.register_forward_pre_hook(choose, with_kwargs=True) for m in self._layers]
            else:
                self._activate(adapters)
            yield
        finally:
            for hook in hooks:
                hook.remove()
            if adapters == {}:
                with self._flags_kept():
                    self.unet.enable_adapters()
            elif isinstance(adapters, dict) and set(adapters.values()) != {1.0}:
                with self._flags_kept():  # peft would keep the scale
                    self.unet.set_adapters(list(adapters), [1.0] * len(adapters))
            self.chosen = before

    def _activate(self, adapters: str | dict[str, float]) -> None:
        if isinstance(adapters, str) and self.unet.active_adapters() in (adapters, [adapters]):
            return
        with self._flags_kept():
            if isinstance(adapters, str):
                self.unet.set_adapter(adapters)
            elif adapters:
                self.unet.set_adapters(list(adapters), list(adapters.values()))
            else:
                self.unet.disable_adapters()

    @contextlib.contextmanager
    def _flags_kept(self):
        flags = [(p, p.requires_grad) for n, p in self.unet.named_parameters() if "lora_" in n]
        try:
            yield
        finally:
            for p, flag in flags:
                p.requires_grad_(flag)
