"""Which addresses are fetched from."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.conftest import Fetch
from tests.worker.source_server import SHA256, Server
from worker.sources.addresses import is_public
from worker.sources.errors import (
    SourceNotFound,
    SourceRefused,
)


def test_a_name_of_a_private_address(get: Fetch, server: Server) -> None:
    with pytest.raises(SourceRefused, match=r"localhost is at .*BILLHOOK_DATASET_PRIVATE_ADDRESSES"):
        get(dataset_private_addresses=False)
    assert server.asked == []


def test_a_name_of_which_one_address_is_private(get: Fetch, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    def lookup(*_: object, **__: object) -> list[Any]:
        return [(socket.AF_INET, 1, 6, "", (address, 443)) for address in ("93.184.215.14", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with pytest.raises(SourceRefused, match=r"10\.0\.0\.1"):
        get(dataset_private_addresses=False)


def test_a_name_is_looked_up_once(get: Fetch, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it means later (DNS rebinding): every connection goes to the address that was looked at."""
    server.files["/images.zip"].breaks = [30_000, 30_000]
    asked = []
    lookup = socket.getaddrinfo

    def once(host: str, *rest: Any, **named: Any) -> Any:
        if host == "localhost":
            asked.append(host)
        return lookup("127.0.0.1" if len(asked) <= 1 else "192.0.2.1", *rest, **named) if host == "localhost" else (
            lookup(host, *rest, **named)
        )  # fmt: skip

    monkeypatch.setattr(socket, "getaddrinfo", once)
    assert get().sha256 == SHA256
    assert (asked, len(server.asked)) == (["localhost"], 3)


def test_a_name_that_is_none(get: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "no")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    with pytest.raises(SourceNotFound, match="there is no host localhost"):
        get()


def test_no_proxy_is_used(get: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert get().sha256 == SHA256


PRIVATE = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.7",
    "203.0.113.9",
    "224.0.0.1",
    "239.1.1.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "64:ff9b:1::1",
    "100::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a00:1::",
    "2001::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.215.14", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_addresses_that_are(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@given(st.ip_addresses(v=4))
def test_an_address_in_another_s_clothes_is_the_same(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    for outer in ((0xFFFF << 32) | number, (0x0064FF9B << 96) | number, (0x2002 << 112) | (number << 80)):
        assert is_public(ipaddress.IPv6Address(outer)) == is_public(address)
