"""Accuracy and loss of an ONNX file in ONNX Runtime: of what is delivered, not of the torch network behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from core.data.datasets import Dataset
from core.data.source import SplitName
from core.measure.sessions import Floats, Session, in_own_thread, open_session, static_batch
from core.report import SplitScore

OutputKind = Literal["logits", "probabilities", "log_probabilities"]


@in_own_thread
def score_file(
    path: Path,
    dataset: Dataset,
    split: SplitName,
    *,
    batch_size: int,
    output: OutputKind = "logits",
    threads: int = 1,
    device: str = "cpu",
    most: int | None = None,
) -> tuple[SplitScore, NDArray[np.bool_]]:
    """Top-1 accuracy and mean cross-entropy (nats) of the file's first output over a split, and which images of it are
    right, in their order.

    `most`: of a split with more images, that many are taken, drawn by a fixed seed.

    `batch_size`: images per run; time and memory depend on it, nothing else (see `core.batch_size`). A file that fixes
    its batch size is given batches of that size, the last one filled up. `output`: what the model ends in;
    probabilities are those of a final Softmax, log_probabilities of a LogSoftmax. Raises `DeviceUnavailable`, or
    `ValueError` where the output is not one number per class.
    """
    session = open_session(path, threads=threads, device=device)
    right: list[NDArray[np.bool_]] = []
    loss, images = 0.0, 0
    drawn = most is not None and most < len(dataset.splits[split])
    for x, y in dataset.batches(split, batch_size, shuffle=drawn):
        if drawn and most is not None:
            x, y = x[: most - images], y[: most - images]
        scores = _outputs(session, x.numpy()).astype(np.float64)  # (B, K)
        labels = y.numpy()
        if scores.shape != (len(labels), len(dataset.classes)):
            wanted = f"({len(labels)}, {len(dataset.classes)})"
            raise ValueError(f"the file's output for {len(labels)} images is {scores.shape}, not {wanted}")
        right.append(scores.argmax(1) == labels)
        loss += float(-_log_likelihoods(scores, output)[np.arange(len(labels)), labels].sum())
        images += len(labels)
        if images == most:
            break
    correct = np.concatenate(right)
    return SplitScore(images=images, accuracy=int(correct.sum()) / images, loss=loss / images), correct


def _outputs(session: Session, x: Floats) -> NDArray[np.float32]:
    """(B, K) of inputs (B, ...)."""
    name, first = session.get_inputs()[0].name, [session.get_outputs()[0].name]
    fixed = static_batch(session)
    if fixed is None:
        outputs = [session.run(first, {name: x})[0]]
    else:
        filled = np.concatenate([x, np.repeat(x[-1:], -len(x) % fixed, axis=0)])
        outputs = [session.run(first, {name: filled[at : at + fixed]})[0] for at in range(0, len(filled), fixed)]
    joined = np.concatenate(outputs)[: len(x)]
    return joined.reshape(len(x), -1)  # (B, K, 1, 1) of fully convolutional models too


def _log_likelihoods(scores: NDArray[np.float64], output: OutputKind) -> NDArray[np.float64]:
    """Natural logarithms of the class probabilities, (B, K)."""
    if output == "log_probabilities":
        return scores
    if output == "probabilities":
        # a float32 softmax underflows to 0, which would make the loss infinite
        return np.log(np.maximum(scores, np.finfo(np.float32).tiny))
    shifted = scores - scores.max(1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result
