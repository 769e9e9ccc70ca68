"""block_removal with `soft`: what is zeroed when, that it can come back, what goes in the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from core.block_settings import BlockRemoval
from core.blocks.candidates import Candidates
from core.errors import CutRefused
from core.graph.architectures.cifar_resnet import PreActivationBlock, PreActivationResNet
from core.graph.counts import count
from core.graph.ids import source
from core.graph.lowering import trace
from core.graph.network import Network
from core.graph.plans import replay
from core.graph.silencing import silence, silencing_layer
from core.methods.block_removal import planned_trainings
from core.saliency.block_scores import SALIENCIES, Scoring
from core.targets import Goal
from core.training.budget import EpochsBudget
from core.training.forward import with_outputs
from core.training.port import Moment
from core.training.untrained import Untrained
from core.training_settings import Training
from tests.core.fakes import Events, ScriptedTrainer
from tests.core.methods.fading_runs import DATA, resnet, run, same, trainer

SOFT = "prune/step/0/round/1/soft"


pytestmark = pytest.mark.usefixtures("one_thread")


def paths(network: Network) -> dict[str, torch.Tensor]:
    """What the residual path of each block gives for an example, by the block's name."""
    known = Candidates(network).of(network)
    nodes = {node.name: node for node in network.module.graph.nodes}
    ends = [source(nodes[each.blocks[0].exit], each.blocks[0].path or 0).name for each in known]
    device = network.example_input()
    _, found = with_outputs(network.module, ends)(device)
    return dict(zip((each.name for each in known), found, strict=True))


def scored(monkeypatch: pytest.MonkeyPatch, rounds: list[dict[str, float]]) -> list[Scoring]:
    """From now on `random` gives these scores, in turn (others are 1); the list gets what was asked."""
    asked: list[Scoring] = []

    def scores(scoring: Scoring) -> Mapping[str, float]:
        asked.append(scoring)
        given = rounds[min(len(asked), len(rounds)) - 1]
        return {each.name: given.get(each.name, 1.0) for each in scoring.candidates}

    monkeypatch.setitem(SALIENCIES, "random", scores)  # type: ignore[arg-type]
    return asked


# --- zeroing ----------------------------------------------------------------------------------------------------------


class Gated(nn.Module):
    """A block with squeeze and excitation, one without normalisation, one that ends in a sigmoid, as chosen."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv1, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.down, self.up = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
        self.stem, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        out = self.bn(self.conv1(x))
        if self.kind == "squeeze":
            gate = torch.sigmoid(self.up(torch.relu(self.down(out.mean((2, 3), keepdim=True)))))
            out = out * gate
        elif self.kind == "plain":
            out = self.up(torch.relu(self.down(out)))
        else:
            out = torch.sigmoid(out)
        mean: torch.Tensor = self.fc(torch.relu(out + x).mean((2, 3)))
        return mean


def silenced(network: Network, index: int) -> tuple[str, dict[str, bool]]:
    """The layer that is zeroed of a block, and which parameters of the block have a gradient then, in training."""
    chosen = Candidates(network).of(network)[index]
    name = silencing_layer(network, chosen.blocks[0])
    silence(network, [name])
    network.eval()
    assert not paths(network)[chosen.name].any()
    network.train()
    network(network.example_input(batch=4)).square().sum().backward()
    own = {key: value for key, value in network.named_parameters() if key.rpartition(".")[0] in chosen.blocks[0].own}
    return name, {key: value.grad is not None and bool(value.grad.any()) for key, value in own.items()}


def test_the_last_normalisation_is_zeroed_and_learns() -> None:
    name, moved = silenced(resnet(8), 1)
    assert name == "layer2.0.bn2"
    assert len(moved) == 6
    assert [key for key, has in moved.items() if has] == ["layer2.0.bn2.weight", "layer2.0.bn2.bias"]


def test_behind_a_normalisation_and_a_relu_it_is_the_convolution() -> None:
    """Were it the normalisation, the ReLU behind it would have no slope: nothing would ever move again."""
    torch.manual_seed(0)
    model = PreActivationResNet(8, PreActivationBlock, num_classes=4, in_channels=1)
    name, moved = silenced(trace(model, (1, 8, 8)), 0)
    assert name == "layer1.0.conv2"
    assert [key for key, has in moved.items() if has] == ["layer1.0.conv2.weight"]


@pytest.mark.parametrize(("kind", "layer"), [("squeeze", "bn"), ("plain", "up")])
def test_other_ends_of_a_path(kind: str, layer: str) -> None:
    torch.manual_seed(0)
    name, moved = silenced(trace(Gated(kind), (1, 8, 8)), 0)
    assert name == layer
    assert moved[f"{layer}.weight"]
    assert moved[f"{layer}.bias"]


def test_a_path_that_cannot_be_zero_is_refused() -> None:
    network = trace(Gated("sigmoid"), (1, 8, 8))
    (chosen,) = Candidates(network).of(network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(CutRefused, match="cannot be zeroed"):
        silencing_layer(network, chosen.blocks[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


# --- the training -----------------------------------------------------------------------------------------------------


def test_a_block_that_comes_back_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of six must go. layer1.0 has the lowest score first, and no longer when it has learnt for an epoch."""
    low = {"layer2.1": 0.1}
    asked = scored(monkeypatch, [{"layer1.0": 0.0, **low}, {"layer3.0": 0.0, **low}, {"layer3.1": 0.0, **low}])
    events, silent, moved = Events(), [], []
    by = trainer(events)

    def watch(network: Network, label: str, moment: Moment) -> None:
        if label == SOFT and moment.what != "batch":
            network.eval()
            with torch.no_grad():
                found = paths(network)
            (silent if moment.what == "epoch" else moved).append(
                {name for name, path in found.items() if not path.any()}
            )

    by.watch = watch
    outcome = run(tmp_path, events, by=by, saliency="random", target={"blocks": 4}, soft={"epochs": 3},
                  fine_tune={"epochs": 1})  # fmt: skip
    assert silent == [{"layer1.0", "layer2.1"}, {"layer3.0", "layer2.1"}, {"layer3.1", "layer2.1"}]
    assert moved == [set()] * 3, "every one of them has learnt in an epoch"
    assert [sorted(body["zeroed"]) for name, body in events if "/zeroed/" in name] == [sorted(each) for each in silent]
    assert sorted(entry["block"] for entry in outcome.plan) == ["layer2.1", "layer3.1"]
    assert [scoring.round for scoring in asked] == [0, 1, 2], "and none for the removal"
    assert outcome.removed == [{"blocks": 2}]
    (select,) = events.named("/select")
    assert select["scores"]["layer3.1"] == 0.0
    assert select["rescored"] is True
    assert by.asked[SOFT]["restore_best"] is False
    assert list(by.kept) == [SOFT, "fine_tune/0"]


