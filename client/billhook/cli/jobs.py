"""`billhook jobs`, `billhook report` and `billhook download`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from billhook.cli import tables
from billhook.cli.progress import ProgressDisplay
from billhook.cli.prune import recipe_argument, requirement
from billhook.cli.session import MISSED, OK, Session, command
from billhook.errors import ApiError
from billhook.results import Job

JobId = Annotated[str, typer.Argument(metavar="JOB_ID")]

jobs = typer.Typer(
    name="jobs", no_args_is_help=True, help="List, show, watch, cancel, retry and clone jobs; read their events."
)


class ReportFormat(StrEnum):
    TABLE = "table"
    MARKDOWN = "markdown"


@command(jobs, "list")
def list_jobs(
    session: Session,
    state: Annotated[str | None, typer.Option(
        metavar="STATE", help="queued, running, cancelling, succeeded, failed or cancelled.",
    )] = None,
    name: Annotated[str | None, typer.Option(metavar="PREFIX", help="With names that begin so.")] = None,
    tag: Annotated[str | None, typer.Option(metavar="TAG", help="With this tag.")] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="At most so many, the newest.")] = 20,
) -> None:  # fmt: skip
    """List your jobs, newest first.

    \b
    Example:
      billhook jobs list --state failed --tag nightly
    """
    items = list(session.client.list_jobs(state=state, name=name, tag=tag, limit=limit))
    session.show([each.raw for each in items], lambda: tables.jobs(items))


@command(jobs, "show")
def show_job(
    session: Session,
    job: JobId,
    recipe: Annotated[bool, typer.Option("--recipe", help="Show its recipe too, with every default.")] = False,
) -> None:
    """Show a job: how far it is, its results or why it failed, its attempts, what was asked for.

    The recipe is left out unless asked for; with --json it is always there.
    """
    found = session.client.get_job(job)
    session.show(found.raw, lambda: tables.record(found.raw, without=() if recipe else ("recipe",)))


@command(jobs, "watch")
def watch_job(
    session: Session,
    job: JobId,
    timeout: Annotated[float | None, typer.Option(
        metavar="SECONDS", min=0, help="Stop watching and exit with 1 when it takes longer. The job goes on.",
    )] = None,
) -> int:  # fmt: skip
    """Watch a job until it is over; exits as `billhook prune` would.

    Ctrl-C stops watching, not the job: that is `billhook jobs cancel`.
    """
    last: Job | None = None
    with ProgressDisplay(session.err) as display:
        for update in session.client.watch_job(job, timeout=timeout):
            last = update.job
            display.show_job(update.job, update.events)
    assert last is not None  # the last update is that of a job that is over
    last.raise_for_state()
    session.show(last.raw, f"{last.id} succeeded; see: billhook report {last.id}")
    if not (last.results or {}).get("requirements_met", True):
        session.note(f"requirements missed; see: billhook report {last.id}")
        return MISSED
    return OK


@command(jobs, "cancel")
def cancel_job(session: Session, job: JobId) -> None:
    """Cancel a job. It stops within seconds."""
    cancelled = session.client.cancel_job(job)
    session.show(cancelled.raw, f"{cancelled.id}: {cancelled.state}")


@command(jobs, "retry")
def retry_job(session: Session, job: JobId) -> None:
    """Try a job again.

    A job that is over never changes: a new one like it is started, and its
    id printed. One that is queued is offered to the workers at once.
    """
    again = session.client.retry_job(job)
    session.show(again.raw, _started(again))


@command(jobs, "clone")
def clone_job(
    session: Session,
    job: JobId,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the new job; may hold / as a path.")] = None,
    kind: Annotated[str | None, typer.Option(metavar="KIND", help="Kind of the new job.")] = None,
    tag: Annotated[list[str] | None, typer.Option(
        metavar="TAG", help="In place of the job's tags; repeat it for more.",
    )] = None,
    recipe: Annotated[str | None, typer.Option(
        "--recipe", metavar="NAME|FILE", help="Another recipe: a ready-made one by name, or your own (.yaml, .json).",
    )] = None,
    require: Annotated[list[str] | None, typer.Option(
        metavar="'NAME<=NUMBER'", help="What the result must keep to, in place of what the job's must. Repeat it.",
    )] = None,
    device: Annotated[str | None, typer.Option(metavar="auto|cpu|cuda:N", help="Where the server works on it.")] = None,
) -> None:  # fmt: skip
    """Start a new job like one that is there, but for what is given.

    The model and the dataset are the same; the job may be in any state.

    \b
    Example:
      billhook jobs clone job_… --name resnet/half --require 'accuracy_drop<=0.01'
    """
    started = session.client.clone_job(
        job, name=name, kind=kind, tags=tag or None, recipe=None if recipe is None else recipe_argument(recipe),
        requirements=dict(map(requirement, require or [])) or None, device=device,
    )  # fmt: skip
    session.show(started.raw, _started(started))


def _started(job: Job) -> str:
    return f"{job.id}: {job.state}" + ("" if job.cloned_from is None else f", from {job.cloned_from}")


@command(jobs, "events")
def show_events(
    session: Session,
    job: JobId,
    after: Annotated[int, typer.Option(metavar="SEQ", min=0, help="Only events with a higher number.")] = 0,
    follow: Annotated[bool, typer.Option(
        "--follow", "-f", help="Go on with those to come, until the job is over.",
    )] = False,
) -> None:  # fmt: skip
    """Print the job's event log: all that it did, in order.

    With --json the document is a list of events: number, attempt, name, body
    and time; with --follow too it is one event a line.

    \b
    Example:
      billhook jobs events job_… --follow --json | jq -r .name
    """
    events = session.client.list_events(job, after=after)
    if follow:
        watched = session.client.watch_job(job, after=after)
        events = (event for update in watched for event in update.events)
    elif session.json:
        session.print_json([event.raw for event in events])
        return
    for event in events:
        if session.json:
            session.print_line(event.raw)
            continue
        body = json.dumps(event.body, ensure_ascii=False)
        line = f"{event.seq:>6}  {tables.moment(event.created_at)}  {event.name}  {body}"
        session.out.print(Text(line), soft_wrap=True)


def add_to(app: typer.Typer) -> None:
    app.add_typer(jobs)
    command(app, "report")(report)
    command(app, "download")(download)


def report(
    session: Session,
    job: JobId,
    format: Annotated[ReportFormat, typer.Option(help="How to print it for people.")] = ReportFormat.TABLE,
) -> int:
    """Print what a job measured: original and pruned, side by side.

    \b
    Examples:
      billhook report job_… --format markdown > report.md
      billhook report job_… --json | jq .ratios

    Exits with 3 where the result misses its requirements, and as `billhook
    prune` would where the job failed or was cancelled.
    """
    try:
        found = session.client.get_report(job)
    except ApiError as error:
        if error.code == "job_not_succeeded":
            session.client.get_job(job).raise_for_state()  # why there is none
        raise
    if session.json:
        session.print_json(found.raw)
    elif format is ReportFormat.MARKDOWN:
        session.out.file.write(session.client.get_report_markdown(job))
    else:
        session.out.print(tables.report(found))
    return OK if found.requirements_met else MISSED


def download(
    session: Session,
    job: JobId,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which of the job's files.")] = "pruned.onnx",
    output: Annotated[Path | None, typer.Option(
        "--output", "-o", metavar="FILE|FOLDER", help="Where it goes; default: its own name, in this folder.",
    )] = None,
) -> None:  # fmt: skip
    """Download a file of a job and verify its checksum.

    pruned.onnx, report.json, report.md, plan.json, weights.safetensors,
    recipe.json, or blocks.svg where blocks were removed. With pruned.onnx
    comes pruned.onnx.data where that holds the weights: keep both in one
    folder. The target is replaced in one go once the checksum is right; a
    broken connection is resumed.
    """
    with ProgressDisplay(session.err) as display:
        file = session.client.download_artifact(
            job, name, output,
            on_bytes=lambda done, total: display.show("download", done / total if total else None),
        )  # fmt: skip
    lines = [f"{each.path}: {tables.size(each.bytes)}, sha256 {each.sha256}" for each in (file, *file.beside)]
    session.show(file.as_dict(), "\n".join(lines))
