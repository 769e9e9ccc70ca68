"""block_removal with `fade` and `soft`: killed after any checkpoint and started again, it ends in the same bits."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.core.fakes import Dying, Events, Killed
from tests.core.methods.fading_runs import resnet, run, same

RUNS: dict[str, dict[str, Any]] = {
    "fade": {"depth": 8, "target": {"blocks": 1}, "fade": {"epochs": 3, "mask": "stochastic"},
             "fine_tune": {"epochs": 2, "policy": {"loops": 2}}},
    "lazy": {"depth": 14, "target": {"blocks": 3}, "fade": {"epochs": 2, "lazy": True, "mask": "stochastic",
             "sample": "epoch"}, "fine_tune": {"epochs": 2, "policy": {"every": 2}}},
    "guarded": {"depth": 8, "target": {"blocks": 1, "max_accuracy_drop": 0.6}, "fade": {"epochs": 2, "lazy": True},
                "fine_tune": {"epochs": 1, "policy": {"every": 1}}},
    "soft": {"depth": 8, "target": {"blocks": 2}, "soft": {"epochs": 3}, "fine_tune": {"epochs": 2}},
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def checkpoint_after_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", 1)


def named(events: Events, *endings: str) -> list[tuple[str, dict[str, Any]]]:
    return [(name, body) for name, body in events if any(ending in name for ending in endings)]


@pytest.mark.parametrize("kind", RUNS)
def test_killed_after_any_checkpoint_it_ends_in_the_same_bits(kind: str, tmp_path: Path) -> None:
    fields = dict(RUNS[kind])
    depth = fields.pop("depth")
    whole_events = Events()
    whole = run(tmp_path / "whole", whole_events, network=resnet(depth), **fields)
    epochs = [name for name, _ in named(whole_events, "/epoch/")]
    assert len(epochs) == whole.cost.epochs
    assert whole_events.not_taken() == []
    followed = [one for (one, _), (other, _) in pairwise(whole_events) if other == "checkpoint"]
    assert any("/fade/epoch/" in name or "/soft/epoch/" in name for name in followed), "killed while it fades"
    assert any(name.startswith("fine_tune/") for name in followed)
    checkpoints = [body["number"] for name, body in whole_events if name == "checkpoint"]
    for kill_at in checkpoints:
        workdir = tmp_path / str(kill_at)
        with pytest.raises(Killed):
            run(workdir, Dying(kill_at), network=resnet(depth), **fields)
        events = Events()
        again = run(workdir, events, network=resnet(depth), **fields)
        assert same(again.network, whole.network), kill_at
        assert (again.plan, again.front, again.checks, again.warnings, again.removed) == (
            whole.plan, whole.front, whole.checks, whole.warnings, whole.removed
        )  # fmt: skip
        assert again.cost.model_dump(exclude={"seconds"}) == whole.cost.model_dump(exclude={"seconds"})
        after = [name for name, _ in named(events, "/epoch/")]
        assert after == epochs[len(epochs) - len(after) :], "no epoch twice"
        decided = named(whole_events, "/select", "/zeroed/", "/faded")
        later = named(events, "/select", "/zeroed/", "/faded")
        assert later == decided[len(decided) - len(later) :]
