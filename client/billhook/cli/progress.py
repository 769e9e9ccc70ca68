"""How far a job is, live on stderr: a bar on a terminal, elsewhere a plain line now and then."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from billhook.cli.tables import duration, percent
from billhook.results import Event, Job

_EPOCH = re.compile(r"(.+)/epoch/\d+")
_MEASURES = {"relative_error": "relative error", "ssim": "SSIM"}
LINE_SECONDS = 15.0


def _told(epoch: Mapping[str, Any], accuracy: float) -> str:
    """How good an epoch was, in the words of its task."""
    measures = epoch.get("validation_measures")
    for name, words in _MEASURES.items():
        if isinstance(measures, dict) and isinstance(measures.get(name), (int, float)):
            return f"{words} {measures[name]:.4f}"
    return f"accuracy {accuracy:.2%}"


class ProgressDisplay:
    """A context manager; `show` what is going on, as often as there is news. `quiet` shows nothing."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._training, self._best, self._accuracy = "", (0.0, ""), ""
        self._fraction: float | None = None
        self._last_line: tuple[str, float] = ("", 0.0)
        self._quiet = quiet
        self._bar: Progress | None = None
        # not rich's own guess: FORCE_COLOR, which build servers set, makes it take any pipe for a terminal
        if not quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            self._bar = Progress(
                SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(),
                TextColumn("{task.fields[details]}", markup=False), TimeElapsedColumn(),
                console=console, transient=True, redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip
            self._task = self._bar.add_task("", total=1.0, details="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show_upload(self, kind: str, name: str, fraction: float | None = None) -> None:
        """`kind` (model, dataset) and `name` of what the server is to have; `fraction` (0-1) is sent so far.

        Before and after it is sent, if it is sent at all, it is checked: here by its hash, there by what it holds.
        """
        sending = fraction is not None and fraction < 1
        self.show(f"{'uploading' if sending else 'checking'} {kind} {name}", fraction if sending else None)

    def show_job(self, job: Job, events: Iterable[Event] = ()) -> None:
        """The job's state or stage, its fraction and ETA, and the accuracy of its latest epoch.

        The fraction never falls, even where another worker takes a job over and goes back to the last checkpoint.
        """
        for event in events:
            epoch, accuracy = _EPOCH.fullmatch(event.name), event.body.get("validation_accuracy")
            if epoch is None or not isinstance(accuracy, (int, float)):
                continue
            scored = (accuracy, _told(event.body, accuracy))
            self._best = max(scored, self._best) if epoch[1] == self._training else scored
            self._training = epoch[1]
            self._accuracy = f"last epoch {event.body.get('epoch', '?')}, validation {scored[1]}"
            if self._best[0] > accuracy:
                self._accuracy += f", best so far {self._best[1].rpartition(' ')[2]}"
        what = (job.stage or job.state) if job.state == "running" else job.state
        eta = f"{duration(job.eta_seconds)} left" if job.eta_seconds is not None and not job.over else ""
        if job.progress is not None:
            self._fraction = max(job.progress, self._fraction or 0.0)
        self.show(what, self._fraction, ", ".join(part for part in (eta, self._accuracy) if part))

    def show(self, what: str, fraction: float | None, details: str = "") -> None:
        """One state of things. `fraction` is 0-1, None where it is not known."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.update(
                self._task, description=what, completed=fraction or 0.0, total=None if fraction is None else 1.0,
                details=details,
            )  # fmt: skip
            return
        shown, when = self._last_line
        if what != shown or time.monotonic() - when >= LINE_SECONDS:
            parts = [what, percent(fraction) if fraction is not None else "", details]
            self._console.print(", ".join(part for part in parts if part), markup=False)
            self._last_line = (what, time.monotonic())
