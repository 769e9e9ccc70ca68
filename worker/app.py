"""The Celery app. The database is the truth and the broker a doorbell: a message is an id, and losing it only delays.

`acks_late` with a prefetch of one: a busy worker holds no message but the one it works on, so the others go to workers
that are free. A message that comes back (a worker died, or was silent for longer than the broker likes) finds its job
claimed or over, and is dropped. Redelivery is therefore never needed, and `task_reject_on_worker_lost` is off.

What a broker loses is rung for again, and what it keeps for too long is thrown away: a job that waits for days is rung
for every half minute, and none of the brokers may fill up by that (`worker.folder_transport`, `worker.redis_transport`,
the messages' time to live in RabbitMQ).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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
    "dry_run": "billhook.dry_run",
}
Ring = Callable[[Topic, str, str], None]
EXPIRES_SECONDS = 300  # a message nobody took: by then the bell was rung again several times
ANSWER_SECONDS = 20  # what a broker has to take a message, or to say anything at all
# RabbitMQ (3.12 and up, by queue) takes a message back that is not acknowledged within half an hour, and closes the
# channel; a job may run for days
CONSUMER_TIMEOUT_MS = 30 * 24 * 3_600 * 1_000
# Redis gives a message that is not acknowledged for so long to another worker, which finds the job taken
VISIBILITY_SECONDS = 3_600


def make_app(settings: Settings) -> Celery:
    """The app for these settings. Knows no tasks yet (`worker.tasks.add_tasks`); the relay needs none."""
    folder = settings.queue_dir
    app = Celery(  # type: ignore[no-untyped-call]
        "billhook", broker="filesystem://localhost//" if folder else settings.broker_url, set_as_current=False
    )
    if folder is not None:
        transport, options = "worker.folder_transport:Transport", _folder_options(folder)
    elif urlsplit(settings.broker_url).scheme in ("redis", "rediss"):
        transport, options = "worker.redis_transport:Transport", _redis_options(settings.queue_prefix)
    else:
        transport, options = None, _amqp_options()
    app.conf.update(
        broker_transport=transport,
        broker_transport_options=options,
        broker_use_ssl=settings.broker_tls,
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
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,
        task_create_missing_queues=True,
        enable_utc=True,
    )
    return app


def _folder_options(folder: Path) -> dict[str, Any]:
    for name in ("messages", "control"):
        (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    return {
        "data_folder_in": str(folder / "messages"),
        "data_folder_out": str(folder / "messages"),  # one folder: what is sent is what is received
        "control_folder": str(folder / "control"),
        "polling_interval": 0.4,  # what it costs shows: a job on two cores waits for whoever takes one away
        "expires_seconds": EXPIRES_SECONDS,
    }


def _redis_options(prefix: str) -> dict[str, Any]:
    return {
        # without these, a publication waits for ever for a server that went away without a word
        "socket_timeout": ANSWER_SECONDS,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "visibility_timeout": VISIBILITY_SECONDS,
        # messages that were taken and not acknowledged: each installation looks after its own
        "unacked_key": f"{prefix}.unacked",
        "unacked_index_key": f"{prefix}.unacked_index",
        "unacked_mutex_key": f"{prefix}.unacked_mutex",
    }


def _amqp_options() -> dict[str, Any]:
    return {"confirm_publish": True}  # or a message that the server refuses is lost without a word


def queue_named(settings: Settings, name: str) -> Queue:
    """The queue `name`, declared alike by whoever sends and whoever receives. Durable, with the settings' prefix."""
    arguments = {"x-consumer-timeout": CONSUMER_TIMEOUT_MS} if settings.broker_url.startswith("amqp") else None
    full = f"{settings.queue_prefix}.{name}"
    return Queue(full, routing_key=full, queue_arguments=arguments)  # type: ignore[no-untyped-call]


class Ringer:
    """Publishes (topic, id, queue), on a connection of its own. For one thread.

    Raises kombu's `OperationalError` if the broker is away or does not take the message within `ANSWER_SECONDS`.
    """

    def __init__(self, app: Celery, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._connection: Any = None

    def __call__(self, topic: Topic, subject_id: str, queue: str) -> None:
        try:
            if self._connection is None:
                self._connection = self._app.connection_for_write()  # type: ignore[no-untyped-call]
            with self._connection._reraise_as_library_errors():
                self._app.send_task(  # type: ignore[no-untyped-call]
                    TASKS[topic], args=[subject_id], queue=queue_named(self._settings, queue), expires=EXPIRES_SECONDS,
                    expiration=EXPIRES_SECONDS, ignore_result=True, retry=False,
                    headers={DOORBELL: f"{subject_id}-{topic}"}, timeout=ANSWER_SECONDS, confirm_timeout=ANSWER_SECONDS,
                    producer=self._app.amqp.Producer(self._connection, auto_declare=False),
                )  # fmt: skip
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Without a word to the broker, which may not answer any more."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.collect(socket_timeout=1)
