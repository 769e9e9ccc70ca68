"""Which failures are tried again, when, and for how long: the sending operation, driven by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from billhook.errors import ApiError, BillhookError, ConnectionFailed, Timeout
from billhook.retries import FIRST_CONTACT_SECONDS, LONGEST_PAUSE_SECONDS, Core, retry_after, send
from billhook.steps import Call, Reply, Sleep

CALL = Call("GET", "/v1/jobs")
GOOD = Reply(200, {}, b"{}")


def drive(answers: list[Reply | BillhookError], *, reached: bool = True, **options: Any) -> tuple[Any, list[float]]:
    """The result of `send` when the server answers so (the last answer stays), and the pauses it made."""
    clock = [0.0]
    core = Core(patience=60, now=lambda: clock[0], jitter=lambda: 1.0, reached=reached)
    operation = send(core, CALL, **options)
    step, pauses, number = next(operation), [], 0
    try:
        while True:
            if isinstance(step, Sleep):
                pauses.append(step.seconds)
                clock[0] += step.seconds
                step = operation.send(None)
                continue
            answer = answers[min(number, len(answers) - 1)]
            number += 1
            step = operation.throw(answer) if isinstance(answer, BillhookError) else operation.send(answer)
    except StopIteration as done:
        return done.value, pauses
    except BillhookError as error:
        return error, pauses


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_passing_failures_are_tried_again_with_growing_pauses(status: int) -> None:
    reply, pauses = drive([Reply(status, {}, b"")] * 7 + [GOOD])
    assert reply.status == 200
    assert reply.tries == 8
    assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    assert max(pauses) == LONGEST_PAUSE_SECONDS


@pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 422, 500, 507])
def test_other_failures_are_not_tried_again(status: int) -> None:
    error, pauses = drive([Reply(status, {}, b'{"code": "c", "detail": "d"}')])
    assert isinstance(error, ApiError)
    assert (error.status, error.code, error.message, pauses) == (status, "c", "d", [])


def test_patience_ends() -> None:
    error, pauses = drive([Reply(503, {}, b"")])
    assert isinstance(error, ApiError)
    assert 60 - LONGEST_PAUSE_SECONDS <= sum(pauses) <= 60


def test_a_server_that_never_answered_is_given_up_soon() -> None:
    error, pauses = drive([ConnectionFailed("refused")], reached=False)
    assert isinstance(error, ConnectionFailed)
    assert 0 < sum(pauses) <= FIRST_CONTACT_SECONDS
    _, pauses = drive([ConnectionFailed("refused")], reached=True)
    assert sum(pauses) > 50


def test_retry_after_is_honoured_and_never_shortened() -> None:
    _, pauses = drive([Reply(503, {"retry-after": "7"}, b""), GOOD])
    assert pauses == [7.0]
    error, pauses = drive([Reply(503, {"retry-after": "3600"}, b"")])
    assert isinstance(error, ApiError)
    assert pauses == []


def test_retry_after_may_be_a_date_or_nonsense() -> None:
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    assert 17 < retry_after(Reply(503, {"retry-after": moment}, b"")) <= 20
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=20), usegmt=True)
    assert retry_after(Reply(503, {"retry-after": past}, b"")) == 0
    assert retry_after(Reply(503, {"retry-after": "soon"}, b"")) == 0


def test_a_key_that_is_in_flight_is_tried_again_and_stays_the_same() -> None:
    in_flight = Reply(409, {"retry-after": "1"}, b'{"code": "idempotency_key_in_flight"}')
    reply, pauses = drive([in_flight, in_flight, GOOD])
    assert (reply.tries, pauses) == (3, [1.0, 1.0])

    operation = send(Core(jitter=lambda: 1.0), Call("POST", "/v1/jobs"))
    first = next(operation)
    assert isinstance(operation.send(in_flight), Sleep)
    second = operation.send(None)
    assert isinstance(first, Call)
    assert isinstance(second, Call)
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]


def test_every_post_has_a_key() -> None:
    def key(call: Call) -> str | None:
        step = next(send(Core(), call))
        assert isinstance(step, Call)
        return step.headers.get("Idempotency-Key")

    assert key(Call("POST", "/v1/jobs")) not in (None, key(Call("POST", "/v1/jobs")))
    assert key(Call("POST", "/v1/jobs", headers={"Idempotency-Key": "mine"})) == "mine"
    assert key(CALL) is None


def test_the_deadline_ends_the_trying() -> None:
    error, pauses = drive([Reply(503, {}, b"")], deadline=3.0)
    assert isinstance(error, Timeout)
    assert sum(pauses) <= 3


def test_a_repeated_request_says_so() -> None:
    error, _ = drive([ConnectionFailed("broke"), Reply(404, {}, b'{"code": "not_found"}')])
    assert error.repeated
    error, _ = drive([Reply(404, {}, b'{"code": "not_found"}')])
    assert not error.repeated


def test_answers_that_are_not_billhooks() -> None:
    error, _ = drive([Reply(301, {"location": "https://elsewhere"}, b"")])
    assert error.code == "unexpected_reply"
    assert "https://elsewhere" in error.message
    error, _ = drive([Reply(500, {}, b"<html>")])
    assert error.code == "unexpected_reply"
    error, _ = drive([Reply(422, {}, b'{"code": "c", "title": "t", "faults": [{"pointer": "/a", "message": "m"}, 3]}')])
    assert [(fault.pointer, fault.message, fault.expected) for fault in error.faults] == [("/a", "m", None)]
