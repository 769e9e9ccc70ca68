"""What whole fine-tunings begin with: the weights of the moment, of the trained network, or of the beginning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.block_settings import BlockRemoval
from core.data.datasets import Dataset
from core.graph.architectures import CifarResNet
from core.graph.counts import count
from core.graph.lowering import trace
from core.graph.network import Network
from core.methods.block_removal import block_removal
from core.methods.filter_norm import filter_norm
from core.outcome import Outcome
from core.progress import Progress
from core.state import State
from core.step_settings import FilterNorm
from core.targets import Goal
from core.training.port import FitResult
from core.training.trainer import Trainer
from core.training_settings import FineTune, Local, Sgd, Training
from tests.core.fakes import Dying, Events, Killed, ScriptedTrainer, small_dataset

FIELDS = [name for name in BlockRemoval.model_fields if name not in ("method", "target", "fine_tune")]
EVERY = {"every": 1}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data() -> Dataset:
    return small_dataset(images=48)


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return trace(CifarResNet(14, num_classes=4, in_channels=1).eval(), (1, 8, 8), format="safetensors")


class Adding(ScriptedTrainer):
    """Each training adds 1 to every parameter. `began`: of each training its label and the weights before it."""

    def __init__(self) -> None:
        super().__init__()
        self.began: list[tuple[str, dict[str, Tensor]]] = []

    def fit(self, network: Network, **named: Any) -> FitResult:  # type: ignore[override]
        self.began.append((named["label"], {name: item.clone() for name, item in network.state_dict().items()}))
        found = super().fit(network, **named)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(1)
        return found

    def recalibrate(self, network: Network, *, label: str) -> int:
        """Marks the statistics as measured."""
        for name, buffer in network.module.named_buffers():
            if name.endswith("running_mean"):
                buffer.fill_(7)
        return super().recalibrate(network, label=label)


def without_blocks(
    data: Dataset,
    workdir: Path,
    trainer: Any,
    rewind: str,
    initial: Callable[[], Network] | None = None,
    events: Events | None = None,
    **fine_tune: Any,
) -> Outcome:
    events = Events() if events is None else events
    step = BlockRemoval.model_validate(
        {"method": "block_removal", "saliency": "weights_mean", "target": {"blocks": 3},
         "fine_tune": {"epochs": 2, "rewind": rewind, "policy": EVERY, **fine_tune}}
    )  # fmt: skip
    return block_removal(
        network(), data, **{name: getattr(step, name) for name in FIELDS},
        target=Goal(step.target, count(network()), 0.9), fine_tune=step.fine_tune, trainer=trainer, emit=events,
        state=State.open(workdir, fingerprint={"test": "x"}, emit=events).scope("method"), initial=initial,
    )  # fmt: skip


def parameters(network: Network) -> dict[str, Tensor]:
    return {name: item.detach().clone() for name, item in network.named_parameters()}


def same(found: dict[str, Tensor], source: dict[str, Tensor], more: float = 0) -> bool:
    """Whether everything of `source` that is in `found` is there as it was, plus `more`."""
    there = [name for name in source if name in found]
    assert there
    if more == 0:
        return all(torch.equal(found[name], source[name]) for name in there)
    return all(torch.allclose(found[name], source[name] + more, atol=1e-5) for name in there)


@pytest.mark.parametrize("rewind", ["last", "trained", "initial"])
def test_every_whole_fine_tuning_begins_anew(rewind: str, data: Dataset, tmp_path: Path) -> None:
    trainer = Adding()
    outcome = without_blocks(data, tmp_path, trainer, rewind, lambda: network(seed=5))
    source = parameters(network(seed=5 if rewind == "initial" else 0))
    assert [label for label, _ in trainer.began] == ["fine_tune/0/round/1", "fine_tune/0/round/2", "fine_tune/0"]
    for number, (_, began) in enumerate(trainer.began):
        assert same(began, source, more=number if rewind == "last" else 0)
        assert all((item == 7).all() for name, item in began.items() if name.endswith("running_mean"))
    assert same(outcome.network.state_dict(), source, more=3 if rewind == "last" else 1)
    labels = [label for label in trainer.recalibrated if label.endswith("/rewind")]
    assert labels == ([] if rewind == "last" else [f"{label}/rewind" for label, _ in trainer.began])


def test_small_fine_tunings_go_on(data: Dataset, tmp_path: Path) -> None:
    trainer = Adding()
    without_blocks(data, tmp_path, trainer, "trained", policy={"low": 1, "high": {"at": [2]}})
    given = parameters(network())
    begins = [next(more for more in range(4) if same(began, given, more)) for _, began in trainer.began]
    assert begins == [0, 0, 0], "the small one after round 1, the whole ones after round 2 and at the end, set back"
    trainer = Adding()
    without_blocks(data, tmp_path / "again", trainer, "trained", policy={"low": 1, "high": {"at": [1]}})
    begins = [next(more for more in range(4) if same(began, given, more)) for _, began in trainer.began]
    assert begins == [0, 1, 0], "the small one after round 2 goes on from the whole one after round 1"


def test_filters_that_are_left_are_set_back(data: Dataset, tmp_path: Path) -> None:
    """By hand: of the first convolution inside each block those filters that the plan has left."""
    trainer, given = Adding(), network()
    step = FilterNorm.model_validate(
        {"method": "filter_norm", "target": {"filters": 0.8}, "ratio_per_round": 0.1, "every_epochs": 1,
         "fine_tune": {"epochs": 2, "rewind": "trained"}}
    )  # fmt: skip
    outcome = filter_norm(
        given, data, signal="weights", ratio_per_round=0.1, every_epochs=1, scope="local", normalize="none",
        target=Goal(step.target, count(given), 0.9), fine_tune=step.fine_tune, channel_multiple=1, trainer=trainer,
        emit=Events(), state=State.unsaved(),
    )  # fmt: skip
    label, began = trainer.began[-1]
    assert label == "fine_tune/0"
    assert len(trainer.began) == len(outcome.plan) + 1 > 2, "rounds have trained before"
    left: dict[str, list[int]] = {}
    for name, item in parameters(given).items():
        if name.endswith("weight") and item.dim() == 4:
            left[name.removesuffix(".weight")] = list(range(len(item)))
    for entry in outcome.plan:
        for layer, gone in entry["layers"].items():
            left[layer] = [channel for place, channel in enumerate(left[layer]) if place not in gone]
    for block in ("layer1.0", "layer2.1", "layer3.1"):
        weight = parameters(given)[f"{block}.conv2.weight"]
        kept = weight[left[f"{block}.conv2"]][:, left[f"{block}.conv1"]]
        assert kept.shape != weight.shape
        assert torch.equal(began[f"{block}.conv2.weight"], kept)


def test_local_heals_everything_that_was_set_back(data: Dataset, tmp_path: Path) -> None:
    found = {}
    for rewind in ("last", "trained"):
        trainer = ScriptedTrainer()
        local = Local(left=0, right=0, grow=None).model_dump(exclude_none=True)
        without_blocks(data, tmp_path / rewind, trainer, rewind, local=local | {"left": 1})
        found[rewind] = [set(moving[0]) for moving in trainer.moving if moving]
    assert found["last"][0] == found["trained"][0]
    assert found["last"][2] < found["trained"][2], "what was near the first two blocks, too"


@pytest.mark.parametrize(
    ("rewind", "kill_at"),
    [("initial", 1), ("initial", 2), ("initial", 4), ("initial", 5), ("initial", 7), ("last", 5), ("last", 6)],
)
def test_killed_it_ends_in_the_same_bits(
    rewind: str, kill_at: int, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", 1)

    def go(workdir: Path, events: Events) -> Outcome:
        trainer = Trainer(data, training=Training(optimizer=Sgd(lr=0.02), batch_size=16), device=torch.device("cpu"),
                          seed=3, original_macs=1, emit=events, progress=Progress(events))  # fmt: skip
        return without_blocks(data, workdir, trainer, rewind, lambda: network(seed=5), events)

    whole = go(tmp_path / "whole", events := Events()).network.state_dict()
    assert kill_at < len(events.named("checkpoint")) == 9
    with pytest.raises(Killed):
        go(tmp_path / "killed", Dying(kill_at))
    again = go(tmp_path / "killed", Events()).network.state_dict()
    assert all(torch.equal(item, again[name]) for name, item in whole.items())


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"rewind": "trained", "epochs": 0}, "there are no epochs"),
        ({"rewind": "initial", "local": {}}, "fine_tunings: low"),
        ({"rewind": "first"}, "'last', 'trained' or 'initial'"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        FineTune.model_validate(fields)


def test_what_would_be_thrown_away_is_refused() -> None:
    document = {"method": "block_removal", "target": {"blocks": 0.5}, "fine_tune": {"rewind": "trained"}}
    with pytest.raises(ValueError, match="sets back what fade has trained"):
        BlockRemoval.model_validate(document | {"fade": {}})
    with pytest.raises(ValueError, match=r"sets back what replace.alone_epochs has trained"):
        BlockRemoval.model_validate(document | {"replace": {"alone_epochs": 1}})
    BlockRemoval.model_validate(document | {"replace": {}, "saliency": "random"})
