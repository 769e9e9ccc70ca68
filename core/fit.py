"""Does a dataset fit a model? Torch-free: the API asks it of two summaries, the pipeline of the data itself.

All faults at once, each saying what would be right. Pointers are into the dataset's options (`/preprocess/size`), or
`/model` where no dataset would fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from core.errors import Fault
from core.job import Preprocess
from core.task_settings import TaskName

Channels = Literal["RGB", "BGR", "L"]
Shape = Sequence[int | str]
LEAST_SIDE = 11
"""Pixels: the window of structural similarity (`core.tasks.ssim`)."""


_FITTING: dict[int, tuple[Channels, ...]] = {1: ("L",), 3: ("RGB", "BGR")}


class Spec(Protocol):
    """An input or output of a model: its name, and an int per static dimension, a str per dynamic one."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> Shape: ...


def given_channels(options: Preprocess, wanted: int | str, stored: int) -> Channels | None:
    """What a model of `wanted` input channels is given of images with `stored` channels; None where that cannot be."""
    if isinstance(wanted, str):
        return options.channels or ("L" if stored == 1 else "RGB")
    fitting = _FITTING.get(wanted, ())
    if options.channels is not None:
        return options.channels if options.channels in fitting else None
    return fitting[0] if fitting else None


def input_axes(shape: Shape, options: Preprocess) -> tuple[int | str, int | str, int | str]:
    """(channels, height, width) of a model's input (batch first), by the layout that the dataset is given in."""
    _, first, second, third = shape
    return (first, second, third) if options.layout == "NCHW" else (third, first, second)


def fit_faults(
    inputs: Sequence[Spec],
    outputs: Sequence[Spec],
    *,
    image_shape: tuple[int, int, int],
    classes: int,
    options: Preprocess,
    task: TaskName = "classification",
    new_head: bool = False,
    lacks_pruning: bool = False,
) -> list[Fault]:
    """What does not fit; empty where everything does.

    Args:
        inputs, outputs: of the model, the batch first. The first output is the one that classifies, (batch, classes) or
            (batch, classes, 1, 1), or in reconstruction the image, of the input's shape; in imitation outputs may be
            anything. A dynamic dimension fits anything.
        image_shape: (channels, height, width) of the images after resizing.
        new_head: the model gets another classifier: how many classes it has now does not matter.
        lacks_pruning: the recipe wants a pruning split, and the dataset has none.
    """
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        return [Fault("/model", f"the model has {len(inputs)} inputs ({names})", "one input, a batch of images")]
    shape = inputs[0].shape
    if len(shape) != 4:
        message = f"the input {inputs[0].name} has {len(shape)} dimensions {_text(shape)}"
        return [Fault("/model", message, "a batch of images: four dimensions")]
    channels, *sides = input_axes(shape, options)
    resolved = given_channels(options, channels, image_shape[0])
    if resolved is None:
        faults = [_channel_fault(options, shape, channels)]
    else:
        faults = per_channel_faults(options, 1 if resolved == "L" else 3)
    have = image_shape[1:]
    # in the wrong layout the sides are not the sides: one mistake, one fault
    misread = any(fault.pointer == "/preprocess/layout" for fault in faults)
    if not misread and any(isinstance(want, int) and want != got for want, got in zip(sides, have, strict=True)):
        target = [want if isinstance(want, int) else got for want, got in zip(sides, have, strict=True)]
        message = f"images are {have[0]}×{have[1]}, the model's input is {_text(shape)} ({options.layout})"
        faults.append(Fault("/preprocess/size", message, f"{target}, or another layout"))
    if lacks_pruning:
        message = "the recipe scores on a pruning split or trains on it, and the dataset has none"
        faults.append(Fault("/splits/pruning", message, "a share of the training images, as 0.1"))
    if task == "imitation":
        return faults
    if task == "reconstruction":
        return faults + _image_faults(shape, outputs, have)
    return faults + _label_faults(classes) + _class_faults(None if new_head or not classes else classes, outputs)


def per_channel_faults(options: Preprocess, channels: int) -> list[Fault]:
    """What is wrong with the lengths of `mean` and `std` for a model of that many channels."""
    expected = "one number" if channels == 1 else f"one number, or {channels}, one per channel"
    given = {"mean": options.mean, "std": options.std}
    return [
        Fault(f"/preprocess/{name}", f"{len(values)} numbers for {channels} channel(s)", expected)
        for name, values in given.items()
        if len(values) not in (1, channels)
    ]


def _channel_fault(options: Preprocess, shape: Shape, wanted: int | str) -> Fault:
    message = f"the model's input {_text(shape)} has {wanted} channels as {options.layout}"
    expected = {1: "L", 3: "RGB or BGR"}.get(wanted) if isinstance(wanted, int) else None
    if expected is not None:
        given = 1 if options.channels == "L" else 3
        return Fault("/preprocess/channels", f"{message}, {options.channels} gives {given}", expected)
    other = shape[3] if options.layout == "NCHW" else shape[1]
    if other in (1, 3):
        return Fault("/preprocess/layout", message, "NHWC" if options.layout == "NCHW" else "NCHW")
    return Fault("/model", message, "1 (L) or 3 (RGB, BGR) channels")


def _image_faults(shape: Shape, outputs: Sequence[Spec], sides: Sequence[int]) -> list[Fault]:
    """shape: of the model's input. sides: height and width of the images."""
    faults = []
    if min(sides) < LEAST_SIDE:
        message = f"images are {sides[0]}×{sides[1]}, too small for the windows of structural similarity"
        faults.append(Fault("/preprocess/size", message, f"at least {LEAST_SIDE} pixels a side"))
    if not outputs:
        return [*faults, Fault("/model", "the model has no output", "an image")]
    found = outputs[0].shape
    pairs = zip(found[1:], shape[1:], strict=False)
    if len(found) != len(shape) or any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs):
        message = f"the output {outputs[0].name} is {_text(found)}, the input {_text(shape)}"
        faults.append(Fault("/model", message, "an image of the input's shape, for task: reconstruction"))
    return faults


def _label_faults(classes: int) -> list[Fault]:
    if classes:
        return []
    expected = "a folder of images for each class, or a recipe with task: imitation"
    return [Fault("", "the dataset has no labels", expected)]


def _class_faults(classes: int | None, outputs: Sequence[Spec]) -> list[Fault]:
    if not outputs:
        return [Fault("/model", "the model has no output", "an output with one number per class")]
    output = outputs[0]
    if len(output.shape) < 2 or any(size != 1 for size in output.shape[2:]):
        message = f"the output {output.name} is {_text(output.shape)}"
        return [Fault("/model", message, "one number per class: (batch, classes)")]
    wanted = output.shape[1]
    if not isinstance(wanted, int) or classes is None or wanted == classes:
        return []
    message = f"the dataset has {classes} classes, the model's output {output.name} has {wanted}"
    if classes < wanted:
        expected = f"the {wanted} class names in the order of the model's outputs; the dataset may have images of some"
    else:
        expected = f"a dataset of {wanted} classes"
    return [Fault("/preprocess/class_order", message, expected)]


def _text(shape: Shape) -> str:
    return "(" + ", ".join(str(size) for size in shape) + ")"
