"""The whole path: files in, a smaller ONNX file and a report out."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from billhook.errors import ApiError, BillhookError, InputInvalid, RequirementsMissed, Timeout
from billhook.operations import jobs
from billhook.operations.inputs import Inputs, OnUpload, uploaded
from billhook.operations.recipes import Recipe, read_recipe
from billhook.results import Event, Job, Pruned, RequirementResult, Update, parse
from billhook.retries import Core, body_of, deadline_after, send
from billhook.steps import Call, Operation, for_each

Phase = Literal[
    "upload model", "upload dataset", "dry run", "run", "download", "cancelling", "cancelled", "not cancelled"
]  # fmt: skip
CANCELLED_WITHIN_SECONDS = 5.0  # what build servers leave a job between the signal to stop and the end is a little more


@dataclass(frozen=True)
class Progress:
    """How far `prune` is. `fraction` is 0-1 of this phase, None where it is not known; `job` is there from "run" on."""

    phase: Phase
    fraction: float | None = None
    job: Job | None = None
    events: tuple[Event, ...] = ()


def _ignore(progress: Progress) -> None:
    pass


def told_by(on_progress: Callable[[Progress], None]) -> OnUpload:
    """What tells of uploads by `on_progress`."""

    def tell(kind: str, fraction: float | None) -> None:
        on_progress(Progress("upload model" if kind == "model" else "upload dataset", fraction))

    return tell


def prune(
    core: Core,
    model: str | Path,
    data: str | Path,
    recipe: Recipe,
    output: str | Path,
    *,
    architecture: str | None = None,
    input_shape: Sequence[int] | None = None,
    preprocess: Mapping[str, Any] | None = None,
    splits: Mapping[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
    data_format: str | None = None,
    data_sha256: str | None = None,
    requirements: Mapping[str, str] | None = None,
    name: str | None = None,
    kind: str | None = None,
    tags: Sequence[str] = (),
    device: str | None = None,
    timeout: float | None = None,
    on_progress: Callable[[Progress], None] = _ignore,
) -> Operation[Pruned]:
    """Prune `model` on `data` by `recipe` into the ONNX file `output`: check, upload, run, download, verify.

    `model`: a file, or the id of one that is uploaded (mdl_…). `data`: a file (zip, npz, parquet), a folder of images,
    `builtin:digits`, a URI that the server fetches (https://…, s3://…, file:///…), or an id (ds_…); `preprocess`,
    `splits`, `columns`, `data_format` and `data_sha256` are about it, as in `add_dataset`. `recipe`: the name of a
    ready-made one, a `Path` to a file, or a document. `requirements`: what the result must keep to, e.g.
    {"accuracy_drop": "<= 0.01"}. `output`: a file, or a folder, for pruned.onnx in it. `timeout`: seconds for all.

    If the caller is interrupted (KeyboardInterrupt, a cancelled task), or the time is up, the job is cancelled on the
    server before that is raised on; the last progress says whether it was ("cancelled", "not cancelled").

    Raises `RequirementsMissed` (the file is there; its `result` is what would have been returned), `JobFailed`,
    `JobCancelled`, `UploadRefused`, `InputInvalid`, `ApiError`, `Timeout`, `ConnectionFailed`, `ChecksumMismatch`.
    """
    deadline = deadline_after(core, timeout)

    def left() -> float | None:
        return None if deadline is None else max(0.0, deadline - core.now())

    recipe = yield from read_recipe(recipe)  # found wrong before anything is uploaded
    inputs = Inputs(
        model, data, architecture, input_shape, preprocess, splits, columns, data_format, data_sha256
    )  # fmt: skip
    inputs.require_data()
    target = Path(output).absolute()
    folder = target if target.is_dir() else target.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputInvalid(f"the result cannot be written: {folder} is no folder that can be written to")
    yield from jobs.check_recipe(core, recipe, requirements=requirements, device=device, timeout=left())

    the_model, dataset = yield from uploaded(core, inputs, left, told_by(on_progress))
    key = uuid.uuid4().hex

    def submit() -> Operation[Job]:
        return jobs.submit_job(
            core, the_model.id, [dataset.id], recipe, name=name, kind=kind, tags=tags, requirements=requirements,
            device=device, idempotency_key=key,
        )  # fmt: skip

    job: Job | None = None
    try:
        job = yield from submit()
        on_progress(Progress("run", job.progress, job))
        job = yield from _finished(core, job.id, left(), on_progress)
    except BaseException as stop:
        if isinstance(stop, GeneratorExit) or (isinstance(stop, BillhookError) and not isinstance(stop, Timeout)):
            raise
        told = yield from _abandon(core, job, submit, on_progress)
        if isinstance(stop, Timeout):
            raise Timeout(f"{stop.message}; {told}") from None
        raise
    job.raise_for_state()

    on_progress(Progress("download", None, job))
    file = yield from jobs.download_artifact(
        core, job.id, "pruned.onnx", output, timeout=left(),
        on_bytes=lambda done, total: on_progress(Progress("download", done / total if total else None, job)),
    )  # fmt: skip
    report = yield from jobs.get_report(core, job.id)
    result = Pruned(the_model, dataset, job, report, file)
    if not report.requirements_met:
        missed = [f"{each.name} is {_measured(each)}, required {each.required}"
                  for each in report.requirements if not each.passed]  # fmt: skip
        raise RequirementsMissed(f"requirements missed: {'; '.join(missed)}", result=result)
    return result


def _measured(result: RequirementResult) -> str:
    return result.note or "unknown" if result.measured is None else f"{result.measured:.4g}"


def _finished(
    core: Core, job_id: str, timeout: float | None, on_progress: Callable[[Progress], None]
) -> Operation[Job]:
    """The job once it is over, telling on the way. Raises `Timeout`."""
    latest: list[Job] = []

    def tell(update: Update) -> None:
        latest[:] = [update.job]
        on_progress(Progress("run", update.job.progress, update.job, update.events))

    yield from for_each(jobs.watch_job(core, job_id, timeout=timeout), tell)
    return latest[0]


def _abandon(
    core: Core, job: Job | None, submit: Callable[[], Operation[Job]], on_progress: Callable[[Progress], None]
) -> Operation[str]:
    """Cancel the job, and say what became of it. One whose id never arrived is found by submitting it again under the
    same key. A second interruption stops this too, but not before it was told how the job was left.
    """
    on_progress(Progress("cancelling", None, job))
    accepted = False
    try:
        job = job if job is not None else (yield from submit())
        try:
            job = yield from jobs.cancel_job(core, job.id)
            accepted = True
        except ApiError as error:
            if error.code != "job_terminal":
                raise
        if not (accepted and job.over):  # until it has stopped, for a moment; or how it ended before this
            job = yield from _when_over(core, job.id, CANCELLED_WITHIN_SECONDS)
    except GeneratorExit:
        raise
    except BaseException as error:
        left = Progress("cancelled" if accepted else "not cancelled", None, job)
        on_progress(left)
        if not isinstance(error, BillhookError):
            raise
        return how_left(left)  # the interruption is what is raised; that the job goes on is told
    left = Progress("cancelled" if job.state in ("cancelling", "cancelled") else "not cancelled", None, job)
    on_progress(left)
    return how_left(left)


def _when_over(core: Core, job_id: str, wait: float) -> Operation[Job]:
    """The job when it is over, or in `wait` seconds: as it is then. Asked even where the task is cancelled."""
    call = Call("GET", f"/v1/jobs/{job_id}", {"wait": f"{wait:g}"}, read_seconds=2 * wait, shielded=True)
    reply = yield from send(core, call, patience=wait)
    return parse(Job, body_of(reply))


def how_left(progress: Progress) -> str:
    """How an interrupted `prune` left its job, in words; of its last progress ("cancelled" or "not cancelled")."""
    job = progress.job
    if job is None:
        return "whether there is a job is not known (see: billhook jobs list)"
    if progress.phase == "cancelled":
        return f"{job.id} was cancelled" if job.over else f"{job.id} is being cancelled: it stops within seconds"
    if job.over:
        return f"{job.id} had {job.state} before it could be cancelled"
    return f"{job.id} was not cancelled and may go on; cancel it with: billhook jobs cancel {job.id}"
