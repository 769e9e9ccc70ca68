"""kombu's `filesystem` transport with whole messages only, and with no more of them than there are doors to ring at.

kombu (5.7) writes a message in place, takes it by moving it to the temporary folder, and parses it there. A consumer
that is quick takes a message before anything is written in it, and two that move the same one across file systems can
read each other's half: either way the worker ends with a JSONDecodeError (kombu issue 1551). Here a message gets its
name once it is complete, and is taken by a rename, which one consumer wins.

Each queue is a folder of its own. A message with the header `doorbell` takes the place of an earlier one with the same:
a job that waits for days is rung for every half minute, and has one file. Files older than `expires_seconds` go
unread, whatever they are: nobody came for them, or a process died while it wrote or read them.
"""

from __future__ import annotations

import re
import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty
from typing import Any

from kombu.exceptions import ChannelError
from kombu.transport import filesystem
from kombu.utils.json import dumps, loads

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
DOORBELL = "doorbell"


class Channel(filesystem.Channel):
    """A folder for each queue, a file `<doorbell, or time and something unique>.msg` for each message.

    They are taken in the order of their names, which for our ids is that of their making.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]
        self._waiting: dict[str, deque[Path]] = {}  # what the last look into a queue's folder found, not taken yet
        self._swept: dict[str, float] = {}

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:  # type: ignore[override]
        folder = self._folder(queue)
        self._sweep(queue)
        unique = f"{time.time_ns():020}_{uuid.uuid4().hex}"
        name = message.get("headers", {}).get(DOORBELL) or unique
        if not NAME.fullmatch(name):
            raise ChannelError(f"a doorbell is a plain name, not {name!r}")
        unfinished = folder / f"{unique}.unfinished"
        unfinished.write_text(dumps(message), encoding="utf-8")  # type: ignore[no-untyped-call]
        unfinished.replace(folder / f"{name}.msg")

    def _get(self, queue: str) -> dict[str, Any]:  # type: ignore[override]
        while True:
            if not self._waiting.get(queue):  # one look for many messages: a look at 20,000 files takes a while
                self._waiting[queue] = deque(sorted(self._messages(queue)))
                if not self._waiting[queue]:
                    raise Empty
            path = self._waiting[queue].popleft()
            taken = path.with_name(f"{uuid.uuid4().hex}.taken")
            with suppress(FileNotFoundError):  # another consumer was quicker
                path.rename(taken)
                content = taken.read_text(encoding="utf-8")
                taken.unlink()
                message: dict[str, Any] = loads(content)  # type: ignore[no-untyped-call]
                return message

    def _size(self, queue: str) -> int:
        return sum(1 for _ in self._messages(queue))

    def _purge(self, queue: str) -> int:
        paths = list(self._messages(queue))
        for path in paths:
            path.unlink(missing_ok=True)
        return len(paths)

    def _folder(self, queue: str) -> Path:
        if not NAME.fullmatch(queue):
            raise ChannelError(f"a queue has a plain name, not {queue!r}")
        folder = Path(self.data_folder_in) / queue
        folder.mkdir(exist_ok=True, mode=0o700)
        return folder

    def _sweep(self, queue: str) -> None:
        """Now and then: nobody may ever look into this queue."""
        if time.monotonic() >= self._swept.get(queue, 0.0):
            self._swept[queue] = time.monotonic() + self._expires_seconds
            for _ in self._messages(queue):
                pass

    def _messages(self, queue: str) -> Iterator[Path]:
        """The messages in a queue's folder. What is too old is removed, messages and what never became one alike."""
        oldest = time.time() - self._expires_seconds
        for path in self._folder(queue).iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()
                elif path.suffix == ".msg":
                    yield path

    @property
    def _expires_seconds(self) -> float:
        return float(self.transport_options["expires_seconds"])


class Transport(filesystem.Transport):
    """`worker.app` names it where `broker_url` is `filesystem://`."""

    Channel = Channel
