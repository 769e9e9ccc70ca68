"""How much scoring takes, by hand; and that the progress knows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.block_settings import BlockRemoval, Racing, Soft
from core.blocks.candidates import Candidates
from core.blocks.foreseen import planned_rounds
from core.blocks.scoring_work import Scorings, ScoringWork, planned_scorings
from core.exports import Exports
from core.graph.architectures.cifar_resnet import CifarResNet
from core.graph.counts import count
from core.graph.lowering import trace
from core.graph.network import Network
from core.progress import Progress
from core.recipe import Export, parse_recipe
from core.saliency.block_scores import SALIENCIES, Scoring
from core.steps import run_steps
from core.targets import Goal
from core.training.trainer import Trainer
from core.training_settings import Training
from tests.core.fakes import Events, ScriptedTrainer, empty_state, small_dataset
from tests.core.methods.block_runs import go


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return trace(CifarResNet(14, num_classes=4, in_channels=1).eval(), (1, 8, 8))


@pytest.mark.parametrize(
    ("saliency", "batches", "passes"),
    [
        ("oracle", None, 9 * 100 // 2),
        ("activation_change", None, 100),
        ("activation_change_plus_one", None, 100),
        ("activation_mean", None, 100),
        ("block_gradient", None, 300),
        ("block_gradient", 2, 96),  # 32 images, forward and backward
        ("block_gradient_max", 50, 300),  # there are no more than 100
        ("linear_probe", None, 3 * 400 + 100),
        ("weights_mean", None, 0),
        ("random", None, 0),
    ],
)
def test_one_scoring(saliency: Any, batches: int | None, passes: int) -> None:
    assert ScoringWork(saliency, images=100, train=400, batches=batches, batch_size=16).passes(9) == passes


def test_when_there_is_one() -> None:
    work = ScoringWork("oracle", images=10, train=0, batches=None, batch_size=1)

    def to_come(every: int | None, scored_at: int | None, done: int, **other: int) -> list[tuple[int, int]]:
        told = Scorings(work, every, **other)
        return told.to_come([900, 800, 700], candidates=6, done=done, scored_at=scored_at)

    assert to_come(1, None, 0) == [(30, 900), (25, 800), (20, 700)]
    assert to_come(2, None, 0) == [(30, 900), (20, 700)]
    assert to_come(2, 2, 3) == [(25, 800)]  # after round 2, so next in front of round 5
    assert to_come(None, None, 0) == [(30, 900)]
    assert to_come(None, 0, 1) == []
    assert to_come(1, None, 0, gone=2) == [(30, 900), (20, 800), (10, 700)]
    assert to_come(1, None, 0, groups=3) == [(10, 900), (10, 800), (10, 700)]  # 6, 5 and 4 of three groups
    assert to_come(None, None, 0, times=3) == [(30, 900)] * 3


@pytest.mark.parametrize("saliency", ["oracle", "raced", *(name for name in SALIENCIES if name != "oracle")])
def test_scoring_tells_how_far_it_is(network: Network, saliency: Any) -> None:
    """All that was expected of it, in parts."""
    data, trainer, raced = small_dataset(), ScriptedTrainer(), saliency == "raced"
    candidates = Candidates(network).of(network)
    saliency = "oracle" if raced else saliency
    scoring = Scoring(
        network=network, candidates=candidates, data=data, split="validation", trainer=trainer, round=0, seed=0,
        emit=Events(), step=2, racing=Racing(confidence=0.999) if raced else None, goes=len(candidates),
    )  # fmt: skip
    SALIENCIES[saliency](scoring)
    work = ScoringWork.of(data, trainer.training, saliency=saliency, scores="validation", batches=None)
    assert sum(images for _, images, _ in trainer.looked) == work.passes(len(candidates))
    assert {(part, macs) for part, _, macs in trainer.looked} <= {("step/2", count(network).macs)}


def test_of_a_step_on_a_network(network: Network) -> None:
    step = BlockRemoval.model_validate({"method": "block_removal", "target": {"blocks": 4}})
    target = Goal(step.target, count(network))
    macs = planned_rounds(network, Candidates(network), target, per_round=1)
    data = small_dataset()  # 32 images of validation
    expected = [(6 * 32 // 2, macs[0]), (5 * 32 // 2, macs[1])]
    assert planned_scorings(network, step, data, Training(), target=target) == expected
    soft = step.model_copy(
        update={"soft": Soft(epochs=3)}
    )  # scores all six in front of each epoch, and goes in one round
    assert planned_scorings(network, soft, data, Training(), target=target) == [(6 * 32 // 2, macs[0])] * 3


def test_of_soft_pruning_there_is_one_before_each_epoch(network: Network) -> None:
    fields = {"target": {"blocks": 2}, "soft": {"epochs": 3}}
    step = BlockRemoval.model_validate({"method": "block_removal", **fields})
    found = planned_scorings(network, step, small_dataset(), Training(), target=Goal(step.target, count(network)))
    assert found == [(6 * 32 // 2, count(network).macs)] * 3


@pytest.mark.parametrize("every", [1, 2, None])
def test_what_is_foreseen_is_what_is_scored_where_groups_take_turns(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int | None
) -> None:
    fields = {"target": {"blocks": 3}, "equalise": True, "rescore_every": every, "fine_tune": {"epochs": 0}}
    step = BlockRemoval.model_validate({"method": "block_removal", **fields})
    found = planned_scorings(network, step, small_dataset(), Training(), target=Goal(step.target, count(network)))
    scored: list[int] = []

    def scores(scoring: Scoring) -> dict[str, float]:
        scored.append(len(scoring.candidates))
        return {each.name: 0.0 for each in scoring.candidates}

    monkeypatch.setitem(SALIENCIES, "oracle", scores)
    go(network, tmp_path, saliency="oracle", **fields)
    assert scored == {1: [2, 2, 2], 2: [6, 4], None: [6]}[every]
    assert [images for images, _ in found] == [number * 32 // 2 for number in scored]


def test_the_progress_knows_it(network: Network, tmp_path: Path) -> None:
    """Until the step is over, whatever it ended with."""
    now = [0.0]
    progress = Progress(Events(), clock=lambda: now[0])
    progress.begin("prune", "step/0")
    now[0] = 10.0
    progress.advance(10)  # an image takes a second
    macs = count(network).macs
    trainer = Trainer(small_dataset(), training=Training(), device=torch.device("cpu"), seed=0, original_macs=macs,
                      emit=Events(), progress=progress)  # fmt: skip
    trainer.expect_scoring("step/0", [(30, macs), (20, macs // 2)])
    assert progress.eta_seconds() == pytest.approx(40.0)
    now[0] = 15.0
    trainer.scored("step/0", 5, macs)  # at the same rate, so that 25 are left of the first 30
    assert progress.eta_seconds() == pytest.approx(35.0)
    recipe = parse_recipe({"steps": [
        {"method": "block_removal", "saliency": "weights_mean", "target": {"blocks": 6}, "fine_tune": {"epochs": 0}},
    ]})  # fmt: skip
    exports = Exports(network, export=Export(), folder=tmp_path, inputs=lambda: network.example_input(1).numpy())
    run_steps(
        recipe.steps, network, small_dataset(), original=count(network), accuracy=0.9, export=Export(), exports=exports,
        seed=0, trainer=ScriptedTrainer(), progress=progress, emit=Events(), state=empty_state(tmp_path),
    )  # fmt: skip
    assert progress.eta_seconds() == 0.0
