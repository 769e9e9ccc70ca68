"""BatchNorm statistics are plain averages over the batches; nothing else changes."""

from __future__ import annotations

import torch
from torch import nn

from core.graph.architectures import build
from core.graph.lowering import trace
from core.training.recalibration import recalibrate


def test_statistics_are_averages_over_the_batches() -> None:
    network = build("small_cnn", num_classes=3, in_channels=1, image_size=(8, 8))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    batches = [network.example_input(batch=16, seed=seed) for seed in range(3)]
    assert recalibrate(network, batches) == 3
    first = network.layers()["bn1"]
    convolution = network.layers()["conv1"]
    with torch.no_grad():
        outputs = [convolution(batch) for batch in batches]
    means = torch.stack([output.mean((0, 2, 3)) for output in outputs]).mean(0)
    variances = torch.stack([output.var((0, 2, 3)) for output in outputs]).mean(0)
    assert torch.allclose(first.get_buffer("running_mean"), means, atol=1e-6)
    assert torch.allclose(first.get_buffer("running_var"), variances, atol=1e-6)
    assert all(torch.equal(before[name], parameter) for name, parameter in network.named_parameters())
    assert not network.training
    assert first.momentum == 0.1  # as it was, for the training that follows


def test_dropout_stays_off() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout(0.9), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    network = trace(module, (1, 8, 8), format="safetensors")
    batches = [network.example_input(batch=8)]
    recalibrate(network, batches)
    once = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    recalibrate(network, batches)
    assert all(torch.equal(once[name], tensor) for name, tensor in network.state_dict().items())


def test_a_network_without_batchnorm_is_left_alone() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    network = trace(module, (1, 8, 8), format="safetensors")

    def never() -> torch.Tensor:
        raise AssertionError("nothing is to be run")

    assert recalibrate(network, (never() for _ in range(1))) == 0
