"""Prometheus' metrics. Those of the service come from the database, so that they are the same from every server and
outlive it; those of requests and of the process are this process's own. Each application has its own registry."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar, get_args

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy.orm import Session

from api.bounded_probe import Probe
from store.counters import FAILURES, Labels
from store.database import connect_briefly, reading
from store.figures import OPEN, Figures, Waiting, figures
from store.outbox import FETCH_QUEUE, INSPECT_QUEUE
from store.records import TERMINAL, Outcome
from store.settings import Settings

FRESH_SECONDS = 5.0
ANSWER_SECONDS = 5.0
DATABASE_SECONDS = 4
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
Result = TypeVar("Result")
log = structlog.get_logger()
disable_created_metrics()  # type: ignore[no-untyped-call]  # a series for when each series began, which nobody reads

KINDS = ("dataset", "model")
COUNTERS: Mapping[str, tuple[str, Mapping[str, Sequence[str]]]] = {
    "jobs_submitted": ("Jobs that were queued for the first time.", {}),
    "jobs_finished": ("Jobs that are over, by their last state.", {"state": sorted(TERMINAL)}),
    "jobs_failed": (
        "Jobs that failed, by the code of their error; poison is a job that workers died at.",
        {"code": sorted({*FAILURES, "other"})},
    ),
    "attempts": (
        "Attempts at jobs that are over; lost ones died, or their worker did.", {"outcome": sorted(get_args(Outcome))}
    ),
    "leases_lost": ("Attempts whose worker fell silent, so that their lease expired.", {}),
    "children_died": ("Attempts whose child process died under a worker that lives.", {}),
    "uploads_checked": ("Models and datasets whose check is over.", {"kind": KINDS, "state": ("ready", "refused")}),
    "checks_died": ("Checks of uploads whose child process died.", {"kind": KINDS}),
    "training_epochs": ("Epochs of training, those of an attempt that was resumed counted again.", {"device": ()}),
    "training_images": ("Images that were trained on.", {"device": ()}),
    "training_seconds": ("Seconds that epochs of training took, their validation included.", {"device": ()}),
}  # fmt: skip
"""Counters of `store.counters`: what they count, and by what. Exposed as billhook_NAME_total. What a label may be is
shown from the beginning, at 0: Prometheus sees no increase in a series that begins at 1."""
SUMMARIES: Mapping[str, tuple[str, str, str, tuple[str, ...]]] = {
    "stage_seconds": ("Seconds that jobs spent in a stage.", "stages", "stage_seconds", ("stage", "device")),
    "queue_wait_seconds": (
        "Seconds that jobs waited in a queue until a worker took them.", "queue_wait", "queue_wait_seconds", ("queue",)
    ),
}  # fmt: skip
"""What two counters make together: what it says, how many, how much, by what."""


class Metrics:
    """The metrics of one application."""

    def __init__(self, settings: Settings) -> None:
        self._queues = _queues(settings.devices)
        self._engine = connect_briefly(settings.database_url, DATABASE_SECONDS)
        self._figures = Probe(self._look, FRESH_SECONDS)
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._requests = Counter(
            "billhook_http_requests", "Requests that this process answered.", ("method", "route", "status"),
            registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "billhook_http_request_duration_seconds",
            "Seconds until an answer began; those that were asked to wait (?wait=), and dry runs, are left out.",
            ("route",),
            buckets=BUCKETS, registry=self._registry,
        )  # fmt: skip
        self._open = Gauge(
            "billhook_http_requests_in_progress", "Requests that are not answered yet, streams among them.",
            registry=self._registry,
        )  # fmt: skip

    def began(self) -> None:
        """A request came in."""
        self._open.inc()

    def ended(self, method: str, route: str, status: int | None, seconds: float | None) -> None:
        """It is over. `route`: the template of its address, never the address itself; `seconds` until its answer began,
        None where that says nothing."""
        self._open.dec()
        method = method if method in METHODS else "other"
        self._requests.labels(method, route, "none" if status is None else str(status)).inc()
        if seconds is not None:
            self._seconds.labels(route).observe(seconds)

    async def page(self, accept: str) -> tuple[bytes, str]:
        """The text, and its media type. Without the service's figures where the database does not answer."""
        try:
            found = await self._figures.answer(ANSWER_SECONDS)
        except Exception as error:  # the rest is worth having, and billhook_database_up says it
            log.error("the figures of the metrics cannot be had", exc_info=error)
            found = None
        encode, media_type = choose_encoder(accept)
        shown = _Both(self._registry, _Service(found, self._queues))
        return encode(shown), media_type

    def read(self, look: Callable[[Session], Result]) -> Result:
        """What `look` finds in a read-only transaction, on a connection that does not hang for long."""
        with reading(self._engine) as session:
            return look(session)

    def _look(self) -> Figures:
        return self.read(figures)


