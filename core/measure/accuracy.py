"""What an ONNX file says to a dataset in ONNX Runtime: of what is delivered, not of the torch network behind it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.data.datasets import Dataset
from core.data.source import SplitName
from core.measure.sessions import Floats, Session, in_own_thread, open_session, static_batch
from core.report import SplitScore
from core.tasks.classification import Classification
from core.tasks.task import Figures, Gathering, OutputKind, Task


@in_own_thread
def score_file(
    path: Path,
    dataset: Dataset,
    split: SplitName,
    *,
    batch_size: int,
    task: Task | None = None,
    output: OutputKind = "logits",
    threads: int = 1,
    device: str = "cpu",
    most: int | None = None,
) -> tuple[SplitScore, Figures]:
    """Accuracy, loss and measures of the file over a split, and the figures that they are made of, image by image.

    `most`: of a split with more images, that many are taken, drawn by a fixed seed.

    `batch_size`: images per run; time and memory depend on it, nothing else (see `core.batch_size`). A file that fixes
    its batch size is given batches of that size, the last one filled up. `task`: classification, where none is given.
    `output`: what the first output is. Raises `DeviceUnavailable`, or `ValueError` where the outputs are not what the
    task is about.
    """
    task = Classification() if task is None else task
    session = open_session(path, threads=threads, device=device)
    found = Gathering(len(dataset.splits[split]) if most is None else min(most, len(dataset.splits[split])))
    images = 0
    drawn = most is not None and most < len(dataset.splits[split])
    for x, y in dataset.batches(split, batch_size, shuffle=drawn):
        if drawn and most is not None:
            x, y = x[: most - images], y[: most - images]
        said = task.of_file(_outputs(session, x.numpy()), output, len(dataset.classes))
        found.add(task.figures(said, task.wanted(x, y)))
        images += len(y)
        if images == most:
            break
    figures = found.figures()
    score = task.score(figures)
    return SplitScore(images=images, accuracy=score.accuracy, loss=score.loss, measures=dict(score.measures)), figures


def _outputs(session: Session, x: Floats) -> list[NDArray[np.float32]]:
    """Every output, (B, ...), of inputs (B, ...)."""
    name = session.get_inputs()[0].name
    fixed = static_batch(session)
    if fixed is None:
        runs = [session.run(None, {name: x})]
    else:
        filled = np.concatenate([x, np.repeat(x[-1:], -len(x) % fixed, axis=0)])
        runs = [session.run(None, {name: filled[at : at + fixed]}) for at in range(0, len(filled), fixed)]
    return [np.concatenate(parts)[: len(x)] for parts in zip(*runs, strict=True)]