def test_scores_are_of_the_network_before_zeroing(tmp_path: Path) -> None:
    """By weights_mean: of the second epoch, those of the weights that the first has left."""
    events, seen = Events(), []
    by = trainer(events)

    def weights(network: Network, label: str, moment: Moment) -> None:
        if moment.what == "validation" and label == SOFT:
            (first, *_) = (each for each in Candidates(network).of(network) if each.name == "layer1.0")
            own = [network.layers()[name].get_parameter("weight") for name in first.blocks[0].own if "conv" in name]
            seen.append(sum(item.double().abs().sum().item() for item in own) / sum(item.numel() for item in own))

    by.watch = weights
    run(tmp_path, events, by=by, target={"blocks": 4}, soft={"epochs": 3}, fine_tune={"epochs": 0})
    scores = [body["scores"]["layer1.0"] for name, body in events if "/zeroed/" in name]
    assert scores[1:] == pytest.approx(seen[:2])
    assert scores[0] != pytest.approx(scores[1], rel=1e-6)


def test_order_cost_and_budget(tmp_path: Path) -> None:
    by = ScriptedTrainer()
    outcome = run(tmp_path / "a", by=by, target={"params": 0.5}, soft={"epochs": 3}, fine_tune={"epochs": 2})
    assert by.labels == [(SOFT, 3), ("fine_tune/0", 2)]
    before, after = count(resnet()).params, count(outcome.network).params
    assert after <= 0.5 * before
    assert outcome.cost.epoch_params == 3 * before + 2 * after
    assert [epochs for epochs, _ in by.expected[0]] == [3, 2]
    assert len(outcome.removed) == 1
    # no more than the target needs
    fewer = replay(resnet(), outcome.plan[:-1])
    assert count(fewer).params > 0.5 * before

    by = ScriptedTrainer()
    by.budget = EpochsBudget(3)
    outcome = run(tmp_path / "b", by=by, target={"blocks": 4}, soft={"epochs": 3}, fine_tune={"epochs": 2})
    assert by.labels == [(SOFT, 2), ("fine_tune/0", 1)]
    assert "the soft pruning of step 0 had 2 of 3 epochs: epochs_budget is 3" in outcome.warnings


def test_what_is_planned_and_booked(tmp_path: Path) -> None:
    network = resnet()
    step = BlockRemoval.model_validate(
        {"method": "block_removal", "saliency": "random", "target": {"blocks": 3}, "soft": {"epochs": 3},
         "fine_tune": {"epochs": 2}}
    )  # fmt: skip
    planned = planned_trainings(network, step, target=Goal(step.target, count(network)))
    assert planned[0] == (3, count(network).macs)
    assert [epochs for epochs, _ in planned] == [3, 2]
    booked: list[Any] = []
    by = Untrained(DATA, training=Training(), device=torch.device("cpu"), seed=0, accuracy=0.5, looked_at=0,
                   booked=booked)  # fmt: skip
    outcome = run(tmp_path, by=by, network=network, target={"blocks": 3}, soft={"epochs": 3}, fine_tune={"epochs": 2})
    assert [(item.label, item.epochs) for item in booked] == [(SOFT, 3), ("fine_tune/0", 2)]
    assert count(outcome.network).blocks == 3
    assert same(network, resnet()), "nothing is zeroed where nothing is trained"


def test_the_control_removes_as_many(tmp_path: Path) -> None:
    """Random scores, drawn anew for each epoch."""
    events = Events()
    step = BlockRemoval.model_validate(
        {"method": "block_removal", "saliency": "weights_mean", "target": {"blocks": 4}, "soft": {"epochs": 3}}
    ).at_random()
    outcome = run(tmp_path, events, by=ScriptedTrainer(), like=[{"blocks": 3}], saliency=step.saliency,
                  target={"blocks": 4}, soft={"epochs": 3}, fine_tune={"epochs": 1})  # fmt: skip
    zeroed = [body["zeroed"] for name, body in events if "/zeroed/" in name]
    assert [len(names) for names in zeroed] == [3, 3, 3]
    assert zeroed[0] != zeroed[1]
    assert outcome.removed == [{"blocks": 3}]
    (select,) = events.named("/select")
    assert select["removed"] == zeroed[-1]
    dry = Untrained(DATA, training=Training(), device=torch.device("cpu"), seed=0, accuracy=0.5, looked_at=0, booked=[])
    told = run(tmp_path / "dry", by=dry, like=[{"blocks": 3}], saliency="random", target={"blocks": 4},
               soft={"epochs": 3}, fine_tune={"epochs": 1})  # fmt: skip
    assert told.plan == outcome.plan, "a dry run draws what the job draws last"
