"""Reconstruction: pixels are what they were before normalisation, the loss by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.errors import BaselineNearChance
from core.fit import fit_faults
from core.graph.lowering import trace
from core.graph.network import TensorSpec
from core.job import Preprocess
from core.tasks import Reconstruction
from core.tasks.ssim import ssim
from core.training_settings import Training


class Same(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0


@pytest.fixture
def pixels() -> Tensor:
    return torch.rand(4, 3, 12, 14, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    "options",
    [{}, {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}, {"scale": 1.0, "mean": (127.5,), "std": (100.0,)}],
)
def test_normalisation_is_undone(pixels: Tensor, options: dict[str, Any], layout: Any) -> None:
    preprocess = Preprocess(**options, layout=layout)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (preprocess.mean, preprocess.std))
    given = (pixels * 255 * preprocess.scale - mean) / std
    if layout == "NHWC":
        given = given.permute(0, 2, 3, 1)
    (found,) = Reconstruction(preprocess, 0.5).wanted(given, torch.zeros(4))
    torch.testing.assert_close(found, pixels, atol=1e-5, rtol=0)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_loss_by_hand(pixels: Tensor, weight: float) -> None:
    task = Reconstruction(Preprocess(), weight)
    said = (pixels * 0.8).requires_grad_()
    outputs, wanted = (said,), (pixels,)
    loss, figures = task.loss(outputs, wanted, Training())
    similarity, difference = ssim(said, pixels).mean().item(), (0.2 * pixels).mean().item()
    assert loss.item() == pytest.approx((1 - weight) * difference + weight * (1 - similarity), rel=1e-5)
    assert loss.requires_grad
    assert task.accuracy(figures) == pytest.approx(similarity)
    score = task.score(task.figures(outputs, wanted))
    assert score.loss == pytest.approx(loss.item())
    assert score.measures == pytest.approx({"ssim": similarity, "l1": difference})


def test_a_network_that_gives_nothing_of_the_image_back_is_doubted(pixels: Tensor) -> None:
    task = Reconstruction(Preprocess(), 0.5)
    flat = pixels.mean((2, 3), keepdim=True).expand_as(pixels)
    good, bad = task.figures((pixels * 0.99,), (pixels,)), task.figures((flat,), (pixels,))
    assert task.doubt(good) is None
    task.check_original(good)
    assert task.doubt(bad) == "no better than the mean colour of each image"
    with pytest.raises(BaselineNearChance) as refused:
        task.check_original(bad)
    assert [fault.pointer for fault in refused.value.faults] == ["/preprocess", "/recipe/allow_near_chance"]
    middle, low, high = task.difference(good, bad)
    assert 0 < low <= middle <= high


def test_outputs_are_the_network_s(pixels: Tensor) -> None:
    network = trace(Same(), (3, 12, 14))
    (found,) = Reconstruction(Preprocess(), 0.5).outputs(network, pixels)
    torch.testing.assert_close(found, pixels)


def test_what_does_not_fit() -> None:
    def faults(output: tuple[int | str, ...], size: tuple[int, int] = (16, 16)) -> list[str]:
        inputs = [TensorSpec("x", "float32", ("n", 3, *size))]
        outputs = [TensorSpec("y", "float32", output)]
        found = fit_faults(inputs, outputs, image_shape=(3, *size), classes=0, options=Preprocess(),
                           task="reconstruction")  # fmt: skip
        return [fault.pointer for fault in found]

    assert faults(("n", 3, 16, 16)) == []
    assert faults(("n", "c", "h", "w")) == []
    assert faults(("n", 3, 8, 8)) == ["/model"]
    assert faults(("n", 10)) == ["/model"]
    assert faults(("n", 3, 8, 8), size=(8, 8)) == ["/preprocess/size"]
