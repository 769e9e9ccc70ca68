"""Answers a dry run: what a job would come to, found in a child that trains nothing. Its row is all that is written.

It runs for as long as somebody waits for it: the heartbeat counts as lost once nobody does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from core.errors import BillhookError
from core.job import DryRunInputs
from store import dry_runs
from store.database import reading, transaction
from store.dry_runs import DryRunLease
from store.errors import LeaseLost, NotFound, StorageUnavailable
from store.records import DryRun
from worker.answers import checked_dry_run, error_body, unexpected
from worker.attempt import fetch_inputs
from worker.context import Context
from worker.heart import Heart, Held
from worker.lines import EventLine
from worker.supervisor import Ended, supervise
from worker.workdir import work_directory

log = structlog.get_logger("billhook.worker")


def answer_dry_run(context: Context, dry_run_id: str) -> None:
    """Do one dry run, if it is still to be done: a message may come late, twice, or when nobody waits any more."""
    with transaction(context.engine) as session:
        lease = dry_runs.claim(session, dry_run_id, seconds=context.settings.lease_seconds)
    if lease is None:
        log.info("nothing to do", subject=dry_run_id)
        return

    def write(action: Callable[[Session], None]) -> None:
        with transaction(context.engine) as session:
            action(session)

    try:
        with heart_of(context, lease) as heart:
            try:
                ended = _run(context, lease, heart)
                if heart.lost or ended.verdict == "lost":
                    raise LeaseLost("nobody waits for the dry run any more, or another worker has it")
                _close(context, lease, ended, write)
            except LeaseLost:
                raise
            except NotFound as error:
                gone = {"code": "input_refused", "message": f"{error.message} any more: it was deleted", "faults": []}
                write(lambda session: dry_runs.refuse(session, lease, gone))
            except (StorageUnavailable, OSError) as error:  # the storage is away, or the disk full: no fault of it
                log.warning("the dry run cannot be done now; it is given back", subject=dry_run_id, error=str(error))
                write(lambda session: dry_runs.release(session, lease, delay=context.away_seconds))
            except BillhookError as error:  # an input that is gone or damaged, or an answer that is none
                told = error.as_dict()
                write(lambda session: dry_runs.refuse(session, lease, told))
            except OperationalError:
                raise
            except Exception as error:  # a defect of ours: better told than met again by the next two workers
                log.exception("dry run failed", subject=dry_run_id)
                failure = unexpected(error, "dry run")
                write(lambda session: dry_runs.refuse(session, lease, failure))
    except OperationalError as error:  # nothing can be written: the lease runs out
        log.warning("the database is away; the dry run is given up", subject=dry_run_id, error=type(error).__name__)
    except LeaseLost:
        log.warning("lease lost; nothing more is written", subject=dry_run_id)


def heart_of(context: Context, lease: DryRunLease) -> Heart:
    """The heartbeat of a dry run's lease."""

    def beat() -> Held:
        with transaction(context.engine) as session:
            return "held" if dry_runs.extend(session, lease) else "lost"

    def look() -> Held:
        with reading(context.engine) as session:
            return "held" if dry_runs.is_held(session, lease) else "lost"

    return Heart(
        beat, look, interval=context.settings.heartbeat_seconds, lease_seconds=lease.seconds, stopping=context.stopping
    )


def _run(context: Context, lease: DryRunLease, heart: Heart) -> Ended:
    with work_directory(context.work_root, lease.token) as workdir:
        with reading(context.engine) as session:
            asked = session.get(DryRun, lease.dry_run_id)
            session.expunge_all()
        if asked is None:
            raise LeaseLost(f"{lease.dry_run_id} was deleted")
        job = fetch_inputs(context, asked, workdir, None)
        inputs = DryRunInputs(job=job, timed=not asked.elsewhere)
        (workdir / "job.json").write_text(inputs.model_dump_json(), encoding="utf-8")
        return supervise(
            "dry_run", workdir, context.dry_run_limits, order=heart.order, store=_ignore, command=context.command
        )


def _ignore(_events: Sequence[EventLine]) -> None:
    """A dry run has no event log."""


def _close(
    context: Context, lease: DryRunLease, ended: Ended, write: Callable[[Callable[[Session], None]], None]
) -> None:
    log.info("child ended", subject=lease.dry_run_id, verdict=ended.verdict, error=ended.body.get("code"),
             peak_memory_bytes=ended.peak_memory_bytes)  # fmt: skip
    died = ended.verdict in ("died", "terminated") and not context.told_to_stop(ended)
    if died:
        log.warning("child died", subject=lease.dry_run_id, error=ended.body["message"], output_tail=ended.output_tail)
    if ended.verdict == "result":
        result = checked_dry_run(ended.body)
        write(lambda session: dry_runs.answer(session, lease, result))
    elif ended.verdict == "error":
        error = error_body(ended.body)
        write(lambda session: dry_runs.refuse(session, lease, error))
    else:
        write(lambda session: dry_runs.release(session, lease, died=died))
