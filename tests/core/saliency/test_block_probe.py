"""Linear probes equal a gradient descent written out; what they cannot be asked for is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from core.block_settings import BlockRemoval
from core.data.datasets import Dataset, Split
from core.errors import RecipeInvalid
from core.graph.architectures.cifar_resnet import PreActivationBlock, PreActivationResNet
from core.graph.lowering import trace
from core.job import Preprocess
from core.recipe import parse_recipe
from core.saliency.block_scores import SALIENCIES
from core.training.seeds import derived_seed
from tests.core.fakes import small_dataset
from tests.core.saliency.three_blocks import (
    NAMES,
    ThreeBlocks,
    fingerprint,
    images_of,
    is_untouched,
    made,
    scoring_of,
)

linear_probe = SALIENCIES["linear_probe"]


def patterned(images: int = 200) -> Dataset:
    """Images that a mean over places tells apart: dark or bright, flat or a chessboard."""
    data = small_dataset(images=images, preprocess=Preprocess(scale=0.02, mean=(2.0,)))
    generator = torch.Generator().manual_seed(1)
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    board = (rows + columns) % 2 * 80
    splits = {}
    for name, split in data.splits.items():
        kind = split.y.view(-1, 1, 1, 1)
        noise = torch.randint(0, 100, (len(kind), 1, 8, 8), generator=generator)
        level = torch.randint(0, 60, kind.shape, generator=generator)
        x = noise // 2 + level + 35 * (kind % 2) + board * (kind // 2)
        splits[name] = Split(x.to(torch.uint8), split.y, given=True, index_sha256=name)
    return dataclasses.replace(data, splits=splits)


@torch.no_grad()
def pooled(module: ThreeBlocks, images: Tensor) -> list[Tensor]:
    """(B, C) of the first block's input and of each block's output."""
    values = [module.start(images)]
    for block in module.blocks():
        values.append(block(values[-1]))
    return [value.double().mean((2, 3)) for value in values]


def by_hand(
    module: ThreeBlocks, data: Any, split: str, *, batch_size: int, momentum: float, seed: int = 0
) -> list[float]:
    """A of each probe: softmax regression by momentum, with gradients written out, in float64."""
    weights = [torch.zeros(4, channels + 1, dtype=torch.float64) for channels in (6, 6, 8, 8)]
    velocities = [torch.zeros_like(weight) for weight in weights]
    for epoch, rate in enumerate((0.1, 0.01, 0.001)):
        order_seed = derived_seed(seed, "linear probe")
        for images, labels in data.batches("train", batch_size, epoch=epoch, seed=order_seed, shuffle=True):
            for x, weight, velocity in zip(pooled(module, images), weights, velocities, strict=True):
                x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
                error = torch.softmax(x @ weight.T, 1)
                error[torch.arange(len(x)), labels] -= 1
                velocity.mul_(momentum).add_(error.T @ x / len(x))
                weight.sub_(rate * velocity)
    images, labels = images_of(data, split)
    accuracies = []
    for x, weight in zip(pooled(module, images), weights, strict=True):
        said = (x @ weight[:, :-1].T + weight[:, -1]).argmax(1)
        accuracies.append((said == labels).double().mean().item())
    return accuracies


@pytest.mark.parametrize(
    ("split", "training", "batch_size", "momentum"),
    [
        ("validation", {"batch_size": 8}, 8, 0.9),
        ("train", {"batch_size": 8}, 8, 0.9),
        ("validation", {"batch_size": 20, "optimizer": {"name": "sgd", "momentum": 0.5, "nesterov": True}}, 20, 0.5),
        ("validation", {"batch_size": 8, "optimizer": {"name": "adamw", "lr": 0.001}}, 8, 0.9),
    ],
)
def test_scores_equal_a_hand_computation(
    split: str, training: dict[str, Any], batch_size: int, momentum: float
) -> None:
    module, network = made()
    data = patterned()
    before = fingerprint(network)
    found = linear_probe(scoring_of(network, data=data, split=split, training=training, seed=3))
    start, *each = by_hand(module, data, split, batch_size=batch_size, momentum=momentum, seed=3)
    gained = [after - before for before, after in zip([start, *each], each, strict=False)]
    assert found == pytest.approx(dict(zip(NAMES, gained, strict=True)))
    assert sum(gain != 0 for gain in gained) > 1
    assert is_untouched(network, before)


def test_the_split_and_the_batch_size_of_training_matter() -> None:
    _, network = made()
    data = patterned()
    found = [
        tuple(linear_probe(scoring_of(network, data=data, split=split, training={"batch_size": size})).values())
        for split, size in (("validation", 8), ("train", 8), ("validation", 20))
    ]
    assert len(set(found)) == 3


def test_images_are_scored_in_batches_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    _, network = made()
    whole = linear_probe(scoring_of(network, data=patterned(), training={"batch_size": 8}))
    monkeypatch.setattr("core.saliency.block_probe.inference_batch", lambda network: 3)
    assert linear_probe(scoring_of(network, data=patterned(), training={"batch_size": 8})) == whole


def test_it_is_the_same_each_time_and_draws_nothing_from_torch() -> None:
    _, network = made()
    state = torch.random.get_rng_state()
    first, again = (linear_probe(scoring_of(network, data=patterned(), training={"batch_size": 8})) for _ in range(2))
    assert first == again
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_block_in_front_counts_whether_it_may_go_or_not() -> None:
    _, network = made()
    all_of_them = scoring_of(network, data=patterned(), training={"batch_size": 8})
    last = dataclasses.replace(all_of_them, candidates=all_of_them.candidates[2:])
    assert linear_probe(last) == {"three": linear_probe(all_of_them)["three"]}


def test_a_pre_activation_network() -> None:
    """What blocks gain adds up to what the last probe knows more than the first: at most all of it."""
    torch.manual_seed(0)
    module = PreActivationResNet(8, PreActivationBlock, num_classes=4, in_channels=1).eval()
    found = linear_probe(scoring_of(trace(module, (1, 8, 8)), training={"batch_size": 8}))
    assert list(found) == ["layer1.0", "layer2.0", "layer3.0"]
    assert -1 <= sum(found.values()) <= 1


# --- the recipe -------------------------------------------------------------------------------------------------------


def step(**fields: Any) -> dict[str, Any]:
    return {"method": "block_removal", "saliency": "linear_probe", "target": {"blocks": 2}, **fields}


def test_it_is_evaluated_once() -> None:
    assert BlockRemoval.model_validate(step()).rescore_every is None
    assert BlockRemoval.model_validate(step(rescore_every=None)).rescore_every is None
    assert BlockRemoval.model_validate(step(saliency="block_gradient")).rescore_every == 1
    with pytest.raises(RecipeInvalid) as caught:
        parse_recipe({"steps": [step(rescore_every=1)]})
    (fault,) = caught.value.faults
    assert "rescore_every is null with saliency: linear_probe" in fault.message


@pytest.mark.parametrize("saliency", ["linear_probe", "block_gradient", "activation_change", "oracle"])
def test_a_recipe_with_its_defaults_filled_in_is_the_same_recipe(saliency: str) -> None:
    recipe = parse_recipe({"steps": [step(saliency=saliency)]})
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize("task", ["imitation", "reconstruction"])
def test_it_needs_labels(task: str) -> None:
    with pytest.raises(RecipeInvalid) as caught:
        parse_recipe({"task": task, "steps": [step()]})
    assert f"saliency: linear_probe needs labels: it is for classification, not for {task}" in str(caught.value.faults)
    parse_recipe({"task": task, "steps": [step(saliency="activation_mean")]})
