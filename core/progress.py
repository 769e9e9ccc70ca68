"""How far a job is and how long it still takes, from what it has measured of itself.

Work is counted in *passes*: one image once through the original network. Training on an image counts as three (forward,
and backward twice as much), scaled by the share of the original's MACs that is left. Passes become seconds by the rate
measured on this machine in the last minute or so; stages whose length does not depend on passes are given in seconds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from core.events import Emit

TRAINING_PASSES = 3.0
SCORING = "scoring"
"""Behind the name of a step's part: what it looks at to score what may go."""
_MEMORY_SECONDS = 60.0
_EVERY_SECONDS = 1.0
_ENOUGH_SECONDS = 0.5
"""Of measured work before a rate is believed: the first batch also pays for warming up."""


class Progress:
    """Emits `progress` (stage, fraction, eta_seconds), at most once a second.

    `expect` says what is still to come, part by part, and may be corrected at any time; `advance` says what was done.
    The fraction is spent / (spent + still to come), in seconds, and never goes back.
    """

    def __init__(self, emit: Emit, clock: Callable[[], float] = time.monotonic) -> None:
        self._emit = emit
        self._clock = clock
        self._spent = 0.0
        self._passes: dict[str, float] = {}
        self._seconds: dict[str, float] = {}
        self._rate_seconds = 0.0
        self._rate_passes = 0.0
        self._mark = clock()
        self._emitted = -math.inf
        self._fraction = 0.0
        self._planned = False
        self._stage = ""
        self._part = ""

    def expect(self, part: str, *, passes: float = 0.0, seconds: float = 0.0) -> None:
        """What is still to do in `part`. Replaces what was expected of it before."""
        self._passes[part] = max(0.0, passes)
        self._seconds[part] = max(0.0, seconds)
        self._planned = self._planned or passes > 0 or seconds > 0

    def credit(self, seconds: float) -> None:
        """Time that an earlier attempt spent on what need not be done again."""
        self._spent += seconds

    def begin(self, stage: str, part: str) -> None:
        """From here on `advance` is about `part`; what other work took since the last call is not part of the rate."""
        self._settle()
        self._stage, self._part = stage, part
        self._tell()

    def stage(self, stage: str) -> None:
        """The stage that is told from here on; the part stays."""
        self._stage = stage

    def tick(self) -> None:
        """Time has passed."""
        self._settle()
        self._tell()

    def end(self, part: str) -> None:
        """Nothing more is to do in `part`."""
        self.expect(part)
        self.tick()

    def advance(self, passes: float, part: str | None = None) -> None:
        """`passes` more are done in `part`, by default the present one."""
        seconds = self._settle()
        keep = math.exp(-seconds / _MEMORY_SECONDS)
        self._rate_seconds = self._rate_seconds * keep + seconds
        self._rate_passes = self._rate_passes * keep + passes
        part = self._part if part is None else part
        self._passes[part] = max(0.0, self._passes.get(part, 0.0) - passes)
        self._tell()

    def eta_seconds(self) -> float | None:
        """Seconds still to come; None before anything was planned and measured that tells."""
        passes = sum(self._passes.values())
        if not self._planned or (passes > 0 and self._rate_seconds < _ENOUGH_SECONDS):
            return None
        return self.seconds_of(passes) + sum(self._seconds.values())

    def seconds_of(self, passes: float) -> float:
        """What `passes` take at the rate measured lately; 0 before any was."""
        return passes * self._rate_seconds / self._rate_passes if self._rate_passes else 0.0

    def _settle(self) -> float:
        """Books the time since the last call as spent; returns it."""
        now = self._clock()
        seconds, self._mark = now - self._mark, now
        self._spent += seconds
        if self._part in self._seconds:
            self._seconds[self._part] = max(0.0, self._seconds[self._part] - seconds)
        return seconds

    def _tell(self) -> None:
        eta = self.eta_seconds()
        if self._mark - self._emitted < _EVERY_SECONDS or eta is None:
            return
        self._emitted = self._mark
        total = self._spent + eta
        self._fraction = max(self._fraction, self._spent / total if total > 0 else 0.0)
        self._emit("progress", stage=self._stage, fraction=round(self._fraction, 4), eta_seconds=round(eta, 1))
