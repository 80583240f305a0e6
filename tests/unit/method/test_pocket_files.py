"""What notebook 90 writes can be written after a training, which leaves weights in channels last."""

import torch
from safetensors.torch import load_file

from ifcsr_lib import pocket
from ifcsr_lib.nets.features import PocketFeatures


def test_features_trained_in_channels_last_are_saved(tmp_path):
    net = PocketFeatures().to(memory_format=torch.channels_last)
    path = pocket.save_features(net, [torch.ones(c) for c in net.channels], tmp_path)
    state = load_file(path)
    assert all(torch.equal(state[name], value.half()) for name, value in net.state_dict().items())
    assert all(torch.equal(state[f"lin{i}"], torch.ones(c)) for i, c in enumerate(net.channels))
