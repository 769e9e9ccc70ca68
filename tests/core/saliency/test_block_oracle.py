"""The oracle: its scores by hand and against the naive way, ties, memory, racing, what a run makes of it."""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.live_bytes import LiveBytes
from bench.oracle import naive
from core.block_settings import BlockRemoval, Racing
from core.blocks.candidates import Candidates, lowest
from core.data.datasets import Dataset, Split
from core.errors import RecipeInvalid
from core.graph.architectures.cifar_resnet import CifarResNet
from core.graph.lowering import trace
from core.graph.network import Network
from core.graph.shared_runs import SharedRuns, without
from core.recipe import Recipe
from core.saliency.block_oracle import MIB, SHARING, batch_that_fits, oracle
from core.saliency.block_scores import SALIENCIES, Scoring
from core.tasks.classification import Classification
from core.tasks.imitation import Imitation
from core.tasks.task import Task
from tests.core.fakes import Events, ScriptedTrainer, small_dataset


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return trace(CifarResNet(14, num_classes=4, in_channels=1).eval(), (1, 8, 8))


def scoring(network: Network, data: Dataset, task: Task | None = None, neighbours: int = 1, **fields: Any) -> Scoring:
    trainer = ScriptedTrainer()
    trainer.task = Classification() if task is None else task
    given: dict[str, Any] = {"split": "validation", "round": 0, "seed": 0, "emit": Events(), **fields}
    return Scoring(network=network, candidates=Candidates(network, neighbours).of(network), data=data, trainer=trainer,
                   **given)  # fmt: skip


def expected(asked: Scoring, size: int) -> dict[str, float]:
    scores = naive(asked.network, asked.candidates, asked.data, asked.split, size, asked.trainer.task)
    order = sorted(scores, key=lambda name: (1 - scores[name].accuracy, scores[name].loss))
    return {name: 1 - scores[name].accuracy for name in order}


