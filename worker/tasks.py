"""The tasks. Each takes an id and nothing else; one whose work is done, taken or gone does nothing."""

from __future__ import annotations

from celery import Celery

from worker.app import TASKS
from worker.attempt import run_job
from worker.context import Context
from worker.dry_runs import answer_dry_run
from worker.inspection import check_upload, fetch_source


def add_tasks(app: Celery, context: Context) -> None:
    """Give `app` the tasks, bound to this worker's context."""

    @app.task(name=TASKS["run"])  # type: ignore[no-untyped-call, untyped-decorator]
    def run_job_task(job_id: str) -> None:
        if not context.stopping.is_set():
            run_job(context, job_id)

    @app.task(name=TASKS["inspect_model"])  # type: ignore[no-untyped-call, untyped-decorator]
    def inspect_model_task(model_id: str) -> None:
        if not context.stopping.is_set():
            check_upload(context, model_id)

    @app.task(name=TASKS["inspect_dataset"])  # type: ignore[no-untyped-call, untyped-decorator]
    def inspect_dataset_task(dataset_id: str) -> None:
        if not context.stopping.is_set():
            check_upload(context, dataset_id)

    @app.task(name=TASKS["fetch_dataset"])  # type: ignore[no-untyped-call, untyped-decorator]
    def fetch_dataset_task(dataset_id: str) -> None:
        if not context.stopping.is_set():
            fetch_source(context, dataset_id)

    @app.task(name=TASKS["dry_run"])  # type: ignore[no-untyped-call, untyped-decorator]
    def dry_run_task(dry_run_id: str) -> None:
        if not context.stopping.is_set():
            answer_dry_run(context, dry_run_id)
