"""Whether a dataset fits a model, as far as their summaries tell: a job that cannot work is refused before it waits.

The worker checks again, on the data itself (`core.data.fit`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from core.errors import Fault
from core.job import Preprocess


class _Tensor(BaseModel):
    name: str
    shape: list[int | str]


class _ModelSummary(BaseModel):
    inputs: list[_Tensor]
    outputs: list[_Tensor] = Field(min_length=1)


class _DatasetSummary(BaseModel):
    classes: list[str]
    image_shape: tuple[int, int, int]  # channels, height, width, after resizing


def fit_faults(
    model: Mapping[str, Any] | None, dataset: Mapping[str, Any] | None, options: Mapping[str, Any], pointer: str
) -> list[Fault]:
    """What does not fit, with pointers below `pointer` (the dataset's place in the request)."""
    try:
        network = _ModelSummary.model_validate(model)
        images = _DatasetSummary.model_validate(dataset)
        preprocess = Preprocess.model_validate(options.get("preprocess", {}))
    except ValidationError:
        return []  # a summary that says less: the worker finds out
    if len(network.inputs) != 1 or len(network.inputs[0].shape) != 4 or len(network.outputs[0].shape) < 2:
        return []
    _, *axes = network.inputs[0].shape
    channels, *size = axes if preprocess.layout == "NCHW" else (axes[2], *axes[:2])
    return [
        *_size_faults(size, images.image_shape[1:], f"{pointer}/preprocess/size"),
        *_channel_faults(channels, preprocess, f"{pointer}/preprocess"),
        *_class_faults(network.outputs[0].shape[1], len(images.classes), pointer),
    ]


def _size_faults(wanted: list[int | str], given: tuple[int, int], pointer: str) -> list[Fault]:
    if all(isinstance(want, str) or want == have for want, have in zip(wanted, given, strict=True)):
        return []
    height, width = (want if isinstance(want, int) else have for want, have in zip(wanted, given, strict=True))
    message = f"the images are {given[0]}x{given[1]}, the model takes {wanted[0]}x{wanted[1]} (height x width)"
    return [Fault(pointer, message, f"a dataset with preprocess.size [{height}, {width}]")]


def _channel_faults(wanted: int | str, preprocess: Preprocess, pointer: str) -> list[Fault]:
    if isinstance(wanted, str):
        return []
    if wanted not in (1, 3):
        message = f"the model takes {wanted} channels ({preprocess.layout}); images have 1 or 3"
        return [Fault(f"{pointer}/layout", message, "a model of grey or colour images, or the other layout")]
    chosen = {"L": 1, "RGB": 3, "BGR": 3, None: wanted}[preprocess.channels]
    if chosen == wanted:
        return []
    message = f"{preprocess.channels} gives {chosen} channel(s), the model takes {wanted}"
    return [Fault(f"{pointer}/channels", message, "L" if wanted == 1 else "RGB or BGR")]


def _class_faults(outputs: int | str, classes: int, pointer: str) -> list[Fault]:
    if isinstance(outputs, str) or outputs == classes:
        return []
    message = f"the dataset has {classes} classes, the model {outputs} outputs"
    return [Fault(pointer, message, f"a dataset of {outputs} classes, or preprocess.class_order with {outputs} names")]
