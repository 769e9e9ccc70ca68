"""What an attempt spends its time on, for the counters: seconds by stage, images and seconds of training."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy.orm import Session

from store.counters import count
from worker.lines import EventLine

_EPOCH = re.compile(r"(?:.+/)?epoch/\d+", re.ASCII)
MOST_IMAGES = 10**9  # of one epoch: what a child says is not believed without end


class Meter:
    """Of one attempt on `device`. `book` writes and changes nothing here, so that a transaction may be tried again;
    `enter` follows once it is committed. What a worker that dies had not booked is lost: the stage that it was in."""

    def __init__(self, device: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._device = device
        self._clock = clock
        self._began = self._since = clock()
        self._stage: str | None = None

    def book(self, session: Session, events: Sequence[EventLine], stage: str | None) -> None:
        """Count what `events` say and, where `stage` is another than before, the one that is over with them."""
        for name, body in events:
            if _EPOCH.fullmatch(name):
                self._epoch(session, body.get("images"), body.get("seconds"))
        if self._stage not in (None, stage):
            over, device = self._stage or "", self._device
            count(session, "stages", stage=over, device=device)
            count(session, "stage_seconds", self._clock() - self._since, stage=over, device=device)

    def enter(self, stage: str | None) -> None:
        """The attempt is in `stage` from now on; None: it is over."""
        if stage != self._stage:
            self._stage, self._since = stage, self._clock()

    def _epoch(self, session: Session, images: Any, seconds: Any) -> None:
        if not _sound(images, MOST_IMAGES) or not _sound(seconds, self._clock() - self._began + 1.0):
            return
        count(session, "training_epochs", device=self._device)
        count(session, "training_images", images, device=self._device)
        count(session, "training_seconds", seconds, device=self._device)


def _sound(value: Any, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most
