"""A job's event log: page by page, or as a stream."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.errors import Refused
from api.openapi import EVENT_ANSWERS
from api.routes.artifacts import preferred
from api.schemas.events import EventOut, EventPage
from api.services import Caller, Shared, Wait
from api.streams import event_stream
from core.errors import Fault
from store import events, jobs
from store.records import TERMINAL, Event, Job

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
PAGE, STREAM = "application/json", "text/event-stream"
FORMS = (PAGE, STREAM)
LAST = 2**31 - 1
OF_PAGES = ("limit", "wait")


@router.get("/{job_id}/events", response_model=EventPage, responses=EVENT_ANSWERS)
async def list_events(
    request: Request,
    response: Response,
    job_id: str,
    services: Shared,
    caller: Caller,
    after: Annotated[int, Query(ge=0, le=LAST, description="events with a higher number")] = 0,
    limit: Annotated[int, Query(ge=1, le=1_000, description="of a page")] = 100,
    wait: Wait = 0,
    last_event_id: Annotated[
        int | None, Header(alias="Last-Event-ID", ge=0, le=LAST, description="as `after`, and stronger")
    ] = None,
) -> EventPage | Response:
    """The job's event log, in order; `?wait=` waits for the first event of the page.

    With `Accept: text/event-stream`, a stream: every event (`id` is its number) as it comes, `progress` when it
    changes, and `end` when the job is over and all was sent. Whoever comes again after that, with the number of the
    last event, is told by 204 to stay away: a browser's `EventSource` then does.
    """
    after = after if last_event_id is None else last_event_id
    form = preferred(request.headers.get("accept", "*/*"), FORMS)
    if form is None:
        fault = Fault("/Accept", "events do not come in that form", ", ".join(FORMS))
        raise Refused("not_acceptable", "no form of the event log is acceptable", faults=[fault])
    if form == STREAM:
        faults = [Fault(f"/{name}", "a stream has no pages", "leave it out")
                  for name in OF_PAGES if name in request.query_params]  # fmt: skip
        if faults:
            raise Refused("parameter_invalid", f"{len(faults)} parameter(s) cannot be used", faults=faults)
        job = await run_in_threadpool(services.read, lambda session: jobs.get_job(session, caller.owner, job_id))
        if job.state in TERMINAL and after >= job.next_event_seq - 1:
            return Response(status_code=204, headers={"Vary": "Accept"})
        return event_stream(services.hub, job_id, after, caller.key_id, services.settings.keep_alive_seconds)

    def look(session: Session) -> tuple[Job, list[Event]]:
        job = jobs.get_job(session, caller.owner, job_id)
        return job, list(events.page(session, job_id, after, limit + 1))

    _, found = await services.wait(
        request, job_id, look, lambda seen: bool(seen[1]) or seen[0].state in TERMINAL,
        lambda pulse: pulse.last_seq > after or pulse.state in TERMINAL, wait,
    )  # fmt: skip
    response.headers["Vary"] = "Accept"
    shown = found[:limit]
    more = shown[-1].seq if len(found) > limit else None
    return EventPage(items=[EventOut.of(event) for event in shown], next_after=more)
