"""What the names of an exported program stand for while it becomes a canonical graph, besides plain graph nodes.

A program is exported for one batch size, fixed or symbolic; the canonical graph has the batch in front of every
activation. What an exporter folds into the batch or moves away from the front for a moment (a linear layer over rows,
attention) is carried as `Turned`, and becomes a node when the batch is in front again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from core.graph.turned import Turned

# Two batch sizes that no product of other sizes is likely to be a multiple of, so that the batch is told from the rest.
BATCHES = (7_919, 7_927)


@dataclass(frozen=True)
class Constant:
    """A tensor that does not depend on the inputs. `key` tells equal ones: it is made of what it was computed from.

    `parameter` is the name of the weight that it is, or is computed from alone (a transposed weight keeps its name).
    """

    value: Tensor
    key: int
    parameter: str | None = None
    trained: bool = False


@dataclass(frozen=True)
class Filled:
    """A tensor of one number throughout, whose sizes may follow the batch. `like` is a node of its shape, if known."""

    number: float
    sizes: tuple[Any, ...]
    like: fx.Node | None = None


@dataclass(frozen=True)
class Spread:
    """A constant that is repeated up to `sizes`, which follow the batch or open dimensions, as ATen's `expand` does."""

    constant: Constant
    sizes: tuple[Any, ...]


@dataclass(frozen=True)
class Merged:
    """The value of `node` as one example with the channels of all: (1, N C, ...)."""

    node: fx.Node


Activation = fx.Node | Turned


@dataclass(frozen=True)
class Call:
    """One call of an ATen operator: `name` is the node's, `operator` such as "conv2d.default" (of an in-place one the
    operator that makes a new tensor), `args` by their names in ATen's schema with defaults filled in, `scope` the
    module that made the call and `scope_class` its class, both "" where that is not known. `strides` holds sizes and
    strides in memory of the tensors among the arguments, where they are known and fixed."""

    name: str
    operator: str
    args: Mapping[str, Any]
    strides: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    scope: str = ""
    scope_class: str = ""

    def __getitem__(self, key: str) -> Any:
        return self.args[key]
