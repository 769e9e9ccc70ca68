"""What a dry run tells of a job before it is paid for. Torch-free pydantic models; units are in the names."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from core.report import LatencyRatio, TargetResult


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Size(_Record):
    """Of a network. `file_bytes`: of the ONNX file that it would be exported as, exactly."""

    params: int
    macs: int
    filters: int
    blocks: int = Field(description="residual blocks that hold no other")
    file_bytes: int


class LayerCut(_Record):
    """A layer that a step changes. Shapes are those of its weights, as torch has them; nothing is left of a layer that
    goes with its block."""

    name: str
    kind: str
    channels_before: int
    channels_after: int
    weight_before: list[int]
    weight_after: list[int]
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int


class StepCut(_Record):
    """What a step of the recipe would remove. A step that only trains removes nothing."""

    step: int
    method: str
    rounds: int = Field(description="that remove something; 0: the step has none, or its target is met")
    blocks: list[str] = Field(
        default=[], description="that go, in order; with replace, neighbours a+b of which one is left"
    )
    after: Size
    layers: list[LayerCut] = Field(description="only those that it changes")


class Foreseen(_Record):
    """A requirement. `holds`: null where only the job can tell, or where the interval of what was measured lies on both
    sides of what is asked; `note` then says so. `value`: null where only the job can tell."""

    name: str
    required: str
    value: float | None
    holds: bool | None
    note: str | None = None


class Spending(_Record):
    """What a part of the job costs in trainings, as a report's ledger has it."""

    part: str = Field(description="steps; or a control: unpruned, random, scratch, scratch_standard")
    epochs: int
    images: int = Field(description="that are trained on, all epochs together")
    epoch_params: int = Field(description="the sum over epochs of the network's parameters then")
    estimated_seconds: float | None


class Estimate(_Record):
    """The time and cost of the job. `low` ends: every training that may stop early does so as soon as it may, each
    image takes the least time that was measured; `high`: every fine-tuning that waits for a threshold comes, each image
    takes the longest. Time in the queue is not in it."""

    epochs: int
    epochs_low: int
    epochs_high: int
    images: int
    epoch_params: int
    spending: list[Spending]
    estimated_seconds: float | None = Field(description="null where the job would run on another device")
    estimated_seconds_low: float | None
    estimated_seconds_high: float | None
    training_seconds_per_image_original: float | None = Field(
        description="forward, backward and the optimizer's step, by the settings of the recipe's longest training"
    )
    training_seconds_per_image_pruned: float | None
    device: str = Field(description="that the times were measured on")
    threads: int


class DryRunReport(_Record):
    """What a job would come to: what it would cut, how large and how fast the result would be, what it would cost.
    Nothing was trained, and nothing is kept."""

    version: Literal[1] = 1
    original: Size
    pruned: Size
    ratios: dict[str, float] = Field(description="pruned / original: params, macs, file_bytes, and latency if measured")
    latency: LatencyRatio | None = Field(description="null where nothing is cut")
    steps: list[StepCut]
    targets: list[TargetResult] = Field(description="of all steps, named step/<index>/<key>; guards are left out")
    target_met: bool
    requirements: list[Foreseen]
    requirements_met: bool | None = Field(
        description="false: one that can be judged does not hold; null: it depends on what only the job can tell"
    )
    estimate: Estimate
    recipe: dict[str, JsonValue] = Field(description="with every default filled in")
    assumptions: list[str] = Field(description="in which the job may differ from this")
    warnings: list[str]
