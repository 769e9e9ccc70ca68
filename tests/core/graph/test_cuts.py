"""Cuts are exact, complete, replayable; what cannot be cut is refused; the proof can fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from core.errors import CutRefused, ExactnessFailed
from core.graph.architectures import build
from core.graph.counts import count
from core.graph.cuts import cut, sliced, slices
from core.graph.exactness import check_cut, relative_error
from core.graph.export import check_parity, write_onnx
from core.graph.groups import channel_groups
from core.graph.network import Network
from core.graph.plans import channel_map, replay
from tests.core.graph.topologies import TOPOLOGIES, random_removal, topology


def trained_a_little(name: str) -> Network:
    """Random weights have absurd scales: a few batches settle the BatchNorms."""
    network = build(name).train()
    with torch.no_grad():
        for seed in range(2):
            network(network.example_input(4, seed))
    return network.eval()


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_cut_is_exact_and_exports(name: str, tmp_path: Path) -> None:
    network = topology(name)
    removal = random_removal(network, 0.4)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    smaller, entry = cut(network, removal)
    inputs = network.example_input(4, seed=1)
    assert check_cut(network, removal, smaller, inputs).error <= 1e-9
    assert count(smaller).params < count(network).params
    assert count(smaller).macs < count(network).macs
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items()), "the original is kept"
    write_onnx(smaller, tmp_path / "cut.onnx")
    assert check_parity(smaller, tmp_path / "cut.onnx", inputs).passed
    again = replay(network, json.loads(json.dumps([entry])))
    assert relative_error(smaller(inputs), again(inputs)) == 0


def test_module_attributes_follow_the_weights() -> None:
    network = topology("Grouped")
    smaller, _ = cut(network, {"stem": [1, 2]})
    grouped = smaller.layers()["grouped"]
    assert isinstance(grouped, nn.Conv2d)
    assert (grouped.in_channels, grouped.out_channels, grouped.groups) == (8, 12, 2)
    assert grouped.weight.shape == (12, 4, 3, 3)
    norm = smaller.layers()["norm"]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.num_features == 12
    assert norm.running_mean is not None
    assert norm.running_mean.shape == (12,)


def test_padding_of_a_shortcut_shrinks_with_it() -> None:
    network = topology("ZeroPaddedShortcut")
    alone = channel_groups(network).by_name()["conv2"].producers[0].channels
    padded = [alone.index((channel,)) for channel in (0, 1, 15)]
    smaller, entry = cut(network, {"stem": [1], "conv2": padded})
    (pad,) = smaller.module.graph.find_nodes(op="call_function", target=torch.ops.aten.constant_pad_nd.default)
    assert list(pad.args[1])[4:] == [2, 3]
    assert entry["layers"]["stem"] == [1]
    assert sorted(entry["layers"]["conv2"]) == [0, 1, 5, 15]


def test_a_plan_of_two_cuts_is_replayed_on_the_original() -> None:
    network = trained_a_little("small_cnn")
    first, one = cut(network, {"conv1": [0, 5], "conv2": [3]})
    second, two = cut(first, {"conv1": [0], "conv3": [1, 2]})
    again = replay(network, [one, two])
    assert all(torch.equal(a, b) for a, b in zip(second.parameters(), again.parameters(), strict=True))
    assert channel_map(network, [one, two])["conv1"] == [channel for channel in range(16) if channel not in (0, 1, 5)]


@pytest.mark.parametrize(
    "whole",
    [
        torch.randn(700, 300, 3, 3), torch.randn(900, 700).double(), torch.randn(2, 2**18), torch.randn(5, 4),
        torch.randn(600, 500).half(), torch.randn(800, 600).t(),
    ],
    ids=["above a chunk", "doubles", "rows above a chunk", "small", "half precision", "not contiguous"],
)  # fmt: skip
def test_rows_and_columns_of_a_tensor_of_any_size(whole: torch.Tensor) -> None:
    rows, columns = (torch.randperm(size)[: size // 2 or 1].sort().values for size in whole.shape[:2])
    part = sliced(whole, [rows, columns, *[None] * (whole.dim() - 2)])
    assert torch.equal(part, whole[rows][:, columns])
    assert part.is_contiguous()
    assert part.dtype == whole.dtype


def test_optimizer_state_moves_along() -> None:
    network = trained_a_little("small_cnn")
    removal = {"conv2": [0, 7]}
    momentum = {name: value.detach() * 2 for name, value in network.named_parameters()}
    kept = slices(network, removal)
    smaller, _ = cut(network, removal)
    moved = {name: sliced(value, kept[name]) if name in kept else value for name, value in momentum.items()}
    for name, value in smaller.named_parameters():
        assert torch.equal(moved[name], value.detach() * 2)
    assert set(kept) == {
        "conv2.weight", "conv2.bias", "bn2.weight", "bn2.bias", "bn2.running_mean", "bn2.running_var", "conv3.weight",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("removal", "message"),
    [
        ({"nothing": [0]}, "no channel group 'nothing'"),
        ({"conv1": [16]}, "units [16] are not in the group"),
        ({"conv1": [-1]}, "units [-1] are not in the group"),
        ({"conv1": [1, 1]}, "named twice"),
        ({"fc": [0]}, "frozen: the channels of a model output stay"),
        ({"conv1": list(range(16))}, "nothing would be left of conv1"),
        ({}, "nothing to remove"),
        ({"conv1": []}, "nothing to remove"),
    ],
)
def test_refusals(removal: dict[str, list[int]], message: str) -> None:
    with pytest.raises(CutRefused) as caught:
        cut(build("small_cnn"), removal)
    assert message in caught.value.message
    assert len(caught.value.faults) == 1


def test_all_faults_are_reported_together() -> None:
    with pytest.raises(CutRefused) as caught:
        cut(build("small_cnn"), {"nothing": [0], "fc": [0], "conv1": [99]})
    assert [fault.pointer for fault in caught.value.faults] == ["/nothing", "/fc", "/conv1"]


def test_no_layer_of_a_group_may_be_emptied() -> None:
    with pytest.raises(CutRefused, match="nothing would be left of stem"):
        cut(topology("ZeroPaddedShortcut"), {"stem": list(range(8))})
    with pytest.raises(CutRefused, match="nothing would be left of stem"):
        cut(topology("Split"), {"stem": [0, 1, 2], "stem#2": [0, 1, 2, 3, 4]})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"op": "cut", "layers": {"elsewhere": [0]}}, "channel 0 of 'elsewhere' is not there"),
        ({"op": "cut", "layers": {"conv1": [400]}}, "channel 400 of 'conv1' is not there"),
        ({"op": "dance", "layers": {}}, "unknown operation 'dance'"),
    ],
)
def test_plans_that_do_not_fit_are_refused(entry: dict[str, object], message: str) -> None:
    with pytest.raises(CutRefused) as caught:
        replay(build("small_cnn"), [entry])
    assert message in caught.value.faults[0].message


def test_a_plan_with_half_a_group_is_refused() -> None:
    with pytest.raises(CutRefused, match="other channels go with those"):
        replay(topology("Grouped"), [{"op": "cut", "layers": {"stem": [0]}}])


def test_the_proof_fails_for_the_wrong_channel() -> None:
    network = trained_a_little("small_cnn")
    wrong, _ = cut(network, {"conv2": [3]})
    with pytest.raises(ExactnessFailed, match="differs from the zeroed one"):
        check_cut(network, {"conv2": [4]}, wrong, network.example_input(4))


def test_the_proof_fails_for_changed_weights_and_dead_outputs() -> None:
    network = trained_a_little("small_cnn")
    smaller, _ = cut(network, {"conv2": [3]})
    with torch.no_grad():
        smaller.layers()["fc"].get_parameter("weight")[0, 0] += 1e-5
    with pytest.raises(ExactnessFailed):
        check_cut(network, {"conv2": [3]}, smaller, network.example_input(4))
    with torch.no_grad():
        for parameter in network.layers()["fc"].parameters():
            parameter.zero_()
    same, _ = cut(network, {"conv2": [3]})
    with pytest.raises(ExactnessFailed, match="by inf"):
        check_cut(network, {"conv2": [3]}, same, network.example_input(4))


def test_each_output_is_measured_by_its_own_scale() -> None:
    large, small, nothing = torch.full((2, 3), 1e7), torch.ones(2, 4), torch.zeros(2, 5)
    assert relative_error((large, small), (large, small * 0.5)) == 0.5
    assert relative_error((large, small), (large * 0.75, small)) == 0.25
    assert relative_error((nothing, small), (nothing, small * 0.5)) == 0.5
    assert relative_error((nothing, small), (nothing + 1e-30, small)) == float("inf")
    assert relative_error((nothing, nothing), (nothing, nothing)) == float("inf")


def test_a_saturated_softmax_hides_nothing() -> None:
    network = topology("EndsInSoftmax")
    with torch.no_grad():
        network.layers()["fc"].get_parameter("bias")[0] = 1_000
    wrong, _ = cut(network, {"conv": [1]})
    inputs = network.example_input(4)
    assert relative_error(network(inputs), wrong(inputs)) == 0, "the Softmax says 1 and 0 either way"
    with pytest.raises(ExactnessFailed):
        check_cut(network, {"conv": [2]}, wrong, inputs)


def test_no_part_of_a_split_may_be_emptied() -> None:
    network = topology("Split")
    with pytest.raises(CutRefused, match="nothing would be left of slice_tensor"):
        cut(network, {"stem": [0, 1, 2]})
    smaller, entry = cut(network, {"stem": [0, 2], "stem#2": [4]})
    assert entry["layers"]["stem"] == [0, 2, 7]
    slices_left = smaller.module.graph.find_nodes(op="call_function", target=torch.ops.aten.slice.Tensor)
    assert [node.args[1:4] for node in slices_left] == [(1, 0, 1), (1, 1, 5)]
    again = replay(network, json.loads(json.dumps([entry])))
    assert relative_error(smaller(network.example_input()), again(network.example_input())) == 0
    assert channel_map(network, [entry])["stem"] == [1, 3, 4, 5, 6]
