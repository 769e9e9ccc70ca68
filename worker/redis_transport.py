"""kombu's `redis` transport whose queues throw away what nobody came for, and whose consumers outlive the server.

A list in Redis keeps a message for ever, and a job that waits is rung for every half minute: a queue whose workers are
busy for a week, or that has none, would fill the server's memory. Whoever puts a message in takes the oldest out that
are past the time they carry (`expires`, by which a worker would drop them too), so that at most a few for each job are
there.

A message that cannot be acknowledged, since the server is away when its task ends, counts as held for ever in kombu
(5.7): with a prefetch of one the consumer takes no other, nor does it ever look at the connection again. Here it is let
go of; the server gives it to another worker later, which finds its work done.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import structlog
from kombu.transport import redis, virtual
from redis.exceptions import WatchError

log = structlog.get_logger("billhook.worker")
LOOK_AT = 100  # messages, at the old end, each time that one is put in at the other


class QoS(redis.QoS):
    """What a channel holds of messages that are not acknowledged."""

    def ack(self, delivery_tag: str) -> None:
        try:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]
        except self.channel.connection_errors as error:
            log.warning("a message could not be acknowledged; it will come again", error=type(error).__name__)
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]


class Channel(redis.Channel):
    """`_put` is where kombu puts a message into a list: the new ones left, taken from the right."""

    QoS = QoS

    def _put(self, queue: str, message: dict[str, Any], **options: Any) -> None:
        super()._put(queue, message, **options)  # type: ignore[no-untyped-call]
        with self.conn_or_acquire() as client:
            oldest = client.lrange(queue, -LOOK_AT, -1)
            if not expired(oldest, datetime.now(UTC)):
                return
            with client.pipeline() as pipe:
                pipe.watch(queue)
                oldest = pipe.lrange(queue, -LOOK_AT, -1)
                count = expired(oldest, datetime.now(UTC))
                pipe.multi()
                if count:
                    pipe.ltrim(queue, 0, -(count + 1))
                try:
                    pipe.execute()
                except WatchError:  # somebody takes messages: then nothing piles up
                    return


def expired(oldest: Sequence[bytes | str], now: datetime) -> int:
    """How many at the end of these messages are past their time. One that cannot be read is."""
    count = 0
    for raw in reversed(oldest):
        try:
            expires = datetime.fromisoformat(json.loads(raw)["headers"]["expires"])
        except (ValueError, KeyError, TypeError):
            count += 1
            continue
        if (expires if expires.tzinfo else expires.replace(tzinfo=UTC)) > now:
            break
        count += 1
    return count


class Transport(redis.Transport):
    """`worker.app` names it where `broker_url` is `redis://` or `rediss://`."""

    Channel = Channel
