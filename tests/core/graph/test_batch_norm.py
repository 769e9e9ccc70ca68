"""BatchNorm is inserted without changing what a network computes, and measured afresh."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from onnx import ModelProto
from torch import Tensor, nn

from core.errors import CutRefused
from core.graph.architectures import build
from core.graph.batch_norm import insert, insertable, measured, recalibrate
from core.graph.batch_norm_folding import fold
from core.graph.counts import count
from core.graph.cuts import cut
from core.graph.exactness import check_cut, relative_error
from core.graph.importers import read_onnx
from core.graph.lowering import trace
from core.graph.plans import replay
from tests.core.graph.norm_networks import batches, norms, wide
from tests.core.graph.onnx_texts import model, saved
from tests.core.graph.random_networks import Drawn, networks
from tests.core.graph.topologies import TOPOLOGIES, random_removal, seeded, topology

# --- inserting --------------------------------------------------------------------------------------------------------


def test_why_no_layer_can_have_one_is_told_of_a_few() -> None:
    network = build("resnet20", num_classes=10, in_channels=1, image_size=(8, 8)).eval()
    left = insertable(network)[1]
    with pytest.raises(CutRefused, match="no layer can get a BatchNorm") as caught:
        insert(network, batches(network))
    assert caught.value.message.count("a BatchNorm is behind it") == 10
    assert caught.value.message.endswith(f"; and {len(left) - 10} more layers")


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_insert_changes_no_output_and_is_folded_back(name: str) -> None:
    network = wide(topology(name))
    if not insertable(network)[0]:
        with pytest.raises(CutRefused, match="no layer can get a BatchNorm"):
            insert(network, batches(network))
        return
    inputs = network.example_input(4, seed=9, dtype=torch.float64)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    larger, entry = insert(network, batches(network))
    with torch.no_grad():
        assert relative_error(network(inputs), larger(inputs)) < 1e-12
    assert set(entry["layers"].values()) == set(norms(larger)) - set(norms(network))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items()), "the original is kept"

    removal = random_removal(larger, 0.4)
    if removal:
        smaller, _ = cut(larger, removal)
        assert check_cut(larger, removal, smaller, inputs).passed
    folded, merged = fold(larger, list(entry["layers"].values()))
    assert norms(folded) == norms(network)
    with torch.no_grad():
        assert relative_error(network(inputs), folded(inputs)) < 1e-12
    assert count(larger).params == count(folded).params, "counted as it goes out"

    plan = json.loads(json.dumps([entry, merged]))
    half, whole = replay(network, plan[:1]), replay(network, plan)
    assert half.state_dict().keys() == larger.state_dict().keys()
    assert whole.state_dict().keys() == folded.state_dict().keys()
    with torch.no_grad():
        assert relative_error(network(inputs), half(inputs)) < 1e-12
        assert relative_error(network(inputs), whole(inputs)) < 1e-12


def test_statistics_are_those_of_all_numbers() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    network = trace(module.eval(), (3, 8, 8))
    images = batches(network)
    with torch.no_grad():
        outputs = torch.cat([module[0](batch) for batch in images]).double()
    mean, variance = measured(network, ["0"], images)["0"]
    assert torch.allclose(mean, outputs.mean((0, 2, 3)))
    assert torch.allclose(variance, outputs.var((0, 2, 3)))
    larger, entry = insert(network, images)
    norm = larger.layers()[entry["layers"]["0"]]
    assert torch.allclose(norm.get_buffer("running_mean"), mean.float())
    assert torch.allclose(norm.get_parameter("bias"), mean.float()), "β = μ"
    assert torch.allclose(norm.get_parameter("weight"), (variance + 1e-5).sqrt().float()), "γ = σ"
    in_two = measured(network, ["0"], [torch.cat(images)])["0"]
    assert torch.allclose(in_two[0], mean)
    assert torch.allclose(in_two[1], variance)
    with pytest.raises(ValueError, match="no batch"):
        measured(network, ["0"], [])


class Places(nn.Module):
    """Every layer with another reason to get a BatchNorm, or not."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 6, 3, padding=1)
        self.has = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.twice = nn.Conv2d(6, 6, 3, padding=1)
        self.up = nn.ConvTranspose2d(6, 6, 2, 2, groups=2, bias=False)
        self.hidden = nn.Linear(6, 8, bias=False)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.has(torch.relu(self.plain(x)))))
        x = torch.relu(self.up(self.twice(self.twice(x))))
        x = torch.relu(self.hidden(x.mean([2, 3])))
        return torch.softmax(self.last(x), 1)


