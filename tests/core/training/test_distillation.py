"""Training towards a teacher, a classifier that stays, noise on the weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from core.data.datasets import Dataset
from core.errors import RecipeInvalid
from core.graph.architectures import CifarResNet, build
from core.graph.counts import count
from core.graph.lowering import trace
from core.graph.network import Network
from core.progress import Progress
from core.state import State
from core.tasks import Classification
from core.training.classifier import classifier_layers
from core.training.losses import distillation, training_loss
from core.training.port import FitResult
from core.training.trainer import Trainer
from core.training.weight_noise import add_weight_noise
from core.training_settings import ConstantSchedule, Distill, Sgd, Training, WeightNoise
from tests.core.fakes import Dying, Events, Killed, empty_state, small_dataset

CONSTANT = ConstantSchedule(name="constant")


@pytest.fixture(scope="module")
def data() -> Dataset:
    return small_dataset(images=64)


def cnn(seed: int = 0, name: str = "small_cnn") -> Network:
    torch.manual_seed(seed)
    return build(name, num_classes=4, in_channels=1, image_size=(8, 8))


def fit(
    data: Dataset,
    network: Network,
    training: Training,
    state: State,
    *,
    teacher: Network | None = None,
    events: Events | None = None,
    epochs: int = 4,
) -> FitResult:
    events = Events() if events is None else events
    made = Trainer(data, training=training, device=torch.device("cpu"), seed=0, original_macs=1, emit=events,
                   progress=Progress(events), task=Classification(teacher))  # fmt: skip
    return made.fit(network, training=training, epochs=epochs, label="train", state=state)


def same(left: Network, right: Network) -> bool:
    other = right.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in left.state_dict().items())


# --- distillation ----------------------------------------------------------------------------------------------------


def test_it_is_the_divergence_by_hand() -> None:
    """T² Σ p log(p / q), p of the teacher, q of the student, both softened."""
    student, teacher, temperature = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[3.0, 0.0, 1.0]]), 2.0
    p, q = (torch.exp(item / temperature) / torch.exp(item / temperature).sum() for item in (teacher, student))
    by_hand = temperature**2 * sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p[0], q[0], strict=True))
    found = distillation(student, teacher, Distill(temperature=temperature))
    assert float(found) == pytest.approx(by_hand, rel=1e-5)
    assert float(distillation(teacher, teacher, Distill())) == pytest.approx(0, abs=1e-6)


def test_the_gradient_keeps_its_size_when_it_is_softened() -> None:
    """What T² is for: for large T the gradient is (student − teacher) / classes, of centred logits."""
    student = torch.tensor([[0.3, -0.1, -0.2]], requires_grad=True)
    teacher = torch.tensor([[0.2, 0.1, -0.3]])
    distillation(student, teacher, Distill(temperature=50)).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(student.grad, (student.detach() - teacher) / 3, rtol=0.02, atol=1e-4)


def test_the_loss_is_shared_by_the_weight() -> None:
    logits, teacher, labels = torch.randn(5, 4), torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    plain = training_loss(logits, labels, Training())
    for weight in (0.0, 0.3, 1.0):
        settings = Distill(weight=weight)
        expected = (1 - weight) * plain + weight * distillation(logits, teacher, settings)
        found = training_loss(logits, labels, Training(distill=settings), teacher=teacher)
        torch.testing.assert_close(found, expected)


def test_labels_that_say_nothing_are_made_up_for_by_a_teacher(data: Dataset, tmp_path: Path) -> None:
    """With the whole weight on the teacher a network learns what it knows, not what the labels say."""
    teacher = cnn(seed=1)
    base = Training(optimizer=Sgd(lr=0.05), schedule=CONSTANT, batch_size=16)
    fit(data, teacher, base, empty_state(tmp_path / "teacher"), epochs=10)
    student = cnn(seed=2)
    training = base.model_copy(update={"distill": Distill(weight=1.0, temperature=2)})
    kept = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    fit(data, student, training, empty_state(tmp_path / "student"), teacher=teacher, epochs=10)
    assert all(torch.equal(tensor, teacher.state_dict()[name]) for name, tensor in kept.items())  # it is not trained
    images, _ = next(iter(data.batches("validation", 32)))
    with torch.no_grad():
        theirs, ours, before = (network.eval()(images).softmax(1) for network in (teacher, student, cnn(seed=2)))
    assert (ours - theirs).abs().mean() < 0.3 * (before - theirs).abs().mean()


def test_a_weight_of_0_asks_no_teacher(data: Dataset, tmp_path: Path) -> None:
    plain, asked = cnn(), cnn()
    training = Training(batch_size=16)
    fit(data, plain, training, empty_state(tmp_path / "a"), epochs=1)
    off = training.model_copy(update={"distill": Distill(weight=0.0)})
    fit(data, asked, off, empty_state(tmp_path / "b"), epochs=1)
    assert same(plain, asked)


def test_it_resumes_in_the_same_bits(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", 1)
    teacher = cnn(seed=1)
    training = Training(batch_size=16, distill=Distill(), freeze="classifier", clip_norm=0.5)
    whole, resumed = cnn(), cnn()
    fit(data, whole, training, empty_state(tmp_path / "a"), teacher=teacher)
    events = Dying(2)
    state = State.open(tmp_path / "b", fingerprint={"test": "x"}, emit=events)
    with pytest.raises(Killed):
        fit(data, cnn(), training, state, teacher=teacher, events=events)
    fit(data, resumed, training, empty_state(tmp_path / "b"), teacher=teacher)
    assert same(whole, resumed)


# --- a classifier that stays -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "expected"), [("small_cnn", ["fc"]), ("vgg16_fc", ["fc3"]), ("resnet20", ["fc"])])
def test_the_classifier_is_found(name: str, expected: list[str]) -> None:
    network = build(name, num_classes=4, in_channels=3, image_size=(32, 32))
    found = classifier_layers(network)
    assert len(found) == 1
    layer = network.layers()[found[0]]
    assert isinstance(layer, nn.Linear)
    assert layer.out_features == 4


def test_a_convolution_in_front_of_pooling_is_a_classifier() -> None:
    class Convolutional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).relu()).relu().mean((2, 3))

    assert classifier_layers(trace(Convolutional(), (1, 8, 8), format="safetensors")) == ["last"]


def test_what_is_trained_behind_a_classifier_is_of_it() -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.bn = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.last(self.first(x).relu())).mean((2, 3))

    network = trace(Normalised(), (1, 8, 8), format="safetensors")
    assert classifier_layers(network) == ["last", "bn"]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    add_weight_noise(network, WeightNoise(eta=0.5), seed=0, spared=classifier_layers(network))
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"first.weight"}


def test_a_frozen_classifier_stays(data: Dataset, tmp_path: Path) -> None:
    network = cnn()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    training = Training(optimizer=Sgd(lr=0.1, weight_decay=0.1), batch_size=16, freeze="classifier", clip_norm=0.1)
    result = fit(data, network, training, empty_state(tmp_path), epochs=2)
    (name,) = classifier_layers(network)
    own = [key for key in before if key.startswith(f"{name}.")]
    assert own
    assert all(torch.equal(before[key], network.state_dict()[key]) for key in own)
    others = [key for key in before if key not in own and before[key].dim() > 1]
    assert not any(torch.equal(before[key], network.state_dict()[key]) for key in others)
    assert result.cost.epoch_params == 2 * count(network).params
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("classifier_lr", [None, 0.05])
def test_a_frozen_body_stays(classifier_lr: float | None, data: Dataset, tmp_path: Path) -> None:
    """To the bit, statistics of its BatchNorms too; the classifier alone learns, in the same bits as by hand."""
    torch.manual_seed(0)
    network = trace(CifarResNet(8, num_classes=4, in_channels=1), (1, 8, 8), format="safetensors")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    sgd = Sgd(lr=0.1 if classifier_lr is None else 0.7, momentum=0, nesterov=False, weight_decay=0,
              classifier_lr=classifier_lr)  # fmt: skip
    training = Training(optimizer=sgd, schedule=CONSTANT, batch_size=64, freeze="body")
    fit(data, network, training, empty_state(tmp_path), epochs=1)
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"fc.weight", "fc.bias"}
    again = trace(CifarResNet(8, num_classes=4, in_channels=1).eval(), (1, 8, 8), format="safetensors")
    again.load_state_dict(before)
    images, labels = next(iter(data.batches("train", 64)))
    functional.cross_entropy(again.eval()(images), labels).backward()
    for name in sorted(changed):
        rate = classifier_lr or 0.1
        gradient = dict(again.named_parameters())[name].grad
        assert gradient is not None
        expected = before[name] - rate * gradient
        assert torch.allclose(network.state_dict()[name], expected, atol=1e-5)


def test_a_network_that_is_all_classifier_cannot_be_frozen(data: Dataset, tmp_path: Path) -> None:
    network = trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), (1, 8, 8), format="safetensors")
    with pytest.raises(RecipeInvalid, match="nothing is left to be trained") as error:
        fit(data, network, Training(freeze="classifier"), empty_state(tmp_path))
    assert error.value.faults[0].pointer == "/training/freeze"


# --- noise on the weights --------------------------------------------------------------------------------------------


def noisy(per: Any, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor], Network]:
    torch.manual_seed(0)
    network = trace(CifarResNet(8, num_classes=4, in_channels=1), (1, 8, 8), format="safetensors")
    with torch.no_grad():
        network.layers()["layer3.0.conv2"].get_parameter("weight")[:32].mul_(10)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    add_weight_noise(network, WeightNoise(eta=0.1, per=per), seed=seed)
    return before, network.state_dict(), network


def test_noise_is_scaled_by_the_deviation_of_the_layer() -> None:
    before, after, _ = noisy("layer")
    weight = before["layer3.0.conv2.weight"]
    noise = after["layer3.0.conv2.weight"] - weight
    for half in (noise[:32], noise[32:]):
        assert float(half.std() / (0.1 * weight.std())) == pytest.approx(1, rel=0.03)


def test_noise_is_scaled_by_the_deviation_of_each_kernel() -> None:
    before, after, _ = noisy("kernel")
    weight = before["layer3.0.conv2.weight"]
    noise = after["layer3.0.conv2.weight"] - weight
    for half in (slice(0, 32), slice(32, 64)):
        assert float(noise[half].std() / (0.1 * weight[half].std())) == pytest.approx(1, rel=0.05)


def test_noise_is_of_the_seed_and_for_convolutions_only() -> None:
    (before, after, network), (_, again, _), (_, other, _) = noisy("layer"), noisy("layer"), noisy("layer", seed=1)
    convolutions = {f"{name}.weight" for name, layer in network.layers().items() if isinstance(layer, nn.Conv2d)}
    assert {name for name in before if not torch.equal(before[name], after[name])} == convolutions
    assert all(torch.equal(after[name], again[name]) for name in after)
    assert not torch.equal(after["conv1.weight"], other["conv1.weight"])
