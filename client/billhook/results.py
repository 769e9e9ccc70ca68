"""What the server answers, as dataclasses. `raw` is the answer as it came, with the fields of a newer server."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from billhook.errors import ApiError, Fault, JobCancelled, JobFailed, UploadRefused

T = TypeVar("T")
Document = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """Why an upload was refused or a job failed."""

    code: str
    message: str
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class Model:
    """An uploaded network. `summary` (inputs, outputs, counts, what may be cut) is there once `state` is ready."""

    id: str
    sha256: str
    filename: str | None
    format: str | None
    bytes: int
    state: str
    created_at: datetime
    options: Document = field(default_factory=dict)
    refusal: Problem | None = None
    summary: Document | None = None
    raw: Document = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class GraphLayer:
    """A layer with parameters. `groups`: the channel groups that its output channels are in; `frozen`: none may go."""

    name: str
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    channels: int
    params: int
    macs: int
    groups: tuple[str, ...]
    frozen: bool


@dataclass(frozen=True)
class GraphGroup:
    """Channels that are removed together: each of `width` units from all of these layers at once."""

    name: str
    width: int
    unit_channels: int
    cuttable: bool
    always_kept: int
    producers: tuple[str, ...]
    carriers: tuple[str, ...]
    consumers: tuple[str, ...]


@dataclass(frozen=True)
class GraphBranch:
    """One branch of a block that ends in a concatenation. `reason`: why it cannot be taken out."""

    name: str
    layers: tuple[str, ...]
    params: int
    macs: int
    bypassable: bool
    reason: str | None = None


@dataclass(frozen=True)
class GraphBlock:
    """A block: `kind` is residual, branches, or layer (one between equal shapes). `removed`: what a bypass takes away,
    `params` and `macs` what that holds; `alike`: the first block of the same shapes; `reason`: why it must stay."""

    name: str
    kind: str
    position: int
    layers: tuple[str, ...]
    removed: tuple[str, ...]
    params: int
    macs: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    alike: str
    bypassable: bool
    shortcut: str | None = None
    projection: bool = False
    inside: str | None = None
    reason: str | None = None
    branches: tuple[GraphBranch, ...] = ()


@dataclass(frozen=True)
class GraphFrozen:
    """An operator that freezes channels, the layers that these are of, and why."""

    operator: str
    node: str
    layers: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Graph:
    """What a model is made of. `totals` are the counts."""

    totals: Document
    layers: tuple[GraphLayer, ...]
    groups: tuple[GraphGroup, ...]
    blocks: tuple[GraphBlock, ...]
    frozen: tuple[GraphFrozen, ...]
    raw: Document = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Dataset:
    """An uploaded or built-in dataset. `summary` (counts, classes, shape) is there once `state` is ready."""

    id: str
    sha256: str | None
    filename: str | None
    format: str | None
    bytes: int | None
    state: str
    created_at: datetime
    uri: str | None = None
    options: Document = field(default_factory=dict)
    links: Document = field(default_factory=dict)
    refusal: Problem | None = None
    summary: Document | None = None
    raw: Document = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Attempt:
    """One run of a job on one worker."""

    number: int
    host: str | None = None
    device: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    outcome: str | None = None
    error: Problem | None = None


@dataclass(frozen=True)
class Job:
    """A job. `progress` is 0-1 over the whole of it; `results` and `error` are there once `over`. `cloned_from`: the id
    of the job that it was made from."""

    id: str
    state: str
    created_at: datetime
    name: str | None = None
    kind: str | None = None
    tags: tuple[str, ...] = ()
    model: str | None = None
    datasets: tuple[str, ...] = ()
    recipe: Document = field(default_factory=dict)
    requirements: Document | None = None
    device: str | None = None
    cloned_from: str | None = None
    stage: str | None = None
    progress: float | None = None
    eta_seconds: float | None = None
    results: Document | None = None
    error: Problem | None = None
    attempts: tuple[Attempt, ...] = ()
    started_at: datetime | None = None
    finished_at: datetime | None = None
    links: Document = field(default_factory=dict)
    raw: Document = field(default_factory=dict, repr=False, compare=False)

    @property
    def over(self) -> bool:
        """Whether the job is in a state that never changes again."""
        return self.state in ("succeeded", "failed", "cancelled")

    def raise_for_state(self) -> Job:
        """This job. Raises `JobFailed`, or `JobCancelled`, where it ended without a result."""
        if self.state == "cancelled":
            raise JobCancelled(f"{self.id} was cancelled", job=self, code="cancelled")
        if self.state == "failed":
            error = self.error or Problem("failed", "the server gave no reason")
            raise JobFailed(f"{self.id} failed: {error.message}", job=self, code=error.code, faults=error.faults)
        return self


@dataclass(frozen=True)
class Event:
    """One line of a job's event log. `seq` counts without gaps."""

    seq: int
    name: str
    body: Document
    created_at: datetime
    attempt: int | None = None
    raw: Document = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Update:
    """What `watch_job` yields: the job as it is now, and the events since the last update."""

    job: Job
    events: tuple[Event, ...]


