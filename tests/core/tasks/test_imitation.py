"""Imitation: errors by hand, any number of outputs, scales that blank batches do not move."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from core.data.datasets import Dataset
from core.errors import ModelRefused
from core.graph.importers import load
from core.graph.network import Network
from core.progress import Progress
from core.tasks import Imitation, joined
from core.training.trainer import Trainer
from core.training_settings import ConstantSchedule, Sgd, Training
from tests.core.fakes import Dying, Events, Killed, empty_state, small_dataset
from tests.core.two_heads import two_heads_file

CPU = torch.device("cpu")


Heads = Callable[..., Network]


@pytest.fixture(scope="module")
def two_heads(tmp_path_factory: pytest.TempPathFactory) -> Heads:
    """two_heads(seed)"""
    folder = tmp_path_factory.mktemp("models")
    return lambda seed=0: load(two_heads_file(folder / f"{seed}.onnx", seed))


@pytest.fixture(scope="module")
def data() -> Dataset:
    return small_dataset(images=64)


def test_figures_by_hand(data: Dataset, two_heads: Heads) -> None:
    """Two images, outputs of two and of one number."""
    task = Imitation(two_heads(), data, CPU)
    wanted = (torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[2.0], [1.0]]))
    said = (torch.tensor([[3.0, 3.0], [0.0, 0.0]]), torch.tensor([[1.0], [-1.0]]))
    figures = task.figures(said, wanted)
    assert figures["error"].tolist() == [[1.0, 1.0], [0.0, 4.0]]
    assert figures["target"].tolist() == [[25.0, 4.0], [0.0, 1.0]]
    # 21 / (√18 · 5) and 1 for the first image, for the second 1 (zeros) and -1
    assert figures["cosine"].tolist() == pytest.approx([(21 / (math.sqrt(18) * 5) + 1) / 2, 0.0])
    score = task.score(figures)
    error = (1 / 25 + 5 / 5) / 2
    assert score.loss == pytest.approx(error)
    assert score.accuracy == pytest.approx(1 - math.sqrt(error))
    assert score.measures["relative_error"] == pytest.approx(math.sqrt(error))


def test_the_loss_by_hand(data: Dataset, two_heads: Heads) -> None:
    teacher = two_heads()
    task = Imitation(teacher, data, CPU)
    everything = torch.cat([images for images, _ in data.batches("train", 16)])
    with torch.no_grad():
        scales = [output.double().square().mean().item() for output in teacher(everything)]
        network = two_heads(1)
        images = everything[:5]
        wanted = teacher(images)
        by_hand = sum(
            ((said - target) ** 2).mean().item() / scale
            for said, target, scale in zip(network(images), wanted, scales, strict=True)
        ) / 3  # fmt: skip
    loss, _ = task.loss(task.outputs(network, images), task.wanted(images, torch.zeros(5)), Training())
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)
    assert loss.requires_grad


def test_the_original_imitates_itself(data: Dataset, two_heads: Heads) -> None:
    network = two_heads()
    task = Imitation(network, data, CPU)
    images, labels = next(data.batches("test", 64))
    with torch.no_grad():
        score = task.score(task.figures(task.outputs(network, images), task.wanted(images, labels)))
    assert score.accuracy == pytest.approx(1, abs=1e-6)
    assert score.measures["cosine"] == pytest.approx(1)


def test_the_original_is_asked_in_batches_that_it_has_room_for(
    data: Dataset, two_heads: Heads, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Imitation(two_heads(), data, CPU)
    images, labels = next(data.batches("test", 64))
    whole = task.wanted(images, labels)
    monkeypatch.setattr("core.tasks.imitation.inference_batch", lambda network: 5)
    for ours, theirs in zip(task.wanted(images, labels), whole, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_labels_are_not_looked_at(data: Dataset, two_heads: Heads) -> None:
    network, task = two_heads(1), Imitation(two_heads(), data, CPU)
    images, labels = next(data.batches("test", 64))
    with torch.no_grad():
        first, other = (
            task.score(task.figures(task.outputs(network, images), task.wanted(images, each)))
            for each in (labels, labels.flip(0))
        )
    assert first == other


def trainer(data: Dataset, teacher: Network, events: Events) -> Trainer:
    return Trainer(data, training=Training(), device=CPU, seed=0, original_macs=1, emit=events,
                   progress=Progress(events), task=Imitation(teacher, data, CPU))  # fmt: skip


def test_training_comes_nearer_and_resumes_to_the_same_bits(data: Dataset, two_heads: Heads, tmp_path: Path) -> None:
    teacher = two_heads()
    training = Training(optimizer=Sgd(lr=0.05), schedule=ConstantSchedule(name="constant"), batch_size=16)
    whole, events = two_heads(1), Events()
    before = trainer(data, teacher, events).evaluate(whole, "validation")
    result = trainer(data, teacher, events).fit(
        whole, training=training, epochs=8, label="train", state=empty_state(tmp_path / "a")
    )
    assert result.score is not None
    assert result.score.accuracy > before.accuracy + 0.1
    record = events.named("train/epoch/8")[0]
    assert set(record["validation_measures"]) == {"relative_error", "cosine"}
    resumed, state = two_heads(1), None
    dying = Dying()
    state = empty_state(tmp_path / "b", dying)
    with pytest.raises(Killed):
        trainer(data, teacher, dying).fit(two_heads(1), training=training, epochs=8, label="train", state=state)
    state = empty_state(tmp_path / "b")
    trainer(data, teacher, Events()).fit(resumed, training=training, epochs=8, label="train", state=state)
    other = resumed.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in whole.state_dict().items())


def test_a_difference_has_an_interval_around_it(data: Dataset, two_heads: Heads) -> None:
    task = Imitation(two_heads(), data, CPU)
    images, labels = next(data.batches("train", 64))
    wanted = task.wanted(images, labels)
    near, far = (tuple(each + noise * torch.randn_like(each) for each in wanted) for noise in (0.01, 0.1))
    ours, theirs = task.figures(near, wanted), task.figures(far, wanted)
    middle, low, high = task.difference(ours, theirs)
    assert 0 < low < middle < high
    assert (middle, low, high) == task.difference(ours, theirs)  # drawn from a fixed seed
    assert task.difference(ours, ours) == (0, 0, 0)
    assert task.doubt(ours) is None
    zeros = task.figures(tuple(map(torch.zeros_like, wanted)), wanted)
    assert task.doubt(joined([zeros, zeros])) == "no better than an output of zeros"


def test_a_network_without_float_outputs_is_refused(data: Dataset, two_heads: Heads) -> None:
    network = two_heads()
    for node in network.output_nodes():
        node.meta["dtype"] = torch.int64
    with pytest.raises(ModelRefused, match="nothing that can be imitated"):
        Imitation(network, data, CPU)
