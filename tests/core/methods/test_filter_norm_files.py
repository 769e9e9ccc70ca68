"""Targets of the file: `size`, which is exact, and `latency`, which is measured. No real clock decides here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.data.datasets import Dataset
from core.errors import TargetUnreachable
from core.exports import Exports
from core.graph.architectures import build
from core.graph.counts import count
from core.graph.cuts import cut
from core.graph.network import Network
from core.methods.filter_norm import filter_norm, planned_trainings
from core.outcome import Outcome
from core.progress import Progress
from core.recipe import Export
from core.report import LatencyRatio
from core.rounds import cut_no_more_than_needed, is_at_least
from core.state import State
from core.step_settings import FilterNorm
from core.target_settings import Target
from core.targets import Goal
from core.training.trainer import Trainer
from core.training_settings import FineTune, Moments, Policy, Sgd, Training
from core.widths import Chunk, removal_of
from tests.core.fakes import Dying, Events, Killed, ScriptedTrainer, small_dataset


class ScriptedExports:
    """`core.targets.Exports` whose latencies are from a script: (low, ratio, high) of each measurement."""

    def __init__(self, *latencies: tuple[float, float, float]) -> None:
        self._latencies = iter(latencies)
        self.measured: list[int] = []

    original_bytes = 1

    def bytes(self, network: Network) -> int:
        raise AssertionError("nobody asked for a size")

    def latency(self, network: Network) -> LatencyRatio:
        self.measured.append(count(network).params)
        low, ratio, high = next(self._latencies)
        return LatencyRatio(ratio=ratio, low=low, high=high, windows=15, original_ms=1.0, candidate_ms=ratio)


def sure(ratio: float) -> tuple[float, float, float]:
    return ratio - 0.01, ratio, ratio + 0.01


@pytest.fixture(scope="module")
def data() -> Dataset:
    return small_dataset(images=16)


def network() -> Network:
    torch.manual_seed(0)
    return build("small_cnn", num_classes=4, in_channels=1, image_size=(8, 8)).eval()


def run(
    data: Dataset, folder: Path, target: Target, exports: Any, *, given: Network | None = None,
    events: Events | None = None, trainer: Any = None, original: Network | None = None, accuracy: float | None = None,
    **changes: Any,
) -> Outcome:  # fmt: skip
    given = given or network()
    events = Events() if events is None else events
    settings: dict[str, Any] = {
        "signal": "weights", "ratio_per_round": 0.25, "every_epochs": 1, "scope": "local", "normalize": "none",
        "fine_tune": FineTune(epochs=2), "channel_multiple": 4,
    }  # fmt: skip
    return filter_norm(
        given, data, target=Goal(target, count(original or given), accuracy, exports),
        trainer=trainer or ScriptedTrainer(), emit=events,
        state=State.open(folder, fingerprint={"test": "x"}, emit=events).scope("method"), **(settings | changes),
    )  # fmt: skip


# --- size -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def real(tmp_path: Path) -> Exports:
    return Exports(network(), export=Export(), folder=tmp_path, inputs=lambda: np.zeros((1, 1, 8, 8), np.float32))


@pytest.mark.parametrize("wanted", [0.5, 40_000])
def test_the_last_round_takes_no_more_than_the_size_needs(
    wanted: float, data: Dataset, tmp_path: Path, real: Exports
) -> None:
    events = Events()
    limit = wanted if isinstance(wanted, int) else wanted * real.original_bytes
    outcome = run(data, tmp_path, Target(size=wanted), real, events=events, channel_multiple=1)
    sizes = [select["file_bytes"] for select in events.named("/select")]
    assert sizes[-1] == real.bytes(outcome.network) <= limit < sizes[-2]
    assert [point.file_bytes for point in outcome.front] == [real.original_bytes, *sizes]
    assert all(point.latency is None for point in outcome.front)


@pytest.mark.parametrize("share", [0.9, 0.75, 0.6])
def test_one_unit_less_would_not_do(share: float, real: Exports) -> None:
    given, goal = network(), Goal(Target(size=share), count(network()), exports=real)
    chosen = [Chunk(name, (unit,), 0.0) for unit in range(12) for name in ("conv3", "conv1", "conv2")]
    removal, smaller, _ = cut_no_more_than_needed(given, chosen, goal)
    taken = sum(map(len, removal.values()))
    assert 1 < taken < len(chosen)
    assert goal.met(goal.present(smaller))
    assert not goal.met(goal.present(cut(given, removal_of(chosen[: taken - 1]))[0]))


def test_a_size_that_cannot_be_reached_is_refused_before_training(data: Dataset, tmp_path: Path, real: Exports) -> None:
    trainer = ScriptedTrainer()
    with pytest.raises(TargetUnreachable) as caught:
        run(data, tmp_path, Target(size=1_500), real, trainer=trainer)
    (fault,) = caught.value.faults
    assert fault.pointer == "/steps/0/target/size"
    assert fault.expected is not None
    assert fault.expected.startswith("a number of bytes of at least ")
    assert trainer.labels == []
    least = int(fault.expected.removeprefix("a number of bytes of at least ").split()[0])
    outcome = run(data, tmp_path, Target(size=least), real, trainer=trainer)
    assert real.bytes(outcome.network) == least


# --- latency ----------------------------------------------------------------------------------------------------------


def test_it_stops_at_the_round_whose_doubt_lies_below_the_target(data: Dataset, tmp_path: Path) -> None:
    """The second round's median would do, its interval would not."""
    exports, events = ScriptedExports(sure(0.9), (0.55, 0.58, 0.63), (0.5, 0.55, 0.6), sure(0.1)), Events()
    outcome = run(data, tmp_path, Target(latency=0.6), exports, events=events)
    assert len(outcome.plan) == 3
    assert exports.measured == [point.params for point in outcome.front[1:]], "each network once, not the original"
    assert [point.latency.high for point in outcome.front if point.latency] == pytest.approx([0.91, 0.63, 0.6])
    assert outcome.front[0].latency is None
    assert outcome.latency is not None
    assert outcome.latency.ratio == 0.55
    assert [select["latency"]["ratio"] for select in events.named("/select")] == [0.9, 0.58, 0.55]
    assert outcome.warnings == []
    assert events.named("/select")[-1]["fine_tune_epochs"] == 2, "the fine-tuning at the end"


