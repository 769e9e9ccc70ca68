"""What a model's outputs are declared as, what they really are, and what of it is known before the images' size is."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import ModelRefused
from core.graph.importers import read_onnx
from core.graph.network import Network
from tests.core.graph.onnx_texts import model, saved

POOLED = "a = Conv(x, w)  b = GlobalAveragePool(a)  y = Flatten(b)"
WEIGHTS = {"w": (5, 4, 3, 3)}


def read(folder: Path, body: str, *, inputs: str, outputs: str) -> Network:
    return read_onnx(saved(model(body, weights=WEIGHTS, inputs=inputs, outputs=outputs), folder))


def test_an_open_number_of_classes_is_computed(tmp_path: Path) -> None:
    network = read(tmp_path, POOLED, inputs="float[batch,4,6,6] x", outputs="float[batch,k] y")
    assert network.outputs[0].shape == ("batch", "k")  # the export stays as it was uploaded
    assert network.computed_outputs()[0].shape == ("batch", 5)
    assert network.known_outputs()[0].shape == ("batch", 5)


@pytest.mark.parametrize(
    ("body", "outputs", "known"),
    [
        (POOLED, "float[batch,k] y", ("batch", 5)),
        ("y = Conv(x, w)", "float[batch,k,p,q] y", ("batch", 5, "p", "q")),
        ("a = Conv(x, w)  y = Flatten(a)", "float[batch,k] y", ("batch", "k")),
    ],
)
def test_what_follows_an_open_size_stays_open(
    tmp_path: Path, body: str, outputs: str, known: tuple[int | str, ...]
) -> None:
    network = read(tmp_path, body, inputs="float[batch,4,h,w] x", outputs=outputs)
    assert network.known_outputs()[0].shape == known
    assert all(isinstance(size, int) for size in network.computed_outputs()[0].shape[1:])


@pytest.mark.parametrize("declared", ["float[batch,7] y", "float[batch,5,1,1] y"])
def test_an_output_that_is_not_as_declared_is_refused(tmp_path: Path, declared: str) -> None:
    with pytest.raises(ModelRefused) as caught:
        read(tmp_path, POOLED, inputs="float[batch,4,6,6] x", outputs=declared)
    (fault,) = caught.value.faults
    assert fault.pointer == "/graph/output/0"
    assert fault.expected == "(batch, 5), as computed"


def test_the_batch_may_be_declared_as_it_likes(tmp_path: Path) -> None:
    assert read(tmp_path, POOLED, inputs="float[batch,4,6,6] x", outputs="float[1,5] y").outputs[0].shape == (1, 5)


def test_a_declared_size_chooses_the_example_size(tmp_path: Path) -> None:
    """128: (128 - 2)² · 5 numbers."""
    body = "a = Conv(x, w)  y = Flatten(a)"
    network = read(tmp_path, body, inputs="float[batch,4,h,w] x", outputs="float[batch,79380] y")
    assert network.input_shapes == ((4, 128, 128),)
