"""Clients that ask one address again and again, as cheaply as Python can: `python -m bench.polling_load`, a process of
its own. Its limit is measured against `python -m bench.polling_load --serve`, which answers without looking."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}"


class Client(asyncio.Protocol):
    """Sends the request as soon as the answer to the one before is there, until the time or the count is up."""

    def __init__(self, request: bytes, status: bytes, budget: Budget) -> None:
        self._request = request
        self._status = b"HTTP/1.1 " + status
        self._budget = budget
        self._buffer = b""
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next()

    def _next(self) -> None:
        if self._budget.left == 0 or time.perf_counter() > self._budget.until:
            if not self.done.done():
                self.done.set_result(None)
            self._transport.close()
            return
        self._budget.left -= 1
        self._sent = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        if not head.startswith(self._status):
            self._fail(RuntimeError(f"answered {head[:60]!r} {body[:300]!r}"))
            return
        self._budget.seconds.append(time.perf_counter() - self._sent)
        self._buffer = b""
        self._next()

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(RuntimeError(f"the connection broke: {error}"))

    def _fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)
            self._transport.close()


class Budget:
    """What all clients together may do, and how long each request took."""

    def __init__(self, requests: int, seconds: float) -> None:
        self.left = requests
        self.until = time.perf_counter() + seconds
        self.seconds: list[float] = []


async def ask(arguments: argparse.Namespace) -> dict[str, object]:
    lines = [f"GET {arguments.path} HTTP/1.1", "Host: x", "Accept: application/json"]
    if arguments.key:
        lines.append(f"Authorization: Bearer {arguments.key}")
    request = "\r\n".join([*lines, "", ""]).encode()
    budget = Budget(arguments.requests, arguments.seconds)
    began = time.perf_counter()
    clients = []
    for _ in range(arguments.clients):
        _, client = await asyncio.get_running_loop().create_connection(
            lambda: Client(request, str(arguments.status).encode(), budget), "127.0.0.1", arguments.port
        )
        clients.append(client)
    await asyncio.gather(*(client.done for client in clients))
    return {"wall_seconds": time.perf_counter() - began, "seconds": budget.seconds}


class Server(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(ANSWER)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--port", type=int)
    parser.add_argument("--path", default="/")
    parser.add_argument("--key", default="")
    parser.add_argument("--status", type=int, default=200)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--requests", type=int, default=1_000, help="of all clients together")
    parser.add_argument("--seconds", type=float, default=5)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve())
    else:
        json.dump(asyncio.run(ask(arguments)), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
