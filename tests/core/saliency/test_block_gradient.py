"""The gradient of the loss by a mask on each block equals that of plain autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.zoo import import_zoo
from core.errors import RecipeInvalid
from core.graph.architectures.cifar_resnet import PreActivationBlock, PreActivationResNet
from core.graph.lowering import trace
from core.recipe import parse_recipe
from core.saliency.block_gradient import gradients
from core.saliency.block_probe import linear_probe
from core.saliency.block_scores import SALIENCIES
from core.tasks import Imitation
from tests.core.fakes import ScriptedTrainer, small_dataset
from tests.core.saliency.three_blocks import (
    NAMES,
    RELATIVE,
    ThreeBlocks,
    fingerprint,
    images_of,
    is_untouched,
    made,
    scoring_of,
)


def by_hand(module: ThreeBlocks, images: Tensor, labels: Tensor) -> dict[str, float]:
    """∂ mean cross-entropy / ∂m, in float64."""
    masks = torch.ones(3, dtype=torch.float64, requires_grad=True)
    module = module.double()
    try:
        x = module.start(images.double())
        for mask, block in zip(masks, module.blocks(), strict=True):
            x = torch.relu(mask * block.inside(x) + block.projection(x))
        (found,) = torch.autograd.grad(functional.cross_entropy(module.logits(x), labels), masks)
    finally:
        module.float()
    return dict(zip(NAMES, found.tolist(), strict=True))


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("softmax", [False, True])
def test_gradients_equal_a_hand_computation(split: str, softmax: bool) -> None:
    module, network = made(softmax)
    data = small_dataset()
    expected = by_hand(module, *images_of(data, split))
    before = fingerprint(network)
    scoring = scoring_of(network, data=data, split=split)
    assert gradients(scoring) == pytest.approx(expected, rel=1e-4)
    assert SALIENCIES["block_gradient"](scoring) == pytest.approx(
        {name: abs(gradient) for name, gradient in expected.items()}, rel=1e-4
    )
    assert SALIENCIES["block_gradient_max"](scoring) == pytest.approx(
        {name: -abs(gradient) for name, gradient in expected.items()}, rel=1e-4
    )
    assert is_untouched(network, before)


def test_the_largest_goes_first_in_the_negative_control() -> None:
    _, network = made()
    least, most = (SALIENCIES[name](scoring_of(network)) for name in ("block_gradient", "block_gradient_max"))
    assert sorted(least, key=least.__getitem__) == sorted(most, key=most.__getitem__, reverse=True)
    assert len(set(least.values())) == 3


def test_only_so_many_minibatches_are_looked_at() -> None:
    module, network = made()
    data = small_dataset()
    images, labels = images_of(data)
    for batches in (1, 3):
        found = gradients(scoring_of(network, data=data, batches=batches, training={"batch_size": 8}))
        assert found == pytest.approx(by_hand(module, images[: 8 * batches], labels[: 8 * batches]), rel=1e-4)
    more = gradients(scoring_of(network, data=data, batches=100, training={"batch_size": 8}))
    assert more == pytest.approx(by_hand(module, images, labels), rel=1e-4)


@pytest.mark.parametrize(
    "training",
    [
        {"batch_size": 5},  # 7 batches of 4 and 5 images
        {"batch_size": 1},
        {"label_smoothing": 0.3},
        {"distill": {"weight": 0.5}},
    ],
)
def test_all_images_weigh_alike_whatever_the_training_does(training: dict[str, Any]) -> None:
    _, network = made()
    expected = gradients(scoring_of(network))
    assert gradients(scoring_of(network, training=training)) == pytest.approx(expected, rel=RELATIVE, abs=1e-8)


def test_what_is_frozen_stays_frozen() -> None:
    _, network = made()
    weight = network.layers()["fc"].get_parameter("weight")
    weight.requires_grad_(False)
    gradients(scoring_of(network))
    others = [parameter for parameter in network.parameters() if parameter is not weight]
    assert not weight.requires_grad
    assert all(parameter.requires_grad for parameter in others)


def test_the_loss_is_the_task_s() -> None:
    """To imitate another: what autograd says."""
    module, network = made()
    data = small_dataset()
    images, _ = images_of(data)
    other = network.clone()
    with torch.no_grad():
        other.layers()["fc"].get_parameter("bias").add_(torch.tensor([1.0, -2.0, 0.5, 0.0]))
        wanted = other(images)
        scale = other(images_of(data, "train")[0]).square().mean()
    masks = torch.ones(3, requires_grad=True)
    x = module.start(images)
    for mask, block in zip(masks, module.blocks(), strict=True):
        x = torch.relu(mask * block.inside(x) + block.projection(x))
    (expected,) = torch.autograd.grad((module.logits(x) - wanted).square().mean() / scale, masks)
    scoring = scoring_of(network, data=data)
    assert isinstance(scoring.trainer, ScriptedTrainer)
    scoring.trainer.task = Imitation(other, data, torch.device("cpu"))
    assert list(gradients(scoring).values()) == pytest.approx(expected.tolist(), rel=1e-4)


def test_the_original_that_imitates_itself_has_no_gradient() -> None:
    first = {"method": "block_removal", "saliency": "block_gradient", "target": {"blocks": 3}}
    other = {"method": "block_removal", "saliency": "activation_change", "target": {"blocks": 4}}
    for steps, said in (([first], True), ([other, first], False)):
        document = {"task": "imitation", "steps": steps}
        if said:
            with pytest.raises(RecipeInvalid) as caught:
                parse_recipe(document)
            assert "block_gradient of the original imitating itself is zero" in caught.value.faults[0].message
        else:
            parse_recipe(document)
        parse_recipe({**document, "weights": "mdl_abc"})


def pre_activation() -> nn.Module:
    return PreActivationResNet(20, PreActivationBlock, num_classes=4, in_channels=3)


def mobilenet() -> nn.Module:
    try:
        models = import_zoo("torchvision.models")
    except ImportError as error:
        pytest.skip(str(error))
    module: nn.Module = models.mobilenet_v2(num_classes=4, width_mult=0.25)
    return module


@pytest.mark.parametrize(("make", "blocks"), [(pre_activation, 9), (mobilenet, 11)])
def test_other_networks(make: Callable[[], nn.Module], blocks: int) -> None:
    """Of what a residual path ends in, a convolution without bias or a BatchNorm, a mask is a factor: Σ p · ∂loss/∂p
    over its parameters p."""
    torch.manual_seed(0)
    module = make().train()
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(16, 3, 32, 32))
    scoring = scoring_of(trace(module.eval(), (3, 32, 32)), data=small_dataset(images=32, size=32, channels=3))
    found = gradients(scoring)
    images, labels = images_of(scoring.data)
    module.zero_grad()
    images = images.contiguous(memory_format=torch.channels_last)  # a ReLU of almost nothing falls as the layout has it
    functional.cross_entropy(module(images), labels).backward()
    expected = {}
    for candidate in scoring.candidates:
        (block,) = candidate.blocks
        last = module.get_submodule(block.own[-1])
        expected[candidate.name] = sum((each * each.grad).sum().item() for each in last.parameters())
    assert len(found) == blocks
    assert found == pytest.approx(expected, rel=1e-3)
    assert len(linear_probe(scoring)) == blocks