def test_other_keys_hold_too_and_rounds_stay_whole(data: Dataset, tmp_path: Path) -> None:
    events, alone = Events(), Events()
    outcome = run(
        data, tmp_path / "a", Target(latency=0.9, filters=0.5), ScriptedExports(*[sure(0.5)] * 9), events=events
    )
    whole = count(network()).filters
    filters = [select["filters"] for select in events.named("/select")]
    assert filters[-1] <= 0.5 * whole < filters[-2]
    run(data, tmp_path / "b", Target(filters=1 / whole + 0.2), ScriptedExports(), events=alone)
    assert filters == [select["filters"] for select in alone.named("/select")][: len(filters)], "as in mid-way rounds"
    assert len(outcome.plan) == len(filters)


def test_a_latency_that_is_never_reached_ends_with_the_least_widths(data: Dataset, tmp_path: Path) -> None:
    exports, events = ScriptedExports(*[sure(0.99)] * 100), Events()
    outcome = run(data, tmp_path, Target(latency=0.5), exports, events=events)
    assert is_at_least(outcome.network, 4)
    assert not is_at_least(network(), 4)
    assert outcome.warnings == [
        "step 0 ended at the least widths (channel_multiple 4): nothing more could be removed, and the latency 0.5 was "
        "not reached"
    ]
    assert events.named("/select")[-1]["fine_tune_epochs"] == 2
    goal = Goal(Target(latency=0.5), count(network()), exports=exports)
    (result,) = goal.results(goal.present(outcome.network, outcome.latency))
    assert (result.met, result.reached) == (False, 0.99)
    assert (result.low, result.high) == pytest.approx((0.98, 1.0))


def test_a_network_that_is_fast_enough_already_is_left(data: Dataset, tmp_path: Path) -> None:
    """The second step of a recipe begins with what the first has left, and is held against the original."""
    smaller = run(data, tmp_path / "a", Target(filters=0.5), ScriptedExports()).network
    exports, trainer, events = ScriptedExports(sure(0.4)), ScriptedTrainer(), Events()
    outcome = run(data, tmp_path / "b", Target(latency=0.6), exports, given=smaller, original=network(),
                  trainer=trainer, events=events)  # fmt: skip
    assert (outcome.skipped, outcome.plan, trainer.labels) == ("the target is met already", [], [])
    assert outcome.latency is not None
    assert outcome.latency.ratio == 0.4
    assert events.named("/skipped")[0]["targets"][0]["high"] == pytest.approx(0.41)
    slow = ScriptedExports(sure(0.7), sure(0.5))
    assert len(run(data, tmp_path / "c", Target(latency=0.6), slow, given=smaller, original=network()).plan) == 1


