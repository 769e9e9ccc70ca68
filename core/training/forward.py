"""How a network computes in a training: in which precision, compiled or not, and which features it keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from core.graph.network import Network
from core.training_settings import Precision, Training

DTYPES: Mapping[Precision, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}
BACKEND = "inductor"
_TOLD = 200  # characters of what a compiler says


class Forward:
    """What runs a network's graph in place of itself, while it `holds`.

    - `precision`: under autocast; weights stay float32, and what comes out is float32 again, so that losses are.
    - `compile`: by `torch.compile`, one program for each size of a batch, so that which one runs does not depend on
      what ran before a checkpoint. The graph's modules, parameters and buffers are the same objects. Where it fails,
      the graph runs as it is, and `failed` is told why, once.
    - `keep`: names of nodes whose values are left in `features` after each run, in that order; the numbers are those
      of the same graph with more outputs.
    """

    def __init__(
        self,
        training: Training,
        device: torch.device,
        *,
        keep: Sequence[str] = (),
        failed: Callable[[str], None] | None = None,
    ) -> None:
        self._device = device
        self._dtype = DTYPES.get(training.precision)
        self._keep = tuple(keep)
        self._compiles = training.compile and failed is not None
        self._failed = failed
        self._plain: dict[fx.GraphModule, fx.GraphModule] = {}
        self._compiled: dict[fx.GraphModule, Any] = {}
        self._trained: tuple[str, ...] | None = None
        self.features: list[Tensor] | None = None

    def __call__(self, module: fx.GraphModule, inputs: tuple[Tensor, ...]) -> Any:
        if module not in self._plain:
            self._plain[module] = with_outputs(module, self._keep) if self._keep else module
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None):
            outputs = self._run(self._plain[module], inputs)
        if self._dtype is not None:
            outputs = tree_map_only(Tensor, _as_float32, outputs)
        if self._keep:
            outputs, self.features = outputs
        return outputs

    @contextmanager
    def holds(self, network: Network, trained: Sequence[str] = ()) -> Iterator[None]:
        """Meanwhile `network` runs through this.

        What was compiled while other parameters were `trained`, or for another training, is forgotten: torch compiles a
        graph a few times only, and does not look whether layers have other hooks now.
        """
        if self._compiles and self._trained != (chosen := tuple(trained)):
            torch.compiler.reset()
            self._compiled.clear()
            self._trained = chosen
        network.through = self
        try:
            yield
        finally:
            network.through = None

    def _run(self, module: fx.GraphModule, inputs: tuple[Tensor, ...]) -> Any:
        if not self._compiles:
            return module(*inputs)
        try:
            if module not in self._compiled:
                self._compiled[module] = torch.compile(module, dynamic=False, backend=BACKEND)
            return self._compiled[module](*inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler may raise: it is no reason to lose the training
            outputs = module(*inputs)  # its own error, where that is what was wrong
            self._compiles = False
            assert self._failed is not None
            self._failed(" ".join(f"{type(error).__name__}: {error}".split())[:_TOLD])
            return outputs


def with_outputs(module: fx.GraphModule, names: Sequence[str]) -> fx.GraphModule:
    """The same modules under a graph that also gives the values of the nodes called `names`: (outputs, values)."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(module.graph, copied)
    (output,) = module.graph.find_nodes(op="output")
    by_name = {node.name: copy for node, copy in copied.items()}
    graph.output((fx.map_arg(output.args[0], lambda node: copied[node]), [by_name[name] for name in names]))
    return fx.GraphModule(module, graph)


def _as_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