class Steps(nn.Module):
    """Three blocks, each x + w·x of the one channel: without block i its factor 1 + w is missing. The classes' logits
    are (mean, 1)."""

    def __init__(self, weights: tuple[float, float, float]) -> None:
        super().__init__()
        self.body = nn.ModuleList(nn.Conv2d(1, 1, 1, bias=False) for _ in weights)
        self.last = nn.Linear(1, 2)
        with torch.no_grad():
            for convolution, weight in zip(self.body, weights, strict=True):
                convolution.weight.fill_(weight)
            self.last.weight.copy_(torch.tensor([[1.0], [0.0]]))
            self.last.bias.copy_(torch.tensor([0.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        for convolution in self.body:
            x = x + convolution(x)
        return self.last(x.mean((2, 3)))  # type: ignore[no-any-return]


def levels() -> Dataset:
    """Eight images of one grey each, 0.1 to 0.8; class 0, "bright", from 0.4 on."""
    data = small_dataset(images=16, size=2, classes=2)
    split = data.splits["validation"]
    split.x[:] = torch.arange(1, 9).view(8, 1, 1, 1) * 25
    split.y[:] = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0])
    options = data.options.model_copy(update={"mean": (0.0,), "std": (1.0,), "scale": 1 / 250})
    return dataclasses.replace(data, options=options)


def test_scores_by_hand() -> None:
    """Factors 2, 1.5 and 1.2: an image x is told bright where x times those that are left is more than 1. Without the
    first, 1.8 x > 1 from 0.6 on: 0.4 and 0.5 are wrong. Without the second, 2.4 x > 1 from 0.5 on: 0.4 is. Without the
    third, 3 x > 1 from 0.4 on: none."""
    network = trace(Steps((1.0, 0.5, 0.2)).eval(), (1, 2, 2))
    found = oracle(scoring(network, levels()))
    assert found == {"body.2": 0.0, "body.1": 0.125, "body.0": 0.25}
    assert list(found) == ["body.2", "body.1", "body.0"]


def test_of_equal_errors_the_lower_loss_goes_first() -> None:
    """Factors 2, 1.5 and 1.4: without the second 2.8 x > 1, without the third 3 x > 1, both from 0.4 on: no error. Of
    the two the loss decides, by the sums of log(1 + exp(±(1 − c x)))."""
    network = trace(Steps((1.0, 0.5, 0.4)).eval(), (1, 2, 2))
    asked = scoring(network, levels())
    found = oracle(asked)
    x = torch.arange(1, 9) / 10
    sign = torch.tensor([-1.0] * 3 + [1.0] * 5)
    losses = {name: float(torch.log1p(torch.exp(sign * (1 - factor * x))).sum())
              for name, factor in (("body.1", 2.8), ("body.2", 3.0))}  # fmt: skip
    assert found["body.1"] == found["body.2"] == 0.0
    assert list(found)[:2] == sorted(losses, key=losses.__getitem__) == ["body.2", "body.1"]
    assert [candidate.name for candidate in lowest(found, asked.candidates, 2)] == ["body.2", "body.1"]


@pytest.mark.parametrize("neighbours", [1, 2])
def test_the_bits_are_those_of_the_naive_way(network: Network, neighbours: int) -> None:
    asked = scoring(network, small_dataset(images=1_200), neighbours=neighbours)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = oracle(asked)
    assert list(found.items()) == list(expected(asked, 256).items())
    assert len(set(found.values())) > 1
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert network.through is None


def test_the_split_counts(network: Network) -> None:
    data = small_dataset(images=64)
    data = dataclasses.replace(data, splits={**data.splits, "pruning": data.splits["train"]})
    found = oracle(scoring(network, data, split="pruning"))
    assert found == expected(scoring(network, data, split="train"), 64)
    assert found != oracle(scoring(network, data))


def test_a_network_that_ends_in_a_softmax_and_a_task_without_labels() -> None:
    torch.manual_seed(0)
    network = trace(nn.Sequential(CifarResNet(8, 4, 1), nn.Softmax(1)).eval(), (1, 8, 8))
    data = small_dataset(images=40)
    assert network.origin.ends_in_softmax
    tasks: list[Task] = [Classification(), Imitation(network, data, torch.device("cpu"))]
    for task in tasks:
        asked = scoring(network, data, task)
        assert list(oracle(asked).items()) == list(expected(asked, 20).items())


def test_batches_are_as_large_as_the_cache_has_room_for(network: Network) -> None:
    data = small_dataset(images=500)
    asked = scoring(network, data, cache_mib=1)
    variants = {each.name: without(network, each.blocks) for each in asked.candidates}
    sharing, size = batch_that_fits(network, variants, MIB, step=0)
    assert (sharing, size) == ("all", MIB // (256 + 4 * 16 * 8 * 8 * 4))
    assert list(oracle(asked).items()) == list(expected(asked, size).items())
    images = network.example_input(size)
    with torch.inference_mode(), LiveBytes() as live:
        deque(SharedRuns(network.module, variants)(images), maxlen=0)
    assert 0.9 * MIB < live.most + images.nbytes <= MIB


def test_where_few_images_fit_less_is_shared_and_at_last_it_is_refused(network: Network) -> None:
    variants = {each.name: without(network, each.blocks) for each in Candidates(network).of(network)}
    needed = {sharing: SharedRuns(network.module, variants, sharing).bytes_per_image for sharing in SHARING}
    assert needed["nothing"] < needed["before"] <= needed["all"]
    assert batch_that_fits(network, variants, 8 * needed["all"], step=0) == ("all", 8)
    assert batch_that_fits(network, variants, 8 * needed["nothing"], step=0) == ("nothing", 8)
    assert batch_that_fits(network, variants, needed["nothing"], step=0) == ("nothing", 1)
    with pytest.raises(RecipeInvalid) as caught:
        batch_that_fits(network, variants, needed["nothing"] - 1, step=2)
    assert caught.value.faults[0].pointer == "/steps/2/cache_mib"
    assert "at least 1" in str(caught.value.faults[0].expected)


def test_the_recipe_hears_of_too_small_a_cache() -> None:
    network = trace(CifarResNet(8, 4, 1).eval(), (1, 128, 128))
    with pytest.raises(RecipeInvalid, match=r"cache_mib is too little .*: 4 are needed"):
        oracle(scoring(network, small_dataset(images=8, size=128), cache_mib=1))


def test_racing_drops_what_is_clearly_worse_and_tells_of_it() -> None:
    """Of `test_scores_by_hand` the images a hundred times: after the first tenth, 80 of 800 in random order, about 20
    are wrong without the first block that are right without the third, and 10 without the second. With δ = 0.05 / (1 ·
    2 · 9 looks) more than 2 · ln 360 = 11.8 are enough: the first goes, the second goes later."""
    network = trace(Steps((1.0, 0.5, 0.2)).eval(), (1, 2, 2))
    data = levels()
    split = data.splits["validation"]
    often = Split(split.x.repeat(100, 1, 1, 1), split.y.repeat(100), given=True, index_sha256="")
    data = dataclasses.replace(data, splits={**data.splits, "validation": often})
    events = Events()
    found = oracle(scoring(network, data, racing=Racing(), emit=events, step=3, round=1))
    ((name, body),) = events
    assert name == "prune/step/3/round/2/race"
    assert body["of"] == 800
    assert body["images"]["body.0"] == 80
    assert 80 < body["images"]["body.1"] == body["images"]["body.2"] < 800
    assert list(found) == ["body.2", "body.1", "body.0"]
    assert found["body.2"] == 0.0
    assert 0.15 < found["body.0"] < 0.35
    assert oracle(scoring(network, data, racing=Racing(), round=1)) == found
    assert oracle(scoring(network, data, racing=Racing(), goes=3)) == oracle(scoring(network, data))


def test_what_racing_goes_without() -> None:
    step: dict[str, Any] = {"method": "block_removal", "racing": {}, "target": {"blocks": 2}}
    with pytest.raises(ValueError, match="rescore_every: a number"):
        BlockRemoval.model_validate({**step, "rescore_every": None})
    with pytest.raises(ValueError, match="equalise"):
        BlockRemoval.model_validate({**step, "rescore_every": 2, "equalise": True})
    with pytest.raises(ValueError, match="racing is for classification, not for imitation"):
        Recipe.model_validate({"version": 1, "task": "imitation", "steps": [step]})
    assert Recipe.model_validate({"version": 1, "steps": [step]})


def test_it_is_the_saliency_oracle() -> None:
    assert SALIENCIES["oracle"] is oracle
