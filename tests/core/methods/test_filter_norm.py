"""filter_norm's arithmetic and refusals, with a trainer that trains nothing; training for real is in test_resume.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from core.data.datasets import Dataset
from core.errors import NothingRemoved, TargetUnreachable
from core.graph.architectures import CifarResNet, build
from core.graph.counts import count
from core.graph.groups import channel_groups
from core.graph.lowering import trace
from core.graph.network import Network
from core.graph.plans import channel_map, replay
from core.methods.filter_norm import filter_norm
from core.outcome import Outcome
from core.rounds import filter_groups, planned_rounds
from core.saliency.filter_norms import weight_norms
from core.target_settings import Target
from core.targets import Goal
from core.training_settings import FineTune
from tests.core.fakes import Events, ScriptedTrainer, empty_state, small_dataset


class Run:
    """One call of `filter_norm`, with what it told and asked."""

    def __init__(self, network: Network, workdir: Path, data: Dataset, target: Target, **changes: Any) -> None:
        self.events = Events()
        self.trainer: ScriptedTrainer = changes.pop("trainer", None) or ScriptedTrainer()
        self.network = network
        settings: dict[str, Any] = {
            "signal": "weights",
            "ratio_per_round": 0.2,
            "every_epochs": 1,
            "scope": "local",
            "normalize": "none",
            "fine_tune": FineTune(epochs=2),
            "channel_multiple": 1,
        }
        self.state = empty_state(workdir, self.events)
        self.outcome: Outcome = filter_norm(
            network,
            data,
            target=Goal(target, count(network)),
            trainer=self.trainer,
            emit=self.events,
            state=self.state.scope("method"),
            **(settings | changes),
        )

    @property
    def selects(self) -> list[dict[str, Any]]:
        return self.events.named("/select")


@pytest.fixture(scope="module")
def data() -> Dataset:
    return small_dataset(images=16)


@pytest.fixture
def network() -> Network:
    return build("small_cnn", num_classes=4, in_channels=1, image_size=(8, 8)).eval()


def resnet() -> Network:
    """ResNet-8, with BatchNorm statistics of use."""
    torch.manual_seed(0)
    network = trace(CifarResNet(8, num_classes=4, in_channels=1), (1, 8, 8), format="safetensors")
    with torch.no_grad():
        network.train()(network.example_input(batch=32))
    return network.eval()


def test_the_papers_figure_4224_to_3136(tmp_path: Path) -> None:
    """Section 4.1.3: VGG-16, 5 % of the filters every 7 epochs, 49 epochs, 4224 filters become 3136.

    The seventh pass would come after epoch 49; six passes of floor(0.05 · present width) per layer give the figure.
    """
    vgg = build("vgg16", num_classes=10, in_channels=1, image_size=(32, 32)).eval()
    assert count(vgg).filters == 4224
    run = Run(vgg, tmp_path, small_dataset(images=2, size=32, classes=2), Target(filters=3136),
              ratio_per_round=0.05, every_epochs=7, fine_tune=FineTune(epochs=0))  # fmt: skip
    filters = [select["filters"] for select in run.selects]
    assert filters[-1] == 3136
    assert len(filters) == 6
    assert count(run.outcome.network).filters == 3136
    expected = {}
    for name, layer in count(vgg).layers.items():
        width = layer.channels
        for _ in range(6):
            width -= width * 5 // 100
        expected[name] = width
    found = {name: layer.channels for name, layer in count(run.outcome.network).layers.items()}
    assert all(found[name] == expected[name] for name in run.selects[0]["scores"])
    assert run.trainer.labels[:6] == [(f"prune/step/0/round/{number}", 7) for number in range(1, 7)]


def test_the_weakest_filters_go(network: Network, tmp_path: Path, data: Dataset) -> None:
    norms = {name: weight_norms(layer) for name, layer in network.layers().items() if isinstance(layer, nn.Conv2d)}
    run = Run(network, tmp_path, data, Target(filters=102), ratio_per_round=0.1)
    (select,) = run.selects
    for name, norm in norms.items():
        gone = select["removed"].get(name, [])
        assert gone == sorted(norm.argsort()[: len(gone)].tolist()) == select["layers"].get(name, [])
        assert select["scores"][name] == pytest.approx(norm.tolist())
    assert sum(map(len, select["removed"].values())) == 10  # floors of 1.6, 3.2 and 6.4
    assert run.outcome.checks[0].passed
    assert run.outcome.checks[0].name == "exactness/prune/step/0/round/1"


@pytest.mark.parametrize(
    ("signal", "scope", "normalize"),
    [
        ("weights", "local", "none"),
        ("weights", "global", "max"),
        ("activations", "local", "max"),
        ("activations", "global", "none"),
    ],
)
def test_each_choice_reaches_its_target_in_multiples(
    signal: str, scope: str, normalize: str, tmp_path: Path, data: Dataset
) -> None:
    original = resnet()
    run = Run(original, tmp_path, data, Target(params=0.5, macs=0.6), signal=signal, scope=scope,
              normalize=normalize, channel_multiple=8, trainer=ScriptedTrainer(forward=True))  # fmt: skip
    outcome = run.outcome
    reached = count(outcome.network)
    assert reached.params <= 0.5 * count(original).params
    assert reached.macs <= 0.6 * count(original).macs
    assert all(layer.channels % 8 == 0 for layer in reached.layers.values() if layer.kind == "Conv2d")
    assert all(check.passed for check in outcome.checks)
    replayed = replay(original, outcome.plan)
    assert {key: value.shape for key, value in replayed.state_dict().items()} == {
        key: value.shape for key, value in outcome.network.state_dict().items()
    }
    # the weights were not trained: what is left of the original is what the network holds
    assert all(torch.equal(a, b) for a, b in zip(replayed.parameters(), outcome.network.parameters(), strict=True))
    kept = channel_map(original, outcome.plan)
    assert {name: len(channels) for name, channels in kept.items()} == {
        name: layer.channels for name, layer in reached.layers.items() if layer.kind != "BatchNorm2d"
    }


def test_the_last_round_takes_no_more_than_it_must(network: Network, tmp_path: Path, data: Dataset) -> None:
    """A share of half would take 8, 16 and 32 filters; the target needs 5."""
    run = Run(network, tmp_path, data, Target(filters=112 - 5), ratio_per_round=0.5)
    assert count(run.outcome.network).filters == 107
    assert len(run.selects) == 1


def test_with_multiples_it_overshoots_by_less_than_one(network: Network, tmp_path: Path, data: Dataset) -> None:
    run = Run(network, tmp_path, data, Target(filters=112 - 5), ratio_per_round=0.5, channel_multiple=8)
    assert count(run.outcome.network).filters == 104


def test_small_shares_add_up(network: Network, tmp_path: Path, data: Dataset) -> None:
    """5 % of 16 is 0.8: without carrying, conv1 would never lose anything; with multiples, nobody would."""
    run = Run(network, tmp_path, data, Target(filters=8 + 24 + 40), ratio_per_round=0.05, channel_multiple=8)
    assert run.outcome.network.layers()["conv1"].weight.shape[0] == 8
    assert any(not select["removed"] for select in run.selects)
    assert run.selects[0]["carried"] == {"conv1": 0.8, "conv2": 1.0, "conv3": 3.0}
    assert len(run.outcome.plan) == sum(bool(select["removed"]) for select in run.selects)


def test_norms_start_afresh_after_each_pass(network: Network, tmp_path: Path, data: Dataset) -> None:
    run = Run(network, tmp_path, data, Target(filters=0.7), ratio_per_round=0.1, trainer=ScriptedTrainer(steps=3))
    assert len(run.selects) > 2
    for before, after in zip(run.selects, run.selects[1:], strict=False):
        for name, scores in after["scores"].items():
            gone = before["removed"].get(name, [])
            # weights do not change here but lose inputs: norms of fewer inputs can only be smaller
            left = [score for unit, score in enumerate(before["scores"][name]) if unit not in gone]
            assert len(scores) == len(left)
            assert all(new <= old + 1e-6 for new, old in zip(scores, left, strict=True))


def test_layers_that_meet_in_an_add_go_together(tmp_path: Path, data: Dataset) -> None:
    run = Run(resnet(), tmp_path, data, Target(filters=0.8), ratio_per_round=0.25, channel_multiple=8)
    for select in run.selects:
        layers = select["layers"]
        stem = [layers.get(name) for name in ("conv1", "layer1.0.conv2")]
        assert all(channels == stem[0] for channels in stem)


def test_global_scope_is_one_ranking(network: Network, tmp_path: Path, data: Dataset) -> None:
    with torch.no_grad():
        network.layers()["conv2"].weight.mul_(1e-3)  # all of the weakest filters are in one layer
    run = Run(network, tmp_path, data, Target(filters=112 - 20), ratio_per_round=0.1, scope="global")
    assert {name for select in run.selects for name in select["removed"]} == {"conv2"}
    assert run.selects[0]["filters"] == 112 - 11
    assert list(run.selects[0]["carried"]) == [""]


def test_the_front_has_every_network_and_its_accuracy_after_training(tmp_path: Path, data: Dataset) -> None:
    small = build("small_cnn", num_classes=4, in_channels=1, image_size=(8, 8)).eval()
    # evaluate at the start, round 1, after cut 1, round 2, after cut 2, fine-tuning
    trainer = ScriptedTrainer(accuracies=[0.9, 0.91, 0.5, 0.8, 0.4, 0.85])
    run = Run(small, tmp_path, data, Target(filters=94), ratio_per_round=0.1, trainer=trainer)
    assert [(point.round, point.validation_accuracy) for point in run.outcome.front] == [(0, 0.9), (1, 0.8), (2, 0.85)]
    assert [point.filters for point in run.outcome.front] == [112, 102, 94]
    assert [select["validation_accuracy"] for select in run.selects] == [0.5, 0.4]
    assert run.outcome.cost.epochs == 1 + 1 + 2
    assert trainer.recalibrated == [f"prune/step/0/round/{number}/recalibrate" for number in (1, 2)]


def test_the_expected_work_shrinks_to_the_fine_tuning(network: Network, tmp_path: Path, data: Dataset) -> None:
    run = Run(network, tmp_path, data, Target(filters=0.6), ratio_per_round=0.1)
    told = [sum(epochs for epochs, _ in expected) for expected in run.trainer.expected]
    assert told == [len(run.selects) - number + 2 for number in range(len(run.selects) + 1)]


def test_a_target_that_is_met_is_an_event_and_nothing_else(network: Network, tmp_path: Path, data: Dataset) -> None:
    run = Run(network, tmp_path, data, Target(filters=112))
    assert run.outcome.plan == []
    assert run.outcome.skipped == "the target is met already"
    assert run.outcome.network.state_dict().keys() == network.state_dict().keys()
    assert [name for name, _ in run.events] == ["prune/step/0/skipped"]
    assert run.trainer.labels == []


def test_an_unreachable_target_is_refused_before_training(network: Network, tmp_path: Path, data: Dataset) -> None:
    trainer = ScriptedTrainer()
    with pytest.raises(TargetUnreachable, match="Frozen: fc") as raised:
        Run(network, tmp_path, data, Target(filters=23, params=0.9), channel_multiple=8, trainer=trainer)
    (fault,) = raised.value.faults
    assert fault.pointer == "/steps/0/target/filters"
    assert fault.expected == "a count of at least 24 (an integer is a count; a share is a float, as 0.5)"
    assert trainer.labels == []


def test_layers_narrower_than_the_multiple_are_nothing_to_remove(
    network: Network, tmp_path: Path, data: Dataset
) -> None:
    with pytest.raises(NothingRemoved, match="no layer is wide enough") as raised:
        Run(network, tmp_path, data, Target(macs=0.5), channel_multiple=64)
    (fault,) = raised.value.faults
    assert fault.pointer == "/export/channel_multiple"
    assert "conv1 has 16" in fault.message


def test_a_network_without_free_convolutions_says_why(tmp_path: Path, data: Dataset) -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten())  # its filters are the outputs
    with pytest.raises(NothingRemoved, match="the channels of a model output stay"):
        Run(trace(module.eval(), (1, 8, 8), format="safetensors"), tmp_path, data, Target(macs=0.5))


def test_groups_of_linear_layers_alone_are_left_alone(tmp_path: Path, data: Dataset) -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 32), nn.ReLU(), nn.Linear(32, 4)
    )
    perceptron = trace(module.eval(), (1, 8, 8), format="safetensors")
    assert len(channel_groups(perceptron).groups) == 3
    assert [group.width for group in filter_groups(perceptron)] == [8]
    run = Run(perceptron, tmp_path, data, Target(params=0.6))
    assert count(run.outcome.network).layers["3"].channels == 32


def test_planned_rounds_are_those_it_takes(network: Network, tmp_path: Path, data: Dataset) -> None:
    goal = Goal(Target(filters=0.5), count(network))
    rounds = planned_rounds(network, goal, ratio=0.1, channel_multiple=8)
    run = Run(network, tmp_path, data, goal.target, ratio_per_round=0.1, channel_multiple=8)
    assert len(rounds) - 1 == len(run.selects)
    assert rounds[0] == count(network).macs
    assert rounds == sorted(rounds, reverse=True)


def test_planned_rounds_of_an_unreachable_target_end_at_the_least_widths(network: Network) -> None:
    rounds = planned_rounds(network, Goal(Target(filters=1), count(network)), ratio=0.001, channel_multiple=8)
    assert len(rounds) > 1_000
    assert rounds[-1] == 8 * 64 * 9 + 8 * 8 * 16 * 9 + 8 * 8 * 4 * 9 + 8 * 4
