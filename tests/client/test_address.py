from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path

import pytest

from billhook.address import find_server
from billhook.errors import BillhookError, InputInvalid, ServerNotFound

KEY = "bh_secret_secret_secret"


def environ(folder: Path, **more: str) -> dict[str, str]:
    return {"BILLHOOK_DATA_DIR": str(folder), **more}


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """The data folder of a server that was killed."""
    (tmp_path / "address").write_text("http://127.0.0.1:8470\n")
    (tmp_path / "key").write_text(f"{KEY}\n")
    (tmp_path / "server.lock").touch()
    return tmp_path


@pytest.fixture
def local(killed: Path) -> Iterator[Path]:
    """The data folder of a server that runs here."""
    with (killed / "server.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield killed


def test_the_server_of_this_machine_is_found(local: Path) -> None:
    address = find_server(environ=environ(local))
    assert (address.url, address.key, address.loopback) == ("http://127.0.0.1:8470", KEY, True)
    assert KEY not in repr(address)


def test_no_server_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ServerNotFound, match="start one with `billhook up`"):
        find_server(environ=environ(tmp_path))


def test_whoever_listens_where_a_killed_server_did_is_not_sent_its_key(killed: Path) -> None:
    with pytest.raises(ServerNotFound, match="no server is running here"):
        find_server(environ=environ(killed))
    with pytest.raises(InputInvalid, match="there is no key"):
        find_server("http://127.0.0.1:8470", environ=environ(killed))


def test_arguments_come_before_the_environment_before_the_machine(local: Path) -> None:
    named = environ(local, BILLHOOK_SERVER="https://a.example", BILLHOOK_KEY="bh_env")
    assert find_server(environ=named).url == "https://a.example"
    assert find_server(environ=named).key == "bh_env"
    given = find_server("https://b.example/", "bh_given", environ=named)
    assert (given.url, given.key) == ("https://b.example", "bh_given")


def test_the_key_of_this_machine_goes_to_no_other_server(local: Path) -> None:
    with pytest.raises(InputInvalid, match=r"there is no key for https://b\.example"):
        find_server("https://b.example", environ=environ(local))
    assert find_server("http://127.0.0.1:8470/", environ=environ(local)).key == KEY


@pytest.mark.parametrize("url", ["http://b.example", "http://10.0.0.7:8470", "http://127.0.0.1.evil.example"])
def test_no_key_over_plain_http_to_another_machine(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputInvalid, match="plain http") as caught:
        find_server(url, KEY, environ=environ(tmp_path))
    assert KEY not in caught.value.message
    assert find_server(url, KEY, insecure_http=True, environ=environ(tmp_path)).key == KEY
    assert find_server(url, KEY, environ=environ(tmp_path, BILLHOOK_INSECURE_HTTP="1")).key == KEY


@pytest.mark.parametrize("url", ["http://localhost:1", "http://127.0.0.9:1", "http://[::1]:1"])
def test_this_machine_has_several_names(tmp_path: Path, url: str) -> None:
    assert find_server(url, KEY, environ=environ(tmp_path)).loopback


@pytest.mark.parametrize(
    "url",
    ["b.example", "ftp://b.example", "http://", "https://user:pw@b.example", "http://a b", "https://b.example/?x=1"],
)
def test_what_is_no_address(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputInvalid, match="address") as caught:
        find_server(url, KEY, environ=environ(tmp_path))
    assert "pw" not in caught.value.message


@pytest.mark.parametrize("key", ["two words", "umlaut_ü", "line\nbreak"])
def test_a_damaged_key_is_not_repeated_in_the_message(tmp_path: Path, key: str) -> None:
    with pytest.raises(BillhookError, match="the key holds characters") as caught:
        find_server("https://b.example", key, environ=environ(tmp_path))
    assert key not in caught.value.message
