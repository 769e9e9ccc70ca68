"""Jobs: submit, watch, cancel, and what they leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from billhook.operations.downloads import download_file
from billhook.operations.listening import NO_EVENTS, Listener, moved
from billhook.operations.listing import page, pages
from billhook.operations.recipes import Recipe, request
from billhook.results import Artifact, Download, Event, Job, RecipeInfo, Report, Update, parse
from billhook.retries import KEY_HEADER, Core, body_of, check_deadline, deadline_after, fetch, send
from billhook.steps import Call, Item, Operation, Sleep, Stream, for_each

OnBytes = Callable[[int, int | None], None]
"""Called with the bytes that are there so far and the bytes in all (None = unknown)."""
LONG_POLL_SECONDS = 20.0
WATCH_SECONDS = 1.0
CANCEL_PATIENCE_SECONDS = 10.0
EVENTS_PER_PAGE = 500


def _path(job_id: str, *rest: str) -> str:
    return "/".join(["/v1/jobs", quote(job_id, safe=""), *rest])


# --- recipes ---------------------------------------------------------------------------------------------------------


def list_recipes(core: Core) -> Stream[RecipeInfo]:
    """The recipes that the server has ready."""
    return pages(core, RecipeInfo, "/v1/recipes", {}, None)


def get_recipe(core: Core, name: str) -> Operation[dict[str, Any]]:
    """The document of a ready-made recipe. Raises `ApiError` (404)."""
    return fetch(core, dict[str, Any], f"/v1/recipes/{quote(name, safe='')}")


def recipe_schema(core: Core) -> Operation[dict[str, Any]]:
    """The JSON Schema of recipes: every field, its default and its bounds."""
    return fetch(core, dict[str, Any], "/v1/recipes/schema")


def check_recipe(
    core: Core,
    recipe: Recipe,
    *,
    requirements: Mapping[str, str] | None = None,
    device: str | None = None,
    timeout: float | None = None,
) -> Operation[dict[str, Any]]:
    """The recipe with every default filled in, held against what the server can do. Nothing is kept.

    Raises `ApiError` (422) with every fault that `submit_job` would find in these three, `InputInvalid` as there.
    """
    body = yield from request(recipe, requirements, device)
    reply = yield from send(
        core, Call("POST", "/v1/recipes/check", json=body), deadline=deadline_after(core, timeout)
    )  # fmt: skip
    return parse(_Checked, body_of(reply)).recipe


@dataclass(frozen=True)
class _Checked:
    recipe: dict[str, Any]


# --- jobs ------------------------------------------------------------------------------------------------------------


def submit_job(
    core: Core,
    model: str,
    datasets: Sequence[str],
    recipe: Recipe,
    *,
    name: str | None = None,
    kind: str | None = None,
    tags: Sequence[str] = (),
    requirements: Mapping[str, str] | None = None,
    device: str | None = None,
    idempotency_key: str | None = None,
) -> Operation[Job]:
    """Start a job on a model and datasets that are ready, named by id.

    `requirements`: {"latency_ratio": "<= 0.6"}, over the recipe's own. `device`: auto, cpu or cuda:N. The request
    carries an idempotency key (a new one unless given), so that an answer lost on the way never makes two jobs.
    Raises `ApiError` with every fault of the recipe, `InputInvalid` for a recipe file that cannot be read.
    """
    asked = yield from request(recipe, requirements, device)
    body = {"model": model, "datasets": list(datasets), "name": name, "kind": kind, "tags": list(tags) or None, **asked}
    call = Call(
        "POST", "/v1/jobs", json={key: value for key, value in body.items() if value is not None},
        headers=_key(idempotency_key), shielded=True,
    )  # fmt: skip
    reply = yield from send(core, call)
    return parse(Job, body_of(reply))


def _key(given: str | None) -> dict[str, str]:
    return {} if given is None else {KEY_HEADER: given}


def clone_job(
    core: Core,
    job_id: str,
    *,
    name: str | None = None,
    kind: str | None = None,
    tags: Sequence[str] | None = None,
    recipe: Recipe | None = None,
    requirements: Mapping[str, str] | None = None,
    device: str | None = None,
    idempotency_key: str | None = None,
) -> Operation[Job]:
    """Start a new job like one that is there, in whatever state, but for what is given; its `cloned_from` is `job_id`.

    `requirements` take the place of the job's own. Raises as `submit_job`, and `ApiError` (404) for no such job.
    """
    asked = yield from request(recipe, requirements, device)
    body = {"name": name, "kind": kind, "tags": None if tags is None else list(tags), **asked}
    call = Call(
        "POST", _path(job_id, "clone"), json={key: value for key, value in body.items() if value is not None},
        headers=_key(idempotency_key), shielded=True,
    )  # fmt: skip
    reply = yield from send(core, call)
    return parse(Job, body_of(reply))


def retry_job(core: Core, job_id: str, *, idempotency_key: str | None = None) -> Operation[Job]:
    """Have a job tried again: a new one like it where it is over, else the same, offered to the workers at once.

    Raises `ApiError`: 409 job_running while it is being tried, 422 where the same job would be refused today, 404.
    """
    reply = yield from send(core, Call("POST", _path(job_id, "retry"), headers=_key(idempotency_key), shielded=True))
    return parse(Job, body_of(reply))


def list_jobs(
    core: Core,
    *,
    state: str | None = None,
    name: str | None = None,
    kind: str | None = None,
    tag: str | None = None,
    limit: int | None = None,
) -> Stream[Job]:
    """Your jobs, newest first: in this `state`, with names that begin with `name`, of this `kind`, with this `tag`."""
    return pages(core, Job, "/v1/jobs", {"state": state, "name": name, "kind": kind, "tag": tag}, limit)


def get_job(core: Core, job_id: str) -> Operation[Job]:
    """One job as it is now. Raises `ApiError` (404)."""
    return fetch(core, Job, _path(job_id))


def cancel_job(core: Core, job_id: str) -> Operation[Job]:
    """Ask for the job to be cancelled; it stops within seconds. Raises `ApiError` (409 job_terminal) if it is over."""
    call = Call("POST", _path(job_id, "cancel"), read_seconds=CANCEL_PATIENCE_SECONDS, shielded=True)
    reply = yield from send(core, call, patience=CANCEL_PATIENCE_SECONDS)
    return parse(Job, body_of(reply))


def wait_for_job(core: Core, job_id: str, *, timeout: float | None = None) -> Operation[Job]:
    """The job once it has succeeded. Raises `JobFailed`, `JobCancelled`, and `Timeout` (the job goes on then)."""
    deadline = deadline_after(core, timeout)
    listener = Listener(core, job_id, NO_EVENTS, deadline)
    wait = 0.0
    while True:
        asked = core.now()
        job = yield from fetch(core, Job, _path(job_id), wait=wait)
        if job.over:
            return job.raise_for_state()
        check_deadline(core, deadline, f"waiting for {job_id} ({job.state})")
        while (news := (yield from listener.next())) is not None and not news.over:
            pass
        if news is None and wait and core.now() - asked < WATCH_SECONDS:
            yield Sleep(WATCH_SECONDS)
        wait = LONG_POLL_SECONDS if deadline is None else min(LONG_POLL_SECONDS, max(0.0, deadline - core.now()))


def watch_job(core: Core, job_id: str, *, after: int = 0, timeout: float | None = None) -> Stream[Update]:
    """The job and its events since the last time (from `after` on), whenever there is news, until it is over.

    The server streams them; where no stream gets through, it is asked about once a second. The last update is that of a
    job that is over; with it, all its events were there. Raises `Timeout` (the job goes on then).
    """
    deadline = deadline_after(core, timeout)
    listener = Listener(core, job_id, after, deadline)
    wait = 0.0
    while True:
        asked = core.now()
        # the job first: one that is over has written its last event
        job = yield from fetch(core, Job, _path(job_id), wait=wait)
        events: list[Event] = []
        more: int | None = listener.after
        while more is not None:
            found, more = yield from _events_page(core, job_id, more)
            events += found
        listener.after = events[-1].seq if events else listener.after
        yield Item(Update(job, tuple(events)))
        if job.over:
            return
        check_deadline(core, deadline, f"{job_id} was {job.state}")
        while (news := (yield from listener.next())) is not None and not news.over:
            job = moved(job, news.place) if news.place is not None else job
            yield Item(Update(job, news.events))
        if news is not None:
            if news.events:
                yield Item(Update(job, news.events))
            wait = 0.0
            continue
        if wait and core.now() - asked < wait:  # a server that does not hold the answer back is not to be hammered
            yield Sleep(wait - (core.now() - asked))
        wait = WATCH_SECONDS


def list_events(core: Core, job_id: str, *, after: int = 0) -> Stream[Event]:
    """The job's events so far, those with a higher number than `after`."""
    more: int | None = after
    while more is not None:
        found, more = yield from _events_page(core, job_id, more)
        for event in found:
            yield Item(event)