def test_random_does_not_measure(data: Dataset, tmp_path: Path) -> None:
    ours = run(data, tmp_path / "a", Target(latency=0.6), ScriptedExports(sure(0.9), sure(0.7), sure(0.5)))
    exports = ScriptedExports()
    theirs = run(data, tmp_path / "b", Target(latency=0.6), exports, signal="random", like=ours.removed)
    assert exports.measured == []
    assert count(theirs.network).params == count(ours.network).params
    assert theirs.latency is None
    assert run(data, tmp_path / "c", Target(latency=0.6), exports, signal="random", like=[]).skipped is not None


def test_a_guard_takes_the_latency_back_with_the_cuts(data: Dataset, tmp_path: Path) -> None:
    # original; then for each round after its training and its cut; the fine-tuning at the end
    trainer = ScriptedTrainer([0.9, 0.9, 0.9, 0.9, 0.2, 0.2])
    outcome = run(
        data, tmp_path, Target(latency=0.6, max_accuracy_drop=0.05), ScriptedExports(sure(0.8), sure(0.5)),
        trainer=trainer, accuracy=0.9,
    )  # fmt: skip
    assert len(outcome.plan) == 1
    assert outcome.latency is not None
    assert outcome.latency.ratio == 0.8
    goal = Goal(Target(latency=0.6), count(network()), exports=ScriptedExports())
    assert not goal.met(goal.present(outcome.network, outcome.latency))


def test_the_plan_takes_macs_for_the_latency() -> None:
    step = FilterNorm(method="filter_norm", ratio_per_round=0.25, every_epochs=1, target=Target(latency=0.5))
    by_macs = step.model_copy(update={"target": Target(macs=0.5)})
    plans = [
        planned_trainings(
            network(), each, target=Goal(each.target, count(network()), exports=ScriptedExports()), channel_multiple=4
        )
        for each in (step, by_macs)
    ]
    assert plans[0] == plans[1]


# --- going on ---------------------------------------------------------------------------------------------------------


def trained_run(
    data: Dataset, folder: Path, events: Events, latencies: Sequence[float], exports: ScriptedExports | None = None
) -> tuple[Outcome, list[int]]:
    given, exports = network(), exports or ScriptedExports(*map(sure, latencies))
    trainer = Trainer(
        data, training=Training(optimizer=Sgd(lr=0.02), batch_size=16), device=torch.device("cpu"), seed=3,
        original_macs=count(given).macs, emit=events, progress=Progress(events),
    )  # fmt: skip
    fine_tune = FineTune(policy=Policy(low=1, high=Moments(loops=2)), epochs=2)
    return run(data, folder, Target(latency=0.6), exports, given=given, events=events, trainer=trainer,
               fine_tune=fine_tune), exports.measured  # fmt: skip


LATENCIES = [0.95, 0.8, 0.7, 0.5]


def test_what_was_decided_is_not_decided_again(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    """Killed after each checkpoint. Whoever goes on measures from there only; it would find every network fast enough,
    had it to decide again what is decided."""
    monkeypatch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", 1)
    events = Events()
    whole, _ = trained_run(data, tmp_path / "whole", events, LATENCIES)
    assert len(whole.plan) == 4
    seen, begun = [], 0
    for name, body in events:
        begun += name.endswith("/select")
        if name == "checkpoint":
            seen.append((body["number"], begun))
    assert len(seen) > 8
    for number, decided in seen:
        folder = tmp_path / str(number)
        with pytest.raises(Killed):
            trained_run(data, folder, Dying(number), LATENCIES)
        after = Events()
        rest = LATENCIES[decided:] + [0.01] * 3
        again, measured = trained_run(data, folder, after, rest)
        assert measured == [point.params for point in whole.front[1 + decided :]]
        assert again.plan == whole.plan
        assert again.front == whole.front
        ours, theirs = again.network.state_dict(), whole.network.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), number


class MeasuringExports(ScriptedExports):
    """Measures in earnest, and says what the script says."""

    def __init__(self, folder: Path, *latencies: tuple[float, float, float]) -> None:
        super().__init__(*latencies)
        self._real = Exports(
            network(), export=Export(), folder=folder, inputs=lambda: np.zeros((1, 1, 8, 8), np.float32)
        )

    def latency(self, network: Network) -> LatencyRatio:
        self._real.latency(network)
        return super().latency(network)


def test_measuring_leaves_no_trace_in_the_training(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    """ONNX Runtime and torch share a process: what one sets for its threads must not change the other's numbers."""
    monkeypatch.setattr("core.measure.latency_ratio.MOST_WINDOWS", 6)
    plain, _ = trained_run(data, tmp_path / "plain", Events(), LATENCIES)
    exports = MeasuringExports(tmp_path / "files", *map(sure, LATENCIES))
    measured, _ = trained_run(data, tmp_path / "measured", Events(), LATENCIES, exports)
    ours, theirs = measured.network.state_dict(), plain.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert measured.front == plain.front
