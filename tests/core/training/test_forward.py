"""Precision, compilation, penalties and groups of parameters: what they change in a training, and what they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.data.datasets import Dataset
from core.errors import RecipeInvalid
from core.graph.architectures import CifarResNet, build
from core.graph.lowering import trace
from core.graph.network import Network
from core.progress import Progress
from core.saliency.filter_norms import FilterNorms
from core.state import State
from core.training.forward import Forward, with_outputs
from core.training.optimizers import grouped
from core.training.port import FitResult, ParameterGroup
from core.training.stepping import Stepping
from core.training.trainer import Trainer
from core.training.vicinity import Vicinity
from core.training_settings import AdamW, ConstantSchedule, Local, Sgd, Training
from tests.core.fakes import Dying, Events, Killed, empty_state, small_dataset

CPU = torch.device("cpu")
TRAINING = Training(optimizer=Sgd(lr=0.05), batch_size=24)  # two batches of 24 and one of 16


@pytest.fixture(scope="module")
def data() -> Dataset:
    return small_dataset(images=64)


def cnn() -> Network:
    torch.manual_seed(0)
    return build("small_cnn", num_classes=4, in_channels=1, image_size=(8, 8))


def made(data: Dataset, events: Events | None = None) -> Trainer:
    events = Events() if events is None else events
    return Trainer(data, training=TRAINING, device=CPU, seed=0, original_macs=1, emit=events, progress=Progress(events))


def fit(
    data: Dataset, network: Network, state: State, training: Training = TRAINING, trainer: Trainer | None = None,
    **more: Any,
) -> FitResult:  # fmt: skip
    trainer = made(data) if trainer is None else trainer
    return trainer.fit(network, training=training, label="train", state=state, **{"epochs": 3, **more})


def same(left: Network, right: Network) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def changed(**fields: Any) -> Training:
    return TRAINING.model_copy(update=fields)


# --- precision -------------------------------------------------------------------------------------------------------


def test_layers_compute_in_bfloat16_and_all_else_in_float32(data: Dataset, tmp_path: Path) -> None:
    network, seen = cnn(), set()
    network.layers()["conv2"].register_forward_hook(lambda layer, _, output: seen.add((layer.training, output.dtype)))
    result = fit(data, network, empty_state(tmp_path), changed(precision="bfloat16"))
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}, "evaluation is what is exported"
    assert {tensor.dtype for tensor in network.parameters()} == {torch.float32}
    plain = fit(data, cnn(), empty_state(tmp_path / "plain"))
    found, expected = (run.epochs[-1]["validation_loss"] for run in (result, plain))
    assert found == pytest.approx(expected, rel=0.1)
    assert found != expected


def test_what_comes_out_is_float32() -> None:
    network = cnn().train()
    with Forward(changed(precision="bfloat16"), CPU).holds(network):
        assert network.logits(network.example_input(4)).dtype == torch.float32
    assert network.through is None


def test_bfloat16_resumes_in_the_same_bits(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", 1)
    training, whole, resumed = changed(precision="bfloat16"), cnn(), cnn()
    fit(data, whole, empty_state(tmp_path / "a"), training)
    dying = Dying(2)
    with pytest.raises(Killed):
        fit(data, cnn(), State.open(tmp_path / "b", fingerprint={"test": "x"}, emit=dying), training, made(data, dying))
    fit(data, resumed, empty_state(tmp_path / "b"), training)
    assert same(resumed, whole)


def with_scale(network: Network, **fields: Any) -> Stepping:
    return Stepping(network, changed(precision="float16", **fields), [n for n, _ in network.named_parameters()],
                    device=CPU)  # fmt: skip


def gradients_of(network: Network, seed: int = 0) -> Tensor:
    loss: Tensor = network.logits(network.example_input(8, seed=seed)).square().mean()
    return loss


@pytest.mark.parametrize("clip_norm", [0.0, 0.01])
def test_a_scaled_loss_makes_the_same_step(clip_norm: float) -> None:
    """The scale is a power of two: in float32 not a bit is lost, clipped or not."""
    scaled, plain = cnn().train(), cnn().train()
    first = with_scale(scaled, clip_norm=clip_norm)
    second = Stepping(plain, changed(clip_norm=clip_norm), [n for n, _ in plain.named_parameters()], device=CPU)
    for network, stepping in ((scaled, first), (plain, second)):
        for seed in range(3):
            stepping.begin(1.0, None)
            stepping.end(gradients_of(network, seed))
    assert first.scaler.get_scale() == 65536
    assert second.scaler.state_dict() == {}
    assert same(scaled, plain)


def test_a_step_with_infinite_gradients_is_left_out() -> None:
    network = cnn().train()
    before, stepping = network.clone(), with_scale(network)
    stepping.begin(1.0, None)
    stepping.end(sum(weight.sum() for weight in network.parameters()) * 1e38)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), before.parameters(), strict=True))
    assert stepping.scaler.get_scale() == 32768
    again = with_scale(cnn())
    again.load(stepping.state())
    assert again.scaler.get_scale() == 32768, "the scale is in the checkpoint"


# --- compilation -----------------------------------------------------------------------------------------------------


def test_a_compiled_training_is_the_same_training(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the backend that runs what was traced as it is, every bit; the network is the object that it was."""
    monkeypatch.setattr("core.training.forward.BACKEND", "eager")
    plain, compiled, seen = cnn(), cnn(), []
    parameters, names = list(compiled.parameters()), list(compiled.state_dict())
    fit(data, plain, empty_state(tmp_path / "a"))
    trainer = made(data)
    result = fit(data, compiled, empty_state(tmp_path / "b"), changed(compile=True), trainer, on_batch=seen.append)
    assert trainer.warnings == []
    assert all(a is b for a, b in zip(compiled.parameters(), parameters, strict=True))
    assert list(compiled.state_dict()) == names
    assert all(network is compiled for network in seen)
    assert len(result.epochs) == 3
    assert same(compiled, plain)


