from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from core.measure.latency import measure_latency
from core.measure.layers import node_milliseconds
from core.measure.sessions import in_own_thread, input_shape, open_session, static_batch

MakeFile = Callable[..., Path]


opened = in_own_thread(open_session)


def test_a_static_batch_is_seen(linear_file: MakeFile) -> None:
    assert static_batch(opened(linear_file(np.ones((2, 64)), batch="n", name="a"))) is None
    assert static_batch(opened(linear_file(np.ones((2, 64)), batch=4, name="b"))) == 4


def test_the_input_has_the_file_s_shape(linear_file: MakeFile) -> None:
    session = opened(linear_file(np.ones((2, 64))))
    assert input_shape(session, 3, (1, 8, 8)) == (3, 1, 8, 8)


@pytest.mark.parametrize("example", [(1, 9, 8), (64,), (1, 1, 8, 8)])
def test_another_shape_is_an_error(linear_file: MakeFile, example: tuple[int, ...]) -> None:
    session = opened(linear_file(np.ones((2, 64))))
    with pytest.raises(ValueError, match=r"\[1, 8, 8\] without the batch, not"):
        input_shape(session, 1, example)


def test_a_measurement_leaves_the_thread_s_arithmetic_as_it_is(linear_file: MakeFile) -> None:
    file, images = linear_file(np.ones((3, 64))), np.ones((1, 1, 8, 8), dtype=np.float32)
    measure_latency({"a": file}, images, budget_seconds=0.05)
    node_milliseconds(file, images, runs=1)
    smallest = np.array([np.finfo(np.float64).tiny])
    assert (smallest / 4)[0] > 0, "denormals are flushed"


def test_what_is_measured_is_measured_with_denormals_flushed(linear_file: MakeFile) -> None:
    file = linear_file(np.ones((3, 64)))
    smallest = torch.tensor([torch.finfo(torch.float64).tiny], dtype=torch.float64)
    assert in_own_thread(lambda: [open_session(file), smallest / 4][1])().item() == 0
