"""A test that needs a server which is not there is skipped, but never in CI."""

from __future__ import annotations

import pytest

from tests.servers import RABBITMQ, REDIS, address_of, need

NOWHERE = "redis://127.0.0.1:1/0"


def test_where_the_servers_are() -> None:
    assert all(port > 0 for _, port in map(address_of, (REDIS, RABBITMQ)))
    assert address_of("amqp://user:word@mq.example.com//") == ("mq.example.com", 5672)


def test_a_missing_server_skips_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="BILLHOOK_TEST_REDIS"):
        need(NOWHERE)


def test_a_missing_server_fails_a_test_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="BILLHOOK_TEST_REDIS"):
        need(NOWHERE)
