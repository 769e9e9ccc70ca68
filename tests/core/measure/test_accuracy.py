from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from core.data.datasets import Dataset, load_dataset
from core.job import DatasetInput
from core.measure.accuracy import score_file
from core.tasks.classification import right
from core.tasks.task import OutputKind

MakeFile = Callable[..., Path]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(DatasetInput(path=None, sha256=None, format="digits"))


@pytest.fixture(scope="module")
def weight(digits: Dataset) -> np.ndarray:
    """A classifier that is right more often than not: the mean image of each class, centred."""
    train = digits.splits["train"]
    x = digits.preprocess(train.x).flatten(1)
    means = torch.stack([x[train.y == label].mean(0) for label in range(10)])
    return (means - means.mean(0)).numpy()


def expected(digits: Dataset, weight: np.ndarray) -> tuple[float, float]:
    test = digits.splits["test"]
    logits = digits.preprocess(test.x).flatten(1).double() @ torch.from_numpy(weight).double().T
    return (logits.argmax(1) == test.y).double().mean().item(), functional.cross_entropy(logits, test.y).item()


@pytest.mark.parametrize("batch", ["n", 1, 7])
@pytest.mark.parametrize(
    ("end", "output"), [(None, "logits"), ("Softmax", "probabilities"), ("LogSoftmax", "log_probabilities")]
)
def test_scores_are_torch_s(
    digits: Dataset, weight: np.ndarray, linear_file: MakeFile, batch: int | str, end: str | None, output: OutputKind
) -> None:
    score, figures = score_file(
        linear_file(weight, batch=batch, end=end), digits, "test", batch_size=100, output=output
    )
    accuracy, loss = expected(digits, weight)
    assert accuracy > 0.5
    assert score.images == len(figures["label"]) == 359
    assert right(figures).double().mean() == score.accuracy
    assert score.accuracy == pytest.approx(accuracy)
    assert score.loss == pytest.approx(loss, rel=1e-5)


def test_a_saturated_softmax_has_a_finite_loss(digits: Dataset, weight: np.ndarray, linear_file: MakeFile) -> None:
    score, _ = score_file(
        linear_file(weight * 1e4, end="Softmax"), digits, "test", batch_size=100, output="probabilities"
    )
    assert np.isfinite(score.loss)


def test_some_images_of_a_split(digits: Dataset, weight: np.ndarray, linear_file: MakeFile) -> None:
    """The same ones each time, whatever the size of batches."""
    file = linear_file(weight)
    few, figures = score_file(file, digits, "train", batch_size=50, most=120)
    assert (few.images, len(figures["label"])) == (120, 120)
    again, _ = score_file(file, digits, "train", batch_size=50, most=120)
    assert again == few
    everything = score_file(file, digits, "train", batch_size=50)
    assert score_file(file, digits, "train", batch_size=50, most=10_000)[0] == everything[0]


def test_the_batch_size_does_not_matter(digits: Dataset, weight: np.ndarray, linear_file: MakeFile) -> None:
    file = linear_file(weight)
    scores = [score_file(file, digits, "validation", batch_size=size)[0] for size in (1, 64, 1000)]
    assert {score.accuracy for score in scores} == {scores[0].accuracy}
    assert [score.loss for score in scores] == pytest.approx([scores[0].loss] * 3)


def test_another_number_of_outputs_is_an_error(digits: Dataset, weight: np.ndarray, linear_file: MakeFile) -> None:
    with pytest.raises(ValueError, match="not \\(179, 10\\)"):
        score_file(linear_file(weight[:7]), digits, "validation", batch_size=179)
