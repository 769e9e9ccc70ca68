"""Questions that may never be answered, asked so that neither a request nor a thread is lost over them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar, final

Answer = TypeVar("Answer")
GIVEN_UP_SECONDS = 60.0


@final
class Probe(Generic[Answer]):
    """`ask`, in a thread of its own, one at a time, however many want to know. What it returns or raises is good for
    `good_seconds`. One that has not come back after a minute is left to itself, and the next one asks anew."""

    def __init__(self, ask: Callable[[], Answer], good_seconds: float) -> None:
        self._ask = ask
        self._good_seconds = good_seconds
        self._lock = threading.Lock()
        self._asked: Future[Answer] | None = None
        self._asked_at = self._known_at = 0.0

    async def answer(self, seconds: float) -> Answer:
        """What it says, within so many seconds. Raises `TimeoutError`, or what it raises."""
        return await asyncio.wait_for(asyncio.wrap_future(self._latest()), seconds)

    def _latest(self) -> Future[Answer]:
        with self._lock:
            now = time.monotonic()
            if self._asked is not None:
                fresh = now - self._known_at < self._good_seconds
                if fresh if self._asked.done() else now - self._asked_at < GIVEN_UP_SECONDS:
                    return self._asked
            future: Future[Answer] = Future()
            future.set_running_or_notify_cancel()  # nobody who stops waiting cancels it for the others
            self._asked, self._asked_at = future, now
            threading.Thread(target=self._run, args=(future,), name="probe", daemon=True).start()
            return future

    def _run(self, future: Future[Answer]) -> None:
        try:
            answer = self._ask()
        except BaseException as error:
            self._known_at = time.monotonic()
            future.set_exception(error)
        else:
            self._known_at = time.monotonic()
            future.set_result(answer)
