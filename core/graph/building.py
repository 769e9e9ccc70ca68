"""A canonical graph in the making, whatever it is read from: shapes are worked out as nodes are added."""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx, nn

from core.errors import ModelTooLarge
from core.graph.limits import MAX_ACTIVATION_ELEMENTS, MAX_RANK
from core.graph.shapes import call_phantom, layer_phantom

_SHADOWED = frozenset({*dir(builtins), "self", "torch", "device", "inf", "nan", "NoneType", "fx_pytree", "pytree"})
_RESERVED = frozenset({*keyword.kwlist, "self", *dir(fx.GraphModule), *dir(nn.Module())})


class Building:
    """Adds nodes to `graph` and layers and constants to `root`, from which the canonical `fx.GraphModule` is made.

    `dynamic_space` says that a dimension behind the batch is dynamic too: the sizes seen here are then only examples,
    and every shape is worked out for a second example as well, to tell which sizes follow them.
    """

    def __init__(self, *, dynamic_space: bool = False) -> None:
        self.dynamic_space = dynamic_space
        self.graph = fx.Graph()
        self.root = nn.Module()
        self._phantoms: dict[fx.Node, Tensor] = {}
        self._others: dict[fx.Node, Tensor] = {}  # of the second example; none where it does not fit
        self._taken: set[str] = set()
        self._prefixes: set[str] = set()

    def add_input(self, name: str, shape: tuple[int, ...], other: tuple[int, ...]) -> fx.Node:
        """An input by the shape of one example, and of another with other sizes where they are dynamic."""
        made = self.graph.placeholder(self._argument(name))
        self._note(made, torch.empty(1, *shape, device="meta"))
        self._others[made] = torch.empty(1, *other, device="meta")
        return made

    def add_constant(self, name: str, value: Tensor) -> fx.Node:
        """A bare constant: a buffer, or where `value` is an `nn.Parameter` one that training changes."""
        path = self.unique(name)
        self._attach(path, value)
        made = self.graph.get_attr(path)
        self._note(made, torch.empty_like(value, device="meta", requires_grad=False))
        self._others[made] = self._phantoms[made]
        return made

    def call(self, target: Any, *args: Any, **options: Any) -> fx.Node:
        """An ATen call. Its shape is worked out at once, on the meta device. `options` are arguments that ATen takes
        by name only."""
        made = self.graph.call_function(target, args, options)
        self._note(made, call_phantom(target, fx.map_arg(args, lambda item: self._phantoms[item]), options))
        self._note_other(made, lambda: call_phantom(target, fx.map_arg(args, lambda item: self._others[item]), options))
        return made

    def add_layer(self, name: str, layer: nn.Module) -> str:
        """Attaches a layer as `name`, numbered where that is taken. Returns the name it got."""
        name = self.unique(name)
        self._attach(name, layer)
        return name

    def remove(self, name: str) -> None:
        """Detaches a layer or constant that no node is to use any more. Its name is free again."""
        path, _, last = name.rpartition(".")
        delattr(self.root.get_submodule(path), last)
        self._taken.discard(name)
        self._prefixes = {prefix for taken in self._taken for prefix in _prefixes(taken)}

    def apply(self, name: str, x: fx.Node) -> fx.Node:
        """The attached layer `name` applied to `x`."""
        made = self.graph.call_module(name, (x,))
        layer = self.root.get_submodule(name).eval()
        self._note(made, layer_phantom(layer, self._phantoms[x]))
        self._note_other(made, lambda: layer_phantom(layer, self._others[x]))
        return made

    def other_shape(self, x: fx.Node) -> tuple[int, ...]:
        """The shape of `x` for the second example; that of the first where the second does not fit the graph, which
        is then of one size."""
        return tuple(self._others.get(x, self._phantoms[x]).shape)

    def is_open(self, x: fx.Node, dim: int) -> bool:
        """Whether dimension `dim` of `x` follows a dynamic dimension of an input."""
        return bool(self.other_shape(x)[dim] != x.meta["shape"][dim])

    def unique(self, name: str) -> str:
        """`name`, numbered where it is taken or would lie inside another layer.

        fx writes it into the Python that it makes of the graph and runs: whatever is no plain word goes from it here,
        wherever it comes from.
        """
        name = readable(name) or "value"
        if _prefixes(name) & self._taken:  # no number behind the last part would help
            name = name.replace(".", "_")
        wanted, number = name, 2
        while wanted in self._taken or wanted in self._prefixes or _prefixes(wanted) & self._taken:
            wanted, number = f"{name}_{number}", number + 1
        self._taken.add(wanted)
        self._prefixes |= _prefixes(wanted)
        return wanted

    def _argument(self, name: str) -> str:
        """`name` as an argument of the Python that fx makes: a word of its own that hides nothing."""
        word = readable(name).replace(".", "_")
        if not word.isidentifier() or word in _SHADOWED:
            word = f"input_{word}".rstrip("_")
        taken = {str(node.target) for node in self.graph.find_nodes(op="placeholder")}
        wanted, number = word, 2
        while wanted in taken:
            wanted, number = f"{word}_{number}", number + 1
        return wanted

    def _note(self, made: fx.Node, phantom: Tensor) -> None:
        if phantom.numel() > MAX_ACTIVATION_ELEMENTS:
            size = phantom.numel()
            raise ModelTooLarge(f"node {made.name!r} makes {size} numbers; at most {MAX_ACTIVATION_ELEMENTS} are taken")
        if phantom.dim() > MAX_RANK:
            raise ModelTooLarge(f"node {made.name!r} makes {phantom.dim()} dimensions; at most {MAX_RANK} are taken")
        self._phantoms[made] = phantom
        made.meta["shape"] = tuple(phantom.shape)
        made.meta["dtype"] = phantom.dtype

    def _note_other(self, made: fx.Node, compute: Callable[[], Tensor]) -> None:
        if self.dynamic_space and all(item in self._others for item in made.all_input_nodes):
            with suppress(RuntimeError, ValueError, IndexError, TypeError):
                self._others[made] = compute()

    def _attach(self, path: str, value: nn.Module | Tensor) -> None:
        owner = self.root
        *parents, last = path.split(".")
        for parent in parents:
            if parent not in owner._modules:
                owner.add_module(parent, nn.Module())
            owner = owner.get_submodule(parent)
        if isinstance(value, nn.Module):
            owner.add_module(last, value)
        elif isinstance(value, nn.Parameter):
            owner.register_parameter(last, value)
        else:
            owner.register_buffer(last, value)


def _prefixes(path: str) -> set[str]:
    parts = path.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts))}


def readable(name: str) -> str:
    """`name` as a dotted path of words that fx may write into Python and that modules do not use themselves."""
    pieces = [re.sub(r"\W+", "_", piece, flags=re.ASCII).strip("_") for piece in name[:200].split(".")]
    return ".".join(f"{piece}_" if piece in _RESERVED else piece for piece in pieces if piece)
