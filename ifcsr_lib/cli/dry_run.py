"""What a training costs before it starts: memory and arithmetic counted on tensors without data, hours from
stated rates.

`cost` runs one real training step of trainer.Stage1 or Stage2 under PyTorch's FakeTensorMode: every
operation, shape and dtype of the step, no data, no download, no GPU. Figures made here are computed, not
measured.
"""

from __future__ import annotations

import gc
import re
import warnings
import weakref

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..config import Config
from ..loss import FeatureDistance
from ..models import IFCSR
from ..nets.backbone import shapes, vae_class
from ..nets.features import PocketFeatures, VGG16Features
from ..runs.memory import precision, speed_and_memory
from ..trainer import Stage1, Stage2

PHOTOS = 95_000  # the paper's training set: FFHQ's first 10,000 and LSDIR's 85,000
# bytes for CUDA's context, cuDNN's workspaces and fragments, which no count of tensors sees; assumed
RESERVE = 1.5e9
# Reached, not peak, operations per second. H100 and A100: PiSA-SR's published 0.057 s and 0.09 s per image
# for encoder, UNet and decoder, 4.43e12 operations at 512x512. The other two: the A100's share of its peak
# (49 of 312), assumed to carry over.
CARDS = {"H100": 78e12, "A100": 49e12, "RTX 4090": 26e12, "RTX 4070": 9e12}
ASSUMED = ("RTX 4090", "RTX 4070")
BY_MEMORY = {"24 GB": "RTX 4090", "12 GB": "RTX 4070"}  # which card a size stands for in `dry_run`


