"""The trainer: learns, restores the best epoch, resumes in the same bits, stops at NaN, keeps its accounts."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

from core.data.datasets import Dataset
from core.errors import RecipeInvalid, TrainingDiverged
from core.graph.architectures import build
from core.graph.counts import count
from core.graph.lowering import trace
from core.graph.network import Network, Origin, TensorSpec
from core.job import Preprocess
from core.progress import Progress
from core.state import State
from core.training.memory_format import to_channels_last
from core.training.port import FitResult, Score
from core.training.seeds import derived_seed
from core.training.trainer import Trainer
from core.training_settings import (
    AdamW,
    Augmentation,
    ConstantSchedule,
    CosineSchedule,
    MultistepSchedule,
    Sgd,
    Training,
)
from tests.core.fakes import Dying, Events, Killed, empty_state, small_dataset, stored

TRAINING = Training(optimizer=Sgd(lr=0.05), batch_size=16)
AUGMENT = Augmentation(crop=True, flip=True, rotate=10, erase=0.3, noise=0.05, mixup=0.2, cutmix=1.0)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data() -> Dataset:
    return small_dataset(images=64)


def cnn(**changes: Any) -> Network:
    return build("small_cnn", **{"num_classes": 4, "in_channels": 1, "image_size": (8, 8), **changes})


def trainer(data: Dataset, events: Events | None = None, *, seed: int = 0, clock: Any = None) -> Trainer:
    events = Events() if events is None else events
    more = {} if clock is None else {"clock": clock}
    return Trainer(data, training=TRAINING, device=torch.device("cpu"), seed=seed, original_macs=1, emit=events,
                   progress=Progress(events), **more)  # fmt: skip


def fit(
    data: Dataset, network: Network, workdir: Path, epochs: int = 3, training: Training = TRAINING, **more: Any
) -> FitResult:
    state = more.pop("state") if "state" in more else empty_state(workdir)
    return trainer(data, more.pop("events", None), seed=more.pop("seed", 0)).fit(
        network, training=training, epochs=epochs, label="fine_tune/0", state=state, **more
    )


def same_weights(left: Network, right: Network) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("optimizer", [Sgd(lr=0.05), Sgd(lr=0.05, momentum=0, nesterov=False), AdamW(name="adamw")])
@pytest.mark.parametrize(
    "schedule", [ConstantSchedule(name="constant"), MultistepSchedule(name="multistep"), CosineSchedule()]
)
def test_it_learns(optimizer: Any, schedule: Any, data: Dataset, tmp_path: Path) -> None:
    training = Training(optimizer=optimizer, schedule=schedule, batch_size=8, augment="none")
    result = fit(data, cnn(), tmp_path, epochs=5, training=training)
    assert result.epochs[-1]["loss"] < 0.7 * result.epochs[0]["loss"]
    assert result.epochs[-1]["train_accuracy"] > 0.7


def test_what_an_epoch_tells(data: Dataset, tmp_path: Path) -> None:
    events, network, told = Events(), cnn(), []
    result = fit(data, network, tmp_path, epochs=2, events=events, on_epoch=told.append)
    records = [body for name, body in events if "/epoch/" in name]
    assert [name for name, _ in events if "/epoch/" in name] == ["fine_tune/0/epoch/1", "fine_tune/0/epoch/2"]
    assert records == result.epochs
    assert told == [{**record, "last": record["epoch"] == 2} for record in records]
    assert set(records[0]) == {
        "epoch", "loss", "train_accuracy", "validation_accuracy", "validation_loss", "lr", "seconds", "images",
    }  # fmt: skip
    assert records[0]["lr"] == 0.05
    assert records[1]["lr"] == pytest.approx(0.025)
    assert result.cost.epochs == 2
    assert result.cost.images == 2 * 64
    assert result.cost.epoch_params == 2 * count(network).params
    assert result.cost.seconds == sum(record["seconds"] for record in records)


def test_the_best_epoch_is_restored(data: Dataset, tmp_path: Path) -> None:
    network, snapshots = cnn(), []

    def keep(record: dict[str, Any]) -> None:
        snapshots.append({name: tensor.clone() for name, tensor in network.state_dict().items()})

    training = TRAINING.model_copy(update={"optimizer": Sgd(lr=0.3)})
    result = fit(data, network, tmp_path, epochs=6, training=training, on_epoch=keep)
    ranks = [(-record["validation_accuracy"], record["validation_loss"]) for record in result.epochs]
    best = ranks.index(min(ranks))
    assert result.best_epoch == best + 1
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in snapshots[best].items())
    assert result.score == trainer(data).evaluate(network, "validation")


def test_without_restoring_the_last_weights_stay(data: Dataset, tmp_path: Path) -> None:
    result = fit(data, cnn(), tmp_path, epochs=4, restore_best=False)
    assert result.best_epoch == 4
    assert result.score is not None
    assert result.score.accuracy == result.epochs[-1]["validation_accuracy"]


def test_of_equal_epochs_the_earlier_is_better() -> None:
    assert Score(0.9, 0.1, 10).better_than(Score(0.8, 0.01, 10))
    assert Score(0.9, 0.1, 10).better_than(Score(0.9, 0.2, 10))
    assert not Score(0.9, 0.1, 10).better_than(Score(0.9, 0.1, 10))


def test_no_epochs_change_nothing(data: Dataset, tmp_path: Path) -> None:
    network = cnn()
    before = network.clone()
    result = fit(data, network, tmp_path, epochs=0)
    assert same_weights(network, before)
    assert (result.epochs, result.score, result.best_epoch, result.cost.epochs) == ([], None, None, 0)


def test_seeds_and_labels_decide_order(data: Dataset, tmp_path: Path) -> None:
    networks = [cnn() for _ in range(3)]
    for number, (network, seed) in enumerate(zip(networks, (0, 0, 1), strict=True)):
        fit(data, network, tmp_path / str(number), epochs=1, seed=seed)
    assert same_weights(networks[0], networks[1])
    assert not same_weights(networks[0], networks[2])
    assert derived_seed(0, "a") != derived_seed(0, "b")


@pytest.mark.parametrize("optimizer", [Sgd(lr=0.05), AdamW(name="adamw")])
@pytest.mark.parametrize("kill_at", [1, 2, 3])
def test_a_resumed_training_ends_in_the_same_bits(
    optimizer: Any, kill_at: int, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout, augmentation, momentum, BatchNorm, channels of 1 and 1 x 1 kernels are all in it."""
    monkeypatch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", 2)
    training = Training(optimizer=optimizer, schedule=CosineSchedule(), batch_size=24, augment=AUGMENT)

    def fresh() -> Network:
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 1), nn.Dropout(0.3),
            nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(48, 4),
        )  # fmt: skip
        return trace(module, (1, 8, 8), format="safetensors")

    undisturbed = fresh()
    whole = fit(data, undisturbed, tmp_path / "a", epochs=6, training=training)

    events = Dying(kill_at)
    state = State.open(tmp_path / "b", fingerprint={"test": "x"}, emit=events)
    with pytest.raises(Killed):
        fit(data, fresh(), tmp_path, epochs=6, training=training, state=state, events=events)
    done = len([name for name, _ in events if "/epoch/" in name])
    torch.manual_seed(12345)  # another process has other random states
    resumed, after = fresh(), Events()
    rest = fit(data, resumed, tmp_path / "b", epochs=6, training=training, events=after)
    assert same_weights(resumed, undisturbed)
    first = next(name for name, _ in after if "/epoch/" in name)
    assert first == f"fine_tune/0/epoch/{done + 1}"
    without_time = [{key: value for key, value in record.items() if key != "seconds"} for record in rest.epochs]
    assert without_time == [{k: v for k, v in record.items() if k != "seconds"} for record in whole.epochs]
    assert rest.cost.epochs == 6


