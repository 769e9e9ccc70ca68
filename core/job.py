"""What a job is given: paths of checked inputs, options, recipe. Torch-free; worker writes it, child reads it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, model_validator

from core.recipe import Recipe
from core.requirements import Requirements
from core.sections import Items


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


ARCHITECTURES = (
    "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet164",
    "preresnet20", "preresnet56", "preresnet110", "vgg16", "vgg16_plain", "vgg16_fc", "small_inception", "small_cnn",
    "rgb_autoencoder", "vgg16_imagenet", "vgg16_bn_imagenet", "resnet18", "resnet34", "resnet50", "mobilenet_v2",
    "densenet121", "efficientnet_b0", "convnext_tiny", "googlenet",
)  # fmt: skip
TIMM = "timm:"
ARCHITECTURE = f"(?:{'|'.join(ARCHITECTURES)}|{TIMM}[a-z0-9_]{{1,100}})"
"""A pattern of what an upload may be called. Whether timm is installed and has the network, its check says."""
ARCHITECTURES_TOLD = f"one of {', '.join(ARCHITECTURES)}; or {TIMM}NAME, where timm is installed beside the service"
ModelFormat = Literal["onnx", "pt2", "safetensors"]
DatasetFormat = Literal["image_folder", "npz", "parquet", "digits"]


def _listed(value: Any) -> Any:
    """One number for all channels, as the list of one that it stands for."""
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value


Deviation = Annotated[float, Field(gt=0)]
Means = Annotated[Items[float], BeforeValidator(_listed, json_schema_input_type=float | list[float])]
Deviations = Annotated[Items[Deviation], BeforeValidator(_listed, json_schema_input_type=Deviation | list[Deviation])]
Side = Annotated[int, Field(ge=1, le=4096)]
Pixels = Annotated[int, Field(ge=1, le=8192)]
ColumnName = Annotated[str, Field(min_length=1, max_length=200)]


class ModelOptions(_Record):
    """How an uploaded model is to be read. A safetensors file holds weights only: it needs both fields."""

    architecture: str | None = Field(None, description=f"safetensors only, {ARCHITECTURES_TOLD}")
    input_shape: Annotated[tuple[Side, Side, Side], Strict(False)] | None = Field(
        None, description="safetensors only: channels, height, width"
    )


class Splits(_Record):
    """Which images, and how they are shared out: shares are taken from whatever the dataset does not split itself,
    stratified, by seed.

    `pruning`: a share taken from the training images, whatever the dataset splits itself, for what is scored on it
    instead of on images that are trained on (Velici 2022, section 3.7); None: none.
    `classes`: only these are taken; `holdout_classes`: all but these. Names of folders, or the integers of an npz.
    """

    validation: float = Field(0.1, gt=0, lt=1)
    test: float = Field(0.2, gt=0, lt=1)
    pruning: float | None = Field(None, gt=0, lt=1)
    seed: int = Field(0, ge=0)
    classes: Annotated[Items[str], Field(min_length=2)] | None = None
    holdout_classes: Annotated[Items[str], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_choice_of_classes(self) -> Splits:
        if self.classes is not None and self.holdout_classes is not None:
            raise ValueError("classes and holdout_classes say the same thing twice: one of them")
        for named in (self.classes, self.holdout_classes):
            if named is not None and len(set(named)) < len(named):
                raise ValueError("a class is named more than once")
        return self

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Splits:
        named = {"validation": self.validation, "test": self.test, "pruning": self.pruning or 0}
        if sum(named.values()) >= 1:
            told = " and ".join(f"{name} ({share:g})" for name, share in named.items() if share)
            raise ValueError(f"{told} leave nothing to train on: shares that add up to less than 1 are needed")
        return self


class Preprocess(_Record):
    """From stored images (uint8 values scaled to 0-1 first) to the model's input: resize, channels, (x - mean) / std.

    `size` is (height, width), None = as stored (all images must then agree). `mean` and `std` are per channel or one
    number for all. `scale`: the factor on the raw 0-255 values, default 1/255. `channels`: RGB, BGR or L (grey);
    None = as the model's input asks. `layout`: of the model's input. `class_order`: names, in the order of the model's
    outputs; None = sorted names of the folders, or the integers of an npz.
    """

    size: Annotated[tuple[Pixels, Pixels], Strict(False)] | None = Field(None, description="height and width")
    scale: float = Field(1 / 255, gt=0)
    mean: Means = (0.0,)
    std: Deviations = (1.0,)
    channels: Literal["RGB", "BGR", "L"] | None = None
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    class_order: Items[str] | None = None


class Columns(_Record):
    """Which columns of a Parquet file hold what; None = found by their usual names and by what they hold."""

    image: ColumnName | None = Field(None, description="encoded images: bytes, or a struct {bytes, path}")
    label: ColumnName | None = Field(None, description="integers 0..K-1, or names of classes")
    split: ColumnName | None = Field(None, description="train, validation or test for each row")


class DatasetOptions(_Record):
    format: DatasetFormat | None = None
    preprocess: Preprocess = Preprocess()
    splits: Splits = Splits()
    columns: Columns = Columns()


class ModelInput(_Record):
    path: Path
    sha256: str
    format: ModelFormat
    options: ModelOptions = ModelOptions()


class DatasetInput(_Record):
    """`path` is None for a dataset that is built in. `uri`: where it came from, `upload` or one without credentials."""

    path: Path | None
    sha256: str | None
    format: DatasetFormat
    options: DatasetOptions = DatasetOptions()
    uri: str = "upload"


def _half_of_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


class Room(_Record):
    """What the images of a dataset may take, as uint8 (float32 where that would round), all splits together. What fits
    `memory_bytes` is held in memory, what does not is stored on disk and streamed: no number depends on it.

    `disk_bytes`: None = what is free on the disk.
    """

    memory_bytes: int = Field(default_factory=_half_of_memory, ge=0, description="default: half of the machine's")
    disk_bytes: int | None = Field(None, ge=0)


class DatasetCheck(_Record):
    """All that the check of an uploaded dataset needs."""

    dataset: DatasetInput
    room: Room = Room()
    threads: int | None = Field(None, ge=1, description="torch threads; None = all cores")


class JobInputs(_Record):
    """All that `core.pipeline.run` needs. `requirements` are the job's own; they override the recipe's by field.
    `weights`: the model that the recipe's `weights` names, where it names one."""

    model: ModelInput
    weights: ModelInput | None = None
    datasets: Items[DatasetInput] = Field(min_length=1, max_length=1)
    recipe: Recipe
    requirements: Requirements = Requirements()
    device: str = Field("cpu", pattern=r"^(cpu|cuda:\d+)$")
    room: Room = Room()
    threads: int | None = Field(None, ge=1, description="torch threads; None = all cores")

    @model_validator(mode="after")
    def _weights_are_there(self) -> JobInputs:
        if (self.recipe.weights_model is None) != (self.weights is None):
            raise ValueError("weights is given where the recipe's weights names a model, and only there")
        return self


class DryRunInputs(_Record):
    """All that `core.dry_run.dry_run` needs. `timed`: whether `job.device` is what the job itself would run on."""

    job: JobInputs
    timed: bool = True
