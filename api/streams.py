"""A job's events as a stream of server-sent events (WHATWG HTML, 9.2).

FastAPI has such streams for routes that are generators and do nothing else. Here the address answers JSON too, by
`Accept`; the stream begins after the checks that may refuse it, ends with the job, and is encoded once for all who
listen. So the framework's encoding and response are used, and its generator routes are not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event

from api.hub import Hub
from api.schemas.events import EndOut, ProgressOut
from store.records import TERMINAL

RETRY_MILLISECONDS = 2_000
PIECE_BYTES = 2**16  # what is written at once: a connection that takes no more holds so much, not a large event


def event_stream(hub: Hub, job_id: str, after: int, key_id: str, keep_alive_seconds: float) -> EventSourceResponse:
    """The answer: events numbered above `after` as they come, the job's progress when it changes, and its end."""
    # no proxy is to hold it back: not to collect it (nginx), not to compress it
    headers = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no", "Vary": "Accept"}
    return EventSourceResponse(_messages(hub, job_id, after, key_id, keep_alive_seconds), headers=headers)


async def _messages(hub: Hub, job_id: str, after: int, key_id: str, keep_alive_seconds: float) -> AsyncIterator[bytes]:
    yield format_sse_event(retry=RETRY_MILLISECONDS)
    shown: ProgressOut | None = None
    with hub.watch(job_id, key_id=key_id, after=after) as watch:
        while not watch.ended:
            if (page := watch.take()) is not None:
                for start in range(0, len(page.content), PIECE_BYTES):
                    yield page.content[start : start + PIECE_BYTES]
            pulse = watch.pulse
            if pulse is not None and (progress := ProgressOut.of(pulse)) != shown:
                shown = progress
                yield format_sse_event(event="progress", data_str=progress.model_dump_json())
            if pulse is not None and pulse.state in TERMINAL and not watch.hungry and watch.page is None:
                yield format_sse_event(event="end", data_str=EndOut.of(pulse).model_dump_json())
                return
            if not await watch.news(keep_alive_seconds):
                yield KEEPALIVE_COMMENT
