"""Which channels go together, and which may not go: one test per difficulty."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from core.graph.architectures import build
from core.graph.cuts import cut, removal_of
from core.graph.exactness import check_cut
from core.graph.groups import ChannelGroup, channel_groups
from core.graph.importers import read_onnx
from core.graph.lowering import trace
from core.graph.network import Network
from tests.core.graph.onnx_texts import model, saved
from tests.core.graph.topologies import TOPOLOGIES, topology


def groups_of(network: Network) -> dict[str, ChannelGroup]:
    return channel_groups(network).by_name()


def layers(items: tuple) -> list[str]:
    return [item.layer for item in items]


def test_residual_stage_is_one_group() -> None:
    groups = groups_of(build("resnet20"))
    first = groups["conv1"]
    assert layers(first.producers) == ["conv1", "layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2"]
    assert layers(first.carriers) == ["bn1", "layer1.0.bn2", "layer1.1.bn2", "layer1.2.bn2"]
    assert layers(first.consumers) == [
        "layer1.0.conv1", "layer1.1.conv1", "layer1.2.conv1", "layer2.0.conv1", "layer2.0.downsample.0",
    ]  # fmt: skip
    assert first.width == 16
    assert first.cuttable
    assert first.producers[0].channels == [(unit,) for unit in range(16)]
    assert layers(groups["layer2.0.conv2"].producers)[1] == "layer2.0.downsample.0"
    assert groups["layer1.0.conv1"].width == 16
    assert len(groups) == 3 + 9 + 1


def test_output_is_frozen_with_its_reason() -> None:
    found = channel_groups(build("small_cnn"))
    (frozen,) = found.frozen
    assert (frozen.operator, frozen.node, frozen.layers) == ("output", "fc", ["fc"])
    assert "output" in frozen.reason
    assert [group.name for group in found.groups if not group.cuttable] == ["fc"]


def test_depthwise_goes_with_its_input() -> None:
    groups = groups_of(topology("Depthwise"))
    stem = groups["stem"]
    assert layers(stem.producers) == ["stem", "depthwise"]
    assert layers(stem.carriers) == ["norm"]
    assert layers(stem.consumers) == ["depthwise", "pointwise"]
    assert stem.width == 12


def test_depth_multiplier_takes_two_channels_from_each() -> None:
    stem = groups_of(topology("DepthMultiplier"))["stem"]
    assert stem.width == 6
    assert dict(zip(layers(stem.producers), (item.channels for item in stem.producers), strict=True))["depthwise"] == [
        (2 * unit, 2 * unit + 1) for unit in range(6)
    ]


def test_grouped_convolution_goes_by_whole_groups() -> None:
    stem = groups_of(topology("Grouped"))["stem"]
    assert stem.width == 4
    assert stem.producers[0].channels[1] == (4, 5, 6, 7)
    assert stem.producers[1].channels[1] == (6, 7, 8, 9, 10, 11)


def test_concatenation_keeps_groups_apart() -> None:
    groups = groups_of(topology("Dense"))
    assert [groups[name].width for name in ("stem", "conv1", "conv2")] == [6, 4, 4]
    head = {item.layer: item.channels for item in groups["conv1"].consumers}["head"]
    assert head == [(6,), (7,), (8,), (9,)]
    assert layers(groups["conv1"].carriers) == ["norm2", "norm3"]


def test_channels_beside_a_zero_padded_shortcut_are_a_group_of_their_own() -> None:
    """Eight channels of conv2 meet the stem's, eight meet zeros: removing the stem's all is no way to save those."""
    groups = groups_of(topology("ZeroPaddedShortcut"))
    joined, alone = groups["stem"], groups["conv2"]
    assert layers(joined.producers) == ["stem", "conv2"]
    assert joined.producers[0].channels == [(channel,) for channel in range(8)]
    assert joined.producers[1].channels == [(channel,) for channel in range(4, 12)], "four zeros lie in front"
    assert layers(alone.producers) == ["conv2"]
    assert alone.producers[0].channels == [(channel,) for channel in (*range(4), *range(12, 16))]


def test_parts_of_a_split_are_groups_of_their_own() -> None:
    groups = groups_of(topology("Split"))
    assert groups["stem"].producers[0].channels == [(0,), (1,), (2,)]
    assert groups["stem#2"].producers[0].channels == [(3,), (4,), (5,), (6,), (7,)]
    assert layers(groups["stem"].consumers) == ["head"]
    assert layers(groups["stem#2"].consumers) == ["conv"]


def test_groups_of_a_layer_keep_their_names_whatever_goes() -> None:
    """What a group is owed from round to round is kept under its name."""
    network = topology("LateShortcut")
    groups = groups_of(network)
    assert [groups[name].producers[0].channels for name in ("conv", "conv#2")] == [
        [(2,), (3,), (4,), (5,)],
        [(0,), (1,), (6,), (7,)],
    ]
    for removal, left in (({"conv#2": [0, 1]}, [[0, 1, 2, 3], [4, 5]]), ({"conv": [0, 1]}, [[2, 3], [0, 1, 4, 5]])):
        found = groups_of(cut(network, removal)[0])
        assert found.keys() == groups.keys()
        for name, channels in zip(("conv", "conv#2"), left, strict=True):
            assert found[name].producers[0].channels == [(channel,) for channel in channels]
            assert layers(found[name].producers) == layers(groups[name].producers)


def test_a_unit_with_more_channels_than_another_is_not_of_its_group() -> None:
    groups = groups_of(topology("Uneven"))
    assert groups["stem"].consumers[0].channels == [(3, 6), (4, 7), (5, 8)]
    assert groups["stem#2"].consumers[0].channels == [(0,), (1,), (2,)]


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_all_but_one_unit_of_every_group_may_go_at_once(name: str) -> None:
    network = topology(name)
    for first in (True, False):
        removal = {
            group.name: list(range(group.width - 1)) if first else list(range(1, group.width))
            for group in channel_groups(network).groups
            if group.cuttable and group.width > 1
        }
        smaller, entry = cut(network, removal)
        assert check_cut(network, removal, smaller, network.example_input()).passed
        assert removal_of(network, entry) == removal


def test_flatten_gives_a_channel_all_its_places() -> None:
    conv = groups_of(topology("FlattenIntoLinear"))["conv"]
    assert conv.consumers[0].channels[3] == tuple(range(48, 64))


def test_squeeze_and_excite_gates_go_with_what_they_gate() -> None:
    groups = groups_of(topology("SqueezeExcite"))
    assert layers(groups["conv"].producers) == ["conv", "expand"]
    assert groups["reduce"].width == 4


def test_spatial_attention_freezes_only_its_gate() -> None:
    found = channel_groups(topology("SpatialAttention"))
    assert found.by_name()["conv"].cuttable
    assert not found.by_name()["gate"].cuttable
    assert any(item.layers == ["gate"] and "broadcast" in item.reason for item in found.frozen)


GATED = """
    a = Conv<pads=[1,1,1,1]>(x, w)  b = Reshape(a, apart)  {gate}  d = Reshape(c, whole)  y = Conv(d, last)
