"""Checks an uploaded model or dataset in a child, and says whether it may be used; before that, fetches a dataset that
is given by its URI. The two are works of their own, so that a slow source keeps no upload from its check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from structlog.contextvars import bound_contextvars

from core.job import DatasetCheck, ModelInput
from store import uploads
from store.database import reading, transaction
from store.errors import ArtifactCorrupt, ArtifactMissing, LeaseLost, StorageUnavailable
from store.records import Dataset, Model
from store.sources import shown
from store.uploads import Check
from worker.answers import OutputRefused, checked_contact_sheet, checked_graph, checked_summary, error_body, unexpected
from worker.attempt import dataset_path, fetch_dataset, fetch_model
from worker.context import Context
from worker.heart import Heart, Held
from worker.lines import EventLine
from worker.sources import SourceError, Stopped, fetch
from worker.supervisor import Ended, supervise
from worker.workdir import held_outputs, work_directory

Work = Callable[[Context, Check, Heart], None]

log = structlog.get_logger("billhook.worker")


def check_upload(context: Context, subject_id: str) -> None:
    """Check one upload, if it is still to be checked: a message may come late, twice, or for one that is gone."""
    _do(context, subject_id, _check, fetching=False)


def fetch_source(context: Context, subject_id: str) -> None:
    """Fetch one dataset's file, if that is still to be done; then it is to be checked."""
    _do(context, subject_id, _fetch, fetching=True)


def _do(context: Context, subject_id: str, work: Work, *, fetching: bool) -> None:
    with bound_contextvars(subject=subject_id):
        _claim_and_do(context, subject_id, work, fetching=fetching)


def _claim_and_do(context: Context, subject_id: str, work: Work, *, fetching: bool) -> None:
    with transaction(context.engine) as session:
        check = uploads.claim_check(session, subject_id, seconds=context.settings.lease_seconds, fetching=fetching)
    if check is None:
        log.info("nothing to do")
        return
    try:
        with heart_of(context, check) as heart, context.presence.at_work(subject_id):
            try:
                work(context, check, heart)
            except (ArtifactMissing, ArtifactCorrupt, OutputRefused, SourceError) as error:
                with transaction(context.engine) as session:
                    uploads.set_refused(session, check, error.as_dict())
            except Stopped as stop:
                if stop.order == "lost":
                    raise LeaseLost("the check's lease was lost while its file was fetched") from None
                with transaction(context.engine) as session:
                    uploads.release_check(session, check)
            except (StorageUnavailable, OSError) as error:  # the storage is away, or the disk full: no fault of it
                log.warning("the upload cannot be checked now; it is given back", error=str(error))
                with transaction(context.engine) as session:
                    uploads.release_check(session, check, delay=context.away_seconds)
            except (LeaseLost, OperationalError):
                raise
            except Exception as error:  # a defect of ours: better told than met again by the next two workers
                log.exception("check failed")
                with transaction(context.engine) as session:
                    uploads.set_refused(session, check, unexpected(error, "check"))
    except OperationalError as error:  # nothing can be written: the lease runs out
        log.warning("the database is away; the check is given up", error=type(error).__name__)
    except LeaseLost:
        log.warning("lease lost; nothing more is written")


def _check(context: Context, check: Check, heart: Heart) -> None:
    with work_directory(context.work_root, check.token) as workdir:
        subject = _read(context, check)
        inputs: ModelInput | DatasetCheck
        if isinstance(subject, Model):
            inputs = fetch_model(context, subject, workdir)
        else:
            dataset = fetch_dataset(context, subject, workdir)
            inputs = DatasetCheck(dataset=dataset, room=context.room(workdir), threads=context.settings.threads)
        (workdir / "job.json").write_text(inputs.model_dump_json(), encoding="utf-8")
        ended = supervise(
            f"inspect_{check.kind}", workdir, context.inspect_limits,
            order=heart.order, store=_ignore, command=context.command,
        )  # fmt: skip
        _close(context, check, heart, ended, workdir)


