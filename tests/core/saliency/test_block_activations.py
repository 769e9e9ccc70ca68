"""Saliencies by activations equal what plain modules give; any network, any size of batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bench.zoo import import_zoo
from core.errors import PruningError
from core.graph.architectures.cifar_resnet import PreActivationBlock, PreActivationResNet
from core.graph.lowering import trace
from core.graph.network import Network
from core.saliency.block_scores import SALIENCIES
from tests.core.fakes import small_dataset
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

ACTIVATIONS = ("activation_change", "activation_change_plus_one", "activation_mean")


def squared(one: Tensor, other: Tensor) -> float:
    return (one.double() - other.double()).square().mean().item()


@torch.no_grad()
def by_hand(module: ThreeBlocks, images: Tensor) -> dict[str, dict[str, float]]:
    x = module.start(images)
    y1 = module.one(x)
    y2 = module.two(y1)
    y3 = module.three(y2)
    no1, no2, no3 = module.one.without(x), module.two.without(y1), module.three.without(y2)
    found = {
        "activation_change": [squared(y1, no1), squared(y2, no2), squared(y3, no3)],
        "activation_change_plus_one": [
            squared(y2, module.two(no1)), squared(y3, module.three(no2)),
            squared(module.logits(y3), module.logits(no3)),
        ],
        "activation_mean": [
            block.inside(each).double().abs().mean().item()
            for block, each in zip(module.blocks(), (x, y1, y2), strict=True)
        ],
    }  # fmt: skip
    return {saliency: dict(zip(NAMES, scores, strict=True)) for saliency, scores in found.items()}


@pytest.mark.parametrize("saliency", ACTIVATIONS)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_scores_equal_a_hand_computation(saliency: str, split: str) -> None:
    module, network = made()
    data = small_dataset()
    before = fingerprint(network)
    found = SALIENCIES[saliency](scoring_of(network, data=data, split=split))
    images, _ = images_of(data, split)
    assert found == pytest.approx(by_hand(module, images)[saliency], rel=RELATIVE)
    assert is_untouched(network, before)
    other, _ = images_of(data, "validation" if split == "train" else "train")
    assert found != pytest.approx(by_hand(module, other)[saliency], rel=1e-3)


@pytest.mark.parametrize("saliency", ACTIVATIONS)
def test_any_size_of_batches_gives_the_same(saliency: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, network = made()
    whole = SALIENCIES[saliency](scoring_of(network))
    sizes: list[int] = []
    monkeypatch.setattr("core.saliency.block_values.inference_batch", lambda network: 5)
    handle = network.layers()["stem"].register_forward_hook(lambda _, inputs, output: sizes.append(len(output)))
    assert SALIENCIES[saliency](scoring_of(network)) == pytest.approx(whole, rel=RELATIVE)
    handle.remove()
    assert sum(sizes) == 32, "one pass of the network scores all blocks"
    assert max(sizes) == 5


def test_the_last_block_is_compared_in_front_of_a_softmax() -> None:
    module, network = made(softmax=True)
    data = small_dataset()
    found = SALIENCIES["activation_change_plus_one"](scoring_of(network, data=data))
    assert found == pytest.approx(by_hand(module, images_of(data)[0])["activation_change_plus_one"], rel=RELATIVE)


def test_the_next_block_is_that_of_the_network_not_of_the_candidates() -> None:
    _, network = made()
    for saliency in ACTIVATIONS:
        all_of_them = scoring_of(network)
        only = replace(all_of_them, candidates=all_of_them.candidates[:1])
        expected = SALIENCIES[saliency](all_of_them)["one"]
        assert SALIENCIES[saliency](only) == {"one": pytest.approx(expected, rel=1e-12)}


def test_a_score_that_is_no_number_is_refused() -> None:
    _, network = made()
    with torch.no_grad():
        network.layers()["two.conv2"].get_parameter("weight").fill_(torch.inf)
    for saliency in ACTIVATIONS:
        with pytest.raises(PruningError, match=r"score of the block '(one|two)' is (nan|inf)"):
            SALIENCIES[saliency](scoring_of(network))


# --- other networks ---------------------------------------------------------------------------------------------------


def pre_activation() -> tuple[nn.Module, list[nn.Module], list[int]]:
    module = PreActivationResNet(20, PreActivationBlock, num_classes=4, in_channels=3)
    parts = [module.conv1, *module.layer1, *module.layer2, *module.layer3]
    return module, parts, list(range(1, 10))


def mobilenet() -> tuple[nn.Module, list[nn.Module], list[int]]:
    try:
        models = import_zoo("torchvision.models")
    except ImportError as error:
        pytest.skip(str(error))
    module = models.mobilenet_v2(num_classes=4, width_mult=0.25)
    parts = list(module.features)
    return module, parts, [index for index, part in enumerate(parts) if getattr(part, "use_res_connect", False)]


def without(block: nn.Module, x: Tensor) -> Tensor:
    """The shortcut of a block without an activation behind its sum."""
    if getattr(block, "downsample", None) is None:
        return x
    assert isinstance(block, PreActivationBlock)
    assert block.downsample is not None
    shortcut: Tensor = block.downsample(torch.relu(block.bn1(x)))
    return shortcut


@torch.no_grad()
def along(module: nn.Module, parts: Sequence[nn.Module], places: Sequence[int], images: Tensor) -> list[list[float]]:
    """Per saliency the scores of the blocks at `places` of `parts`, one of which reads what the one in front gives."""

    def rest(x: Tensor) -> Tensor:
        if isinstance(module, PreActivationResNet):
            return module.fc(torch.flatten(module.avgpool(torch.relu(module.bn(x))), 1))
        classified: Tensor = module.classifier(x.mean((2, 3)))  # type: ignore[operator]
        return classified

    def on(x: Tensor, first: int, last: int) -> Tensor:
        for part in parts[first : last + 1]:
            x = part(x)
        return x

    change, later, mean = [], [], []
    for number, place in enumerate(places):
        x = on(images, 0, place - 1)
        with_it, without_it = parts[place](x), without(parts[place], x)
        change.append(squared(with_it, without_it))
        mean.append((with_it - without_it).double().abs().mean().item())
        if number + 1 < len(places):
            ends = [on(value, place + 1, places[number + 1]) for value in (with_it, without_it)]
        else:
            ends = [rest(on(value, place + 1, len(parts))) for value in (with_it, without_it)]
        later.append(squared(*ends))
    return [change, later, mean]


@pytest.mark.parametrize("make", [pre_activation, mobilenet])
def test_networks_without_an_activation_behind_the_sum(
    make: Callable[[], tuple[nn.Module, list[nn.Module], list[int]]],
) -> None:
    torch.manual_seed(0)
    module, parts, places = make()
    module.train()
    with torch.no_grad():
        for _ in range(5):
            module(torch.randn(16, 3, 32, 32))
    module.eval()
    network: Network = trace(module, (3, 32, 32))
    data = small_dataset(images=16, size=32, channels=3)
    expected = along(module, parts, places, images_of(data)[0])
    before = fingerprint(network)
    for saliency, scores in zip(ACTIVATIONS, expected, strict=True):
        found = SALIENCIES[saliency](scoring_of(network, data=data))
        assert list(found.values()) == pytest.approx(scores, rel=1e-3)
        assert len(found) == len(places)
    assert is_untouched(network, before)
