"""The report: what a job measured. Torch-free pydantic models; units are in the names.

JSON is the report; Markdown (`core/report_markdown.py`) is a rendering of it. `variants` holds `original` and `pruned`
(and later each baseline) measured in the same way, on the ONNX file, in ONNX Runtime.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from core.block_report import BlockAnalysis
from core.records import Number
from core.records import Record as _Record


class SplitScore(_Record):
    """Of the ONNX file in ONNX Runtime on one split."""

    images: int
    accuracy: Number = Field(
        description="1 at best: top-1 (classification), mean SSIM (reconstruction), 1 - relative error (imitation)"
    )
    loss: Number = Field(
        description="mean cross-entropy, nats (classification), (1 - w) L1 + w (1 - SSIM) (reconstruction), relative "
        "error squared (imitation)"
    )
    measures: dict[str, Number] = Field(
        default={}, description="top_5 (classification), ssim, l1 (reconstruction), relative_error, cosine (imitation)"
    )


class Latency(_Record):
    """One setting. Samples of original and pruned are interleaved in one run; raw samples are kept."""

    device: str
    runtime: str
    batch_size: int
    threads: int
    latency_ms_p50: Number
    latency_ms_p90: Number
    latency_ms_p99: Number
    latency_ms_mean: Number
    latency_ms_std: Number
    windows: int
    stable: bool = Field(description="three windows in a row agreed within 10 %")
    samples_ms: list[float]


class Memory(_Record):
    """Of fresh processes. Below its own noise a figure says nothing, and no ratio is made of it."""

    peak_memory_bytes: int = Field(
        description="resident bytes at the peak, over those of an empty session; medians of several processes each"
    )
    noise_bytes: int = Field(description="greatest less least sample, of the file and of the empty session, added up")
    samples_bytes: list[int] = Field(description="the peak of each process that ran the file")
    empty_samples_bytes: list[int] = Field(description="the peak of each process with an empty session")
    gpu_memory_bytes: int | None = None

    @property
    def above_noise(self) -> bool:
        return self.peak_memory_bytes > self.noise_bytes


class Layer(_Record):
    """One layer of the original, and what is left of it."""

    name: str
    kind: str
    channels_before: int | None
    channels_after: int | None
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    latency_ms_before: Number | None = None
    latency_ms_after: Number | None = None


class Frozen(_Record):
    """Channels that may not be cut, and why."""

    operator: str
    node: str
    layers: list[str]
    reason: str


class Variant(_Record):
    validation: SplitScore
    test: SplitScore
    train: SplitScore = Field(description="on at most 2,000 images of it, not augmented")
    params: int
    macs: int
    filters: int
    blocks: int = Field(description="residual blocks that hold no other")
    file_bytes: int
    opset: int
    sha256: str
    latency: list[Latency]
    memory: Memory | None = Field(description="null where the measuring process failed")


class Check(_Record):
    """A proof. `error` is max |a - b| / max |a|; it must not exceed `bound`."""

    name: str
    error: Number
    bound: Number
    images: int
    passed: bool


class RequirementResult(_Record):
    """What could not be measured is not passed; `note` then says why."""

    name: str
    required: str
    measured: Number | None
    passed: bool
    note: str | None = None


class Cost(_Record):
    """What pruning and fine-tuning cost. `epoch_params` is the sum over epochs of the network's parameters then.

    `kept`: up to the best epoch, where a training ends with its weights (Velici 2022, section 3.5), else all of them.
    """

    epochs: int = 0
    epochs_kept: int = 0
    epoch_params: int = 0
    epoch_params_kept: int = 0
    images: int = 0
    seconds: Number = 0.0


class TargetResult(_Record):
    """`low`, `high`: the 95 % interval of what was measured (latency); it is met where `high` is at most the target."""

    name: str
    target: Number
    reached: Number
    met: bool
    low: Number | None = None
    high: Number | None = None


class ControlResult(_Record):
    """What the pruned network is held against; its figures are in `variants`. Differences are pruned - control in
    accuracy on test (0-1), with the 95 % interval of Agresti & Min (2005) for paired answers to the same images: of
    this one training of each, not of all that other seeds would give."""

    name: str
    budget: str = Field(description="of its training, in words")
    cost: Cost
    accuracy_difference: Number
    accuracy_difference_low: Number
    accuracy_difference_high: Number


class Confusion(_Record):
    """Of each variant on test: row by row the class that an image is of, column by column what it was taken for."""

    classes: list[str]
    counts: dict[str, list[list[int]]]


class LatencyRatio(_Record):
    """Latency over the original's, in ONNX Runtime on the CPU, batch 1 (or what the file fixes), one thread: the median
    of several windows in which both take turns, and the 95 % interval of that median."""

    ratio: Number
    low: Number
    high: Number
    windows: int
    original_ms: Number
    candidate_ms: Number


class FrontPoint(_Record):
    """A network that the run visited. `file_bytes`, `latency`: where a target asks for them."""

    step: int
    round: int
    params: int
    macs: int
    filters: int
    blocks: int = Field(description="residual blocks that hold no other")
    validation_accuracy: Number | None
    file_bytes: int | None = Field(None, description="of the ONNX file that it would be exported as")
    latency: LatencyRatio | None = None


class KeptCheckpoint(_Record):
    """A file of the network as it was after an epoch of a `train` step."""

    name: str
    step: int
    epoch: int
    validation_accuracy: Number
    sha256: str
    bytes: int
    parity: Number = Field(description="ONNX Runtime against torch, as a check of that name")


class Report(_Record):
    version: int = 1
    variants: dict[str, Variant]
    ratios: dict[str, Number] = Field(
        description="pruned / original; accuracy_drop = original - pruned, on test; none of what cannot be measured"
    )
    drop_in: bool = Field(
        default=True, description="takes the place of the upload: the same opset, names, types and dimensions"
    )
    target_met: bool
    targets: list[TargetResult]
    requirements: list[RequirementResult]
    requirements_met: bool
    checks: list[Check]
    layers: list[Layer]
    frozen: list[Frozen]
    front: list[FrontPoint]
    cost: Cost
    checkpoints: list[KeptCheckpoint] = Field(default=[], description="what checkpoint_every has kept")
    blocks: list[BlockAnalysis] = Field(default=[], description="of each step that removes blocks, and of its control")
    controls: list[ControlResult] = Field(default=[], description="without any the report claims no win over anything")
    confusion: Confusion | None = Field(default=None, description="classification with at most 100 classes")
    macs_counted: list[str] = Field(description="operators that are counted; one multiply-accumulate = 1")
    macs_not_counted: list[str]
    warnings: list[str] = Field(default=[])
    inputs: dict[str, Any] = Field(description="sha256 of model, dataset and recipe; options; splits")
    recipe: dict[str, Any]
    environment: dict[str, Any]
    reproduce: str = Field(description="the command that does it again")
