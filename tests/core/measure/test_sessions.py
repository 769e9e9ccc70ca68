from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from core.measure.sessions import input_shape, open_session, static_batch

MakeFile = Callable[..., Path]


def test_a_static_batch_is_seen(linear_file: MakeFile) -> None:
    assert static_batch(open_session(linear_file(np.ones((2, 64)), batch="n", name="a"))) is None
    assert static_batch(open_session(linear_file(np.ones((2, 64)), batch=4, name="b"))) == 4


def test_the_input_has_the_file_s_shape(linear_file: MakeFile) -> None:
    session = open_session(linear_file(np.ones((2, 64))))
    assert input_shape(session, 3, (1, 8, 8)) == (3, 1, 8, 8)


@pytest.mark.parametrize("example", [(1, 9, 8), (64,), (1, 1, 8, 8)])
def test_another_shape_is_an_error(linear_file: MakeFile, example: tuple[int, ...]) -> None:
    session = open_session(linear_file(np.ones((2, 64))))
    with pytest.raises(ValueError, match=r"\[1, 8, 8\] without the batch, not"):
        input_shape(session, 1, example)
