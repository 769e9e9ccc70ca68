"""A new classifier for other classes: the layer that makes the first output, with as many outputs as there are classes.

    y = W x + b:   W (C, D) -> (C', D), b (C,) -> (C',), drawn anew      a convolution likewise, over its places

The plan entry is {"op": "head", "layer": name, "classes": C', "seed": s}; the weights are drawn from the seed, so that
a replay has the same. Outputs that follow the layer get the new width, in the description of the upload, too.

Refuses (`HeadRefused`) what makes it unclear which layer that is, or what only works with the old number of classes:
several layers that meet in the output, a trained layer behind, a grouped or transposed convolution, a layer that is
used twice, a fixed array of the old width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from onnx import ModelProto
from torch import fx, nn

from core.errors import CutRefused, Fault, ModelRefused
from core.graph.ids import source
from core.graph.initialise import draw
from core.graph.network import Network, Origin, TensorSpec
from core.graph.operators import MAKERS
from core.graph.operators.convolution import TRANSPOSED
from core.graph.shapes import propagate_shapes
from core.training.classifier import classifier_layers

aten = torch.ops.aten


class HeadRefused(CutRefused):
    """The network has no classifier that can be replaced."""


def with_new_head(network: Network, classes: int, *, seed: int) -> tuple[Network, dict[str, Any]]:
    """A copy of `network` with a new classifier for `classes` classes, and the plan entry. Raises `HeadRefused`."""
    name = head_of(network)
    twin = network.clone()
    layer = twin.module.get_submodule(name)
    (node,) = twin.module.graph.find_nodes(op="call_module", target=name)
    before = node.meta["shape"]
    _widen(layer, classes, seed)
    _rewrite_behind(node, before[1], classes)
    twin.module.recompile()
    old = [item.meta["shape"] for item in network.output_nodes()]
    try:
        propagate_shapes(twin.module, twin.input_shapes)
        shapes = [item.meta["shape"] for item in twin.output_nodes()]
        if shapes[0] != (old[0][0], classes, *old[0][2:]) or old[0][1] != before[1]:
            raise HeadRefused(f"the output does not follow {name!r}: it would be {shapes[0]}")
        outputs = tuple(_resized(spec, shape) for spec, shape in zip(network.outputs, shapes, strict=True))
        made = Network(twin.module, twin.inputs, outputs, _described(network, outputs), twin.input_shapes, twin.grouped)
    except (ModelRefused, RuntimeError) as error:
        reason = error.message if isinstance(error, ModelRefused) else str(error).splitlines()[0]
        raise _refused(f"what is behind the classifier {name!r} is for {before[1]} classes only: {reason}") from None
    return made, {"op": "head", "layer": name, "classes": classes, "seed": seed}


def head_of(network: Network) -> str:
    """The name of the classifier. Raises `HeadRefused`."""
    layers, found = network.layers(), classifier_layers(network)
    makers = [name for name in found if isinstance(layers[name], MAKERS)]
    others = [name for name in found if name not in makers]
    if len(makers) != 1:
        raise _refused(f"{len(makers)} layers meet in the first output ({', '.join(makers)}): no one is the classifier")
    (name,) = makers
    layer = layers[name]
    if others:
        raise _refused(f"trained layers are behind the classifier {name!r}: {', '.join(others)}")
    if isinstance(layer, TRANSPOSED) or getattr(layer, "groups", 1) != 1:
        raise _refused(f"the classifier {name!r} is a {type(layer).__name__} that is grouped or transposed")
    nodes = network.module.graph.find_nodes(op="call_module", target=name)
    if len(nodes) != 1:
        raise _refused(f"the classifier {name!r} is used {len(nodes)} times")
    if isinstance(layer, nn.Linear) and len(nodes[0].meta["shape"]) != 2:
        raise _refused(f"the classifier {name!r} makes {nodes[0].meta['shape'][1:]}, not one number per class")
    return name


def replay_head(network: Network, entry: Mapping[str, Any]) -> Network:
    """A plan entry of kind "head". Raises `CutRefused` where it does not fit."""
    classes, seed = entry.get("classes"), entry.get("seed")
    faults = []
    if type(classes) is not int or not 1 <= classes < 2**20:
        faults.append(Fault("/classes", f"{str(classes)[:60]!r} is no number of classes", "an integer, at least 1"))
    if type(seed) is not int or not 0 <= seed < 2**63:
        faults.append(Fault("/seed", f"{str(seed)[:60]!r} is no seed", "an integer from 0 to 2**63 - 1"))
    if (name := head_of(network)) != entry.get("layer"):
        faults.append(Fault("/layer", f"{str(entry.get('layer'))[:60]!r} is not the classifier", name))
    if faults:
        raise CutRefused("the plan entry does not fit this network", faults=faults)
    assert isinstance(classes, int)
    assert isinstance(seed, int)
    return with_new_head(network, classes, seed=seed)[0]


def _refused(message: str) -> HeadRefused:
    return HeadRefused(message, faults=[Fault("", message, "head: keep")])


def _widen(layer: nn.Module, classes: int, seed: int) -> None:
    weight = layer.get_parameter("weight")
    layer.register_parameter("weight", nn.Parameter(weight.new_empty((classes, *weight.shape[1:]), device="cpu")))
    if layer._parameters.get("bias") is not None:
        layer.register_parameter("bias", nn.Parameter(weight.new_empty((classes,), device="cpu")))
    setattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels", classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        draw(layer)
    layer.to(weight.device)


def _rewrite_behind(head: fx.Node, before: int, classes: int) -> None:
    """Sizes that are written out in reshapes of what the head has made."""
    waiting, seen = [head], set[fx.Node]()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        waiting += node.users
        place = 1 if node.target is aten.reshape.default else 2 if node.target is aten.unflatten.int else None
        if node is not head and place is not None and before in source(node).meta["shape"]:
            sizes: list[Any] = list(node.args[place])  # type: ignore[arg-type]
            if sizes.count(before) == 1:
                node.update_arg(place, [classes if size == before else size for size in sizes])


def _resized(spec: TensorSpec, shape: tuple[int, ...]) -> TensorSpec:
    sizes = (said if isinstance(said, str) else size for said, size in zip(spec.shape[1:], shape[1:], strict=True))
    return replace(spec, shape=(*spec.shape[:1], *sizes))


def _described(network: Network, outputs: tuple[TensorSpec, ...]) -> Origin:
    """The upload's own description with the new sizes of its outputs."""
    if network.origin.template is None:
        return network.origin
    model = ModelProto()
    model.ParseFromString(network.origin.template)
    for item, before, spec in zip(model.graph.output, network.outputs, outputs, strict=True):
        for dim, said, size in zip(item.type.tensor_type.shape.dim, before.shape, spec.shape, strict=True):
            if said != size and isinstance(size, int):
                dim.dim_value = size
    return replace(network.origin, template=bytes(model.SerializeToString(deterministic=True)))