def _fetch(context: Context, check: Check, heart: Heart) -> None:
    """Have the dataset's file in the storage, and its record say so: from then on it is like any upload.

    Raises `SourceError`, `Stopped`, `LeaseLost`, `StorageUnavailable` or `OSError`.
    """
    with work_directory(context.work_root, check.token) as workdir:
        dataset = _read(context, check)
        assert isinstance(dataset, Dataset)
        path = dataset_path(dataset, workdir)
        log.info("fetching", source=shown(dataset.uri))
        fetched = fetch(context.settings, dataset, path, heart.order)
        # the bytes first: a record must never point at nothing
        context.storage.put_hashed(path, fetched.sha256, fetched.bytes)
        with transaction(context.engine) as session:
            uploads.set_fetched(session, check, fetched.sha256, fetched.bytes, fetched.filename)
        log.info("fetched", sha256=fetched.sha256, bytes=fetched.bytes)


def _read(context: Context, check: Check) -> Model | Dataset:
    """The record, apart from any transaction: none is held while a file is fetched. Raises `LeaseLost`: deleted."""
    with reading(context.engine) as session:
        subject = _subject(session, check)
        session.expunge_all()
    if subject is None:
        raise LeaseLost(f"{check.subject_id} was deleted")
    return subject


def heart_of(context: Context, check: Check) -> Heart:
    """The heartbeat of a check's lease."""

    def beat() -> Held:
        with transaction(context.engine) as session:
            return "held" if uploads.extend_check(session, check) else "lost"

    def look() -> Held:
        with reading(context.engine) as session:
            subject = _subject(session, check)
            return "held" if subject is not None and subject.check_token == check.token else "lost"

    return Heart(
        beat, look, interval=context.settings.heartbeat_seconds, lease_seconds=check.seconds, stopping=context.stopping
    )


def _subject(session: Session, check: Check) -> Model | Dataset | None:
    return session.get(Model if check.kind == "model" else Dataset, check.subject_id)  # type: ignore[return-value]


def _ignore(_events: Sequence[EventLine]) -> None:
    """An upload has no event log."""


def _close(context: Context, check: Check, heart: Heart, ended: Ended, workdir: Path) -> None:
    if heart.lost or ended.verdict == "lost":
        raise LeaseLost("the check's lease was lost while the child ran")
    log.info("child ended", verdict=ended.verdict, error=ended.body.get("code"),
             peak_memory_bytes=ended.peak_memory_bytes)  # fmt: skip
    # waited for before the transaction; after three deaths the store refuses the upload
    died = ended.verdict in ("died", "terminated") and not context.told_to_stop(ended)
    if died:
        log.warning("child died", error=ended.body["message"], output_tail=ended.output_tail)
    if ended.verdict == "result":
        summary = checked_summary(check.kind, ended.body)
        if check.kind == "model":
            graph = _store_graph(context, workdir)
            with transaction(context.engine) as session:
                uploads.set_ready(session, check, summary, graph=graph)
        else:
            sheet = _store_contact_sheet(context, workdir)
            with transaction(context.engine) as session:
                uploads.set_ready(session, check, summary, contact_sheet=sheet)
        return
    with transaction(context.engine) as session:
        if ended.verdict == "error":
            uploads.set_refused(session, check, error_body(ended.body))
        else:
            uploads.release_check(session, check, died=died)


def _store_graph(context: Context, workdir: Path) -> tuple[str, int]:
    """Store what the child found the model to be made of: its sha256 and size. The bytes come before the record."""
    with held_outputs(workdir) as files:
        return context.storage.put_file(checked_graph(files))


def _store_contact_sheet(context: Context, workdir: Path) -> tuple[str, int] | None:
    """Store the sheet that the child made of a dataset, if it made one: its sha256 and size."""
    with held_outputs(workdir) as files:
        path = checked_contact_sheet(files)
        return None if path is None else context.storage.put_file(path)
