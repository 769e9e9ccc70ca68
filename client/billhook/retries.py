"""Sending a call until it is answered: which failures are tried again, when, and for how long."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from billhook.errors import ApiError, ConnectionFailed, Fault, Timeout
from billhook.results import parse
from billhook.steps import Call, Operation, Reply, Sleep

T = TypeVar("T")

RETRIED_STATUSES = frozenset({429, 502, 503, 504})
IN_FLIGHT = "idempotency_key_in_flight"
KEY_HEADER = "Idempotency-Key"
FIRST_CONTACT_SECONDS = 2.0  # a server that never answered is not waited for: its address is probably wrong
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 8.0


@dataclass
class Core:
    """What the operations of one client share.

    `patience` is how long (seconds) a call is tried again after its first failure.
    """

    patience: float = 60.0
    now: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = field(default=random.random)
    reached: bool = False
    """Whether this server has ever answered."""
    streams: bool = True
    """Whether this server's streams arrive, as far as is known."""


def deadline_after(core: Core, seconds: float | None) -> float | None:
    """The moment (of `core.now`) that is `seconds` away. None = never."""
    return None if seconds is None else core.now() + seconds


def check_deadline(core: Core, deadline: float | None, doing: str) -> None:
    """Raises `Timeout` where `deadline` has passed."""
    if deadline is not None and core.now() >= deadline:
        raise Timeout(f"the time was up while {doing}")


def send(core: Core, call: Call, *, deadline: float | None = None, patience: float | None = None) -> Operation[Reply]:
    """The good answer to `call`.

    Connection failures and 429, 502, 503 and 504 are tried again with exponential backoff and jitter, not before
    `Retry-After`. A POST carries an `Idempotency-Key`, the call's own or a new one, the same at every try: what an
    earlier one made, whose answer was lost, is answered again, and while the server is still at it (409
    `idempotency_key_in_flight`) that is tried again too. Raises `ApiError`, `ConnectionFailed`, `Timeout`.
    """
    if call.method == "POST":
        call = replace(call, headers={KEY_HEADER: uuid.uuid4().hex, **call.headers})
    allowed = core.patience if patience is None else patience
    failing_since: float | None = None
    offset = 0
    tries = streak = 0
    while True:
        tries, streak = tries + 1, streak + 1
        failure: ConnectionFailed | ApiError
        asked = 0.0
        limit = allowed
        try:
            reply: Reply = yield call
        except ConnectionFailed as error:
            failure = error
            if not core.reached:
                limit = min(allowed, FIRST_CONTACT_SECONDS)
        else:
            core.reached = True
            if 200 <= reply.status < 300:
                return replace(reply, tries=tries)
            failure = problem(reply)
            failure.repeated = tries > 1
            if reply.status not in RETRIED_STATUSES and failure.code != IN_FLIGHT:
                raise failure
            asked = retry_after(reply)
        silent = isinstance(failure, ConnectionFailed) and failure.silent
        if silent and call.stream is not None:  # a stream can be done without
            raise failure
        if call.sink is not None and call.sink.offset > offset:  # a broken download got further: patience starts anew
            offset, failing_since, streak = call.sink.offset, None, 1
        failing_since = core.now() if failing_since is None else failing_since
        longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(streak - 1, 16))
        pause = max(asked, longest * (0.5 + core.jitter() / 2))
        if core.now() + pause > failing_since + limit:
            raise failure
        if deadline is not None and core.now() + pause > deadline:
            raise Timeout(f"the time was up while trying again after: {failure.message}")
        yield Sleep(pause)


def fetch(core: Core, kind: type[T], path: str, *, wait: float | None = None, **params: str) -> Operation[T]:
    """GET `path` as a `kind`. `wait`: seconds that the server may hold the answer back (long poll)."""
    if wait is not None:
        params["wait"] = f"{wait:g}"
    reply = yield from send(core, Call("GET", path, params=params, read_seconds=60 + (wait or 0)))
    return parse(kind, body_of(reply))


def body_of(reply: Reply) -> Any:
    """The JSON of a good answer. Raises `ApiError` with code unexpected_reply where it holds none."""
    try:
        return reply.json()
    except ValueError:
        message = "the server's answer is not JSON: is this the address of a Billhook server?"
        raise ApiError(message, status=reply.status, code="unexpected_reply") from None


def problem(reply: Reply) -> ApiError:
    """The error that an answer of 300 and more stands for."""
    try:
        document = reply.json()
    except ValueError:
        document = None
    if not isinstance(document, dict) or not isinstance(document.get("code"), str):
        if 300 <= reply.status < 400:
            message = f"the server redirects to {reply.headers.get('location', 'somewhere')}: use that address"
        else:
            message = f"the server answered {reply.status} without a problem document: is this a Billhook server?"
        return ApiError(message, status=reply.status, code="unexpected_reply")
    faults = document.get("faults")
    return ApiError(
        str(document.get("detail") or document.get("title") or f"the server answered {reply.status}"),
        status=reply.status,
        code=document["code"],
        title=document.get("title"),
        faults=[
            Fault(str(fault.get("pointer", "")), str(fault.get("message", "")), fault.get("expected"))
            for fault in (faults if isinstance(faults, list) else [])
            if isinstance(fault, dict)
        ],
    )


def retry_after(reply: Reply) -> float:
    """Seconds that the server asks to wait (RFC 9110: a number or a date), 0 where it does not ask."""
    text = reply.headers.get("retry-after", "").strip()
    if text.isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