"""
GATES = {
    "computed": "g = Conv<pads=[1,1,1,1]>(x, v)  h = GlobalAveragePool(g)  i = Reshape(h, gates)  c = Mul(b, i)",
    "constant": "c = Mul(b, k)",
}
GATED_WEIGHTS = {
    "w": (16, 4, 3, 3), "v": (8, 4, 3, 3), "k": (8, 1, 1, 1), "apart": np.array([0, 8, 2, 6, 6]),
    "gates": np.array([0, 8, 1, 1, 1]), "whole": np.array([0, 16, 6, 6]), "last": (5, 16, 3, 3),
}  # fmt: skip


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_for_several_channels_goes_with_them(gate: str, tmp_path: Path) -> None:
    network = read_onnx(saved(model(GATED.format(gate=GATES[gate]), weights=GATED_WEIGHTS), tmp_path))
    (group,) = [group for group in channel_groups(network).groups if group.cuttable]
    assert group.producers[0].channels == [(2 * unit, 2 * unit + 1) for unit in range(8)]
    if gate == "computed":
        assert group.producers[1].channels == [(unit,) for unit in range(8)]
    removal = {group.name: [0, 3, 4]}
    smaller, _ = cut(network, removal)
    assert check_cut(network, removal, smaller, network.example_input()).passed


@pytest.mark.parametrize("order", ["a, k", "k, a"])
def test_a_map_over_places_meets_all_channels(order: str, tmp_path: Path) -> None:
    """Even behind a constant that has channels as well as places."""
    body = f"c = Conv<pads=[1,1,1,1]>(x, w)  a = Add(m, c)  b = Mul({order})  y = Conv(b, last)"
    weights = {"w": (8, 4, 3, 3), "m": (8, 6, 6), "k": (1, 1, 6, 6), "last": (5, 8, 3, 3)}
    network = read_onnx(saved(model(body, weights=weights), tmp_path))
    first = channel_groups(network).groups[0]
    assert (first.name, first.width, first.cuttable) == ("n0", 8, True)


def test_layer_used_twice_has_one_set_of_channels() -> None:
    groups = groups_of(topology("Shared"))
    assert layers(groups["stem"].producers) == ["stem", "shared"]


def test_channels_tied_to_the_input_stay_and_the_rest_is_free() -> None:
    conv = groups_of(topology("ResidualFromInput"))["conv"]
    assert conv.cuttable
    assert conv.width == 8
    assert conv.always_kept == 3
    assert conv.producers[0].channels == [(channel,) for channel in range(3, 11)]


def test_softmax_along_the_channels_freezes_them() -> None:
    found = channel_groups(topology("ChannelSoftmax"))
    assert not found.by_name()["conv"].cuttable
    assert found.by_name()["middle"].cuttable
    (reason,) = [item for item in found.frozen if item.layers == ["conv"]]
    assert reason.operator == "softmax"


def test_same_network_same_groups() -> None:
    assert channel_groups(build("resnet20")).groups == channel_groups(build("resnet20", seed=1)).groups


@pytest.mark.parametrize("shape", [(8, 6, 6)])
def test_wide_chain_takes_about_linear_time(shape: tuple[int, int, int]) -> None:
    def seconds(depth: int) -> float:
        chain = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(depth)))
        network = trace(chain, shape)
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            channel_groups(network)
            best = min(best, time.perf_counter() - start)
        return best

    assert seconds(400) < 8 * 2 * seconds(50)
