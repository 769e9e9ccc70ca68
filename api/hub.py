"""What requests wait for, looked up for all of them together.

However many streams and long polls there are, one thread with one connection looks at the database: one query for what
has changed of everything that is watched, and one for each page of new events, which all who have read equally far
share. A watch holds the latest pulse and at most one page, so that whoever reads slowly, or not at all, takes no more
memory; what it has missed is read from the database when it goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import anyio
import structlog
from anyio.to_thread import run_sync
from fastapi.sse import format_sse_event
from sqlalchemy import Engine

from api.schemas.events import EventOut
from store import events
from store.database import reading
from store.keys import still_good
from store.pulses import Pulse, pulses

PAGE_EVENTS = 500
PAGE_BYTES = 2**16
log = structlog.get_logger()


@dataclass(frozen=True)
class Page:
    """Events as they go out on a stream, and the number of the last of them."""

    content: bytes
    last: int


class Watch:
    """One request's view of one job, model or dataset. `after`: the events that it wants; None: none.

    `pulse` is None until it was looked up, and when there is no such thing (any more): then the watch has `ended`, as
    it has when the key is no longer good, or the server stops.
    """

    def __init__(self, subject_id: str, key_id: str | None, after: int | None) -> None:
        self.subject_id = subject_id
        self.key_id = key_id
        self.after = after
        self.pulse: Pulse | None = None
        self.page: Page | None = None
        self.ended = False
        self._news = asyncio.Event()
        self._doorbell: asyncio.Event | None = None

    async def news(self, seconds: float) -> bool:
        """Wait until something is different from when this was last called; False if nothing is, in that time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
            self._news.clear()
            return True
        return False

    def take(self) -> Page | None:
        """The page of events that is there, if one is; the next one is then looked for."""
        page, self.page = self.page, None
        if page is not None:
            self.after = page.last
            if self.hungry and self._doorbell is not None:
                self._doorbell.set()
        return page

    @property
    def hungry(self) -> bool:
        """Whether there is something for it that need not wait for the next look at everything."""
        if self.pulse is None:
            return not self.ended
        return self.after is not None and self.page is None and self.after < self.pulse.last_seq

    def tell(self, pulse: Pulse | None, page: Page | None) -> None:
        """What the latest look has found."""
        if pulse is None:
            return self.end()
        if page is not None and self.page is None:
            self.page = page
            self._news.set()
        if pulse != self.pulse:
            self.pulse = pulse
            self._news.set()

    def end(self) -> None:
        self.ended = True
        self._news.set()


class Hub:
    """One for each application. `interval`: seconds between two looks at everything that is watched; `key_seconds`:
    between two at the keys of those who watch."""

    def __init__(self, engine: Engine, interval: float, key_seconds: float) -> None:
        self._engine = engine
        self._interval = interval
        self._key_seconds = key_seconds
        # a server has one loop; tests have many
        self._pollers: WeakKeyDictionary[asyncio.AbstractEventLoop, _Poller] = WeakKeyDictionary()
        self._closed = False

    @contextlib.contextmanager
    def watch(self, subject_id: str, *, key_id: str | None = None, after: int | None = None) -> Iterator[Watch]:
        """Watch a job, model or dataset, and its events numbered above `after`; in an event loop."""
        watch = Watch(subject_id, key_id, after)
        if self._closed:
            watch.end()
        loop = asyncio.get_running_loop()
        poller = self._pollers.setdefault(loop, _Poller(self._engine, self._interval, self._key_seconds))
        poller.add(watch)
        try:
            yield watch
        finally:
            poller.discard(watch)

    @property
    def watched(self) -> int:
        """How many watch something."""
        return sum(len(poller.watches) for poller in self._pollers.values())

    def close(self) -> None:
        """End all watches, and those to come: the server stops."""
        self._closed = True
        for poller in self._pollers.values():
            for watch in poller.watches:
                watch.end()


Asked = Sequence[tuple[str, int | None]]  # ids, and after which event


class _Poller:
    """Looks at the database as long as somebody watches. All its state belongs to the event loop; the thread that
    looks gets values and gives values."""

    def __init__(self, engine: Engine, interval: float, key_seconds: float) -> None:
        self.watches: set[Watch] = set()
        self._engine = engine
        self._interval = interval
        self._key_seconds = key_seconds
        self._task: asyncio.Task[None] | None = None
        self._failing: type[Exception] | None = None

    def add(self, watch: Watch) -> None:
        self.watches.add(watch)
        if self._task is None:
            self._doorbell = asyncio.Event()
            # not as part of the request that happens to be the first: its id is not to be in what is logged
            self._task = asyncio.get_running_loop().create_task(self._run(), context=contextvars.Context())
        watch._doorbell = self._doorbell
        self._doorbell.set()

    def discard(self, watch: Watch) -> None:
        self.watches.discard(watch)
        if not self.watches and self._task is not None:
            self._doorbell.set()

    async def _run(self) -> None:
        limiter = anyio.CapacityLimiter(1)  # its own: the requests' threads may all be taken
        all_due = keys_due = 0.0
        try:
            while self.watches:
                self._doorbell.clear()
                now = time.monotonic()
                if everything := now >= all_due:
                    all_due = now + self._interval
                if check_keys := now >= keys_due:
                    keys_due = now + self._key_seconds
                try:
                    await self._round(everything, check_keys, limiter)
                except Exception as error:  # the next look may fare better; those who watch go on waiting
                    if self._failing is not type(error):
                        log.error("what is waited for cannot be looked up; it goes on trying", exc_info=error)
                    self._failing = type(error)
                    await asyncio.sleep(self._interval)
                    continue
                self._failing = None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, all_due - time.monotonic())):
                        await self._doorbell.wait()
        finally:
            self._task = None

    async def _round(self, everything: bool, check_keys: bool, limiter: anyio.CapacityLimiter) -> None:
        """Look, and tell those who asked. `everything`: for all; else for those who cannot wait."""
        asking = [watch for watch in self.watches if not watch.ended and (everything or watch.hungry)]
        asked = [(watch.subject_id, watch.after if watch.page is None else None) for watch in asking]
        keys = {watch.key_id for watch in self.watches if watch.key_id is not None} if check_keys else set()
        if not asked and not keys:
            return
        good, seen, pages = await run_sync(self._look, asked, keys, limiter=limiter)
        for watch, wanted in zip(asking, asked, strict=True):
            watch.tell(seen.get(watch.subject_id), pages.get(wanted))
        lost = keys - good
        for watch in self.watches:
            if watch.key_id in lost:
                watch.end()

    def _look(
        self, asked: Asked, keys: set[str]
    ) -> tuple[set[str], dict[str, Pulse], dict[tuple[str, int | None], Page]]:
        """The keys that are still good, what is to be seen of the subjects, and the pages that are wanted."""
        with reading(self._engine) as session:
            good = still_good(session, keys) if keys else set()
            seen = pulses(session, {subject_id for subject_id, _ in asked})
            pages: dict[tuple[str, int | None], Page] = {}
            for subject_id, after in set(asked):
                pulse = seen.get(subject_id)
                if pulse is not None and after is not None and after < pulse.last_seq:
                    found = events.page_within(session, subject_id, after, PAGE_EVENTS, PAGE_BYTES)
                    if found:
                        content = b"".join(encoded(EventOut.of(event)) for event in found)
                        pages[subject_id, after] = Page(content, found[-1].seq)
        return good, seen, pages


def encoded(event: EventOut) -> bytes:
    """An event as a plain message of a stream, so that `onmessage` hears it; its name is in the JSON."""
    return format_sse_event(data_str=event.model_dump_json(), id=str(event.seq))
