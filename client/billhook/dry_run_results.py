"""What a dry run answers, as dataclasses. `raw` is the answer as it came, with the fields of a newer server."""

from __future__ import annotations

from dataclasses import dataclass, field

from billhook.results import Dataset, Document, Model


@dataclass(frozen=True)
class NetworkSize:
    """`file_bytes`: of the ONNX file that it would be exported as, exactly."""

    params: int
    macs: int
    filters: int
    file_bytes: int
    blocks: int = 0


@dataclass(frozen=True)
class LayerCut:
    """A layer that a step changes."""

    name: str
    kind: str
    channels_before: int
    channels_after: int
    weight_before: tuple[int, ...]
    weight_after: tuple[int, ...]
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int


@dataclass(frozen=True)
class StepCut:
    """What a step of the recipe would remove: only the layers that it changes; residual blocks in their order."""

    step: int
    method: str
    rounds: int
    after: NetworkSize
    layers: tuple[LayerCut, ...]
    blocks: tuple[str, ...] = ()


@dataclass(frozen=True)
class LatencyRatio:
    """Latency over the original's in ONNX Runtime on the CPU; `low` to `high` holds it with 95 %."""

    ratio: float
    low: float
    high: float
    original_ms: float
    candidate_ms: float


@dataclass(frozen=True)
class Foreseen:
    """A requirement. `holds` is None where only the job can tell; `note` then says why."""

    name: str
    required: str
    value: float | None
    holds: bool | None
    note: str | None = None


@dataclass(frozen=True)
class Spending:
    """What the trainings of the steps, or of a control, cost."""

    part: str
    epochs: int
    images: int
    epoch_params: int
    estimated_seconds: float | None = None


@dataclass(frozen=True)
class Estimate:
    """The time and cost of the job, each with its range; seconds are None where the server cannot tell them."""

    epochs: int
    epochs_low: int
    epochs_high: int
    images: int
    epoch_params: int
    spending: tuple[Spending, ...]
    device: str
    threads: int
    estimated_seconds: float | None = None
    estimated_seconds_low: float | None = None
    estimated_seconds_high: float | None = None


@dataclass(frozen=True)
class DryRunReport:
    """What a job would come to. `requirements_met` is None where it depends on what only the job can tell;
    `assumptions` are the ways in which the job may differ."""

    original: NetworkSize
    pruned: NetworkSize
    ratios: dict[str, float]
    steps: tuple[StepCut, ...]
    target_met: bool
    requirements: tuple[Foreseen, ...]
    estimate: Estimate
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    requirements_met: bool | None = None
    latency: LatencyRatio | None = None
    raw: Document = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class DryRun:
    """The result of `dry_run`."""

    model: Model
    dataset: Dataset
    report: DryRunReport
