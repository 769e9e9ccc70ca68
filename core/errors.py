"""Every error that core raises on purpose. Torch-free.

One tree, rooted at `BillhookError`. Each class has a stable `code` (part of the HTTP API: clients match on it) and may
carry `faults`: every problem found, each with a JSON pointer to the place, what is wrong, and what would be right.
HTTP statuses are not here: they live in `api/errors.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One problem. `pointer` is an RFC 6901 JSON pointer into the input ("" for the whole of it)."""

    pointer: str
    message: str
    expected: str | None = None

    def as_dict(self) -> dict[str, str | None]:
        return {"pointer": self.pointer, "message": self.message, "expected": self.expected}


class BillhookError(Exception):
    """The root. `message` is one sentence for a person; it never holds a path of this machine or a traceback."""

    code = "error"

    def __init__(self, message: str, *, faults: Iterable[Fault] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.faults = tuple(faults)

    def as_dict(self) -> dict[str, object]:
        return {"code": self.code, "message": self.message, "faults": [fault.as_dict() for fault in self.faults]}


# --- what was given is wrong -----------------------------------------------------------------------------------------


class RecipeInvalid(BillhookError):
    """The recipe (or the requirements) does not say something that can be done. All faults are listed."""

    code = "recipe_invalid"


class ModelRefused(BillhookError):
    """The uploaded model cannot be taken. Subclasses say why."""

    code = "model_refused"


class ModelUnreadable(ModelRefused):
    """Not the format it claims: truncated, corrupt, a pickle, an empty file."""

    code = "model_unreadable"


class ModelTooLarge(ModelRefused):
    """Past a cap on nodes, dimensions, elements or bytes."""

    code = "model_too_large"


class OperatorUnknown(ModelRefused):
    """An operator (or an attribute value of one) outside the closed list. The message names operator and node."""

    code = "operator_unknown"


class DatasetRefused(BillhookError):
    """The dataset cannot be taken, or does not fit the model."""

    code = "dataset_refused"


class DatasetUnreadable(DatasetRefused):
    """Not the format it claims: truncated, corrupt, object arrays, links."""

    code = "dataset_unreadable"


class DatasetTooLarge(DatasetRefused):
    """Past a cap on files, bytes, pixels or compression ratio (a bomb)."""

    code = "dataset_too_large"


class DatasetUnsuitable(DatasetRefused):
    """Readable, but nothing to train a classifier on: one class, an empty class, labels with gaps, splits that leak."""

    code = "dataset_unsuitable"


class DatasetMismatch(DatasetRefused):
    """Readable, but it does not fit the model: image size, channels, number of classes."""

    code = "dataset_mismatch"


class BaselineNearChance(BillhookError):
    """The original model is no better than guessing on the dataset: preprocessing or class order is wrong."""

    code = "baseline_near_chance"


# --- the work cannot be done -----------------------------------------------------------------------------------------


class PruningError(BillhookError):
    code = "pruning_failed"


class NothingRemoved(PruningError):
    """A pruning step removed nothing; the message says why."""

    code = "nothing_removed"


class TargetUnreachable(PruningError):
    """Even the smallest network that the graph allows is above the target."""

    code = "target_unreachable"


class CutRefused(PruningError):
    """A removal that the graph does not allow (a frozen channel, half a group, every channel of a layer)."""

    code = "cut_refused"


class TrainingDiverged(BillhookError):
    """The loss became NaN or infinite. The message names step and learning rate."""

    code = "training_diverged"


# --- a proof did not hold: a defect of ours, never delivered ---------------------------------------------------------


class ExactnessFailed(BillhookError):
    """The cut network does not compute what the zeroed one computes."""

    code = "exactness_failed"


class ParityFailed(BillhookError):
    """ONNX Runtime does not compute what the torch network computes."""

    code = "parity_failed"


class CheckpointUnusable(BillhookError):
    """A checkpoint is damaged or belongs to other inputs."""

    code = "checkpoint_unusable"


class DeviceUnavailable(BillhookError):
    """The device asked for is not on this machine."""

    code = "device_unavailable"
