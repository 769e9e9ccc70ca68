"""Fine-tuning policies, the cost ledger and the guard in filter_norm, on scripted accuracy curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.data.datasets import Dataset
from core.errors import NothingRemoved
from core.graph.architectures import build
from core.graph.counts import count
from core.graph.network import Network
from core.graph.plans import replay
from core.methods.filter_norm import filter_norm
from core.outcome import Outcome
from core.state import State
from core.target_settings import Target
from core.targets import Goal
from core.training.budget import EpochsBudget
from core.training_settings import FineTune, Moments, Policy
from tests.core.fakes import Dying, Events, Killed, ScriptedTrainer, small_dataset

ORIGINAL = 0.9


@pytest.fixture(scope="module")
def data() -> Dataset:
    return small_dataset(images=16)


def network() -> Network:
    torch.manual_seed(0)
    return build("small_cnn", num_classes=4, in_channels=1, image_size=(8, 8)).eval()


class Run:
    """filter_norm with one epoch a round; `accuracies` in the order in which they are asked for: of the original, then
    for each round after its training and after its cut, and after each fine-tuning."""

    def __init__(
        self,
        tmp_path: Path,
        data: Dataset,
        policy: Policy,
        accuracies: list[float],
        drop: float | None = None,
        events: Events | None = None,
        budget: int | None = None,
        **changes: Any,
    ) -> None:
        self.trainer, self.events, self.given = (
            ScriptedTrainer(accuracies),
            Events() if events is None else events,
            network(),
        )
        self.trainer.budget = EpochsBudget(budget)
        self.outcome: Outcome = filter_norm(
            self.given,
            data,
            **{"signal": "weights", "ratio_per_round": 0.25, "every_epochs": 1, "scope": "local"} | changes,
            normalize="none",
            target=Goal(Target(filters=0.4, max_accuracy_drop=drop), count(self.given), accuracy=ORIGINAL),
            fine_tune=FineTune(policy=policy, epochs=5),
            channel_multiple=1,
            trainer=self.trainer,
            emit=self.events,
            state=State.open(tmp_path, fingerprint={"test": "x"}, emit=self.events).scope("method"),
        )

    @property
    def fine_tunings(self) -> list[tuple[str, int]]:
        return [(label, epochs) for label, epochs in self.trainer.labels if label.startswith("fine_tune/")]


def falling(*cuts: float) -> list[float]:
    """The original, then for each round its training (as before) and its cut."""
    found = [ORIGINAL]
    for accuracy in cuts:
        found += [found[-1], accuracy]
    return found


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Policy(), [("fine_tune/0", 5)]),
        (Policy(loops=2), [("fine_tune/0/round/2", 5), ("fine_tune/0", 5)]),
        (Policy(at=(1,)), [("fine_tune/0/round/1", 5), ("fine_tune/0", 5)]),
        (Policy(every=2), [("fine_tune/0/round/2", 5), ("fine_tune/0", 5)]),
        (
            Policy(low=1, high=Moments(at=(2,))),
            [("fine_tune/0/round/1", 1), ("fine_tune/0/round/2", 5), ("fine_tune/0/round/3", 1), ("fine_tune/0", 5)],
        ),
    ],
)
def test_policies_fire_where_they_say(policy: Policy, expected: Any, data: Dataset, tmp_path: Path) -> None:
    run = Run(tmp_path, data, policy, [])
    assert len(run.events.named("/select")) == 4
    assert run.fine_tunings == expected


def test_the_threshold_counts_from_the_last_fine_tuning(data: Dataset, tmp_path: Path) -> None:
    """Cuts leave 0.88 (0.02 lost: no), 0.84 (0.06: yes, back to 0.86), 0.82 (0.04 since: no), and the end."""
    curve = [ORIGINAL, 0.9, 0.88, 0.88, 0.84, 0.86, 0.86, 0.82, 0.82, 0.7, 0.85]
    run = Run(tmp_path, data, Policy(threshold=0.05), curve)
    assert run.fine_tunings == [("fine_tune/0/round/2", 5), ("fine_tune/0", 5)]
    lost = [body["accuracy_lost"] for body in run.events.named("/select")]
    assert lost == pytest.approx([0.02, 0.06, 0.04, 0.16])
    assert [body["fine_tune_epochs"] for body in run.events.named("/select")] == [0, 5, 0, 5]
    assert run.outcome.front[-1].validation_accuracy == 0.85


def test_the_ledger_equals_a_count_by_hand(data: Dataset, tmp_path: Path) -> None:
    run = Run(tmp_path, data, Policy(every=2), [])
    sizes = [point.params for point in run.outcome.front]  # of the original and after each of four cuts
    by_hand = sum(sizes[:4]) * 1 + sizes[2] * 5 + sizes[4] * 5
    assert (run.outcome.cost.epochs, run.outcome.cost.epochs_kept) == (4 + 5 + 5, 4 + 5 + 5)
    assert (run.outcome.cost.epoch_params, run.outcome.cost.epoch_params_kept) == (by_hand, by_hand)


def test_what_is_planned_is_told(data: Dataset, tmp_path: Path) -> None:
    run = Run(tmp_path, data, Policy(every=2), [])
    assert run.events.named("/plan")[0]["epochs"] == 4 + 5 + 5
    first = run.trainer.expected[0]
    assert sorted(epochs for epochs, _ in first) == [1, 1, 1, 1, 5, 5]


def test_a_moment_that_never_comes_is_told(data: Dataset, tmp_path: Path) -> None:
    run = Run(tmp_path, data, Policy(at=(2, 9, 12)), [])
    assert run.outcome.warnings == ["step 0 had 4 round(s): the fine-tuning after round 9, 12 was never reached"]


def test_the_guard_returns_the_smallest_network_inside(data: Dataset, tmp_path: Path) -> None:
    """A fine-tuning after every round: 0.89 and 0.88 are inside a drop of 0.03, 0.80 after the third is not."""
    curve = [ORIGINAL, 0.9, 0.5, 0.89, 0.89, 0.5, 0.88, 0.88, 0.5, 0.80]
    run = Run(tmp_path, data, Policy(every=1), curve, drop=0.03)
    assert len(run.outcome.plan) == len(run.outcome.checks) == 2
    assert len(run.outcome.front) == 1 + 3  # all that was visited is told
    assert count(run.outcome.network).filters == run.outcome.front[2].filters
    assert count(replay(run.given, run.outcome.plan)).filters == run.outcome.front[2].filters
    (told,) = run.outcome.warnings
    assert "stopped by max_accuracy_drop 0.03 after 3 cut(s): the network after 2 of them is kept" in told
    assert run.events.named("/guard")[0]["kept_cuts"] == 2


def test_a_guard_s_stop_survives_a_crash(data: Dataset, tmp_path: Path) -> None:
    """Killed right after the checkpoint of the fine-tuning that ended it, it goes into no further round."""
    curve = [ORIGINAL, 0.9, 0.5, 0.89, 0.89, 0.5, 0.88, 0.88, 0.5, 0.80]
    whole = Run(tmp_path / "whole", data, Policy(every=1), curve, drop=0.03)
    dying = Dying(sum(name == "checkpoint" for name, _ in whole.events))
    with pytest.raises(Killed):
        Run(tmp_path / "again", data, Policy(every=1), curve, drop=0.03, events=dying)
    again = Run(tmp_path / "again", data, Policy(every=1), [], drop=0.03)
    assert again.trainer.labels == []
    assert again.outcome.plan == whole.outcome.plan
    assert (again.outcome.warnings, again.outcome.front) == (whole.outcome.warnings, whole.outcome.front)


def test_what_the_guard_took_back_is_not_removed_at_random_either(data: Dataset, tmp_path: Path) -> None:
    curve = [ORIGINAL, 0.9, 0.5, 0.89, 0.89, 0.5, 0.88, 0.88, 0.5, 0.80]
    outcome = Run(tmp_path, data, Policy(every=1), curve, drop=0.03).outcome
    assert len(outcome.removed) == 2
    assert outcome.accuracy == 0.88


def test_loops_that_cannot_be_had_are_told(data: Dataset, tmp_path: Path) -> None:
    run = Run(tmp_path, data, Policy(loops=9), [])
    assert run.outcome.warnings == ["step 0 had 4 round(s): 4 fine-tuning(s) instead of 9 loops"]


def test_a_guard_that_holds_to_the_end_changes_nothing(data: Dataset, tmp_path: Path) -> None:
    """Cuts fall out of it, fine-tunings bring it back; 0.02 lost in decimals is no more than 0.02."""
    curve = [*falling(0.5, 0.5, 0.5, 0.5), 0.88]
    run = Run(tmp_path, data, Policy(), curve, drop=0.02)
    assert (len(run.outcome.plan), run.outcome.warnings) == (4, [])


def test_a_guard_that_admits_no_cut_is_an_error(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(
        NothingRemoved, match=r"more than the 0\.01 of validation accuracy .* the least was 0\.2"
    ) as error:
        Run(tmp_path, data, Policy(every=1), [ORIGINAL, 0.9, 0.6, 0.7], drop=0.01)
    assert error.value.faults[0].pointer == "/steps/0/target/max_accuracy_drop"


def test_a_network_of_which_nothing_was_cut_is_no_smaller_one(data: Dataset, tmp_path: Path) -> None:
    """A round whose share is below one filter cuts nothing; the fine-tuning after it changes nothing in that."""
    curve = [ORIGINAL, 0.9, 0.9] + [0.5] * 200
    with pytest.raises(NothingRemoved, match=r"the least was 0\.4"):
        Run(tmp_path, data, Policy(every=1), curve, drop=0.01, ratio_per_round=0.01)


def test_a_guard_does_not_stop_in_front_of_the_first_cut(data: Dataset, tmp_path: Path) -> None:
    """What a fine-tuning loses there is no loss by pruning; the next round goes on."""
    curve = [ORIGINAL, 0.9, 0.1] + [0.9] * 200
    outcome = Run(tmp_path, data, Policy(every=1), curve, drop=0.01, ratio_per_round=0.01).outcome
    assert outcome.plan
    assert outcome.front[0].validation_accuracy == ORIGINAL


# --- a budget of epochs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "budget", "expected"),
    [
        (Policy(), 9, [("fine_tune/0", 5)]),  # four rounds of one epoch, and all that was asked for
        (Policy(), 6, [("fine_tune/0", 2)]),
        (Policy(loops=2), 9, [("fine_tune/0/round/2", 2), ("fine_tune/0", 3)]),  # ⌊5 · 5 / 10⌋, and what is left
    ],
)
def test_fine_tunings_share_what_the_rounds_leave(
    policy: Policy, budget: int, expected: list[tuple[str, int]], data: Dataset, tmp_path: Path
) -> None:
    run = Run(tmp_path, data, policy, [], budget=budget)
    assert run.fine_tunings == expected
    assert run.outcome.cost.epochs == budget
    given = sum(epochs for _, epochs in expected)
    asked = 5 * len(expected)
    short = [f"the fine-tuning of step 0 had {given} of {asked} epochs: epochs_budget is {budget}"]
    assert run.outcome.warnings == (short if given < asked else [])


def test_a_step_ends_where_no_round_fits_in(data: Dataset, tmp_path: Path) -> None:
    """Rounds of two epochs: after two of them there is one left, which is the fine-tuning's."""
    run = Run(tmp_path, data, Policy(), [], budget=5, every_epochs=2)
    assert [epochs for _, epochs in run.trainer.labels] == [2, 2, 1]
    assert len(run.outcome.plan) == 2
    assert "step 0 ended after 2 round(s), short of its target: epochs_budget is 5" in run.outcome.warnings


def test_small_fine_tunings_do_not_eat_the_last_one(data: Dataset, tmp_path: Path) -> None:
    run = Run(tmp_path, data, Policy(low=3, high=Moments(loops=2)), [], budget=9)
    assert run.outcome.cost.epochs == 9
    assert run.fine_tunings[-1][0] == "fine_tune/0"
    assert run.fine_tunings[-1][1] >= 1
    assert len(run.outcome.plan) == 4, "all rounds"


def test_a_budget_for_no_round_is_refused(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(NothingRemoved, match="its first round needs 2"):
        Run(tmp_path, data, Policy(), [], budget=1)
