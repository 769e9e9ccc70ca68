"""Both clients behind one face, so that each test runs with either."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import anyio

import billhook
from tests.client.fake_server import KEY


class Either:
    """One of the clients, called in the same way."""

    def __init__(self, kind: str, server: str, **options: Any) -> None:
        self.kind, self.server, self.options = kind, server, options

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if self.kind == "sync":

            def call(*args: Any, **kwargs: Any) -> Any:
                with billhook.Client(self.server, KEY, **self.options) as client:
                    result = getattr(client, name)(*args, **kwargs)
                    return list(result) if inspect.isgenerator(result) else result

            return call

        async def acall(*args: Any, **kwargs: Any) -> Any:
            async with billhook.AsyncClient(self.server, KEY, **self.options) as client:
                result = getattr(client, name)(*args, **kwargs)
                return [item async for item in result] if inspect.isasyncgen(result) else await result

        return lambda *args, **kwargs: anyio.run(lambda: acall(*args, **kwargs))
