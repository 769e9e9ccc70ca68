"""`Idempotency-Key`, one mechanism for every POST: the same request with the same key gets the answer of the first,
and nothing is made twice.

A route that takes JSON needs two lines: a parameter `once: Idempotent`, and

    return await once.answer(body, lambda session: answered(ThingOut.of(make(session, …)), 201))

in place of a transaction of its own. One whose body is not at hand at once holds a `turn` while it comes in.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any

import anyio
import structlog
from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.errors import Refused
from api.services import Caller, Services, Shared
from api.uploads import Received
from store import idempotency
from store.columns import to_json
from store.database import transaction
from store.idempotency import HELD, Answer, Kept, Reservation, Slot

Make = Callable[[Session], Answer]
EXTEND_SECONDS = HELD.total_seconds() / 3
MAX_ROUTE = 100
REPLAYED = "Idempotent-Replayed"
log = structlog.get_logger()


def _key(description: str) -> Any:
    return Header(alias="Idempotency-Key", min_length=1, max_length=255, pattern="^[!-~]+$", description=description)


IdempotencyKey = Annotated[
    str | None,
    _key(
        f"The same key with the same request again gives the first answer again (`{REPLAYED}: true`), and nothing is "
        "made twice. With another request: 422 `idempotency_key_reused`; while the first is still being answered: 409 "
        "`idempotency_key_in_flight`, with `Retry-After`. Answers of 400 and more are not kept, others for two days."
    ),
]
NeedlessKey = Annotated[str | None, _key("taken as everywhere; nothing is kept here, and the same is answered anew")]


def answered(
    document: BaseModel, status: int, headers: Mapping[str, str] | None = None, *, once: BaseModel | None = None
) -> Answer:
    """An answer that says `document`. `once`: what the first answer says instead; it is not kept (a secret)."""
    return Answer(status, dict(headers or {}), _text(document), None if once is None else _text(once))


@dataclass(frozen=True)
class Given:
    """What is answered; `replayed`: it was before."""

    answer: Answer
    replayed: bool
    reservation: Reservation | None = None

    def response(self) -> Response:
        headers = {**self.answer.headers, **({REPLAYED: "true"} if self.replayed else {})}
        body = self.answer.body if self.replayed else self.answer.once or self.answer.body
        return Response(body, self.answer.status, headers, media_type="application/json")


@dataclass(frozen=True)
class Turn:
    """The right to answer a request, or the answer that it got before."""

    services: Services
    held: Reservation | Kept | None

    def answer(self, request_sha256: str, make: Make, prepare: Callable[[], None] | None = None) -> Given:
        """The answer that `make` gives, in one transaction with what it makes; or the one given before.

        `prepare` is done before the transaction, where there is to be one. For a thread. Raises what these raise,
        `IdempotencyKeyReused`, `IdempotencyKeyInFlight`.
        """
        if isinstance(self.held, Kept):
            return Given(self.held.to(request_sha256), True)
        if prepare is not None:
            prepare()
        with transaction(self.services.engine) as session:
            answer = make(session)
            if self.held is not None:
                idempotency.keep(session, self.held, request_sha256, answer)
        return Given(answer, False, self.held)

    def extend(self) -> None:
        if isinstance(self.held, Reservation):
            with transaction(self.services.engine) as session:
                idempotency.extend(session, self.held)

    def release(self) -> None:
        if isinstance(self.held, Reservation):
            with transaction(self.services.engine) as session:
                idempotency.release(session, self.held)


@dataclass(frozen=True)
class Once:
    """A POST, with or without a key (`slot` None: it is simply answered). `query`: that of its address, sorted."""

    services: Services
    slot: Slot | None
    query: tuple[tuple[str, str], ...] = ()

    async def answer(self, body: bytes, make: Make) -> Response:
        """The answer that `make` gives to a request whose body is all there; or the one given before."""
        request_sha256 = self.hash_of(body)
        async with self.turn(request_sha256) as turn:
            given = await run_in_threadpool(turn.answer, request_sha256, make)
        return given.response()

    def hash_of(self, body: bytes) -> str:
        """What a JSON request is known by: its bytes, and its query without `wait`."""
        query = to_json(self.query).encode() if self.query else b""  # no JSON can be continued so
        return hashlib.sha256(body + query).hexdigest()

    @staticmethod
    def hash_of_upload(received: Received) -> str:
        """What an upload is known by: its content, its name and its fields, however they came."""
        parts = [sorted(received.fields.items()), received.filename, received.sha256]
        return hashlib.sha256(to_json(parts).encode()).hexdigest()

    @asynccontextmanager
    async def turn(self, request_sha256: str | None = None) -> AsyncIterator[Turn]:
        """Reserve the key for as long as the block takes; if it raises, the key is free again.

        `request_sha256` None: it is known in the end only. Raises `IdempotencyKeyInFlight`, `IdempotencyKeyReused`.
        """
        turn = Turn(self.services, await run_in_threadpool(self._reserve, request_sha256))
        beats = asyncio.create_task(_beat(turn)) if isinstance(turn.held, Reservation) else None
        try:
            yield turn
        except BaseException:
            with anyio.CancelScope(shield=True):
                await run_in_threadpool(_tell, "an idempotency key cannot be released; it expires", turn.release)
            raise
        finally:
            if beats is not None:
                beats.cancel()
                await asyncio.gather(beats, return_exceptions=True)

    async def amend(self, given: Given, document: BaseModel) -> Given:
        """`given` as it was answered in the end, after waiting."""
        given = replace(given, answer=replace(given.answer, body=_text(document)))
        await run_in_threadpool(self._amend, given)
        return given

    def _amend(self, given: Given) -> None:
        if given.reservation is not None:
            with transaction(self.services.engine) as session:
                idempotency.amend(session, given.reservation, given.answer.body)

    def _reserve(self, request_sha256: str | None) -> Reservation | Kept | None:
        if self.slot is None:
            return None
        with transaction(self.services.engine) as session:
            return idempotency.reserve(session, self.slot, request_sha256)


async def _once(request: Request, services: Shared, caller: Caller, key: IdempotencyKey = None) -> Once:
    slot = None
    if key is not None:
        route = f"POST {request.scope['path']}"
        if len(route) > MAX_ROUTE:  # no id is so long
            raise Refused("not_found", "there is nothing at this address")
        slot = Slot(caller.owner, route, key)
    query = tuple(sorted(item for item in request.query_params.multi_items() if item[0] != "wait"))
    return Once(services, slot, query)


Idempotent = Annotated[Once, Depends(_once)]


async def _beat(turn: Turn) -> None:
    """Extend the reservation, so that a slow upload is not taken for one whose server died."""
    while True:
        await asyncio.sleep(EXTEND_SECONDS)
        await run_in_threadpool(_tell, "an idempotency key could not be extended", turn.extend)


def _tell(event: str, action: Callable[[], None]) -> None:
    try:
        action()
    except SQLAlchemyError as error:  # why the request fails matters more
        log.warning(event, exc_info=error)


def _text(document: BaseModel) -> str:
    return to_json(document.model_dump(mode="json"))
