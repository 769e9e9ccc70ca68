"""Checkpoints of a `train` step that are kept: the network as it was after an epoch, as a file that is a model.

They have what every result has: the upload's structure, names and opset, and a proof of parity. A later job takes one
as its model, or as its `weights`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from core.batchnorm import without_batch_norm
from core.errors import Fault, RecipeInvalid
from core.events import Emit
from core.graph.export import check_parity, write_onnx
from core.graph.external_data import MOST_INLINE_BYTES
from core.graph.network import Network
from core.report import KeptCheckpoint
from core.state import write_atomically

PROOF_IMAGES = 4


class Keep(Protocol):
    def __call__(self, network: Network, *, step: int, epoch: int, accuracy: float) -> KeptCheckpoint: ...


class Keeper:
    """Writes `out/checkpoint_step<step>_epoch<epoch>.onnx` and tells of it with the event `artifact`.

    The event comes before that of the run's own checkpoint of the same moment: whoever goes on from there has the file.
    Done again, after a crash, it writes the same bytes.

    Args:
        opset: of the files; None keeps the upload's.
        inserted: the plan entry of BatchNorms that the steps have been given, which a file goes without.
        images: real inputs for the proofs, (images, ...).
    """

    def __init__(
        self, workdir: Path, *, opset: int | None, inserted: Mapping[str, Any] | None, images: Tensor, emit: Emit
    ) -> None:
        self._workdir = workdir
        self._opset = opset
        self._inserted = inserted
        self._images = images
        self._emit = emit

    def __call__(self, network: Network, *, step: int, epoch: int, accuracy: float) -> KeptCheckpoint:
        """Keeps `network`, which stays as it is. accuracy: on validation, 0-1.

        Raises `ParityFailed` or `ExactnessFailed` where a proof does not hold, `RecipeInvalid` where one file cannot
        hold the network.
        """
        if sum(item.numel() * item.element_size() for item in network.state_dict().values()) > MOST_INLINE_BYTES:
            message = f"a checkpoint is one file, which holds {MOST_INLINE_BYTES} bytes of weights at most"
            raise RecipeInvalid(message, faults=[Fault(f"/steps/{step}/checkpoint_every", message, "null")])
        twin = network.clone().to("cpu").eval()
        if self._inserted is not None:
            twin = without_batch_norm(twin, self._inserted, self._images)[0]
        name, scratch = f"checkpoint_step{step}_epoch{epoch:04d}.onnx", self._workdir / "checkpoint.onnx"
        write_onnx(twin, scratch, opset=self._opset)
        check = check_parity(twin, scratch, self._images)
        content = scratch.read_bytes()
        write_atomically(self._workdir / "out" / name, content)
        scratch.unlink()
        kept = KeptCheckpoint(
            name=name,
            step=step,
            epoch=epoch,
            validation_accuracy=accuracy,
            sha256=hashlib.sha256(content).hexdigest(),
            bytes=len(content),
            parity=check.error,
        )
        self._emit("artifact", file=f"out/{name}", step=step, epoch=epoch, validation_accuracy=accuracy)
        return kept