def test_norms_of_activations_are_noticed_in_a_compiled_training(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice with the same network: what was compiled without hooks may not run where there are some."""
    monkeypatch.setattr("core.training.forward.BACKEND", "eager")
    found = []
    for compiles in (False, True):
        network, norms = cnn(), FilterNorms(["conv2"], signal="activations", normalize="none")
        for number in range(2):
            workdir = tmp_path / f"{compiles}{number}"
            if number == 0:
                fit(data, network, empty_state(workdir), changed(compile=compiles), epochs=1)
                continue
            with norms.recording(network):
                fit(data, network, empty_state(workdir), changed(compile=compiles), epochs=1, on_batch=norms.add)
        found.append((norms.iterations, norms.totals["conv2"]))
    assert found[0][0] == found[1][0] == 3
    assert torch.equal(found[0][1], found[1][1])


def test_a_growing_vicinity_compiles_in_the_same_bits(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.training.forward.BACKEND", "eager")
    plain, compiled = cnn(), cnn()
    for network, training in ((plain, TRAINING), (compiled, changed(compile=True))):
        near = Vicinity(network, ["fc"], Local(left=0, right=0, grow=3))
        trainer = made(data)
        fit(data, network, empty_state(tmp_path / str(training.compile)), training, trainer, epochs=4, moving=near.at)
        assert trainer.warnings == []
    assert same(compiled, plain)


def test_what_does_not_compile_is_trained_all_the_same_and_told(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(module: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here\n" + "and a long story " * 100)

    monkeypatch.setattr("core.training.forward.BACKEND", broken)
    events, plain, network = Events(), cnn(), cnn()
    fit(data, plain, empty_state(tmp_path / "a"))
    trainer = made(data, events)
    fit(data, network, empty_state(tmp_path / "b"), changed(compile=True), trainer)
    assert same(network, plain)
    (told,) = trainer.warnings
    assert told.startswith("train ran uncompiled: torch.compile failed")
    assert "no compiler here" in told
    assert len(told) < 300
    assert "\n" not in told
    assert len(events.named("not_compiled")) == 1, "once, not at every batch"


def test_a_batch_too_small_is_the_same_fault_compiled_or_not(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.training.forward.BACKEND", "eager")
    module = nn.Sequential(nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4), nn.Flatten())
    network = trace(module.eval(), (1, 8, 8), format="safetensors")
    with pytest.raises(RecipeInvalid, match="too small for the network's BatchNorm"):
        fit(data, network, empty_state(tmp_path), changed(compile=True, batch_size=1))


def test_more_outputs_change_no_number() -> None:
    torch.manual_seed(0)
    network = trace(CifarResNet(8, num_classes=4, in_channels=1), (1, 8, 8), format="safetensors").train()
    twin, names = network.clone(), ["add", "add_1"]
    names = [node.name for node in network.module.graph.nodes if node.target is torch.ops.aten.add.Tensor]
    tapped = with_outputs(twin.module, names)
    images = network.example_input(8)
    outputs, features = tapped(images)
    assert torch.equal(outputs, network(images))
    assert [feature.shape[1] for feature in features] == [16, 32, 64]
    assert same(network, twin), "BatchNorm statistics"


# --- penalties and groups --------------------------------------------------------------------------------------------


def test_a_penalty_of_nothing_changes_no_bit(data: Dataset, tmp_path: Path) -> None:
    plain, penalised = cnn(), cnn()
    fit(data, plain, empty_state(tmp_path / "a"))
    result = fit(data, penalised, empty_state(tmp_path / "b"), penalty=lambda network: torch.zeros(()))
    assert same(penalised, plain)
    assert [record["penalty"] for record in result.epochs] == [0.0] * 3


def test_a_penalty_is_part_of_the_loss(data: Dataset, tmp_path: Path) -> None:
    """λ/2 · ‖w‖² by hand is torch's weight decay λ."""
    flat = {"lr": 0.05, "momentum": 0.0, "nesterov": False}
    training = changed(optimizer=Sgd(**flat, weight_decay=0.1))
    decayed, penalised = cnn(), cnn()
    fit(data, decayed, empty_state(tmp_path / "a"), training)

    def penalty(network: Network) -> Tensor:
        return 0.05 * torch.stack([weight.square().sum() for weight in network.parameters()]).sum()

    first = float(penalty(penalised).detach())
    training = changed(optimizer=Sgd(**flat, weight_decay=0.0))
    result = fit(data, penalised, empty_state(tmp_path / "b"), training, penalty=penalty)
    for name, tensor in decayed.state_dict().items():
        torch.testing.assert_close(penalised.state_dict()[name], tensor, rtol=1e-3, atol=1e-5)
    assert result.epochs[0]["penalty"] == pytest.approx(first, rel=0.1)
    assert result.epochs[0]["loss"] > result.epochs[0]["penalty"]


def test_groups_have_rates_of_their_own(data: Dataset, tmp_path: Path) -> None:
    """A rate of next to nothing keeps conv1; the schedule is on every rate."""
    network, before = cnn(), cnn().state_dict()
    rates: list[list[float]] = []
    optimizers: list[torch.optim.Optimizer] = []
    real = Stepping.end

    def end(self: Stepping, loss: Tensor) -> None:
        optimizers.append(self.optimizer)
        rates.append([group["lr"] for group in self.optimizer.param_groups])
        real(self, loss)

    groups = [ParameterGroup(["conv1.weight"], lr=1e-30, weight_decay=0.0), ParameterGroup(["fc.bias"], lr=0.5)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepping, "end", end)
        fit(data, network, empty_state(tmp_path), groups=groups, epochs=2)
    assert torch.equal(network.state_dict()["conv1.weight"], before["conv1.weight"])
    assert not torch.equal(network.state_dict()["conv2.weight"], before["conv2.weight"])
    assert rates[0] == [1e-30, 0.05, 0.5]
    assert rates[3] == pytest.approx([0.5e-30, 0.025, 0.25]), "half way of a cosine"


@pytest.mark.parametrize("settings", [Sgd(lr=0.1, weight_decay=0.01), AdamW(name="adamw", lr=0.1, weight_decay=0.01)])
def test_no_decay_on_one_dimension_and_a_rate_for_the_classifier(settings: Any) -> None:
    network = cnn()
    names = [name for name, _ in network.named_parameters()]
    of = {id(parameter): name for name, parameter in network.named_parameters()}

    def found(**fields: Any) -> dict[tuple[float, float], set[str]]:
        training = Training(optimizer=settings.model_copy(update=fields))
        return {(group["lr"], group["weight_decay"]): {of[id(item)] for item in group["params"]}
                for group in grouped(network, training, names)}  # fmt: skip

    assert found() == {(0.1, 0.01): set(names)}, "one group, as if there were none"
    flat = {name for name in names if name.endswith("bias") or name.startswith("bn")}
    assert found(decay_norm_and_bias=False) == {(0.1, 0.01): set(names) - flat, (0.1, 0.0): flat}
    assert found(classifier_lr=1.0) == {
        (0.1, 0.01): set(names) - {"fc.weight", "fc.bias"}, (1.0, 0.01): {"fc.weight", "fc.bias"},
    }  # fmt: skip


def test_groups_that_overlap_or_name_nothing_are_refused() -> None:
    network = cnn()
    for groups in ([ParameterGroup(["conv9.weight"])], [ParameterGroup(["fc.bias"]), ParameterGroup(["fc.bias"])]):
        with pytest.raises(ValueError, match="no such parameter, or one in two groups: "):
            grouped(network, TRAINING, [], groups)


@pytest.mark.parametrize("optimizer", [Sgd(lr=0.05, classifier_lr=0.1, decay_norm_and_bias=False), AdamW(name="adamw")])
def test_groups_and_penalties_resume_in_the_same_bits(
    optimizer: Any, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", 1)
    training = changed(optimizer=optimizer, schedule=ConstantSchedule(name="constant"))
    more: dict[str, Any] = {
        "penalty": lambda network: 0.01 * network.layers()["conv1"].get_parameter("weight").abs().sum(),
        "groups": [ParameterGroup(["conv1.weight"], lr=0.01), ParameterGroup(["conv2.weight"], weight_decay=0.1)],
    }
    whole, resumed = cnn(), cnn()
    fit(data, whole, empty_state(tmp_path / "a"), training, **more)
    dying = Dying(2)
    with pytest.raises(Killed):
        fit(data, cnn(), State.open(tmp_path / "b", fingerprint={"test": "x"}, emit=dying), training, made(data, dying),
            **more)  # fmt: skip
    fit(data, resumed, empty_state(tmp_path / "b"), training, **more)
    assert same(resumed, whole)
