"""Random weights for a structure that stays."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from core.graph.architectures import build
from core.graph.initialise import reinitialise
from core.graph.lowering import trace
from core.training.memory_format import to_channels_last


def test_nothing_of_the_trained_weights_is_left() -> None:
    torch.manual_seed(0)
    network = build("resnet20", num_classes=10, in_channels=3, image_size=(32, 32)).train()
    with torch.no_grad():
        network(network.example_input(8))
    before = copy.deepcopy(network.state_dict())
    assert reinitialise(network, seed=1) == []
    after = network.state_dict()
    for name, tensor in after.items():
        if name.endswith("running_var"):
            assert torch.equal(tensor, torch.ones_like(tensor))
        elif tensor.dim() > 1 or name.endswith("running_mean"):
            assert not torch.equal(tensor, before[name]), name
    conv = network.layers()["layer3.0.conv2"]
    assert isinstance(conv, nn.Conv2d)
    assert abs(float(conv.weight.detach().std()) / (2 / (64 * 9)) ** 0.5 - 1) < 0.05  # He: 2 / fan-in


def test_activations_keep_their_size_without_normalisation() -> None:
    """Through ten layers each of depthwise, grouped, strided transposed and ordinary convolutions."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU()]
            for _ in range(10):
                layers += [nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.ReLU()]
                layers += [nn.Conv2d(32, 32, 3, padding=1, groups=4, stride=2), nn.ReLU()]
                layers += [nn.ConvTranspose2d(32, 32, 4, stride=2, padding=1, groups=2), nn.ReLU()]
            self.layers = nn.Sequential(*layers)

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    network = trace(Deep(), (3, 16, 16), format="safetensors").eval()
    sizes = []
    for seed in range(5):
        reinitialise(network, seed=seed)
        with torch.no_grad():
            sizes.append(float(network(network.example_input(8)).square().mean().sqrt()))
    assert 0.05 < sorted(sizes)[2] < 20  # by fan-out without groups it would be 1e-20


def test_it_is_of_the_seed_alone() -> None:
    networks = [build("small_cnn", num_classes=4, in_channels=1, image_size=(8, 8)) for _ in range(3)]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    to_channels_last(networks[1])
    for network, seed in zip(networks, (1, 1, 2), strict=True):
        reinitialise(network, seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    first, same, other = (torch.cat([item.flatten() for item in network.parameters()]) for network in networks)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_parameters_of_no_layer_stay_and_are_named() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gamma = nn.Conv2d(3, 4, 3), nn.Parameter(torch.full((4, 1, 1), 0.3))

        def forward(self, x: Tensor) -> Tensor:
            return (self.conv(x) * self.gamma).mean((2, 3))

    network = trace(Scaled(), (3, 8, 8), format="safetensors")
    (name,) = reinitialise(network, seed=0)
    assert "gamma" in name
    assert torch.equal(network.state_dict()[name], torch.full((4, 1, 1), 0.3))
