"""`as_strided`, as torch's exporter writes it: a value is flattened, batch and all, and gathered at computed places.

It comes from a mean over space of a channels-last value (torchvision's ConvNeXt has one). Where the places are just
those in order, which the exporter cannot see, all of it is a Reshape, and the batch stays a batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

MAX_PLACES = 2**22
"""Of a batch of three: more are no vector of means."""

Array = npt.NDArray[Any]


class _NotPlain(Exception):
    """The places are not computed from constants and the batch in a way that is known here."""


def replace_as_strided(model: ModelProto, static_batch: int | None) -> None:
    """Turns, in place, every Gather of all places in order into a Reshape."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    given = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        source = made_by.get(node.input[0]) if node.op_type == "Gather" else None
        axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
        if source is None or source.op_type != "Reshape" or axis != 0 or len(node.input) != 2:
            continue
        places = _Places(model, made_by, given, static_batch)
        try:
            if places.of(source.input[1], 1).tolist() != [-1]:
                continue
            sizes = places.in_order(node.input[1])
        except _NotPlain:
            continue
        if sizes is not None:
            name = f"{node.output[0]}.shape"
            model.graph.initializer.append(numpy_helper.from_array(np.array([-1, *sizes], dtype=np.int64), name))
            node.CopyFrom(helper.make_node("Reshape", [source.input[0], name], list(node.output), name=node.name))


class _Places:
    """Computes the few integer operators that the exporter uses, for a batch of some size."""

    def __init__(
        self,
        model: ModelProto,
        made_by: Mapping[str, NodeProto],
        given: Mapping[str, TensorProto],
        static_batch: int | None,
    ) -> None:
        self.inputs = {item.name for item in model.graph.input} - given.keys()
        self.made_by = made_by
        self.given = given
        self.static_batch = static_batch

    def in_order(self, name: str) -> list[int] | None:
        """The sizes behind the batch, where the places are 0, 1, 2 ... for every batch; else None."""
        sizes = None
        for batch in (2, 3) if self.static_batch is None else (self.static_batch,):
            places = self.of(name, batch)
            if places.ndim < 1 or not np.array_equal(places.reshape(-1), np.arange(places.size)):
                return None
            if len(places) != batch or sizes not in (None, places.shape[1:]):
                return None
            sizes = places.shape[1:]
        return list(sizes) if sizes is not None else None

    def of(self, name: str, batch: int) -> Array:
        """The integers that `name` holds for inputs of `batch` images. Raises `_NotPlain`."""
        if name in self.given:
            return self._plain(self.given[name])
        node = self.made_by.get(name)
        if node is None:
            raise _NotPlain
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        if node.op_type == "Constant" and "value" in attributes:
            return self._plain(attributes["value"])
        if node.op_type == "Shape" and (attributes.get("start", 0), attributes.get("end")) == (0, 1):
            if node.input[0] not in self.inputs:
                raise _NotPlain
            return np.array([batch])
        inputs = [self.of(item, batch) for item in node.input]
        if node.op_type in ("Add", "Mul"):
            if math.prod(np.broadcast_shapes(*(item.shape for item in inputs))) > MAX_PLACES:
                raise _NotPlain
            return np.asarray(inputs[0] + inputs[1] if node.op_type == "Add" else inputs[0] * inputs[1])
        if node.op_type == "Range":
            start, stop, step = (int(item.reshape(())) for item in inputs)
            if step < 1 or stop - start > MAX_PLACES:
                raise _NotPlain
            return np.arange(start, stop, step)
        if node.op_type in ("Squeeze", "Unsqueeze") and not (node.op_type == "Unsqueeze" and len(inputs) < 2):
            axes = tuple(inputs[1].tolist()) if len(inputs) > 1 else None
            return np.squeeze(inputs[0], axes) if node.op_type == "Squeeze" else np.expand_dims(inputs[0], axes or ())
        raise _NotPlain

    def _plain(self, tensor: TensorProto) -> Array:
        if tensor.data_type not in (TensorProto.INT64, TensorProto.INT32) or math.prod(tensor.dims) > MAX_PLACES:
            raise _NotPlain
        if tensor.data_location == TensorProto.EXTERNAL:
            raise _NotPlain
        return numpy_helper.to_array(tensor)
