"""The tables, and the one table of which state may follow which.

No relationships: every join is written where it is needed, so nothing loads behind one's back.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar, Literal, get_args

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column, validates

from store.columns import Json, UtcDateTime
from store.errors import IllegalTransition, JobTerminal

JobState = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]
UploadState = Literal["checking", "ready", "refused"]
TerminalState = Literal["succeeded", "failed", "cancelled"]
Outcome = Literal["succeeded", "failed", "cancelled", "lost", "released"]
DryRunState = Literal["queued", "running", "done", "refused"]
Topic = Literal["run", "inspect_model", "inspect_dataset", "fetch_dataset", "dry_run"]

# THE transition table. `running -> queued`: the attempt was lost or given back; the next one resumes.
# `cancelling -> succeeded | failed`: the attempt was over before the cancellation reached it.
TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    "queued": frozenset({"running", "cancelled"}),
    "running": frozenset({"succeeded", "failed", "cancelling", "queued"}),
    "cancelling": frozenset({"cancelled", "succeeded", "failed"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
TERMINAL: frozenset[JobState] = frozenset(state for state, following in TRANSITIONS.items() if not following)
HELD: frozenset[JobState] = frozenset({"running", "cancelling"})  # an attempt holds the job


def _one_of(column: str, literal: Any) -> str:
    values = ", ".join(f"'{value}'" for value in get_args(literal))
    return f"{column} IN ({values})"


def _weights_id(recipe: Mapping[str, Any]) -> str | None:
    found = recipe.get("weights")
    return found if isinstance(found, str) and found.startswith("mdl_") else None


class Record(MappedAsDataclass, DeclarativeBase, kw_only=True):
    """The base of all tables. Constraints have names, so that migrations can speak of them."""

    type_annotation_map: ClassVar[dict[type, Any]] = {float: Double}
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class ApiKey(Record, kw_only=True):
    """A key is shown once; only its SHA-256 is kept. `created_by`: the id of the key that made it, None: the server.

    `last_used_at` is written now and then, not with every request.
    """

    __tablename__ = "api_keys"
    __table_args__ = (Index("ix_api_keys_owner_id", "owner", "id"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    owner: Mapped[str] = mapped_column(String(200))
    name: Mapped[str] = mapped_column(String(200))
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[str]] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    created_by: Mapped[str | None] = mapped_column(String(40), default=None)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)


class Upload(Record, kw_only=True):
    """What models and datasets have in common: a file known by its hash, checked by a worker before it is used."""

    __abstract__ = True

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    owner: Mapped[str] = mapped_column(String(200))
    sha256: Mapped[str | None] = mapped_column(String(64), index=True)  # None: built in, or not fetched yet
    filename: Mapped[str] = mapped_column(String(255))
    format: Mapped[str] = mapped_column(String(32))
    options: Mapped[dict[str, Any]] = mapped_column(Json)
    identity: Mapped[str] = mapped_column(String(64))  # sha256 of content and options: the same upload is known by it
    bytes: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[UploadState] = mapped_column(String(16), default="checking")
    summary: Mapped[dict[str, Any] | None] = mapped_column(Json, default=None)
    refusal: Mapped[dict[str, Any] | None] = mapped_column(Json, default=None)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    checked_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    check_token: Mapped[str | None] = mapped_column(String(64), default=None)
    check_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    check_count: Mapped[int] = mapped_column(Integer, default=0)


class Model(Upload, kw_only=True):
    """`graph_sha256`: of the description of its graph, a JSON document in the storage; its counts are in `summary`."""

    __tablename__ = "models"
    __table_args__ = (
        UniqueConstraint("owner", "identity"),
        CheckConstraint(_one_of("state", UploadState), name="state"),
    )

    graph_sha256: Mapped[str | None] = mapped_column(String(64), default=None, index=True)
    graph_bytes: Mapped[int | None] = mapped_column(BigInteger, default=None)


class Dataset(Upload, kw_only=True):
    """`uri` is `upload`, `builtin:<name>`, or where the file is fetched from when it is checked (`file://`, `https://`,
    `s3://`); until then `sha256` is None. `pinned_sha256`: what the owner says that the file's sha256 must be.
    `contact_sheet_sha256`: of a PNG in the storage, if there is one."""

    __tablename__ = "datasets"
    __table_args__ = (
        UniqueConstraint("owner", "identity"),
        CheckConstraint(_one_of("state", UploadState), name="state"),
    )

    uri: Mapped[str] = mapped_column(String(2048), default="upload")
    pinned_sha256: Mapped[str | None] = mapped_column(String(64), default=None)
    contact_sheet_sha256: Mapped[str | None] = mapped_column(String(64), default=None, index=True)
    contact_sheet_bytes: Mapped[int | None] = mapped_column(BigInteger, default=None)


class Job(Record, kw_only=True):
    """An experiment: what was asked for never changes; state, progress and results do."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_owner_id", "owner", "id"),
        Index("ix_jobs_state", "state"),
        CheckConstraint(_one_of("state", JobState), name="state"),
        CheckConstraint("progress >= 0 AND progress <= 1", name="progress"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    owner: Mapped[str] = mapped_column(String(200))
    name: Mapped[str] = mapped_column(String(200))
    kind: Mapped[str] = mapped_column(String(64))
    # no foreign keys: a model may be deleted once its jobs are over, and their records stay
    model_id: Mapped[str] = mapped_column(String(40), index=True)
    dataset_ids: Mapped[list[str]] = mapped_column(Json)
    tags: Mapped[list[str]] = mapped_column(Json)
    recipe: Mapped[dict[str, Any]] = mapped_column(Json)
    requirements: Mapped[dict[str, Any]] = mapped_column(Json)
    device: Mapped[str] = mapped_column(String(16))
    queue: Mapped[str] = mapped_column(String(64))
    run_seconds_limit: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    recipe_name: Mapped[str | None] = mapped_column(String(200), default=None)
    cloned_from: Mapped[str | None] = mapped_column(String(40), default=None)  # id of the job that it was made from

    state: Mapped[JobState] = mapped_column(String(16), default="queued")
    stage: Mapped[str | None] = mapped_column(String(32), default=None)
    progress: Mapped[float] = mapped_column(default=0.0)
    eta_seconds: Mapped[float | None] = mapped_column(default=None)
    results: Mapped[dict[str, Any] | None] = mapped_column(Json, default=None)
    error: Mapped[dict[str, Any] | None] = mapped_column(Json, default=None)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    cancel_requested_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    current_attempt_id: Mapped[str | None] = mapped_column(String(40), default=None)
    attempt_count: Mapped[int] = mapped_column(Integer, default=0)
    deaths: Mapped[int] = mapped_column(Integer, default=0)  # in a row, since the last new checkpoint
    run_seconds: Mapped[float] = mapped_column(default=0.0)  # of the attempts that are over
    next_event_seq: Mapped[int] = mapped_column(Integer, default=1)

    @property
    def weights_id(self) -> str | None:
        """Of the model whose weights the recipe begins with, where it names one."""
        return _weights_id(self.recipe)

    @validates("state")
    def _legal(self, _key: str, new: JobState) -> JobState:
        old: JobState | None = self.__dict__.get("state")
        if old is not None and new not in TRANSITIONS[old]:
            if old in TERMINAL:
                raise JobTerminal(f"the job is {old}; that never changes")
            raise IllegalTransition(f"a job that is {old} cannot become {new}")
        return new


class Attempt(Record, kw_only=True):
    """One run of a job by one worker. `lease_token` fences its writes; `expires_at` is when it is given up for dead."""

    __tablename__ = "attempts"
    __table_args__ = (
        UniqueConstraint("job_id", "number"),
        Index("ix_attempts_ended_at_expires_at", "ended_at", "expires_at"),
        CheckConstraint(f"outcome IS NULL OR {_one_of('outcome', Outcome)}", name="outcome"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    number: Mapped[int] = mapped_column(Integer)
    worker: Mapped[str] = mapped_column(String(200))
    host: Mapped[str] = mapped_column(String(200))
    device: Mapped[str] = mapped_column(String(64))
    lease_token: Mapped[str] = mapped_column(String(64))
    lease_seconds: Mapped[float]
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    heartbeat_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    outcome: Mapped[Outcome | None] = mapped_column(String(16), default=None)
    error: Mapped[dict[str, Any] | None] = mapped_column(Json, default=None)
    environment: Mapped[dict[str, Any] | None] = mapped_column(Json, default=None)
    output_tail: Mapped[str | None] = mapped_column(Text, default=None)


class Event(Record, kw_only=True):
    """The primary record of what happened: append-only, numbered from 1 without gaps in each job."""

    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    attempt: Mapped[int | None] = mapped_column(Integer)  # its number; None: the service itself
    name: Mapped[str] = mapped_column(String(255))
    body: Mapped[dict[str, Any]] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Artifact(Record, kw_only=True):
    """A file of a job. The bytes lie in the storage under their sha256; a name holds the latest ones."""

    __tablename__ = "artifacts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))  # output | checkpoint | log
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    media_type: Mapped[str] = mapped_column(String(100))
    attempt: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class DryRun(Record, kw_only=True):
    """A job that is only asked about. The row is gone soon after its answer, or after the last time that somebody
    asked: `wanted_until` is pushed on by whoever waits for it. `token` and `expires_at` are the lease of the worker
    that is at it, `claims` how many there were. `elsewhere`: the job would run on a GPU, and dry runs do not."""

    __tablename__ = "dry_runs"
    __table_args__ = (
        CheckConstraint(_one_of("state", DryRunState), name="state"),
        Index("ix_dry_runs_wanted_until", "wanted_until"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    owner: Mapped[str] = mapped_column(String(200))
    model_id: Mapped[str] = mapped_column(String(40))
    dataset_ids: Mapped[list[str]] = mapped_column(Json)
    recipe: Mapped[dict[str, Any]] = mapped_column(Json)
    requirements: Mapped[dict[str, Any]] = mapped_column(Json)
    elsewhere: Mapped[bool]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    wanted_until: Mapped[datetime] = mapped_column(UtcDateTime)
    state: Mapped[DryRunState] = mapped_column(String(16), default="queued")
    result: Mapped[dict[str, Any] | None] = mapped_column(Json, default=None)
    refusal: Mapped[dict[str, Any] | None] = mapped_column(Json, default=None)
    token: Mapped[str | None] = mapped_column(String(64), default=None)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    claims: Mapped[int] = mapped_column(Integer, default=0)

    @property
    def weights_id(self) -> str | None:
        """As a job's."""
        return _weights_id(self.recipe)


class OutboxMessage(Record, kw_only=True):
    """A doorbell to ring: published after commit, and again until somebody answers the door."""

    __tablename__ = "outbox"
    __table_args__ = (UniqueConstraint("topic", "subject_id"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    topic: Mapped[Topic] = mapped_column(String(32))
    subject_id: Mapped[str] = mapped_column(String(40))
    queue: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    next_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    rings: Mapped[int] = mapped_column(Integer, default=0)


class Worker(Record, kw_only=True):
    """A worker process that is there, or was until lately. It beats; after `expires_at` it counts as silent.

    `device` is None for one that runs no jobs (it checks uploads, or fetches datasets).
    """

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    host: Mapped[str] = mapped_column(String(200))
    queues: Mapped[list[str]] = mapped_column(Json)
    device: Mapped[str | None] = mapped_column(String(64))
    version: Mapped[str | None] = mapped_column(String(64))
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    seen_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    subject_id: Mapped[str | None] = mapped_column(String(40), default=None)  # of the job or upload it works on


class IdempotencyKey(Record, kw_only=True):
    """The answer that a request with an `Idempotency-Key` got, to be given again.

    Before there is one (`status` is None), the right to give it, until `expires_at`: `store.idempotency`.
    """

    __tablename__ = "idempotency_keys"

    owner: Mapped[str] = mapped_column(String(200), primary_key=True)
    route: Mapped[str] = mapped_column(String(100), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    token: Mapped[str | None] = mapped_column(String(32), default=None)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    request_sha256: Mapped[str | None] = mapped_column(String(64), default=None)  # None: its body is still coming in
    status: Mapped[int | None] = mapped_column(Integer, default=None)
    headers: Mapped[dict[str, str] | None] = mapped_column(Json, default=None)
    body: Mapped[str | None] = mapped_column(Text, default=None)  # text: JSON columns may change it


class Counter(Record, kw_only=True):
    """How often something happened, or how much of it; only ever grows (`store.counters`). The sum of its stripes."""

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    labels: Mapped[str] = mapped_column(String(255), primary_key=True)  # JSON, its keys in order
    stripe: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    value: Mapped[float]


def move(job: Job, new: JobState, now: datetime) -> None:
    """Change the state, by the table. Raises `JobTerminal` or `IllegalTransition`. The caller holds the job's row."""
    job.state = new
    if new == "running" and job.started_at is None:
        job.started_at = now
    if new in TERMINAL:
        job.finished_at = now
        job.eta_seconds = None
        job.current_attempt_id = None
    if new == "queued":
        job.current_attempt_id = None
        job.eta_seconds = None