def _events_page(core: Core, job_id: str, after: int) -> Operation[tuple[list[Event], int | None]]:
    params = {"after": str(after), "limit": str(EVENTS_PER_PAGE)}
    events, document = yield from page(core, Event, _path(job_id, "events"), params)
    more = document.get("next_after")
    return events, more if events and isinstance(more, int) else None


# --- what a job leaves -----------------------------------------------------------------------------------------------


def get_report(core: Core, job_id: str) -> Operation[Report]:
    """What the job measured. Raises `ApiError` (409 job_not_succeeded) before there is a report."""
    return fetch(core, Report, _path(job_id, "report"))


def get_report_markdown(core: Core, job_id: str) -> Operation[str]:
    """The report as Markdown. Raises as `get_report`."""
    reply = yield from send(core, Call("GET", _path(job_id, "report"), headers={"Accept": "text/markdown"}))
    return str(reply.content, "utf-8")


def list_artifacts(core: Core, job_id: str) -> Operation[list[Artifact]]:
    """The files that the job left."""
    items: list[Artifact] = []
    yield from for_each(pages(core, Artifact, _path(job_id, "artifacts"), {}, None), items.append)
    return items


def _ignore(done: int, total: int | None) -> None:
    pass


def download_artifact(
    core: Core,
    job_id: str,
    name: str = "pruned.onnx",
    output: str | Path | None = None,
    *,
    timeout: float | None = None,
    on_bytes: OnBytes = _ignore,
) -> Operation[Download]:
    """Download a file of the job to `output` (default: its own name, here; a folder: its own name, there).

    A large ONNX file keeps its weights in a second one, which it calls "pruned.onnx.data": that comes too, first, and
    goes beside it under that name, whatever `output` is called. It is in `Download.beside`.

    The bytes go to a temporary file beside the target, which is replaced in one go once their sha256 is the one in
    the answer's strong ETag. A broken connection is resumed where it broke. Raises `ChecksumMismatch`, `ApiError`
    (404), `InputInvalid` (cannot be written), `Timeout`, `ConnectionFailed`; nothing is left at the target then.
    """
    deadline = deadline_after(core, timeout)
    target = Path(output) if output is not None else Path(Path(name).name)
    if target.is_dir():
        target = target / Path(name).name

    def advance(done: int, total: int | None) -> None:
        check_deadline(core, deadline, f"downloading {name}")
        on_bytes(done, total)

    beside = []
    if name.endswith(".onnx"):
        data = f"{name}.data"
        if any(artifact.name == data for artifact in (yield from list_artifacts(core, job_id))):
            path = _path(job_id, "artifacts", quote(data))
            beside.append((yield from download_file(core, path, target.with_name(data), advance, deadline)))
    file = yield from download_file(core, _path(job_id, "artifacts", quote(name)), target, advance, deadline)
    return replace(file, beside=tuple(beside))
