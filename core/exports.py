"""A network as the file that it would be exported as: its bytes, and its latency against the original's."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from core.graph.batch_norm_folding import fold, foldable
from core.graph.counts import INSERTED_BEHIND
from core.graph.export import onnx_bytes, write_onnx
from core.graph.network import Network
from core.measure.latency_ratio import measure_latency_ratio
from core.measure.sessions import Floats
from core.recipe import Export
from core.report import LatencyRatio

FILE = "pruned.onnx"


class Exports:
    """Implements `core.targets.Exports` by writing and running real files.

    Args:
        export: as the recipe says.
        folder: for files to be measured; made where it is not there.
        inputs: makes what is run, float32 (B, ...); called where a latency is asked for.
        original_file: gives the upload, where ONNX Runtime opens it; else latency is held against the original's own
            export.
        measured: called behind each measurement, so that its time is not taken for that of training.
    """

    def __init__(
        self,
        original: Network,
        *,
        export: Export,
        folder: Path,
        inputs: Callable[[], Floats],
        original_file: Callable[[], Path] | None = None,
        measured: Callable[[], None] = lambda: None,
    ) -> None:
        self._original = original
        self._export = export
        self._folder = folder
        self._inputs = inputs
        self._given = original_file
        self._measured = measured

    @cached_property
    def original_bytes(self) -> int:
        """Of the original's own export: an upload may be longer, by names and comments that pruning does not touch."""
        return self.bytes(self._original)

    def bytes(self, network: Network) -> int:
        """What `export` will write of `network`, weights in a file beside it included: it is written out in memory."""
        limit = self._export.external_data_bytes
        return onnx_bytes(as_exported(network), FILE, opset=self._export.opset, external_data_bytes=limit)

    def latency(self, network: Network) -> LatencyRatio:
        """Measured in this process, which takes some seconds; on the CPU wherever `network` is."""
        candidate = self._write(network, "candidate")
        found = measure_latency_ratio(self._original_file, candidate, self._inputs())
        for part in self._folder.glob("candidate.onnx*"):
            part.unlink()
        self._measured()
        return found

    @cached_property
    def _original_file(self) -> Path:
        return self._given() if self._given is not None else self._write(self._original, "original")

    def _write(self, network: Network, name: str) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{name}.onnx"
        limit = self._export.external_data_bytes
        write_onnx(as_exported(network), path, opset=self._export.opset, external_data_bytes=limit)
        return path


def as_exported(network: Network) -> Network:
    """A copy on the CPU, in eval mode, with the BatchNorms folded that were inserted for the training alone."""
    inserted = {name for name, layer in network.layers().items() if hasattr(layer, INSERTED_BEHIND)}
    ready = [name for name in foldable(network)[0] if name in inserted] if inserted else []
    copy = fold(network, ready)[0] if ready else network.clone()
    return copy.to("cpu").eval()
