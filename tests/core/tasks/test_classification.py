"""What a classifier's answers come to, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from core.tasks.classification import Classification, confusion, paired_difference


def test_a_difference_of_answers_to_the_same_images() -> None:
    """By hand: of 100 images 90 both, 6 only we, 2 only they, 2 nobody."""
    ours = torch.tensor([True] * 96 + [False] * 4)
    theirs = torch.tensor([True] * 90 + [False] * 6 + [True] * 2 + [False] * 2)
    middle, low, high = paired_difference(ours, theirs)
    assert middle == pytest.approx(0.04)
    centre, spread = 4 / 102, 1.96 * math.sqrt(9 - 16 / 102) / 102
    assert (low, high) == pytest.approx((centre - spread, centre + spread))
    assert low < 0 < high
    middle, low, high = paired_difference(ours, ours)  # nobody differs: still no certainty
    assert (middle, low < 0 < high) == (0, True)


def test_top_1_top_5_and_the_confusion_of_classes() -> None:
    """By hand: six classes, four images."""
    logits = torch.tensor(
        [
            [5.0, 4, 3, 2, 1, 0],  # of class 0: right
            [5.0, 4, 3, 2, 1, 0],  # of class 5: the one that is not among five
            [0.0, 4, 3, 2, 1, 5],  # of class 1: second
            [0.0, 1, 2, 3, 4, 5],  # of class 5: right
        ]
    )
    task, labels = Classification(), torch.tensor([0, 5, 1, 5])
    figures = task.figures((logits,), (labels,))
    score = task.score(figures)
    assert (score.accuracy, score.measures, score.images) == (0.5, {"top_5": 0.75}, 4)
    by_hand = [math.log(sum(math.exp(number) for number in row)) - row[label]
               for row, label in zip(logits.tolist(), labels.tolist(), strict=True)]  # fmt: skip
    assert score.loss == pytest.approx(sum(by_hand) / 4)
    wanted = torch.zeros(6, 6, dtype=torch.int64)
    for of, taken_for in ((0, 0), (5, 0), (1, 5), (5, 5)):
        wanted[of, taken_for] += 1
    assert torch.equal(confusion(figures, 6), wanted)


def test_five_classes_have_no_top_5() -> None:
    task = Classification()
    assert task.score(task.figures((torch.eye(5),), (torch.arange(5),))).measures == {}
