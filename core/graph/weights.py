"""The weights of one network into another of the same structure, whatever each was uploaded as.

Importers name layers differently and list them in another order, and an export may write one operator as several. So
what is compared is the graph of the layers alone: each gets a signature of what it is (kind, settings, shapes of its
weights) and of the signatures of the layers that it is made of, past whatever lies between. Equal outputs have equal
layers, which are paired from the outputs on; of those with equal signatures the first with the first. What lies between
is not compared but proved: with the other's weights the network must give the other's answers, in float64.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from core.errors import CutRefused, Fault, ModelRefused, RecipeInvalid
from core.graph.exactness import relative_error
from core.graph.network import Network
from core.report import Check

BOUND = 1e-6
"""Of the proof: settings that one format holds in float32, another in more, differ by less; operators by far more."""
MOST_TOLD = 30
"""Differences that are listed."""


def with_weights(network: Network, other: Network, images: Tensor | None = None) -> tuple[Network, Check]:
    """A copy of `network` with the weights of `other` (parameters, running statistics, fixed arrays of the graph), and
    the proof on `images` (B, ...), by default random ones, that it computes what `other` does.

    Raises `RecipeInvalid` with every difference where they are not the same network.
    """
    other = _at_the_same_size(network, other)
    layers, constants = _paired(network, other)
    taken = network.clone()
    with torch.no_grad():
        for name, theirs in layers.items():
            found = _weights(other.module.get_submodule(theirs))
            for key, tensor in _weights(taken.module.get_submodule(name)).items():
                tensor.copy_(found[key])
        for name, theirs in constants.items():
            ours = _attribute(taken.module, name)
            ours.copy_(_attribute(other.module, theirs).reshape(ours.shape))
    check = _proved(taken, other, network.example_input(batch=4) if images is None else images)
    return taken, check


def replay_weights(network: Network, entry: Mapping[str, Any], weights: Network | None) -> Network:
    """A plan entry of kind "weights", whose model (`sha256`) the caller may have: without it the structure is what is
    replayed, and the weights stay. Raises `CutRefused` where the entry or the model does not fit."""
    if not isinstance(entry.get("sha256"), str):
        fault = Fault("/sha256", f"{str(entry.get('sha256'))[:60]!r} is no hash", "the sha256 of the model's file")
        raise CutRefused("the plan entry names no model", faults=[fault])
    if weights is None:
        return network.clone()
    try:
        return with_weights(network, weights)[0]
    except RecipeInvalid as error:
        raise CutRefused(error.message, faults=[Fault("", fault.message) for fault in error.faults]) from None


def _at_the_same_size(network: Network, other: Network) -> Network:
    """`other` where it leaves the size of its inputs open and was read at another one."""
    if other.input_shapes == network.input_shapes:
        return other
    fits = len(network.inputs) == len(other.inputs) and all(
        len(spec.shape) - 1 == len(shape) and all(
            isinstance(said, str) or said == size for said, size in zip(spec.shape[1:], shape, strict=True)
        )
        for spec, shape in zip(other.inputs, network.input_shapes, strict=True)
    )  # fmt: skip
    try:
        shapes = network.input_shapes if fits else other.input_shapes
        return Network(other.module, other.inputs, other.outputs, other.origin, shapes)
    except ModelRefused:
        return other  # the inputs are a difference, then


def _proved(taken: Network, other: Network, images: Tensor) -> Check:
    wide = images.to("cpu", torch.float64)
    sides = [item.clone().to("cpu").to(torch.float64).eval() for item in (other, taken)]
    with torch.no_grad():
        error = relative_error(*(_tuple(side.logits(wide)) for side in sides))
    check = Check(name="exactness/weights", error=error, bound=BOUND, images=len(images), passed=bool(error <= BOUND))
    if not check.passed:
        raise _not_the_same(
            [f"the same layers, and yet other answers (by {error:.3g}): something between the layers differs"]
        )
    return check


def _tuple(outputs: Any) -> tuple[Tensor, ...]:
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)


# --- pairing ---------------------------------------------------------------------------------------------------------


def _paired(network: Network, other: Network) -> tuple[dict[str, str], dict[str, str]]:
    """Name in `network` -> name in `other`, of the layers and of the fixed arrays. Raises `RecipeInvalid`."""
    ours, theirs = _Layers(network), _Layers(other)
    if ours.outputs != theirs.outputs:
        raise _not_the_same(list(_differences(ours, theirs)))
    layers: dict[str, str] = {}
    nodes: dict[fx.Node, fx.Node] = {}
    differences = []
    waiting = [
        pair
        for one, two in zip(network.output_nodes(), other.output_nodes(), strict=True)
        for pair in zip(ours.made_of(one), theirs.made_of(two), strict=True)
    ]
    while waiting:
        one, two = waiting.pop()
        if one in nodes:
            if nodes[one] is not two:
                differences.append(f"{one.name} is used where the other has both {nodes[one].name} and {two.name}")
            continue
        nodes[one] = two
        if one.op == "call_module":
            known = layers.setdefault(str(one.target), str(two.target))
            if known != two.target:
                differences.append(f"{one.target} is used twice where the other has {known} and {two.target}")
        waiting += zip(ours.operands[one], theirs.operands[two], strict=True)
    if len(set(layers.values())) < len(layers) or len(set(nodes.values())) < len(nodes):
        differences.append("the other uses one layer where there are several here")
    if differences:
        raise _not_the_same(differences)
    return layers, _paired_constants(network, other)


def _paired_constants(network: Network, other: Network) -> dict[str, str]:
    """Arrays of floating-point numbers that belong to no layer, in the order of their first use: a scale, a class
    token. Where the other has others there, those that no training changes stay; the proof says whether that is right.
    """
    ours, theirs = _constants(network), _constants(other)
    sizes = [[_attribute(side.module, name).squeeze().shape for name in names]
             for side, names in ((network, ours), (other, theirs))]  # fmt: skip
    if sizes[0] == sizes[1]:
        return dict(zip(ours, theirs, strict=True))
    trained = [name for name in ours if isinstance(_attribute(network.module, name), nn.Parameter)]
    if trained:
        raise _not_the_same([f"{name}: the other has other arrays beside its layers" for name in trained])
    return {}


def _constants(network: Network) -> list[str]:
    found: dict[str, None] = {}
    for node in network.module.graph.find_nodes(op="get_attr", sort=True):
        value = _attribute(network.module, str(node.target))
        if value.is_floating_point() and value.numel() > 1:
            found[str(node.target)] = None
    return list(found)


class _Layers:
    """The graph of the layers and inputs of a network: what each is in words, its signature, and what it is made of."""

    def __init__(self, network: Network) -> None:
        self.words: dict[fx.Node, str] = {}
        self.operands: dict[fx.Node, list[fx.Node]] = {}
        self._signatures: dict[fx.Node, str] = {}
        self._sources: dict[fx.Node, set[fx.Node]] = {}
        self._places: dict[fx.Node, int] = {}
        layers = network.layers()
        inputs = network.module.graph.find_nodes(op="placeholder")
        for node in network.module.graph.nodes:
            below = {source for operand in node.all_input_nodes for source in self._sources[operand]}
            if node.op == "placeholder":
                shape = ", ".join(map(str, node.meta["shape"][1:]))
                self._add(node, f"input {inputs.index(node)} of shape ({shape})", set())
            elif node.op == "call_module" and node.target in layers:
                self._add(node, _described(layers[str(node.target)]), below)
            else:
                self._sources[node] = below
        self.outputs = [[self._signatures[item] for item in self.made_of(node)] for node in network.output_nodes()]

    def made_of(self, node: fx.Node) -> list[fx.Node]:
        """The layers and inputs next to `node`, itself if it is one."""
        return self._sorted(self._sources[node])

    def _sorted(self, nodes: Iterable[fx.Node]) -> list[fx.Node]:
        """By signature, equal ones in the order of execution."""
        return sorted(nodes, key=lambda node: (self._signatures[node], self._places[node]))

    def _add(self, node: fx.Node, words: str, below: set[fx.Node]) -> None:
        self.words[node] = words
        self.operands[node] = self._sorted(below)
        self._sources[node] = {node}
        self._places[node] = len(self._places)
        parts = [words, *(self._signatures[operand] for operand in self.operands[node])]
        self._signatures[node] = hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _differences(ours: _Layers, theirs: _Layers) -> Iterator[str]:
    """Layers and inputs that only one of them has, in the order of execution."""
    sides = [list(ours.words.items()), list(theirs.words.items())]
    words = [[item[1] for item in side] for side in sides]
    for kind, a, b, c, d in difflib.SequenceMatcher(a=words[0], b=words[1], autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        here, there = sides[0][a:b], sides[1][c:d]
        for index in range(max(len(here), len(there))):
            yield f"{_told(here, index)}; in the other {_told(there, index)}"
    if words[0] == words[1]:
        yield "the same layers are connected differently"


def _told(side: Sequence[tuple[fx.Node, str]], index: int) -> str:
    if index >= len(side):
        return "nothing"
    node, words = side[index]
    return words if node.op == "placeholder" else f"{node.target}, {words}"


def _not_the_same(differences: list[str]) -> RecipeInvalid:
    faults = [Fault("/weights", text, "a model of the same structure") for text in differences[:MOST_TOLD]]
    if len(differences) > MOST_TOLD:
        faults.append(Fault("/weights", f"and {len(differences) - MOST_TOLD} more differences"))
    more = f"; and {len(differences) - 1} more" if len(differences) > 1 else ""
    return RecipeInvalid(f"the model of weights is not the same network: {differences[0]}{more}", faults=faults)


# --- looking at layers -----------------------------------------------------------------------------------------------


def _described(layer: nn.Module) -> str:
    """As torch shows it, numbers as float32 has them, without what no answer depends on."""
    settings = [part for part in layer.extra_repr().split(", ") if not part.startswith("momentum=")]
    shapes = [f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(_weights(layer).items())]
    return f"{type(layer).__name__}({', '.join(map(_rounded, settings))}) with {', '.join(shapes)}"


def _weights(layer: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in layer.state_dict().items() if name != "num_batches_tracked"}


def _rounded(setting: str) -> str:
    name, sign, value = setting.rpartition("=")
    try:
        return f"{name}{sign}{float(value):.6g}"
    except ValueError:
        return setting


def _attribute(module: nn.Module, name: str) -> Tensor:
    path, _, last = name.rpartition(".")
    found = getattr(module.get_submodule(path), last)
    assert isinstance(found, Tensor)
    return found
