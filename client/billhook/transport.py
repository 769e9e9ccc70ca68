"""From calls to httpx: arguments, bodies, errors, and answers that are left open."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import httpx

from billhook.address import Address
from billhook.errors import ConnectionFailed
from billhook.steps import CHUNK_BYTES, Call, FileBody

CONNECT_SECONDS = 10.0


@dataclass(frozen=True, eq=False)
class OpenAnswer:
    """An answer that is left open. `pieces`: the iterator of its bytes, as they come."""

    call: Call
    response: httpx.Response
    pieces: Any


def is_stream(call: Call, response: httpx.Response) -> bool:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    return call.stream is not None and response.status_code == 200 and kind == call.stream


async def close_all(opened: Iterable[OpenAnswer]) -> None:
    with anyio.CancelScope(shield=True):  # it takes no time, and a cancelled task would leave the connection behind
        for each in opened:
            await each.response.aclose()


# --- from calls to httpx ---------------------------------------------------------------------------------------------


def settings_of(address: Address) -> dict[str, Any]:
    # loading the certificates that https needs takes longer than most commands; a context without any trusts nobody
    tls = True if address.url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return {
        "verify": tls,
        "base_url": address.url,
        "headers": {"Authorization": f"Bearer {address.key}", "User-Agent": "billhook-client/1"},
        "trust_env": not address.loopback,  # a proxy has no business between two programs of this machine
    }


def arguments_of(call: Call) -> dict[str, Any]:
    headers = {"Accept": "application/json", **call.headers}
    if call.sink is not None:
        headers = {**headers, "Accept": "*/*", **call.sink.headers()}
    if call.file is not None:
        headers["Content-Length"] = str(call.file.size)
    return {
        "method": call.method,
        "url": call.path,
        "params": dict(call.params),
        "headers": headers,
        "json": call.json,
        "timeout": httpx.Timeout(call.read_seconds, connect=CONNECT_SECONDS),
    }


def chunks(file: FileBody) -> Iterator[bytes]:
    sent = 0
    with file.path.open("rb") as source:
        while chunk := source.read(CHUNK_BYTES):
            yield chunk
            sent += len(chunk)
            file.advance(sent)


async def async_chunks(file: FileBody) -> AsyncIterator[bytes]:
    sent = 0
    async with await anyio.open_file(file.path, "rb") as source:
        while chunk := await source.read(CHUNK_BYTES):
            yield chunk
            sent += len(chunk)
            file.advance(sent)


def lowered(response: httpx.Response) -> Mapping[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


@contextmanager
def connection_errors(address: Address, call: Call) -> Iterator[None]:
    try:
        yield
    except httpx.ConnectTimeout:
        raise ConnectionFailed(f"cannot reach {address.url}: no answer within {CONNECT_SECONDS:g} s") from None
    except httpx.TimeoutException:
        failure = ConnectionFailed(f"{address.url} did not answer within {call.read_seconds:g} s")
        failure.silent = True
        raise failure from None
    except httpx.ConnectError as error:
        hint = "; is it running? `billhook up` starts it" if address.loopback else ""
        raise ConnectionFailed(f"cannot reach {address.url}: {error}{hint}") from None
    except (httpx.TransportError, httpx.DecodingError) as error:
        raise ConnectionFailed(f"the connection to {address.url} broke: {error or type(error).__name__}") from None
