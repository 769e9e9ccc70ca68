"""Norms by hand, accumulation, hooks, checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from core.errors import PruningError
from core.graph.architectures import build
from core.graph.groups import ChannelGroup, LayerChannels
from core.graph.network import Network
from core.saliency.filter_norms import FilterNorms, activation_norms, normalized_by_max, weight_norms
from tests.core.fakes import empty_state


@pytest.fixture
def network() -> Network:
    return build("small_cnn", num_classes=3, in_channels=2, image_size=(8, 8))


def group(channels: dict[str, list[tuple[int, ...]]]) -> ChannelGroup:
    producers = tuple(LayerChannels(name, units) for name, units in channels.items())
    return ChannelGroup("g", len(producers[0].channels), producers, (), (), cuttable=True)


def test_weight_norms_are_over_inputs_and_kernel() -> None:
    layer = nn.Conv2d(2, 3, 3)
    expected = [layer.weight[filter].pow(2).sum().sqrt().item() for filter in range(3)]
    assert weight_norms(layer).tolist() == pytest.approx(expected)
    assert weight_norms(layer).dtype == torch.float64
    assert weight_norms(nn.Linear(4, 5)).shape == (5,)
    assert weight_norms(nn.Conv2d(4, 8, 3, groups=4)).shape == (8,)


@pytest.mark.parametrize(
    ("groups", "make"), [(1, nn.ConvTranspose2d), (2, nn.ConvTranspose2d), (4, nn.ConvTranspose1d)]
)
def test_weight_norms_of_a_transposed_convolution_are_over_dimension_0(groups: int, make: type[nn.Module]) -> None:
    """What the norm is of, told by the layer itself: one number in every input channel gives filter c in channel c."""
    layer = make(4, 8, 3, groups=groups, bias=False)
    each = []
    for channel in range(4):
        x = torch.zeros(1, 4, *[1] * (layer.weight.dim() - 2))
        x[0, channel] = 1
        each.append(layer(x)[0].flatten(1).double())  # (8, kernel)
    expected = torch.cat(each, dim=1).norm(dim=1)
    assert weight_norms(layer).tolist() == pytest.approx(expected.tolist())
    assert weight_norms(layer).shape == (8,)


def test_activation_norms_are_over_batch_and_place() -> None:
    output = torch.randn(4, 3, 5, 6)
    expected = output.pow(2).sum((0, 2, 3)).sqrt()
    assert activation_norms(nn.Conv2d(1, 3, 1), output).tolist() == pytest.approx(expected.tolist())
    flat = torch.randn(4, 7, 3)  # a Linear has its channels last
    assert activation_norms(nn.Linear(1, 3), flat).tolist() == pytest.approx(flat.pow(2).sum((0, 1)).sqrt().tolist())


def test_max_normalisation() -> None:
    assert normalized_by_max(torch.tensor([1.0, 4.0, 2.0])).tolist() == [0.25, 1.0, 0.5]
    assert normalized_by_max(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_other_layers_have_no_filter_norm() -> None:
    with pytest.raises(PruningError, match="BatchNorm2d"):
        weight_norms(nn.BatchNorm2d(3))


@pytest.mark.parametrize("normalize", ["none", "max"])
def test_weights_are_accumulated_at_each_iteration(network: Network, normalize: str) -> None:
    norms = FilterNorms(["conv1"], signal="weights", normalize=normalize)  # type: ignore[arg-type]
    expected = torch.zeros(16, dtype=torch.float64)
    layer = network.layers()["conv1"]
    for _ in range(3):
        with torch.no_grad():
            layer.get_parameter("weight").add_(torch.rand(16, 2, 3, 3))
        norms.add(network)
        now = weight_norms(layer)
        expected += now / now.max() if normalize == "max" else now
    assert torch.allclose(norms.totals["conv1"], expected, rtol=1e-12)
    scores = norms.scores(group({"conv1": [(channel,) for channel in range(16)]}))
    assert scores == pytest.approx((expected / 3).tolist())


def test_activations_are_those_of_training(network: Network) -> None:
    norms = FilterNorms(["conv1", "conv3"], signal="activations", normalize="none")
    expected = torch.zeros(16, dtype=torch.float64)
    layer = network.layers()["conv1"]
    with norms.recording(network), torch.no_grad():
        for seed in range(2):
            x = network.example_input(batch=4, seed=seed)
            network.train()(x)
            norms.add(network)
            network.eval()(x)  # an evaluation in between does not count
            expected += layer(x).pow(2).sum((0, 2, 3)).sqrt().double()
    assert norms.iterations == 2
    assert torch.allclose(norms.totals["conv1"], expected, rtol=1e-5)
    assert norms.totals["conv3"].shape == (64,)
    assert not layer._forward_hooks  # gone with `recording`


def test_a_unit_of_several_layers_scores_their_root_mean_square() -> None:
    norms = FilterNorms([], signal="weights", normalize="none")
    norms.load({"totals": {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([4.0, 2.0, 5.0])}, "iterations": 1})
    scores = norms.scores(group({"a": [(0,), (1,)], "b": [(0,), (1, 2)]}))
    assert scores == pytest.approx([(25 / 2) ** 0.5, (30 / 3) ** 0.5])
    assert norms.scores(group({"a": [(1,), (0,)], "b": [(), (2,)]})) == pytest.approx([1.0, (34 / 2) ** 0.5])


def test_accumulated_norms_survive_a_checkpoint(network: Network, tmp_path: Path) -> None:
    norms = FilterNorms(["conv1", "conv2"], signal="weights", normalize="none")
    norms.add(network)
    empty_state(tmp_path).save(norms=norms.state())
    again = FilterNorms(["conv1", "conv2"], signal="weights", normalize="none")
    again.load(empty_state(tmp_path)["norms"])
    norms.add(network)
    again.add(network)
    assert again.iterations == 2
    assert all(torch.equal(again.totals[name], total) for name, total in norms.totals.items())
