"""HEAD at every address that knows GET (RFC 9110, 9.3.2): the same head, and no body."""

from __future__ import annotations

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEAD = "billhook.head"


class Head:
    """Has a HEAD answered as a GET is, and ends the answer behind its head, a stream's too."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        done = False

        async def send_head(message: Message) -> None:
            nonlocal done
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                done = True

        async def receive_until_done() -> Message:
            return {"type": "http.disconnect"} if done else await receive()

        await self.app({**scope, "method": "GET", _HEAD: True}, receive_until_done, send_head)


def is_head(request: Request) -> bool:
    """Whether nobody will see the body: it need not be fetched."""
    return bool(request.scope.get(_HEAD, False))
