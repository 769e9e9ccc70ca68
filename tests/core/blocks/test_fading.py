"""Phased removal, its parts: the network that fades, its factors, what may be asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from core.block_settings import BlockRemoval, Fade
from core.blocks.candidates import Candidates
from core.blocks.expected import own_trainings
from core.blocks.fading import Factors, Mask
from core.graph.architectures.cifar_resnet import CifarResNet
from core.graph.bypass import without_blocks
from core.graph.counts import count
from core.graph.lowering import trace
from core.training.port import Moment
from core.training_settings import FineTune, Policy

FIRST = [0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0]
"""Of block a in epoch 2 of 4, by seed 3."""


def resnet() -> CifarResNet:
    torch.manual_seed(0)
    model = CifarResNet(8, num_classes=4, in_channels=1).train()
    with torch.no_grad():
        for _ in range(3):  # statistics that are not those of a fresh network
            model(torch.randn(8, 1, 8, 8))
    return model.eval()


def by_hand(model: Any, x: torch.Tensor, factors: tuple[float, float, float]) -> torch.Tensor:
    """relu(γ · H(x) + shortcut(x)), three times."""
    x = torch.relu(model.bn1(model.conv1(x)))
    for stage, factor in zip((model.layer1, model.layer2, model.layer3), factors, strict=True):
        (block,) = stage
        path = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
        x = torch.relu(factor * path + block.downsample(x))
    out: torch.Tensor = model.fc(torch.flatten(model.avgpool(x), 1))
    return out


@pytest.mark.parametrize("values", [(1.0, 1.0, 1.0), (0.25, 1.0, 0.5), (1.0, 0.7, 1.0), (0.0, 1.0, 0.0)])
def test_residual_paths_are_multiplied(values: tuple[float, float, float]) -> None:
    model, x = resnet(), torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    network = trace(resnet(), (1, 8, 8))
    factors = Factors(network, Candidates(network).of(network))
    assert factors.names == ["layer1.0", "layer2.0", "layer3.0"]
    factors.set(dict(zip(factors.names, values, strict=True)))
    with torch.no_grad():
        torch.testing.assert_close(factors.network(x), by_hand(model, x, values), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(network(x), by_hand(model, x, (1, 1, 1)), rtol=1e-6, atol=1e-6)


def test_with_a_factor_of_zero_it_is_the_network_without_the_block() -> None:
    network = trace(resnet(), (1, 8, 8))
    chosen = Candidates(network).of(network)[1:2]
    factors = Factors(network, chosen)
    factors.set({"layer2.0": 0.0})
    x = network.example_input(batch=5)
    with torch.no_grad():
        assert torch.equal(factors.network(x), without_blocks(network, ["layer2.0"])(x))


def test_it_has_the_parameters_of_the_network_given_and_nothing_to_keep_besides() -> None:
    network = trace(resnet(), (1, 8, 8))
    factors = Factors(network, Candidates(network).of(network))
    ours, theirs = dict(factors.network.named_parameters()), dict(network.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(ours[name] is theirs[name] for name in theirs)
    assert factors.network.state_dict().keys() == network.state_dict().keys()
    counts, whole = count(factors.network), count(network)
    assert (counts.params, counts.macs, counts.blocks) == (whole.params, whole.macs, whole.blocks)


# --- the factors ------------------------------------------------------------------------------------------------------


def test_a_linear_mask_falls_to_zero() -> None:
    mask = Mask(Fade(epochs=4), seed=0, label="fade")
    assert [mask.at(Moment("batch", epoch, 4, 7), "b") for epoch in range(1, 5)] == [0.75, 0.5, 0.25, 0.0]
    assert [mask.at(Moment("validation", epoch, 4), "b") for epoch in range(1, 5)] == [0.75, 0.5, 0.25, 0.0]
    assert mask.at(Moment("batch", 1, 1), "b") == 0.0


def test_a_stochastic_mask_is_drawn_for_each_block_and_batch() -> None:
    mask = Mask(Fade(epochs=4, mask="stochastic"), seed=3, label="fade")

    def drawn(block: str, epoch: int, number: int) -> list[float]:
        return [mask.at(Moment("batch", epoch, 4, step), block) for step in range(number)]

    assert drawn("a", 2, 12) == FIRST
    assert drawn("b", 2, 12) != FIRST
    assert drawn("a", 4, 50) == [0.0] * 50, "the last epoch has a chance of 0"
    means = [sum(drawn("a", epoch, 2_000)) / 2_000 for epoch in (1, 2, 3)]
    assert means == pytest.approx([0.75, 0.5, 0.25], abs=0.04)  # four standard errors
    together = sum(x * y for x, y in zip(drawn("a", 2, 2_000), drawn("b", 2, 2_000), strict=True)) / 2_000
    assert together == pytest.approx(0.25, abs=0.04), "blocks are drawn independently"
    assert [mask.at(Moment("validation", epoch, 4), "a") for epoch in (1, 2, 3, 4)] == [0.75, 0.5, 0.25, 0.0]
    again = Mask(Fade(epochs=4, mask="stochastic"), seed=3, label="fade")
    assert [again.at(Moment("batch", 2, 4, step), "a") for step in range(12)] == FIRST
    others = [Mask(Fade(mask="stochastic"), seed=4, label="fade"), Mask(Fade(mask="stochastic"), seed=3, label="other")]
    assert all([other.at(Moment("batch", 2, 4, step), "a") for step in range(12)] != FIRST for other in others)


def test_a_stochastic_mask_may_be_drawn_for_each_epoch() -> None:
    mask = Mask(Fade(epochs=400, mask="stochastic", sample="epoch"), seed=0, label="fade")
    of = [{mask.at(Moment("batch", epoch, 400, step), "a") for step in range(5)} for epoch in range(1, 401)]
    assert all(len(found) == 1 for found in of), "the same for all batches of an epoch"
    first, last = of[:200], of[200:]
    assert sum(found == {1.0} for found in first) == pytest.approx(150, abs=20)  # the mean of 1 − e/400
    assert sum(found == {1.0} for found in last) == pytest.approx(50, abs=20)


# --- what is asked for ------------------------------------------------------------------------------------------------


def test_what_is_to_come() -> None:
    """Of five rounds, the network having 60, 50, … MACs in front of each and 10 in the end."""
    macs, loops = [60, 50, 40, 30, 20, 10], FineTune(policy=Policy(every=2), epochs=5)
    at_once, lazy = Fade(epochs=3), Fade(epochs=3, lazy=True)
    named: dict[str, Any] = {"done": 0, "rounds": 5, "restored": 60}
    assert own_trainings(None, None, loops, macs, **named) == []
    assert own_trainings(at_once, None, loops, macs, **named) == [(3, 60), (3, 50), (3, 40), (3, 30), (3, 20)]
    assert own_trainings(lazy, None, loops, macs, **named) == [(3, 60), (3, 40), (3, 20)]
    later: dict[str, Any] = {"done": 3, "rounds": 5, "restored": 40}
    assert own_trainings(lazy, None, loops, macs[3:], **later) == [(3, 40), (3, 20)]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"fade": {"sample": "epoch"}}, "sample is of mask: stochastic"),
        ({"fade": {"lazy": True}, "fine_tune": {"epochs": 0}}, "fine_tune.epochs of at least 1"),
        ({"fade": {"lazy": True}, "fine_tune": {"policy": {"low": 1, "high": {"loops": 2}}}}, "low trains after each"),
        ({"soft": {}, "fade": {}}, "soft goes without fade"),
        ({"soft": {}, "blocks_per_round": 2}, "without blocks_per_round"),
        ({"soft": {}, "rescore_every": 2}, "rescore_every: 1"),
        ({"soft": {}, "racing": {}}, "racing drops blocks"),
        ({"soft": {}, "fine_tune": {"policy": {"loops": 2}}}, "policy: once"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        BlockRemoval.model_validate({"method": "block_removal", "target": {"blocks": 0.5}, **fields})
