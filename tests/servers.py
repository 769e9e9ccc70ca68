"""The servers that tests use where a real one is the point; environment variables say where they are."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

import pytest

REDIS = os.environ.get("BILLHOOK_TEST_REDIS", "redis://127.0.0.1:6379/13")
RABBITMQ = os.environ.get("BILLHOOK_TEST_RABBITMQ", "amqp://guest:guest@127.0.0.1:5672//")
VARIABLES = {"redis": "BILLHOOK_TEST_REDIS", "amqp": "BILLHOOK_TEST_RABBITMQ"}


def address_of(url: str) -> tuple[str, int]:
    """Host and port of a broker."""
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or {"redis": 6379, "amqp": 5672}[parts.scheme]


def need(url: str) -> str:
    """`url`, if something answers there. Otherwise the test is skipped; in CI, where it has to be, it fails."""
    try:
        socket.create_connection(address_of(url), timeout=3).close()
    except OSError as error:
        scheme = urlsplit(url).scheme
        reason = f"nothing answers at {address_of(url)} ({VARIABLES[scheme]}): {error}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return url
