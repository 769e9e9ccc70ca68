"""What a step that removes blocks tells of its rounds: scores, rankings, accuracies; the same after a resumption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from core.block_report import BlockAnalysis
from core.block_settings import BlockRemoval
from core.data.datasets import Dataset
from core.graph.architectures.cifar_resnet import CifarResNet
from core.graph.counts import count
from core.graph.lowering import trace
from core.graph.network import Network
from core.methods.block_removal import block_removal
from core.outcome import Done, Outcome
from core.progress import Progress
from core.saliency.block_scores import SALIENCIES, Scoring
from core.state import State
from core.targets import Goal
from core.training.port import TrainerPort
from core.training.trainer import Trainer
from core.training_settings import Sgd, Training
from tests.core.fakes import Dying, Events, Killed, ScriptedTrainer, empty_state, small_dataset

BLOCKS = ["layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1"]
FIELDS = [name for name in BlockRemoval.model_fields if name not in ("method", "target", "fine_tune")]


@pytest.fixture(scope="module")
def network() -> Network:
    """Three groups of two blocks."""
    torch.manual_seed(0)
    return trace(CifarResNet(14, num_classes=4, in_channels=1).eval(), (1, 8, 8))


@pytest.fixture(scope="module")
def data() -> Dataset:
    return small_dataset(images=48)


def go(
    network: Network, data: Dataset, trainer: TrainerPort, state: State, events: Events, like: Any = None, **fields: Any
) -> Outcome:
    step = BlockRemoval.model_validate({"method": "block_removal", "saliency": "weights_mean", **fields})
    return block_removal(
        network,
        data,
        **{name: getattr(step, name) for name in FIELDS},
        target=Goal(step.target, count(network), 0.9),
        fine_tune=step.fine_tune,
        trainer=trainer,
        emit=events,
        state=state,
        like=like,
    )


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """Scores by the number of a block in execution order, one dict for each scoring."""
    script: list[dict[str, float]] = []
    told = iter(script)

    def scores(scoring: Scoring) -> dict[str, float]:
        found = next(told)
        return {each.name: found[digits([each.name])] for each in scoring.candidates}

    monkeypatch.setitem(SALIENCIES, "weights_mean", scores)  # type: ignore[call-overload]
    return script


def digits(units: Sequence[str]) -> str:
    return "".join(str(BLOCKS.index(unit)) for unit in units)


def of(order: str) -> dict[str, float]:
    """Scores: 0 of the first, 1 of the next …"""
    return {name: float(place) for place, name in enumerate(order)}


def test_rounds_rankings_and_accuracies(
    network: Network, data: Dataset, scripted: list[dict[str, float]], tmp_path: Path
) -> None:
    scripted += [of("315024"), of("512043"), of("240153")]
    trainer = ScriptedTrainer([0.9, 0.8, 0.7, 0.85, 0.6, 0.75])  # given; cut; cut; tuned; cut; tuned
    events = Events()
    fine_tune = {"epochs": 4, "policy": {"at": [2]}}
    outcome = go(network, data, trainer, empty_state(tmp_path), events, target={"blocks": 3}, fine_tune=fine_tune)
    history = outcome.blocks
    assert history is not None
    assert (history.saliency, history.accuracy, history.params) == ("weights_mean", 0.9, count(network).params)
    assert list(history.blocks) == BLOCKS
    assert list(history.blocks.values()) == [f"group {n}" for n in (1, 1, 2, 2, 3, 3)]
    assert digits([unit for each in history.rounds for unit in each.removed]) == "352"
    assert [digits(list(each.scores)) for each in history.rounds] == ["012345", "01245", "0124"]
    figures = [(each.accuracy_before, each.accuracy_cut, each.accuracy_tuned, each.epochs, each.whole)
               for each in history.rounds]  # fmt: skip
    assert figures == [(0.9, 0.8, None, 0, False), (0.8, 0.7, 0.85, 4, True), (0.85, 0.6, 0.75, 4, True)]
    assert [each.left for each in history.rounds][-1] == {"group 1": 2, "group 2": 0, "group 3": 1}
    assert [each.params for each in history.rounds] == [point.params for point in outcome.front[1:]]

    rankings = events.named("/ranking")
    assert [digits(each["ranking"]) for each in rankings] == ["315024", "351204", "352401"]
    assert [each["removed"] for each in rankings] == [0, 1, 2]
    # 315024 to 351204: (1, 5), (0, 2) of fifteen pairs are turned; to 352401: (1, 2), (1, 4), (1, 0), (0, 4)
    assert [each["tau_previous"] for each in rankings] == [None, pytest.approx(11 / 15), pytest.approx(7 / 15)]
    (told,) = events.named("/analysis")
    analysis = BlockAnalysis(**told)
    assert digits(analysis.rankings[-1].units) == "352401"
    assert [each.tau_final for each in analysis.rankings][-2:] == [1.0, 1.0]
    assert (analysis.run, analysis.rounds_kept, analysis.fine_tunings, analysis.correlation) == ("pruned", 3, 2, None)
    assert events.not_taken() == []


def test_scores_that_are_older_say_so(
    network: Network, data: Dataset, scripted: list[dict[str, float]], tmp_path: Path
) -> None:
    scripted += [of("012345"), of("543210")]
    outcome = go(
        network, data, ScriptedTrainer(), empty_state(tmp_path), Events(), target={"blocks": 2}, rescore_every=3
    )
    assert outcome.blocks is not None
    assert [each.scored_after for each in outcome.blocks.rounds] == [0, 0, 0, 3]
    assert [digits(list(each.scores)) for each in outcome.blocks.rounds] == ["012345", "12345", "2345", "345"]
    assert digits([each.removed[0] for each in outcome.blocks.rounds]) == "0125"


def test_of_groups_in_turn_only_those_are_ranked_that_have_scores(
    network: Network, data: Dataset, scripted: list[dict[str, float]], tmp_path: Path
) -> None:
    scripted += [of("012345")] * 3
    outcome = go(network, data, ScriptedTrainer(), empty_state(tmp_path), Events(), target={"blocks": 3}, equalise=True)
    assert outcome.blocks is not None
    assert [each.group for each in outcome.blocks.rounds] == ["group 1", "group 2", "group 3"]
    assert [set(each.scores) >= {each.removed[0]} for each in outcome.blocks.rounds] == [True] * 3


def test_rounds_that_a_guard_took_back_are_told(
    network: Network, data: Dataset, scripted: list[dict[str, float]], tmp_path: Path
) -> None:
    scripted += [of("012345")] * 3
    trainer = ScriptedTrainer([0.9, 0.9, 0.9, 0.9, 0.9, 0.1, 0.1])
    events = Events()
    outcome = go(network, data, trainer, empty_state(tmp_path), events, fine_tune={"epochs": 1, "policy": {"every": 1}},
                 target={"blocks": 3, "max_accuracy_drop": 0.1})  # fmt: skip
    assert outcome.blocks is not None
    (told,) = events.named("/analysis")
    assert (len(told["rounds"]), told["rounds_kept"], len(outcome.removed)) == (3, 2, 2)
    assert len(outcome.plan) == 2


def test_the_control_random_is_told_as_such(network: Network, data: Dataset, tmp_path: Path) -> None:
    events = Events()
    outcome = go(network, data, ScriptedTrainer(), empty_state(tmp_path), events, saliency="random",
                 target={"blocks": 3}, like=[{"blocks": 1}, {"blocks": 2}])  # fmt: skip
    assert events.named("/analysis")[0]["run"] == "random"
    assert outcome.blocks is not None
    assert [len(each.removed) for each in outcome.blocks.rounds] == [1, 2]


# --- resumed ---------------------------------------------------------------------------------------------------------


def trained(network: Network, data: Dataset, workdir: Path, last: int | None = None) -> tuple[Outcome, Events, Done]:
    events = Events() if last is None else Dying(last)
    trainer = Trainer(
        data, training=Training(optimizer=Sgd(lr=0.02), batch_size=16), device=torch.device("cpu"), seed=3,
        original_macs=count(network).macs, emit=events, progress=Progress(events),
    )  # fmt: skip
    state = State.open(workdir, fingerprint={"test": "x"}, emit=events)
    outcome = go(network, data, trainer, state.scope("method"), events, target={"blocks": 3}, rescore_every=2,
                 fine_tune={"epochs": 2, "policy": {"low": 1, "high": {"at": [2]}}})  # fmt: skip
    done = Done(network)
    done.add(outcome)
    state.save(**done.values())
    return outcome, events, Done.of(state, network)


def test_killed_after_any_checkpoint_it_tells_the_same(
    one_thread: None, network: Network, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", 1)
    whole, events, done = trained(network, data, tmp_path / "whole")
    assert whole.blocks is not None
    assert [each.epochs for each in whole.blocks.rounds] == [1, 2, 2]
    assert done.blocks == [whole.blocks]
    assert done.entries == [3]
    rankings = events.named("/ranking")
    for kill_at in range(1, sum(name == "checkpoint" for name, _ in events)):
        with pytest.raises(Killed):
            trained(network, data, tmp_path / str(kill_at), last=kill_at)
        again, after, _ = trained(network, data, tmp_path / str(kill_at))
        assert again.blocks == whole.blocks
        later = after.named("/ranking")
        assert later == rankings[len(rankings) - len(later) :]
        assert after.named("/analysis") == events.named("/analysis")


def test_of_tied_blocks_the_one_that_goes_first_is_ranked_first(
    network: Network, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of the oracle are, whose order is that of the loss."""

    def scores(scoring: Scoring) -> dict[str, float]:
        return {each.name: 0.5 for each in reversed(scoring.candidates)}

    monkeypatch.setitem(SALIENCIES, "weights_mean", scores)
    events = Events()
    outcome = go(network, data, ScriptedTrainer(), empty_state(tmp_path), events, target={"blocks": 4},
                 fine_tune={"epochs": 0})  # fmt: skip
    rankings = [event["ranking"] for event in events.named("/ranking")]
    assert [digits(ranking) for ranking in rankings] == ["543210", "543210"]
    assert outcome.blocks is not None
    assert [digits(round.removed) for round in outcome.blocks.rounds] == ["5", "4"]
