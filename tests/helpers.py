"""What several test files need: photographs made of noise, a feature distance, adapters that do something."""

import torch

from ifcsr_lib.data import Crops
from ifcsr_lib.loss import FeatureDistance
from ifcsr_lib.nets.features import PocketFeatures


def rand(*shape: int, seed=0) -> torch.Tensor:
    """Uniform in [0, 1], the same at every call."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def train_command(*launcher: str, backbone, settings=()) -> list[str]:
    """Stage 1 of profile smoke on this backbone as a command, started by `launcher`."""
    command = ["-m", "ifcsr_lib", "train", "--profile", "smoke", "--stage", "1", "-o"]
    return [*launcher, *command, f"backbone={backbone}", *settings]


def noise_crops() -> Crops:
    """64-pixel crops of three 80x90 photographs of noise, seed 0."""
    import numpy as np

    rng = np.random.default_rng(0)
    return Crops(
        {f"photo{i}": rng.integers(0, 256, (80, 90, 3), dtype=np.uint8) for i in range(3)}, 64, seed=0
    )


def distance() -> FeatureDistance:
    """Narrow pocket features with random weights, every channel weighted 1."""
    torch.manual_seed(3)
    net = PocketFeatures((8, 16, 24, 32))
    return FeatureDistance(net, [torch.ones(c) for c in net.channels])


def randomised(model, *names: str, std=0.05):
    """The model with random LoRA weights in these adapters (all of its own by default), so that
    they differ.
    """
    torch.manual_seed(1)
    with torch.no_grad():
        for name in names or model.adapters:
            for key, p in model.unet.named_parameters():
                if f".{name}." in key:
                    p.normal_(std=std)
    return model
