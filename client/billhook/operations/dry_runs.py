"""What a job would come to, asked before it is paid for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from billhook.dry_run_results import DryRun, DryRunReport
from billhook.errors import BillhookError
from billhook.operations import jobs
from billhook.operations.inputs import Inputs, uploaded
from billhook.operations.prune import Progress, told_by
from billhook.operations.recipes import Recipe, read_recipe, request
from billhook.results import parse
from billhook.retries import Core, body_of, check_deadline, deadline_after, send
from billhook.steps import Call, Operation, Reply, Sleep

WAIT_SECONDS = 20.0
PAUSE_SECONDS = 1.0
FORGET_SECONDS = 5.0


def _ignore(progress: Progress) -> None:
    pass


def dry_run(
    core: Core,
    model: str | Path,
    data: str | Path,
    recipe: Recipe,
    *,
    architecture: str | None = None,
    input_shape: Sequence[int] | None = None,
    preprocess: Mapping[str, Any] | None = None,
    splits: Mapping[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
    data_format: str | None = None,
    data_sha256: str | None = None,
    requirements: Mapping[str, str] | None = None,
    device: str | None = None,
    timeout: float | None = None,
    on_progress: Callable[[Progress], None] = _ignore,
) -> Operation[DryRun]:
    """What `prune` would come to: what would be cut, how large and how fast the result would be, what requirements can
    be judged already, and an estimate of time and cost. Model and dataset are uploaded as `prune` does, or named by id;
    nothing is trained, and the server keeps nothing else.

    The arguments are those of `prune`. Where the caller is interrupted or the time is up, the server gives up, too.

    Raises `ApiError` with every fault of the request, or with what the job would fail with (its code, such as
    target_unreachable), `UploadRefused`, `InputInvalid`, `Timeout`, `ConnectionFailed`.
    """
    deadline = deadline_after(core, timeout)

    def left() -> float | None:
        return None if deadline is None else max(0.0, deadline - core.now())

    recipe = yield from read_recipe(recipe)
    inputs = Inputs(
        model, data, architecture, input_shape, preprocess, splits, columns, data_format, data_sha256
    )  # fmt: skip
    inputs.require_data()
    yield from jobs.check_recipe(core, recipe, requirements=requirements, device=device, timeout=left())
    the_model, dataset = yield from uploaded(core, inputs, left, told_by(on_progress))
    on_progress(Progress("dry run"))
    asked = yield from request(recipe, requirements, device)
    body = {"model": the_model.id, "datasets": [dataset.id], **asked}
    reply = yield from _answered(core, body, deadline)
    return DryRun(the_model, dataset, parse(DryRunReport, body_of(reply)))


@dataclass(frozen=True)
class _Waiting:
    id: str
    state: str


def _answered(core: Core, body: Mapping[str, Any], deadline: float | None) -> Operation[Reply]:
    """The answer, waited for. Raises `Timeout`."""

    def wait() -> float:
        return WAIT_SECONDS if deadline is None else min(WAIT_SECONDS, max(0.0, deadline - core.now()))

    seconds = wait()
    params = {"dry_run": "true", "wait": f"{seconds:g}"}
    call = Call("POST", "/v1/jobs", params=params, json=dict(body), read_seconds=60 + seconds)
    reply = yield from send(core, call, deadline=deadline)
    waiting: _Waiting | None = None
    try:
        while reply.status == 202:
            waiting = parse(_Waiting, body_of(reply))
            check_deadline(core, deadline, f"waiting for the dry run ({waiting.state})")
            asked, seconds = core.now(), wait()
            call = Call(
                "GET", f"/v1/dry-runs/{waiting.id}", params={"wait": f"{seconds:g}"}, read_seconds=60 + seconds
            )  # fmt: skip
            reply = yield from send(core, call, deadline=deadline)
            if reply.status == 202 and core.now() - asked < PAUSE_SECONDS:
                yield Sleep(PAUSE_SECONDS)
    except GeneratorExit:
        raise
    except BaseException:
        if waiting is not None:
            yield from _forget(core, waiting.id)
        raise
    if waiting is not None:
        yield from _forget(core, waiting.id)
    return reply


def _forget(core: Core, dry_run_id: str) -> Operation[None]:
    """Tell the server that nobody waits any more, or has the answer; it would notice within a minute."""
    call = Call("DELETE", f"/v1/dry-runs/{dry_run_id}", read_seconds=FORGET_SECONDS, shielded=True)
    try:
        yield from send(core, call, patience=0.0)
    except BillhookError:  # it is gone, or cannot be reached: that is not what the caller is to be told
        return
