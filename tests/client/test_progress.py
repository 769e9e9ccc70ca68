"""How far a job is, in lines."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from billhook.cli import progress
from billhook.cli.progress import ProgressDisplay
from billhook.results import Event, Job

NOW = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    return io.StringIO()


@pytest.fixture
def display(shown: io.StringIO) -> ProgressDisplay:
    return ProgressDisplay(Console(file=shown, width=200))


def job(**fields: Any) -> Job:
    return Job("job_1", **{"state": "running", "created_at": NOW, "stage": "fine_tune", **fields})


def epoch(name: str, number: int, accuracy: float) -> Event:
    return Event(1, f"{name}/epoch/{number}", {"epoch": number, "validation_accuracy": accuracy}, NOW)


def test_the_fraction_never_falls(display: ProgressDisplay, shown: io.StringIO) -> None:
    """A takeover goes back to the last checkpoint; what is shown does not."""
    for state, fraction in (("running", 0.17), ("queued", 0.13), ("running", None), ("running", 0.2)):
        display.show_job(job(state=state, progress=fraction))
    assert shown.getvalue().splitlines() == ["fine_tune, 17 %", "queued, 17 %", "fine_tune, 17 %", "fine_tune, 20 %"]


def test_the_last_epoch_is_not_taken_for_the_best(display: ProgressDisplay, shown: io.StringIO) -> None:
    for event in (epoch("fine_tune/0", 1, 0.9), epoch("fine_tune/0", 2, 0.995), epoch("fine_tune/0", 3, 0.9944),
                  epoch("fine_tune/1", 1, 0.5)):  # fmt: skip
        display.show_job(job(), [event])
    assert shown.getvalue().splitlines() == [
        "fine_tune, last epoch 1, validation accuracy 90.00%",
        "fine_tune, last epoch 2, validation accuracy 99.50%",
        "fine_tune, last epoch 3, validation accuracy 99.44%, best so far 99.50%",
        "fine_tune, last epoch 1, validation accuracy 50.00%",
    ]


def test_an_imitation_has_an_error_and_no_accuracy(display: ProgressDisplay, shown: io.StringIO) -> None:
    for number, error in enumerate((0.2, 0.1, 0.15), 1):
        body = {"epoch": number, "validation_accuracy": 1 - error, "validation_measures": {"relative_error": error}}
        display.show_job(job(), [Event(1, f"fine_tune/0/epoch/{number}", body, NOW)])
    assert shown.getvalue().splitlines() == [
        "fine_tune, last epoch 1, validation relative error 0.2000",
        "fine_tune, last epoch 2, validation relative error 0.1000",
        "fine_tune, last epoch 3, validation relative error 0.1500, best so far 0.1000",
    ]


def test_an_upload_says_what_is_sent(display: ProgressDisplay, shown: io.StringIO) -> None:
    for fraction in (None, 0.25, 1.0):
        display.show_upload("dataset", "photos/", fraction)
    assert shown.getvalue().splitlines() == [
        "checking dataset photos/", "uploading dataset photos/, 25 %", "checking dataset photos/",
    ]  # fmt: skip