@dataclass(frozen=True)
class Artifact:
    """A file that a job left."""

    name: str
    sha256: str
    bytes: int
    media_type: str | None = None
    raw: Document = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class RecipeInfo:
    """A ready-made recipe."""

    name: str
    description: str | None = None
    raw: Document = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Worker:
    """A worker of the server. `state` is alive or silent; `works_on` is the id of a job or upload of yours."""

    id: str
    name: str
    host: str
    queues: tuple[str, ...]
    state: str
    busy: bool
    started_at: datetime
    seen_at: datetime
    device: str | None = None
    version: str | None = None
    works_on: str | None = None
    raw: Document = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class RequirementResult:
    """`measured` is None where it could not be told; `note` then says why, and it has not passed."""

    name: str
    required: str
    measured: float | None
    passed: bool
    note: str | None = None


@dataclass(frozen=True)
class Report:
    """What a job measured. `variants` holds `original` and `pruned`; `drop_in`: whether the file takes the place of the
    upload; everything else is in `raw`."""

    variants: Document
    ratios: dict[str, float]
    target_met: bool
    requirements: tuple[RequirementResult, ...]
    requirements_met: bool
    drop_in: bool = True
    raw: Document = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Download:
    """A file that was downloaded and whose checksum was verified; `beside` are those that it needs in its folder."""

    path: Path
    sha256: str
    bytes: int
    beside: tuple[Download, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        beside = [str(file.path) for file in self.beside]
        return {"output": str(self.path), "sha256": self.sha256, "bytes": self.bytes, "beside": beside}


@dataclass(frozen=True)
class Pruned:
    """The result of `prune`."""

    model: Model
    dataset: Dataset
    job: Job
    report: Report
    file: Download


Upload = TypeVar("Upload", Model, Dataset)


def raise_if_refused(upload: Upload, called: str | None = None) -> Upload:
    """`upload`, unless the server refused it: then raises `UploadRefused` with the server's reason.

    `called`: what the caller knows it by, where that is not the name it was sent with.
    """
    if upload.state != "refused":
        return upload
    refusal = upload.refusal or Problem("refused", "the server gave no reason")
    raise UploadRefused(
        f"{called or upload.filename or upload.id} was refused: {refusal.message}",
        subject=upload.id, code=refusal.code, faults=refusal.faults,
    )  # fmt: skip


# --- from JSON -------------------------------------------------------------------------------------------------------


def parse(kind: type[T], document: Any) -> T:
    """`document` (parsed JSON) as a `kind`. Raises `ApiError` with code unexpected_reply where it is no such thing."""
    try:
        value = _convert(kind, document)
    except (TypeError, ValueError, KeyError) as error:
        message = f"the server's answer is no {kind.__name__}: {error}; client and server may be of different versions"
        raise ApiError(message, status=200, code="unexpected_reply") from None
    return typing.cast(T, value)


def _convert(kind: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is types.UnionType:  # X | None is the only union here
        return None if value is None else _convert(arguments[0], value)
    if origin is tuple:
        return tuple(_convert(arguments[0], item) for item in _checked(list, value))
    if origin is dict:
        return {key: _convert(arguments[1], item) for key, item in _checked(dict, value).items()}
    if kind is datetime:
        return datetime.fromisoformat(_checked(str, value))
    if kind is float:
        return float(_checked((int, float), value))
    if dataclasses.is_dataclass(kind):
        return _record(typing.cast(type[Any], kind), _checked(dict, value))
    return _checked(kind, value)


def _checked(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"found {type(value).__name__} where {getattr(kind, '__name__', 'a number')} belongs")
    return value


def _record(kind: type[Any], document: Document) -> Any:
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for each in dataclasses.fields(kind):
        if each.name == "raw":
            values["raw"] = document
        elif each.name in document:
            optional = each.default is None or each.default_factory is not dataclasses.MISSING
            if document[each.name] is None and optional:
                continue
            try:
                values[each.name] = _convert(hints[each.name], document[each.name])
            except TypeError as error:
                raise TypeError(f"{each.name}: {error}") from None
        elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            if type(None) not in typing.get_args(hints[each.name]):
                raise KeyError(f"{each.name} is missing")
            values[each.name] = None
    return kind(**values)
