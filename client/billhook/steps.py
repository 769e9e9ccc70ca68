"""What an operation asks of the outside, so that none of it is written twice.

An *operation* is a generator. It yields steps (make this call, sleep, run this blocking function) and is sent their
results; what it returns is the result. It does no network I/O, so the same operation serves `Client`, which performs
each step at once, and `AsyncClient`, which awaits it (`billhook/clients.py`). httpx's own `Auth.auth_flow` works so.
An exception of a step is thrown into the operation at the `yield`, which may handle it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

T = TypeVar("T")
CHUNK_BYTES = 2**20


class Sink(Protocol):
    """Where the body of a good answer goes as it arrives, instead of into memory."""

    def headers(self) -> dict[str, str]:
        """Request headers of the next try: where to go on."""

    def begin(self, status: int, headers: Mapping[str, str]) -> bool:
        """Whether the body of this answer is for the sink. Header names are in lower case."""

    def write(self, chunk: bytes) -> None: ...

    @property
    def offset(self) -> int:
        """Bytes held so far."""


@dataclass(frozen=True)
class FileBody:
    """A file as the body of a request: read in chunks on every try, never in memory as a whole."""

    path: Path
    size: int
    advance: Callable[[int], None]
    """Called with the number of bytes sent so far in this try. May raise to stop."""


@dataclass(frozen=True)
class Call:
    """One HTTP request."""

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    file: FileBody | None = None
    sink: Sink | None = None
    stream: str | None = None
    """A media type: a good answer of that type is left open (`Reply.connection`), to `Receive` from."""
    read_seconds: float = 60.0
    shielded: bool = False
    """Whether it is made although the task was cancelled (async): how a job is cancelled then."""


@dataclass(frozen=True)
class Sleep:
    seconds: float


@dataclass(frozen=True)
class Blocking(Generic[T]):
    """A function that takes a while (hashing, zipping, renaming): in a thread where the caller is asynchronous."""

    function: Callable[[], T]


@dataclass(frozen=True)
class Item(Generic[T]):
    """A value for the caller of a stream."""

    value: T


@dataclass(frozen=True)
class Reply:
    """The answer to a `Call`. Header names are in lower case; `content` is empty where a sink took it."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    tries: int = 1
    connection: Any = field(default=None, repr=False, compare=False)
    """Of an answer that was left open: what the client knows it by."""

    def json(self) -> Any:
        """The body as JSON. Raises `ValueError`."""
        return json.loads(self.content)


@dataclass(frozen=True)
class Receive:
    """The next bytes of an answer that was left open; none when it is at its end."""

    reply: Reply


@dataclass(frozen=True)
class HangUp:
    """Done with an answer that was left open. Those that an operation leaves open are closed when it ends."""

    reply: Reply


Step: TypeAlias = Call | Sleep | Blocking[Any] | Receive | HangUp
Operation: TypeAlias = Generator[Step, Any, T]
Stream: TypeAlias = Generator[Step | Item[T], Any, None]


def blocking(function: Callable[[], T]) -> Operation[T]:
    """Run `function` where it does no harm, and return what it returns."""
    result: T = yield Blocking(function)
    return result


# --- driving ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """Of a step: its result or its exception."""

    value: Any = None
    error: BaseException | None = None


@dataclass(frozen=True)
class Done:
    value: Any


def advance(operation: Generator[Any, Any, Any], outcome: Outcome) -> Any:
    """The next step of `operation` after `outcome`, or `Done` with its result. Raises what the operation raises."""
    try:
        if outcome.error is not None:
            return operation.throw(outcome.error)
        return operation.send(outcome.value)
    except StopIteration as done:
        return Done(done.value)


def for_each(stream: Stream[T], function: Callable[[T], None]) -> Operation[None]:
    """Call `function` with every item of `stream`, within another operation."""
    outcome = Outcome()
    try:
        while not isinstance(step := advance(stream, outcome), Done):
            if isinstance(step, Item):
                function(step.value)
                outcome = Outcome()
                continue
            try:
                outcome = Outcome((yield step))
            except BaseException as error:
                outcome = Outcome(error=error)
    finally:
        stream.close()