class Meter(TorchDispatchMode):
    """Bytes of all tensors alive that were made inside, `now` and at their `peak`. Counts each storage once.

    Python's cycle collector rests meanwhile: when it runs is chance, and checkpointed gradients leave it
    tensors to free.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._seen = weakref.WeakSet()

    def __enter__(self):
        self._collecting = gc.isenabled()
        gc.disable()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        if self._collecting:
            gc.enable()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and (storage := x.untyped_storage()) not in self._seen:
                self._seen.add(storage)
                size = storage.nbytes()
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, size)
        return out

    def _gone(self, size: int) -> None:
        self.now -= size


def shaped(cfg: Config) -> IFCSR:
    """An IFCSR of the backbone's shape without its weights (backbone.shapes: pocket's, a folder's, a file's,
    a known hub id's).
    """
    unet_config, vae_config, *_ = shapes(cfg)
    unet, vae = UNet2DConditionModel.from_config(unet_config), vae_class(vae_config).from_config(vae_config)
    tokens = 4 if cfg.backbone == "pocket" else 77
    prompt = torch.zeros(1, tokens, unet.config.cross_attention_dim)
    return IFCSR(cfg, unet, vae, prompt, {"id": cfg.backbone, "revision": None, "hash": "shape"})


def cost(cfg: Config, stage: int) -> dict:
    """One step of stage 1 or 2 on one card: {"parameters", "trained", "weights", "peak", "operations"}.

    weights: bytes of everything that stays (networks, LoRA, its gradients and AdamW's two moments). peak: the
    most bytes alive at once, weights included, RESERVE not. operations: 2 per multiply-add, of all
    cfg.gradient_accumulation passes, both directions. Degradation and ema are left out, and compile is not
    foreseen.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    cfg = cfg.replace(compile="no", ema=0.0)
    objective_class = (Stage1, Stage2)[stage - 1]
    with torch.device("meta"):
        model = shaped(cfg)
        net = VGG16Features(pretrained=False) if cfg.features == "vgg16" else PocketFeatures()
        objective = objective_class(model, FeatureDistance(net, [torch.ones(c) for c in net.channels]))
    with FakeTensorMode(), Meter() as meter, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for net in objective.modules():
            _allocate(net)
        x = torch.zeros(cfg.batch, 3, cfg.patch, cfg.patch)
        side = cfg.patch // model.vae_factor
        noise = torch.zeros(cfg.batch, model.unet.config.in_channels, side, side)

        def inputs(batch):
            with torch.no_grad():
                return x, x, model.encode(x, noise)

        objective.inputs, objective.gamma = inputs, lambda batch: 0.5
        lora = {id(p) for name in model.adapters for p in model.adapter(name).values()}
        parameters = sum(
            p.numel() for p in (*model.unet.parameters(), *model.vae.parameters()) if id(p) not in lora
        )
        trained = objective.trainable()
        with speed_and_memory(objective, cfg):
            for p in trained.values():
                p.grad = torch.zeros_like(p)
            states = [torch.zeros_like(p) for p in trained.values() for _ in range(2)]
            # the float32 originals of what is held in bf16 wait in the host's memory
            host = 4 * parameters if cfg.precision == "bf16" else 0
            weights = meter.peak = meter.now
            hooks = _norms_in_float32(model) if cfg.precision == "bf16" else []
            with FlopCounterMode(display=False, custom_mapping=_attention()) as counter:
                with precision(cfg, torch.device("cpu")):
                    step = objective.loss({"x_H": x, "index": torch.arange(cfg.batch)})
                step.loss.backward()
                del step
            peak = meter.peak
            for hook in hooks:
                hook.remove()
        del states
    return {
        "parameters": parameters,
        "trained": sum(p.numel() for p in trained.values()),
        "weights": weights - host,
        "peak": peak - host,
        "operations": counter.get_total_flops() * cfg.gradient_accumulation,
    }


def _allocate(net: nn.Module) -> None:
    """Parameters and buffers made anew in the mode that is active."""
    for module in net.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = nn.Parameter(torch.empty(p.shape), p.requires_grad)
        for name, b in module._buffers.items():
            module._buffers[name] = torch.empty(b.shape)


def _attention() -> dict:
    """The CPU's fused attention, which FlopCounterMode does not know; CUDA's does the same products."""
    from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return {
        forward: lambda q, k, v, *args, out_shape=None, **kw: sdpa_flop_count(q, k, v),
        backward: lambda grad, q, k, v, *args, out_shape=None, **kw: sdpa_backward_flop_count(grad, q, k, v),
    }


def _norms_in_float32(model: nn.Module) -> list:
    """What CUDA's autocast does with normalisations and a CPU's does not; their float32 inputs are kept for
    the way back.
    """
    norms = (m for m in model.modules() if isinstance(m, (nn.GroupNorm, nn.LayerNorm)))
    return [m.register_forward_pre_hook(lambda module, args: (args[0].float(), *args[1:])) for m in norms]


def dry_run(cfg: Config, stage: int, cards: str = "1x H100", counted: dict | None = None) -> dict:
    """Print and return what `runs.recipes.run_stage(cfg, stage)` would take on `cards`, such as "1x H100",
    "1x 24 GB" or "8x A100".

    Nothing is loaded, downloaded or written. counted: what `cost(cfg, stage)` gave, to spare a second count.
    Raises ValueError for a card without a rate (CARDS, BY_MEMORY).
    """
    form = re.fullmatch(r"([1-9]\d*) ?x ?(.+)", cards)
    card = BY_MEMORY.get(form[2], form[2]) if form else None
    if card not in CARDS:
        raise ValueError(
            f"cards={cards!r}; allowed: a number, x and one of {', '.join([*CARDS, *BY_MEMORY])}, such as "
            "'8x A100'"
        )
    count, rate = int(form[1]), CARDS[card]
    meant = cards if card == form[2] else f"{cards} (counted as {card})"
    steps = cfg.steps_fidelity if stage == 1 else cfg.steps_realism
    one, each = counted or cost(cfg, stage), cfg.batch * cfg.gradient_accumulation
    images, seconds = steps * each * count, one["operations"] / rate
    out = one | {
        "stage": stage,
        "cards": cards,
        "steps": steps,
        "images": images,
        "epochs": images / PHOTOS,
        "seconds_a_step": seconds,
        "hours": steps * seconds / 3600,
    }
    *_, shape = shapes(cfg)
    rows = {
        "run": f"profile {cfg.profile}, stage {stage}, {meant}; nothing was loaded, started or written",
        "backbone": f"{cfg.backbone}, {shape}: {one['parameters']:,} frozen parameters (UNet and VAE)",
        "trained": f"{one['trained']:,} parameters, rank {cfg.rank}",
        "a step": f"{each * count} images of {cfg.patch}x{cfg.patch} (batch {cfg.batch} x "
        f"{cfg.gradient_accumulation} passes x {count} cards), {one['operations'] / 1e12:.1f}e12 "
        "operations a card",
        "the run": f"{steps:,} steps, {images:,} images, {images / PHOTOS:.2f} times the paper's {PHOTOS:,}",
        "memory a card": f"{one['peak'] / 1e9:.2f} GB of tensors at the peak ({one['weights'] / 1e9:.2f} GB "
        f"stay), and about {RESERVE / 1e9:.1f} GB for CUDA itself: computed, not measured",
        "time": f"{seconds:.2f} s a step, {out['hours']:.1f} h, at "
        f"{'an assumed ' * (card in ASSUMED)}{rate / 1e12:.0f}e12 operations a second ({card}, "
        "networks only, no data, no exchange between cards): computed, not measured",
        "24 h on one H100": "the paper's time a stage, would be "
        f"{86400 / (one['operations'] / CARDS['H100']):,.0f} of these steps by the same "
        "arithmetic (D5)",
    }
    for name, text in rows.items():
        print(f"{name + ':':18s}{text}")
    return out
