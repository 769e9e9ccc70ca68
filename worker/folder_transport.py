"""kombu's `filesystem` transport with whole messages only.

kombu (5.7) writes a message in place, takes it by moving it to the temporary folder, and parses it there. A consumer
that is quick takes a message before anything is written in it, and two that move the same one across file systems can
read each other's half: either way the worker ends with a JSONDecodeError (kombu issue 1551). Here a message gets its
name once it is complete, and is taken by a rename, which one consumer wins.
"""

from __future__ import annotations

import time
import uuid
from contextlib import suppress
from pathlib import Path
from queue import Empty
from typing import Any

from kombu.transport import filesystem
from kombu.utils.json import dumps, loads


class Channel(filesystem.Channel):
    """A folder of messages, one file each: `<time>_<unique>.<queue>.msg`. Oldest first."""

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:  # type: ignore[override]
        folder = Path(self.data_folder_out)
        name = f"{time.time_ns():020}_{uuid.uuid4().hex}"
        unfinished = folder / f"{name}.unfinished"
        unfinished.write_text(dumps(message), encoding="utf-8")  # type: ignore[no-untyped-call]
        unfinished.rename(folder / f"{name}.{queue}.msg")

    def _get(self, queue: str) -> dict[str, Any]:  # type: ignore[override]
        folder = Path(self.data_folder_in)
        for path in sorted(path for path in folder.iterdir() if path.name.partition(".")[2] == f"{queue}.msg"):
            taken = path.with_suffix(".taken")
            with suppress(FileNotFoundError):  # another consumer was quicker
                path.rename(taken)
                content = taken.read_text(encoding="utf-8")
                taken.unlink()
                message: dict[str, Any] = loads(content)  # type: ignore[no-untyped-call]
                return message
        raise Empty


class Transport(filesystem.Transport):
    """`worker.app` names it where `broker_url` is `filesystem://`."""

    Channel = Channel