def test_which_layers_get_one_and_why_not() -> None:
    network = trace(seeded(Places), (3, 8, 8))
    found, left = insertable(network)
    assert found == ["plain", "up", "hidden"]
    assert left == {
        "has": "a BatchNorm is behind it",
        "twice": "it is used more than once, each time with statistics of its own",
        "last": "it makes an output of the network",
    }
    larger, entry = insert(network, batches(network))
    assert entry["layers"] == {"plain": "plain_bn", "up": "up_bn", "hidden": "hidden_bn"}
    assert isinstance(larger.layers()["hidden_bn"], nn.BatchNorm1d)
    again, _ = fold(wide(larger), list(entry["layers"].values()))
    inputs = network.example_input(4, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(wide(larger)(inputs), again(inputs)) < 1e-12
    assert again.layers()["up"].get_parameter("bias").shape == (6,)


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.linear = nn.Linear(4, 4)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(torch.relu(x))


def test_a_linear_layer_over_the_last_of_several_dimensions_gets_none() -> None:
    found, left = insertable(trace(ChannelsLast().eval(), (3, 4, 4)))
    assert found == ["conv"]
    assert "last of several dimensions" in left["linear"]


@pytest.mark.parametrize(
    ("only", "reason"),
    [
        ({"twice": "a"}, "used more than once"),
        ({"nothing": "a"}, "no such layer"),
        ({"plain": "norm"}, "name 'norm' is taken"),
        ({}, "no layer is named"),
    ],
)
def test_a_place_that_cannot_be_is_refused(only: dict[str, str], reason: str) -> None:
    network = trace(seeded(Places), (3, 8, 8))
    with pytest.raises(CutRefused, match=reason):
        insert(network, batches(network), only)
    with pytest.raises(CutRefused, match=reason):
        replay(network, [{"op": "insert", "kind": "batch_norm", "layers": only}])


@pytest.mark.parametrize("op", ["insert", "merge"])
def test_another_kind_of_entry_is_refused(op: str) -> None:
    with pytest.raises(CutRefused, match="unknown kind 'dropout'"):
        replay(build("small_cnn"), [{"op": op, "kind": "dropout", "layers": {}, "into": {}}])


def test_inserted_ones_train() -> None:
    network, entry = insert(trace(seeded(Places), (3, 8, 8)), batches(trace(seeded(Places), (3, 8, 8))))
    network.train()
    loss = network(network.example_input(8)).square().mean()
    loss.backward()
    norm = network.layers()[entry["layers"]["plain"]]
    assert norm.get_parameter("weight").grad is not None
    assert int(norm.get_buffer("num_batches_tracked")) == 1


# --- measuring afresh -------------------------------------------------------------------------------------------------


def test_statistics_are_averages_over_the_batches() -> None:
    network = build("small_cnn", num_classes=3, in_channels=1, image_size=(8, 8))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images = [network.example_input(batch=16, seed=seed) for seed in range(3)]
    assert recalibrate(network, images) == 3
    first = network.layers()["bn1"]
    convolution = network.layers()["conv1"]
    with torch.no_grad():
        outputs = [convolution(batch) for batch in images]
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
    images = [network.example_input(batch=8)]
    recalibrate(network, images)
    once = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    recalibrate(network, images)
    assert all(torch.equal(once[name], tensor) for name, tensor in network.state_dict().items())


def test_a_network_without_batchnorm_is_left_alone() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    network = trace(module, (1, 8, 8), format="safetensors")

    def never() -> torch.Tensor:
        raise AssertionError("nothing is to be run")

    assert recalibrate(network, (never() for _ in range(1))) == 0


# --- on random networks -----------------------------------------------------------------------------------------------


def without_loose_ends(made: ModelProto) -> ModelProto:
    """Only the nodes that lead to an output: a model in pieces is refused."""
    wanted, kept = {item.name for item in made.graph.output}, []
    for node in reversed(made.graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    del made.graph.node[:]
    made.graph.node.extend(reversed(kept))
    return made


def test_random_networks_compute_the_same_with_and_without_it(tmp_path: Path) -> None:
    done: Counter[str] = Counter()

    @settings(
        max_examples=25, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(networks())
    def every(drawn: Drawn) -> None:
        made = model(drawn.body, inputs="float[n,3,8,8] x", outputs="float[n,5] y", weights=drawn.weights, opset=21)
        network = wide(read_onnx(saved(without_loose_ends(made), tmp_path)))
        inputs = network.example_input(3, seed=drawn.seed, dtype=torch.float64)
        with torch.no_grad():
            expected = network(inputs)
        if insertable(network)[0]:
            larger, entry = insert(network, batches(network))
            back, _ = fold(larger, list(entry["layers"].values()))
            with torch.no_grad():
                assert relative_error(expected, larger(inputs)) < 1e-9
                assert relative_error(expected, back(inputs)) < 1e-9
            done["inserted"] += 1

    every()
    assert done["inserted"] >= 20, done
