"""The child's lines, out of the bytes of the pipe: bounded, since the parent must outlive whatever a child says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from core.events import READ_BY_WORKER, STAGES
from worker.guard import Limits

EventLine = tuple[str, Mapping[str, Any]]  # name, body
_OPENING = re.compile(rb"[\[{,]")


class Lines:
    """Takes bytes, gives events. A child that says too much, or what is no event, leaves a `fault`, and is done with.

    An event's name begins with a stage: `state` and `attempt/…` are the service's own.
    """

    def __init__(self, limits: Limits) -> None:
        self.last: EventLine | None = None  # `result` or `error`
        self.fault: str | None = None
        self._limits = limits
        self._buffer = b""
        self._lines = 0
        self._bytes = 0

    def feed(self, data: bytes) -> list[EventLine]:
        """The events that `data` completes. Nothing is taken after the last line, or after a fault."""
        self._bytes += len(data)
        *complete, rest = (self._buffer + data).split(b"\n")
        self._buffer = rest
        events: list[EventLine] = []
        for line in complete:
            if self.last is not None or self.fault is not None:
                return events
            self._take(line, events)
        if len(rest) > self._limits.line_bytes:
            self.fault = f"an event is longer than {self._limits.line_bytes} bytes"
        if self._lines > self._limits.lines or self._bytes > self._limits.pipe_bytes:
            self.fault = f"more than {self._limits.lines} events or {self._limits.pipe_bytes} bytes of them"
        return events

    def _take(self, line: bytes, events: list[EventLine]) -> None:
        self._lines += 1
        limits = self._limits
        if len(line) > limits.line_bytes:
            self.fault = f"an event is longer than {limits.line_bytes} bytes"
            return
        # before it is parsed: an empty object takes three bytes here and a hundred as one of Python's
        if sum(1 for _ in _OPENING.finditer(line)) > limits.line_values:
            self.fault = f"an event has more than {limits.line_values} values"
            return
        try:
            document = json.loads(line)
            name, body = document["name"], document["body"]
            if not isinstance(name, str) or not isinstance(body, dict):
                raise TypeError("name is a string and body an object")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            self.fault = f"a line is not an event: {type(error).__name__}"
            return
        if deeper_than(body, limits.line_depth):
            self.fault = f"an event is nested more than {limits.line_depth} deep"
        elif name in ("result", "error"):
            self.last = name, body
        elif name in READ_BY_WORKER or name.partition("/")[0] in STAGES:
            events.append((name, body))
        else:
            self.fault = f"an event's name begins with a stage ({', '.join(STAGES)}), not {name[:40]!r}"


def deeper_than(value: Any, depth: int) -> bool:
    """Whether objects and arrays lie more than `depth` deep in each other. `value` counts as the first of them."""
    level = [value]
    for _ in range(depth + 1):
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