class _Service(Collector):
    """The families of what the database says."""

    def __init__(self, found: Figures | None, queues: Sequence[str]) -> None:
        self._found = found
        self._queues = queues

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("billhook_database_up", "1 if the figures below could be had from the database.")
        up.add_metric([], 0 if self._found is None else 1)
        yield up
        if self._found is not None:
            yield from _state(self._found, self._queues)
            yield from _counted(self._found, self._queues)


class _Both(CollectorRegistry):
    """A registry and a collector together, for one page."""

    def __init__(self, registry: CollectorRegistry, service: Collector) -> None:
        super().__init__(auto_describe=False)
        self._of_process = registry
        self._of_service = service

    def collect(self) -> Iterable[Metric]:
        yield from self._of_service.collect()
        yield from self._of_process.collect()


def _state(found: Figures, queues: Sequence[str]) -> Iterator[Metric]:
    none = Waiting(0, 0.0)
    waiting = {name: found.queues.get(name, none) for name in sorted({*queues, *found.queues})}
    yield _gauge("queue_depth", "Jobs, checks or fetches that no worker has taken yet.", "queue",
                 {name: entry.count for name, entry in waiting.items()})  # fmt: skip
    yield _gauge("queue_oldest_seconds", "For how long the oldest of a queue has waited.", "queue",
                 {name: entry.oldest_seconds for name, entry in waiting.items()})  # fmt: skip
    yield _gauge("jobs", "Jobs that are not over, by state.", "state",
                 {state: found.jobs.get(state, 0) for state in OPEN})  # fmt: skip
    yield _gauge("attempts_running", "Attempts that are under way.", "device", found.attempts)
    yield _gauge("uploads_checking", "Uploads whose check or fetch is not over.", "topic",
                 {name: entry.count for name, entry in found.uploads.items()})  # fmt: skip
    yield _gauge("uploads_checking_oldest_seconds", "For how long the oldest of them has been there.", "topic",
                 {name: entry.oldest_seconds for name, entry in found.uploads.items()})  # fmt: skip
    yield _gauge("outbox_messages", "Ids that are published until somebody takes them.", "topic", found.outbox)
    late = GaugeMetricFamily(
        "billhook_outbox_overdue_seconds", "For how long an id should have been published: no relay works."
    )
    late.add_metric([], found.overdue_seconds)
    yield late


def _counted(found: Figures, queues: Sequence[str]) -> Iterator[Metric]:
    for name, (text, labels) in COUNTERS.items():
        family = CounterMetricFamily(f"billhook_{name}", text, labels=list(labels))
        values = dict.fromkeys(itertools.product(*labels.values()), 0.0)
        for of, value in found.counted.get(name, {}).items():
            values[tuple(dict(of)[label] for label in labels)] = value
        for label_values, value in sorted(values.items()):
            family.add_metric(label_values, value)
        yield family
    for name, (text, number, total, by) in SUMMARIES.items():
        summary = SummaryMetricFamily(f"billhook_{name}", text, labels=by)
        sums: Mapping[Labels, float] = found.counted.get(total, {})
        numbers: dict[Labels, float] = {}
        if by == ("queue",):  # of jobs: one from which none was ever taken is worth an alert
            numbers = {(("queue", queue),): 0.0 for queue in queues if queue not in (INSPECT_QUEUE, FETCH_QUEUE)}
        for of, value in sorted((numbers | dict(found.counted.get(number, {}))).items()):
            summary.add_metric([dict(of)[label] for label in by], int(value), sums.get(of, 0.0))
        yield summary


def _gauge(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"billhook_{name}", text, labels=[label])
    for of, value in sorted(values.items()):
        family.add_metric([of], value)
    return family


def _queues(devices: Sequence[str]) -> list[str]:
    """Those that this installation has workers for: they are shown when they are empty too."""
    gpus = [device.partition(":")[2] for device in devices if device != "cpu"]
    jobs = (["cpu"] if "cpu" in devices else []) + (["gpu"] if gpus else []) + [f"gpu-{number}" for number in gpus]
    return [*jobs, INSPECT_QUEUE, FETCH_QUEUE]
