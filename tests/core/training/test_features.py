"""Feature matching: which blocks of a pruned network are compared, with which channels, and the loss by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from core.data.datasets import Dataset
from core.errors import RecipeInvalid
from core.graph.architectures import CifarResNet, build
from core.graph.bypass import bypass
from core.graph.cuts import cut
from core.graph.groups import channel_groups
from core.graph.lowering import trace
from core.graph.network import Network
from core.progress import Progress
from core.state import State
from core.tasks import Classification
from core.training.features import matches
from core.training.forward import with_outputs
from core.training.port import FitResult
from core.training.trainer import Trainer
from core.training_settings import ConstantSchedule, Distill, Sgd, Training
from tests.core.fakes import Dying, Events, Killed, empty_state, small_dataset

STILL = Training(optimizer=Sgd(lr=1e-30, weight_decay=0), schedule=ConstantSchedule(name="constant"), batch_size=64)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return small_dataset(images=64)


def resnet(depth: int = 14) -> Network:
    torch.manual_seed(0)
    return trace(CifarResNet(depth, num_classes=4, in_channels=1), (1, 8, 8), format="safetensors")


def pruned() -> tuple[Network, list[dict[str, Any]]]:
    """layer2.1 is gone; 4 channels of the first stage's sums and 3 of the inside of layer3.0 are gone."""
    network, first = bypass(resnet(), "layer2.1")
    group = next(group.name for group in channel_groups(network).groups if group.width == 16 and group.name == "conv1")
    network, second = cut(network, {group: [0, 3, 7, 12]})
    network, third = cut(network, {"layer3.0.conv1": [1, 2, 3]})
    return network, [first, second, third]


def fit(
    data: Dataset, network: Network, state: State, distill: Distill | None, events: Events | None = None, **more: Any
) -> FitResult:
    events = Events() if events is None else events
    training = more.pop("training", STILL).model_copy(update={"distill": distill})
    made = Trainer(data, training=training, device=torch.device("cpu"), seed=0, original_macs=1, emit=events,
                   progress=Progress(events), task=Classification(more.pop("teacher", None) or resnet()))  # fmt: skip
    return made.fit(network, training=training, label="fine_tune/0", state=state, **{"epochs": 1, **more})


def same(left: Network, right: Network) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_surviving_blocks_with_the_channels_that_are_left() -> None:
    network, plan = pruned()
    found = list(matches(resnet(), network, plan).values())
    kept = [channel for channel in range(16) if channel not in (0, 3, 7, 12)]
    assert found == [kept, kept, None, None, None], "two blocks of the first stage, one of the second, two of the third"


def test_without_the_plan_cut_blocks_are_passed_over() -> None:
    network, plan = pruned()
    assert len(matches(resnet(), network)) == 3
    assert plan


def test_nothing_to_match_is_refused(data: Dataset, tmp_path: Path) -> None:
    network = build("small_cnn", num_classes=4, in_channels=1, image_size=(8, 8))
    with pytest.raises(RecipeInvalid, match="nothing to match") as error:
        fit(data, network, empty_state(tmp_path), Distill(features=1.0))
    assert error.value.faults[0].pointer == "/training/distill/features"


def test_without_blocks_plain_layers_are_matched() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(),
              nn.Linear(512, 4)]  # fmt: skip
    network = trace(nn.Sequential(*layers), (1, 8, 8), format="safetensors")
    assert list(matches(network, network.clone()).values()) == [None]
    smaller, entry = cut(network, {"2": [5]})
    assert list(matches(network, smaller, [entry]).values()) == [[0, 1, 2, 3, 4, 6, 7]]


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_loss_by_hand(weight: float, data: Dataset, tmp_path: Path) -> None:
    """One batch of everything, at a rate of nothing: cross-entropy, and the mean over blocks of the mean square."""
    network, plan = pruned()
    images = data.preprocess(data.splits["train"].x)
    found = matches(resnet(), network, plan)
    with torch.no_grad():
        _, ours = with_outputs(network.clone().train().module, list(found))(images)
        _, theirs = with_outputs(resnet().eval().module, list(found))(images)
    terms = [
        (mine - (its if kept is None else its[:, list(kept)])).square().mean()
        for mine, its, kept in zip(ours, theirs, found.values(), strict=True)
    ]
    expected = float(torch.stack(terms).mean())
    without = fit(data, network.clone(), empty_state(tmp_path / "a"), Distill(weight=weight), plan=plan).epochs[0]
    with_features = fit(
        data, network, empty_state(tmp_path / "b"), Distill(weight=weight, features=3.0), plan=plan
    ).epochs[0]
    assert with_features["features"] == pytest.approx(3 * expected, rel=1e-4)
    assert with_features["loss"] == pytest.approx(without["loss"] + 3 * expected, rel=1e-4)
    assert "features" not in without


def test_an_equal_network_has_nothing_to_learn_from_it(data: Dataset, tmp_path: Path) -> None:
    """In evaluation mode, so that both go by the same statistics: all BatchNorms are frozen by `moving`."""
    network = resnet()
    record = fit(data, network, empty_state(tmp_path), Distill(weight=0, features=1.0),
                 moving=lambda epoch, epochs: ["fc.weight"]).epochs[0]  # fmt: skip
    assert record["features"] == 0.0


def test_features_of_no_weight_change_no_bit(data: Dataset, tmp_path: Path) -> None:
    training = Training(optimizer=Sgd(lr=0.05), batch_size=16)
    plain, with_none = resnet(8), resnet(8)
    fit(data, plain, empty_state(tmp_path / "a"), Distill(), training=training, teacher=resnet(8))
    fit(data, with_none, empty_state(tmp_path / "b"), Distill(features=0.0), training=training, teacher=resnet(8))
    assert same(plain, with_none)


def test_features_come_nearer_to_the_original_s(data: Dataset, tmp_path: Path) -> None:
    training = Training(optimizer=Sgd(lr=0.02), batch_size=16)
    network, plan = pruned()
    result = fit(data, network, empty_state(tmp_path), Distill(weight=0, features=10.0), training=training, plan=plan,
                 epochs=5)  # fmt: skip
    assert result.epochs[-1]["features"] < 0.7 * result.epochs[0]["features"]


@pytest.mark.parametrize("kill_at", [1, 2])
def test_feature_matching_resumes_in_the_same_bits(
    kill_at: int, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", 1)
    training = Training(optimizer=Sgd(lr=0.02), batch_size=16, augment="crop_flip")
    (whole, plan), (killed, _), (resumed, _) = pruned(), pruned(), pruned()
    more: dict[str, Any] = {"training": training, "plan": plan, "epochs": 3}
    fit(data, whole, empty_state(tmp_path / "a"), Distill(features=1.0), **more)
    dying = Dying(kill_at)
    state = State.open(tmp_path / "b", fingerprint={"test": "x"}, emit=dying)
    with pytest.raises(Killed):
        fit(data, killed, state, Distill(features=1.0), dying, **more)
    fit(data, resumed, empty_state(tmp_path / "b"), Distill(features=1.0), **more)
    assert same(resumed, whole)
