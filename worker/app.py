"""The Celery app. The database is the truth and the broker a doorbell: a message is an id, and losing it only delays.

`acks_late` with a prefetch of one: a busy worker holds no message but the one it works on, so the others go to workers
that are free. A message that comes back (a worker died, or was silent for longer than the broker likes) finds its job
claimed or over, and is dropped. Redelivery is therefore never needed, and `task_reject_on_worker_lost` is off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from celery import Celery
from kombu.entity import Queue

from store.records import Topic
from store.settings import Settings
from worker.folder_transport import DOORBELL

TASKS: Mapping[Topic, str] = {
    "run": "billhook.run_job",
    "inspect_model": "billhook.inspect_model",
    "inspect_dataset": "billhook.inspect_dataset",
    "fetch_dataset": "billhook.fetch_dataset",
}
EXPIRES_SECONDS = 300  # a message nobody took: by then the bell was rung again several times
# RabbitMQ (3.12 and up, by queue) takes a message back that is not acknowledged within half an hour, and closes the
# channel; a job may run for days
CONSUMER_TIMEOUT_MS = 30 * 24 * 3_600 * 1_000


def make_app(settings: Settings) -> Celery:
    """The app for these settings. Knows no tasks yet (`worker.tasks.add_tasks`); the relay needs none."""
    in_folder = settings.broker_url.startswith("filesystem")
    app = Celery(  # type: ignore[no-untyped-call]
        "billhook", broker="filesystem://localhost//" if in_folder else settings.broker_url, set_as_current=False
    )
    if in_folder:
        app.conf.update(
            broker_transport="worker.folder_transport:Transport", broker_transport_options=_folder_options(settings)
        )
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        result_backend=None,
        task_ignore_result=True,
        task_acks_late=True,
        task_acks_on_failure_or_timeout=True,
        task_reject_on_worker_lost=False,
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,
        task_create_missing_queues=True,
        enable_utc=True,
    )
    return app


def _folder_options(settings: Settings) -> dict[str, Any]:
    folder = settings.data_dir / "queue"
    for name in ("messages", "control"):
        (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    return {
        "data_folder_in": str(folder / "messages"),
        "data_folder_out": str(folder / "messages"),  # one folder: what is sent is what is received
        "control_folder": str(folder / "control"),
        "polling_interval": 0.4,  # what it costs shows: a job on two cores waits for whoever takes one away
        "expires_seconds": EXPIRES_SECONDS,
    }


def queue_named(settings: Settings, name: str) -> Queue:
    """The queue `name`, declared alike by whoever sends and whoever receives."""
    arguments = {"x-consumer-timeout": CONSUMER_TIMEOUT_MS} if settings.broker_url.startswith("amqp") else None
    return Queue(name, routing_key=name, queue_arguments=arguments)  # type: ignore[no-untyped-call]


def ringer(app: Celery, settings: Settings) -> Callable[[Topic, str, str], None]:
    """A function that publishes (topic, id, queue). Raises kombu's `OperationalError` if the broker is away."""

    def ring(topic: Topic, subject_id: str, queue: str) -> None:
        app.send_task(  # type: ignore[no-untyped-call]
            TASKS[topic], args=[subject_id], queue=queue_named(settings, queue), expires=EXPIRES_SECONDS,
            ignore_result=True, retry=False, headers={DOORBELL: f"{subject_id}-{topic}"},
        )  # fmt: skip

    return ring
