from __future__ import annotations

import pytest

from core.batch_size import inference_batch
from core.graph.architectures import build


@pytest.mark.parametrize(
    ("name", "size", "images"),
    [
        ("resnet20", 32, 256),
        ("vgg16", 32, 128),
        ("vgg16", 224, 2**23 // (64 * 224 * 224)),
    ],
)
def test_large_activations_make_small_batches(name: str, size: int, images: int) -> None:
    assert inference_batch(build(name, image_size=(size, size))) == images


def test_an_accelerator_gets_more() -> None:
    network = build("vgg16", image_size=(224, 224))
    network.module.to("meta")
    assert inference_batch(network) == 2**26 // (64 * 224 * 224)


def test_a_caller_may_want_fewer_and_gets_one_at_least() -> None:
    assert inference_batch(build("resnet20"), most=128) == 128
    assert inference_batch(build("small_cnn", image_size=(4096, 2048))) == 1
