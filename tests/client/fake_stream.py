"""The fake server's stream of a job's events."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.client.fake_server import FakeServer

_OVER = ("succeeded", "failed", "cancelled")


def stream_events(handler: Any, fake: FakeServer, job: dict[str, Any], after: int) -> None:
    """A look at the job every 20 ms; every message in two pieces."""
    if not fake.stream:
        return handler._problem(406, "not_acceptable")
    if job["state"] in _OVER and after >= fake.events(job)[-1]["seq"]:
        return handler._send(204, {}, b"")
    handler.send_response(200)
    handler.send_header("Content-Type", fake.stream)
    handler.end_headers()
    handler.close_connection = True
    left = fake.cuts.pop(0) if fake.cuts else -1
    if fake.silent_streams:
        handler.wfile.flush()
        fake.closing.wait(30)
        return
    handler.wfile.write(b"retry: 20\n\n: hello\n\n")
    while not fake.closing.wait(0.02):
        place = {name: job[name] for name in ("state", "stage", "progress", "eta_seconds")}
        messages = [f"id: {event['seq']}\ndata: {json.dumps(event)}\n\n" for event in fake.events(job)
                    if event["seq"] > after]  # fmt: skip
        after += len(messages)
        messages.append(f"event: progress\ndata: {json.dumps(place)}\n\n")
        if job["state"] in _OVER:
            messages.append(f"event: end\ndata: {json.dumps({'state': job['state']})}\n\n")
        for message in messages:
            if left == 0:
                return
            left -= 1
            content = message.encode()
            for piece in (content[:7], content[7:]):
                handler.wfile.write(piece)
                handler.wfile.flush()
        if job["state"] in _OVER:
            return
        fake.look_at_job(job)
