"""Rounds of block removal by each saliency: what goes first, how often it is scored, on which images, resumed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from core.block_settings import BlockRemoval
from core.data.datasets import Dataset, Split
from core.graph.architectures.cifar_resnet import CifarResNet
from core.graph.counts import count
from core.graph.lowering import trace
from core.graph.network import Network
from core.methods.block_removal import block_removal
from core.outcome import Outcome
from core.recipe import parse_recipe
from core.saliency.block_scores import SALIENCIES
from core.targets import Goal
from tests.core.fakes import Dying, Events, Killed, ScriptedTrainer, empty_state, small_dataset

FIELDS = [name for name in BlockRemoval.model_fields if name not in ("method", "target", "fine_tune")]
NEW = ("activation_change", "activation_change_plus_one", "activation_mean", "block_gradient", "block_gradient_max",
       "linear_probe")  # fmt: skip


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return trace(CifarResNet(14, num_classes=4, in_channels=1).eval(), (1, 8, 8))


def go(
    network: Network, tmp_path: Path, events: Events | None = None, data: Dataset | None = None, **fields: Any
) -> Outcome:
    step = BlockRemoval.model_validate({"method": "block_removal", "target": {"blocks": 3}, **fields})
    events = Events() if events is None else events
    return block_removal(
        network,
        small_dataset() if data is None else data,
        **{name: getattr(step, name) for name in FIELDS},
        target=Goal(step.target, count(network), 0.9),
        fine_tune=step.fine_tune,
        trainer=ScriptedTrainer(),
        emit=events,
        state=empty_state(tmp_path, events),
    )


@pytest.mark.parametrize("saliency", NEW)
def test_the_lowest_score_goes_first(network: Network, tmp_path: Path, saliency: str) -> None:
    events = Events()
    go(network, tmp_path, events, saliency=saliency)
    rounds = events.named("/select")
    assert len(rounds) == 3
    left = list(rounds[0]["scores"])
    for body in rounds:
        scores = {name: body["scores"][name] for name in left}
        assert body["removed"] == [min(scores, key=scores.__getitem__)]
        left.remove(body["removed"][0])
    assert [body["rescored"] for body in rounds] == [True, saliency != "linear_probe", saliency != "linear_probe"]


def test_groups_that_take_turns_are_scored_at_once_where_that_is_done_once(network: Network, tmp_path: Path) -> None:
    for name, fields in (("probe", {"saliency": "linear_probe"}),
                         ("once", {"saliency": "activation_mean", "rescore_every": None})):  # fmt: skip
        events = Events()
        go(network, tmp_path / name, events, equalise=True, **fields)
        rounds = events.named("/select")
        assert [body["rescored"] for body in rounds] == [True, False, False]
        assert len(rounds[0]["scores"]) == 6
        assert rounds[0]["scores"] == rounds[2]["scores"]
    events = Events()
    go(network, tmp_path / "each", events, equalise=True, saliency="activation_mean")
    assert [len(body["scores"]) for body in events.named("/select")] == [2, 2, 2]


def test_scores_are_of_the_images_that_the_recipe_names(network: Network, tmp_path: Path) -> None:
    data = small_dataset()
    other = small_dataset(seed=1).splits["validation"]
    pruning = Split(other.x, other.y, given=True, index_sha256="pruning")
    data = dataclasses.replace(data, splits={**data.splits, "pruning": pruning})
    swapped = dataclasses.replace(data, splits={**data.splits, "validation": pruning})
    found = []
    for name, images, scores in (("a", data, "pruning_split"), ("b", swapped, "validation"), ("c", data, "validation")):
        events = Events()
        go(network, tmp_path / name, events, images, saliency="block_gradient", scores=scores)
        found.append(events.named("/select")[0]["scores"])
    assert found[0] == found[1]
    assert found[0] != found[2]
    step = {"method": "block_removal", "saliency": "block_gradient", "target": {"blocks": 3}}
    assert parse_recipe({"steps": [{**step, "scores": "pruning_split"}]}).uses_pruning_split
    assert not parse_recipe({"steps": [step]}).uses_pruning_split


def test_batches_reach_the_gradient(network: Network, tmp_path: Path) -> None:
    found = []
    for batches in (1, None):
        events = Events()
        data = small_dataset(images=512)  # 2 minibatches of 128 of validation
        go(network, tmp_path / str(batches), events, data, saliency="block_gradient", batches=batches)
        found.append(events.named("/select")[0]["scores"])
    assert found[0] != found[1]


@pytest.mark.parametrize("saliency", NEW)
def test_a_resumed_run_ends_in_the_same_bits(network: Network, tmp_path: Path, saliency: str) -> None:
    undisturbed = go(network, tmp_path / "a", saliency=saliency)
    with pytest.raises(Killed):
        go(network, tmp_path / "b", Dying(1), saliency=saliency)
    events = Events()
    resumed = go(network, tmp_path / "b", events, saliency=saliency)
    assert 0 < len(events.named("/select")) < 3
    assert resumed.plan == undisturbed.plan
    assert resumed.front == undisturbed.front
    ours, theirs = resumed.network.state_dict(), undisturbed.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_every_saliency_but_the_oracle_is_there() -> None:
    assert {*NEW, "weights_mean", "random"} <= set(SALIENCIES)
