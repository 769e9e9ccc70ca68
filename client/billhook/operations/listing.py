"""Walking the pages of a list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from billhook.errors import ApiError
from billhook.results import parse
from billhook.retries import Core, body_of, send
from billhook.steps import Call, Item, Operation, Stream

T = TypeVar("T")
PAGE_SIZE = 50


def page(core: Core, kind: type[T], path: str, params: Mapping[str, str]) -> Operation[tuple[list[T], Any]]:
    """One page of the list at `path`, and the whole document that it came in (where the next page's token is)."""
    reply = yield from send(core, Call("GET", path, params=params))
    document = body_of(reply)
    if not isinstance(document, dict) or not isinstance(document.get("items"), list):
        raise ApiError("the server's answer is no list", status=reply.status, code="unexpected_reply")
    return [parse(kind, item) for item in document["items"]], document


def pages(core: Core, kind: type[T], path: str, params: Mapping[str, str | None], limit: int | None) -> Stream[T]:
    """The items of the list at `path`, page by page as they are asked for, at most `limit`."""
    asked = {name: value for name, value in params.items() if value is not None}
    left = limit
    while left is None or left > 0:
        asked["page_size"] = str(PAGE_SIZE if left is None else min(PAGE_SIZE, left))
        items, document = yield from page(core, kind, path, asked)
        for item in items[:left]:
            yield Item(item)
        left = None if left is None else left - len(items)
        if document.get("next_page_token") is None:
            return
        asked["page_token"] = str(document["next_page_token"])