@pytest.mark.parametrize("kill_at", [None, 1, 3])
def test_what_is_streamed_is_trained_on_in_the_same_bits(
    kill_at: int | None, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an attempt that had the images in memory is gone on from."""
    monkeypatch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", 1)
    training = TRAINING.model_copy(update={"augment": AUGMENT, "batch_size": 24})
    torch.manual_seed(0)
    held, begun, network = cnn(), cnn(), cnn()
    for other in (begun, network):
        other.load_state_dict(held.state_dict())
    whole = fit(data, held, tmp_path / "a", epochs=4, training=training)
    if kill_at is not None:
        events = Dying(kill_at)
        state = State.open(tmp_path / "b", fingerprint={"test": "x"}, emit=events)
        with pytest.raises(Killed):
            fit(data, begun, tmp_path, epochs=4, training=training, state=state, events=events)
    result = fit(stored(data, tmp_path), network, tmp_path / "b", epochs=4, training=training)
    assert same_weights(network, held)
    assert result.score == whole.score


def test_checkpoints_by_time_and_by_count(data: Dataset, tmp_path: Path) -> None:
    def run(epochs: int, workdir: Path, tick: float) -> list[int]:
        """The epochs after which there was a checkpoint; each look at the clock finds it `tick` seconds later."""
        events, now = Events(), itertools.count(0, tick)
        state = State.open(workdir, fingerprint={"test": "x"}, emit=events)
        trainer(data, events, clock=lambda: next(now)).fit(
            cnn(), training=TRAINING, epochs=epochs, label="fine_tune/0", state=state, restore_best=False
        )
        saved, epoch = [], 0
        for name, _ in events:
            epoch = int(name.rpartition("/")[2]) if "/epoch/" in name else epoch
            if name == "checkpoint":
                saved.append(epoch)
        return saved

    assert run(13, tmp_path / "count", 0.1) == [1, 6, 11]
    assert run(7, tmp_path / "time", 2) == [
        1,
        3,
        5,
    ]  # three looks an epoch, one after a checkpoint: 10 s are two epochs


def test_another_trainings_checkpoint_is_not_gone_on_from(data: Dataset, tmp_path: Path) -> None:
    state = empty_state(tmp_path)
    state.save(label="prune/step/0/round/1", epochs=[{}] * 3, weights={}, optimizer={}, best=None, cost={})
    assert len(fit(data, cnn(), tmp_path, epochs=1, state=state).epochs) == 1


def test_a_loss_that_is_not_finite_stops_it(data: Dataset, tmp_path: Path) -> None:
    training = Training(optimizer=Sgd(lr=100), schedule=ConstantSchedule(name="constant"), batch_size=16)
    network = trace(
        nn.Sequential(nn.Conv2d(1, 64, 3), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(256, 4)),
        (1, 8, 8), format="safetensors",
    )  # fmt: skip
    with pytest.raises(TrainingDiverged, match=r"fine_tune/0, epoch \d+, step \d+, at learning rate 100") as raised:
        fit(data, network, tmp_path, epochs=50, training=training)
    assert "nan" in raised.value.message or "inf" in raised.value.message


def test_an_infinite_validation_loss_stops_it_too(data: Dataset, tmp_path: Path) -> None:
    network = cnn()

    def spoil(network: Network) -> None:
        with torch.no_grad():
            network.layers()["fc"].get_parameter("weight").fill_(float("nan"))

    with pytest.raises(TrainingDiverged, match="validation loss is nan after fine_tune/0, epoch 1"):
        fit(small_dataset(images=8), network, tmp_path, epochs=1, on_batch=spoil)


def test_batches_of_one_are_refused_where_batchnorm_needs_more(data: Dataset, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4), nn.Flatten())
    network = trace(module.eval(), (1, 8, 8), format="safetensors")
    with pytest.raises(RecipeInvalid) as raised:
        fit(data, network, tmp_path, epochs=1, training=Training(batch_size=1))
    assert raised.value.faults[0].pointer == "/training/batch_size"


def test_a_final_softmax_is_trained_in_front_of(data: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)]
    plain = trace(nn.Sequential(*layers), (1, 8, 8), format="safetensors")
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4), nn.Softmax(1)]
    probable = trace(nn.Sequential(*layers), (1, 8, 8), format="safetensors")
    fit(data, plain, tmp_path / "plain", epochs=1)
    fit(data, probable, tmp_path / "probable", epochs=1)
    assert [a.tolist() for a in plain.parameters()] == [b.tolist() for b in probable.parameters()]


def test_evaluation_is_plain_accuracy_and_cross_entropy(data: Dataset) -> None:
    network = cnn()
    score = trainer(data).evaluate(network, "test")
    split = data.splits["test"]
    with torch.no_grad():
        logits = network.eval()(data.preprocess(split.x))
    assert score.accuracy == (logits.argmax(1) == split.y).float().mean().item()
    assert score.loss == pytest.approx(nn.functional.cross_entropy(logits, split.y).item(), rel=1e-5)
    assert score.images == 32


def test_layout_nhwc_is_trained_as_it_is_given(tmp_path: Path) -> None:
    root = nn.ModuleDict({"conv": nn.Conv2d(1, 8, 3), "fc": nn.Linear(288, 4)})
    graph = fx.Graph()
    x = graph.call_function(torch.ops.aten.permute.default, (graph.placeholder("input"), [0, 3, 1, 2]))
    x = graph.call_function(torch.ops.aten.relu.default, (graph.call_module("conv", (x,)),))
    x = graph.call_function(torch.ops.aten.flatten.using_ints, (x, 1, -1))
    graph.output(graph.call_module("fc", (x,)))
    specs = TensorSpec("input", "float32", ("n", 8, 8, 1)), TensorSpec("output", "float32", ("n", 4))
    network = Network(fx.GraphModule(root, graph), specs[:1], specs[1:], Origin("onnx", 20), ((8, 8, 1),))
    data = small_dataset(preprocess=Preprocess(layout="NHWC"))
    assert fit(data, network, tmp_path, epochs=5).epochs[-1]["train_accuracy"] > 0.6


def test_memory_format_changes_layout_and_nothing_else() -> None:
    network = cnn()
    twin = network.clone()
    to_channels_last(network)
    assert same_weights(network, twin)
    weight = network.layers()["conv2"].get_parameter("weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    # (16, 1, 3, 3) is both: its strides must not depend on where it came from
    strides = network.layers()["conv1"].get_parameter("weight").stride()
    to_channels_last(network)
    assert network.layers()["conv1"].get_parameter("weight").stride() == strides


def test_recalibration_takes_at_most_2048_images(data: Dataset) -> None:
    large = small_dataset(images=2_500, size=4)
    network = cnn(image_size=(4, 4))
    assert trainer(large).recalibrate(network, label="x") == 3
    assert network.state_dict()["bn1.num_batches_tracked"] == 16


def test_batches_without_gradients_are_small_where_activations_are_large(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.batch_size.MOST_ELEMENTS", 10 * 16 * 8 * 8)  # 10 images: conv1 makes 16 channels of 8×8
    network = cnn()
    sizes: list[int] = []
    network.layers()["conv1"].register_forward_pre_hook(lambda layer, inputs: sizes.append(len(inputs[0])))
    whole = trainer(data).evaluate(network, "validation")
    assert max(sizes) <= 10 < len(data.splits["validation"]) == whole.images == sum(sizes)
    sizes.clear()
    trainer(data).recalibrate(network, label="x")
    assert max(sizes) <= 10
    assert sum(sizes) == len(data.splits["train"])
