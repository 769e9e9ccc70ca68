"""Pages of lists: newest first, a token for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import Query


class _HasId(Protocol):
    @property
    def id(self) -> str: ...


Item = TypeVar("Item", bound=_HasId)
PageSize = Annotated[int, Query(ge=1, le=200, description="items on a page")]


def _token(prefix: str) -> Any:
    """The id of the last item: ids sort by creation, so a page stays right while others come and go."""
    return Query(pattern=rf"^{prefix}_[0-9a-z]{{26}}$", description="next_page_token of a page of this list")


ModelToken = Annotated[str | None, _token("mdl")]
DatasetToken = Annotated[str | None, _token("ds")]
JobToken = Annotated[str | None, _token("job")]
KeyToken = Annotated[str | None, _token("key")]
WorkerToken = Annotated[str | None, _token("wrk")]


def cut(found: Sequence[Item], page_size: int) -> tuple[Sequence[Item], str | None]:
    """A page of what was `found` with a limit of `page_size + 1`, and the token of the next page."""
    if len(found) <= page_size:
        return found, None
    return found[:page_size], found[page_size - 1].id
