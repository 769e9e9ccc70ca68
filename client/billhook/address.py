"""Which server to talk to, with which key: what was given, else the environment, else the server on this machine."""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from billhook.errors import InputInvalid, ServerNotFound


@dataclass(frozen=True)
class Address:
    """Where a server is. The key never appears in its `repr`."""

    url: str
    key: str = field(repr=False)
    loopback: bool


def find_server(
    server: str | None = None,
    key: str | None = None,
    *,
    insecure_http: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> Address:
    """The server and the key to use.

    In order: `server` and `key`; `BILLHOOK_SERVER` and `BILLHOOK_KEY`; the files `address` and `key` which a server
    started on this machine leaves in its data folder (`BILLHOOK_DATA_DIR`, default ~/.local/share/billhook). The key
    in that folder is only ever sent to the server of that folder, and only while it runs. A key is sent over plain
    http to this machine only, unless `insecure_http` (or `BILLHOOK_INSECURE_HTTP=1`) says otherwise.

    Raises `ServerNotFound` where no server is known, `InputInvalid` for everything else.
    """
    folder = Path(environ.get("BILLHOOK_DATA_DIR") or "~/.local/share/billhook").expanduser()
    local = _read(folder / "address") if _is_running(folder) else None
    given = server or environ.get("BILLHOOK_SERVER") or local
    if given is None:
        raise ServerNotFound(
            "no server is running here, and none was named: start one with `billhook up`, "
            "or name one with --server or BILLHOOK_SERVER"
        )
    url, host = _checked_url(given)
    key = key or environ.get("BILLHOOK_KEY")
    if not key and local is not None and url == _checked_url(local)[0]:
        key = _read(folder / "key")
    if not key:
        raise InputInvalid(f"there is no key for {url}: give one with BILLHOOK_KEY or --key")
    key = key.strip()
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise InputInvalid("the key holds characters that no key has: was it copied whole, and nothing else with it?")
    loopback = _is_loopback(host)
    allowed = insecure_http or environ.get("BILLHOOK_INSECURE_HTTP") == "1"
    if url.startswith("http:") and not loopback and not allowed:
        raise InputInvalid(
            f"the key is not sent to {url}: plain http can be read on the way. Use https, "
            "or --insecure-http (BILLHOOK_INSECURE_HTTP=1) inside a network that you trust"
        )
    return Address(url, key, loopback)


def _checked_url(text: str) -> tuple[str, str]:
    try:
        url = httpx.URL(text.strip())
    except httpx.InvalidURL:
        raise InputInvalid("the server's address is no URL; it looks like https://billhook.example.com") from None
    if url.userinfo:
        raise InputInvalid("the server's address must not hold a user or password; the key goes into BILLHOOK_KEY")
    is_host = re.fullmatch(rb"[0-9a-z._:-]+", url.raw_host) is not None
    if url.scheme not in ("http", "https") or not is_host or url.query or url.fragment:
        raise InputInvalid(f"{text!r} is no server's address; it looks like https://billhook.example.com")
    return str(url).rstrip("/"), url.host


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_running(folder: Path) -> bool:
    """Whether the server of the data folder runs: it locks a file there for as long as it lives.

    A server that was killed leaves its address behind, and whoever listens there now must not be sent the key.
    """
    if sys.platform == "win32":
        return False  # the server runs on Linux only
    import fcntl

    try:
        with (folder / "server.lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError:
        raise _unreadable(folder / "server.lock") from None
    return False


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8").strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError):
        raise _unreadable(path) from None


def _unreadable(path: Path) -> InputInvalid:
    return InputInvalid(f"{path} cannot be read: is it another user's? Give --server and --key")
