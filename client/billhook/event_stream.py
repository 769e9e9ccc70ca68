"""Server-sent events out of bytes as they arrive, as WHATWG HTML 9.2.6 has them parsed."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Message:
    """One message. `id` is that of the last message that had one, which may be an earlier one."""

    event: str
    data: str
    id: str


class EventStream:
    """Takes bytes in whatever pieces, gives the messages that they complete. One for each connection.

    `last_id`: where an earlier connection was broken off. `retry_seconds`: how long the server asks to wait before
    connecting again, None where it does not say.
    """

    def __init__(self, last_id: str = "") -> None:
        self.last_id = last_id
        self.retry_seconds: float | None = None
        self._rest: list[bytes] = []  # of a line that is not complete
        self._skip_line_feed = False  # the second half of an end of line may be in the next piece
        self._begun = False
        self._event, self._id = "", last_id
        self._data: list[str] = []

    def feed(self, piece: bytes) -> list[Message]:
        """The messages that `piece` completes."""
        if not piece:
            return []
        carriage_return = piece.endswith(b"\r")
        if self._skip_line_feed and piece.startswith(b"\n"):
            piece = piece[1:]
        self._skip_line_feed = carriage_return
        first, *more = _LINE_END.split(piece)
        self._rest.append(first)
        messages = []
        for following in more:
            line = b"".join(self._rest)
            self._rest = [following]
            if not self._begun:
                line = line.removeprefix(_BYTE_ORDER_MARK)
                self._begun = True
            if (message := self._take(line.decode("utf-8", "replace"))) is not None:
                messages.append(message)
        return messages

    def _take(self, line: str) -> Message | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry_seconds = int(value) / 1000
        return None  # comments have no name, and what else there may be is to be ignored

    def _dispatch(self) -> Message | None:
        self.last_id = self._id
        event, data = self._event or "message", self._data
        self._event, self._data = "", []
        return Message(event, "\n".join(data), self.last_id) if data else None
