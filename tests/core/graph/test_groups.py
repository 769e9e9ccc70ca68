"""Which channels go together, and which may not go: one test per difficulty."""

from __future__ import annotations

import time

import pytest
from torch import nn

from core.graph.architectures import build
from core.graph.groups import ChannelGroup, channel_groups
from core.graph.lowering import trace
from core.graph.network import Network
from tests.core.graph.topologies import topology


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


def test_zero_padded_shortcut_joins_the_stages() -> None:
    stem = groups_of(topology("ZeroPaddedShortcut"))["stem"]
    assert stem.width == 16
    channels = {item.layer: item.channels for item in stem.producers}
    assert sum(bool(own) for own in channels["stem"]) == 8
    assert all(len(own) == 1 for own in channels["conv2"])
    place = channels["stem"].index((0,))
    assert channels["conv2"][place] == (4,), "four zero channels lie in front of the shortcut's first"


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
