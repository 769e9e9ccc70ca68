"""A real broker behind a proxy of the test's own, with queues that nobody else has."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import redis
from amqp.exceptions import NotFound

from store.settings import Settings
from tests.proxy import Proxy
from tests.servers import address_of
from worker.app import make_app, queue_named

QUEUES = ("cpu", "inspect", "fetch", "gpu", "gpu-0")


@dataclass(frozen=True)
class Broker:
    """`url` leads through `proxy`, `direct_url` past it."""

    direct_url: str
    proxy: Proxy
    data_dir: Path
    prefix: str = field(default_factory=lambda: f"test-{uuid.uuid4().hex[:12]}")

    @property
    def url(self) -> str:
        host, port = address_of(self.direct_url)
        given = f"{host}:{port}" if urlsplit(self.direct_url).port else host
        return self.direct_url.replace(given, f"127.0.0.1:{self.proxy.port}", 1)

    @property
    def in_redis(self) -> bool:
        return self.direct_url.startswith("redis")

    def settings(self, **changes: object) -> Settings:
        given = {"broker_url": self.direct_url, "queue_prefix": self.prefix, "data_dir": self.data_dir} | changes
        return Settings(_env_file=None, **given)  # type: ignore[arg-type]

    def waiting(self, name: str = "cpu") -> int:
        return waiting_in(self.settings(), name)

    def remove(self) -> None:
        """Remove the queues and whatever else is of this prefix."""
        if self.in_redis:
            client = redis.Redis.from_url(self.direct_url)
            for key in client.scan_iter(f"{self.prefix}.*"):
                client.delete(key)
            client.close()
            return
        with make_app(self.settings()).connection_for_write() as connection:
            for name in QUEUES:
                with contextlib.suppress(NotFound):
                    queue_named(self.settings(), name).bind(connection.default_channel).delete()


def waiting_in(settings: Settings, name: str) -> int:
    """How many messages wait in a queue; none where there is no such queue."""
    with make_app(settings).connection_for_read() as connection:
        queue = queue_named(settings, name).bind(connection.default_channel)
        try:
            return int(queue.queue_declare(passive=True).message_count)
        except connection.channel_errors:
            return 0


@contextmanager
def proxied(url: str, data_dir: Path) -> Iterator[Broker]:
    """A broker at `url`, and its queues removed afterwards."""
    with Proxy(address_of(url)) as proxy:
        broker = Broker(url, proxy, data_dir)
        try:
            yield broker
        finally:
            broker.remove()
