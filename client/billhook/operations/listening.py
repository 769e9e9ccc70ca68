"""A job's events as the server streams them, for as long as that works."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from billhook.errors import ApiError, ConnectionFailed
from billhook.event_stream import EventStream, Message
from billhook.results import Event, Job, parse
from billhook.retries import Core, send
from billhook.steps import Call, HangUp, Operation, Receive, Reply, Sleep

STREAM = "text/event-stream"
SILENCE_SECONDS = 35.0  # the server says something every 15: whoever hears nothing for longer sits behind a proxy
SHORT_SECONDS = 5.0
SHORT_ONES = 3  # connections that end at once, one after the other: streams do not get through
RETRY_SECONDS = 2.0
NO_EVENTS = 2**31 - 1


@dataclass(frozen=True)
class Place:
    """How far a job is: what a stream's `progress` says."""

    state: str
    stage: str | None = None
    progress: float | None = None
    eta_seconds: float | None = None


@dataclass(frozen=True)
class News:
    """What came since the last time. `over`: the job is, and there will be no more."""

    events: tuple[Event, ...] = ()
    place: Place | None = None
    over: bool = False


class Listener:
    """Listens to a job's stream from the event `after` on, across broken connections; no event comes twice.

    Where the server, or what is between, gives no stream, `next` says so, and whoever asks has to poll: from `after`.
    """

    def __init__(self, core: Core, job_id: str, after: int, deadline: float | None) -> None:
        self.after = after
        self._core = core
        self._path = f"/v1/jobs/{quote(job_id, safe='')}/events"
        self._deadline = deadline
        self._stream = EventStream()
        self._reply: Reply | None = None
        self._since = 0.0
        self._short = 0
        self._done = False  # the job is over, or streams do not get through

    def next(self) -> Operation[News | None]:
        """What is new, as soon as there is something; None where there is no stream to be had.

        Also None when the caller's time is nearly up: a read that waits cannot be told to wait less, a poll can.
        Raises `ApiError` and `ConnectionFailed` as every call.
        """
        while not self._done and self._core.streams and self._time_enough():
            reply = self._reply or (yield from self._connect())
            if reply is None:
                break
            if reply.status == 204:
                self._done = True
                return News(over=True)
            try:
                piece = yield Receive(reply)
            except ConnectionFailed as error:
                if error.silent:
                    self._core.streams = False
                    break
                piece = b""
            if piece:
                news = self._news(self._stream.feed(piece))
                if news is not None and news.over:
                    self._done = True
                    yield from self._hang_up()
                if news is not None:
                    return news
            else:
                yield from self._hang_up()
                self._short = self._short + 1 if self._core.now() - self._since < SHORT_SECONDS else 0
                if self._short >= SHORT_ONES:
                    self._done = True
                    break
                retry = RETRY_SECONDS if self._stream.retry_seconds is None else self._stream.retry_seconds
                yield Sleep(retry * (0.5 + self._core.jitter()))  # not all listeners of a server at once
        yield from self._hang_up()
        return None

    def _time_enough(self) -> bool:
        return self._deadline is None or self._deadline - self._core.now() > SILENCE_SECONDS

    def _connect(self) -> Operation[Reply | None]:
        """The answer with the stream, or 204; None where the answer is something else."""
        call = Call(
            "GET", self._path, {"after": str(self.after)}, {"Accept": f"{STREAM}, application/json;q=0"},
            stream=STREAM, read_seconds=SILENCE_SECONDS,
        )  # fmt: skip
        try:
            reply = yield from send(self._core, call, deadline=self._deadline)
        except ConnectionFailed as error:
            if not error.silent:
                raise
            reply = None
        except ApiError as error:
            if error.status != 406:
                raise
            reply = None
        if reply is not None and reply.status == 204:
            return reply
        if reply is None or reply.connection is None:
            self._core.streams = False
            return None
        self._reply, self._since = reply, self._core.now()
        self._stream = EventStream()
        return reply

    def _hang_up(self) -> Operation[None]:
        if self._reply is not None:
            reply, self._reply = self._reply, None
            yield HangUp(reply)

    def _news(self, messages: Sequence[Message]) -> News | None:
        events: list[Event] = []
        place: Place | None = None
        over = False
        for message in messages:
            if message.event == "message":
                event = parse(Event, _json(message))
                if event.seq > self.after:
                    events.append(event)
                    self.after = event.seq
            elif message.event == "progress":
                place = parse(Place, _json(message))
            elif message.event == "end":
                over = True
        return News(tuple(events), place, over) if events or place or over else None


def moved(job: Job, place: Place) -> Job:
    """`job` as it is at `place`."""
    changed = dict(vars(place))
    return Job(**{**vars(job), **changed, "raw": {**job.raw, **changed}})


def _json(message: Message) -> Any:
    try:
        return json.loads(message.data)
    except ValueError:
        raise ApiError("the server's stream holds no JSON", status=200, code="unexpected_reply") from None
