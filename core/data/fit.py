"""Does the dataset fit the model? All faults at once, each saying what would be right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from core.data.datasets import Channels, Dataset, per_channel_faults
from core.errors import DatasetMismatch, Fault


class Spec(Protocol):
    """An input or output of a model, as `core.graph.network.TensorSpec` describes it."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int | str, ...]: ...


def check_fits(dataset: Dataset, inputs: Sequence[Spec], outputs: Sequence[Spec]) -> Dataset:
    """The dataset with its channels as the model asks for them (where `preprocess.channels` leaves that open).

    inputs, outputs: as uploaded, the batch first; a str is a dynamic dimension, which fits anything. The first output
    is the one that classifies, (batch, classes) or (batch, classes, 1, 1). Raises `DatasetMismatch` with every fault.
    """
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        fault = Fault("/model", f"the model has {len(inputs)} inputs ({names})", "one input, a batch of images")
        raise DatasetMismatch("the model does not take images alone", faults=[fault])
    shape = inputs[0].shape
    if len(shape) != 4:
        fault = Fault("/model", f"the input {inputs[0].name} has {len(shape)} dimensions {_text(shape)}",
                      "a batch of images: four dimensions")  # fmt: skip
        raise DatasetMismatch("the model does not take images", faults=[fault])
    faults: list[Fault] = []
    options = dataset.options
    channels, height, width = shape[1:] if options.layout == "NCHW" else (shape[3], shape[1], shape[2])
    resolved = _channels(dataset, channels)
    if resolved is None:
        faults.append(_channel_fault(dataset, shape, channels))
        resolved = dataset.channels
    else:
        faults += per_channel_faults(options, 1 if resolved == "L" else 3)
    have = dataset.image_shape[1:]
    if any(isinstance(want, int) and want != got for want, got in zip((height, width), have, strict=True)):
        target = [want if isinstance(want, int) else got for want, got in zip((height, width), have, strict=True)]
        message = f"images are {have[0]}×{have[1]}, the model's input is {_text(shape)} ({options.layout})"
        faults.append(Fault("/preprocess/size", message, f"{target}, or another layout"))
    faults += _class_faults(dataset, outputs)
    if faults:
        raise DatasetMismatch("the dataset does not fit the model", faults=faults)
    return dataset.with_channels(resolved)


def _channels(dataset: Dataset, wanted: int | str) -> Channels | None:
    """What to give a model of `wanted` channels; None where that cannot be."""
    given = dataset.options.channels
    if isinstance(wanted, str):
        return dataset.channels
    if given is not None:
        return given if wanted == (1 if given == "L" else 3) else None
    return {1: "L", 3: "RGB"}.get(wanted)  # type: ignore[return-value]  # dict.get widens the literals


def _channel_fault(dataset: Dataset, shape: tuple[int | str, ...], wanted: int | str) -> Fault:
    layout, given = dataset.options.layout, dataset.options.channels
    message = f"the model's input {_text(shape)} has {wanted} channels as {layout}"
    expected = {1: "L", 3: "RGB or BGR"}.get(wanted) if isinstance(wanted, int) else None
    if expected is not None:
        return Fault("/preprocess/channels", f"{message}, {given} gives {1 if given == 'L' else 3}", expected)
    other = shape[3] if layout == "NCHW" else shape[1]
    if other in (1, 3):
        return Fault("/preprocess/layout", message, "NHWC" if layout == "NCHW" else "NCHW")
    return Fault("/model", message, "1 (L) or 3 (RGB, BGR) channels")


def _class_faults(dataset: Dataset, outputs: Sequence[Spec]) -> list[Fault]:
    if not outputs:
        return [Fault("/model", "the model has no output", "an output with one number per class")]
    output = outputs[0]
    if len(output.shape) < 2 or any(size != 1 for size in output.shape[2:]):
        message = f"the output {output.name} is {_text(output.shape)}"
        return [Fault("/model", message, "one number per class: (batch, classes)")]
    classes = output.shape[1]
    if not isinstance(classes, int) or classes == len(dataset.classes):
        return []
    message = f"the dataset has {len(dataset.classes)} classes, the model's output {output.name} has {classes}"
    if len(dataset.classes) < classes:
        expected = f"the {classes} class names in the order of the model's outputs; the dataset may have images of some"
    else:
        expected = f"a dataset of {classes} classes"
    return [Fault("/preprocess/class_order", message, expected)]


def _text(shape: Sequence[int | str]) -> str:
    return "(" + ", ".join(str(size) for size in shape) + ")"
