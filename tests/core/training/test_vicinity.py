"""Local training: which blocks are near a wound, and that nothing else moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from core.data.datasets import Dataset
from core.errors import RecipeInvalid
from core.graph.architectures import CifarResNet, build
from core.graph.bypass import bypass
from core.graph.counts import count
from core.graph.cuts import cut
from core.graph.lowering import trace
from core.graph.network import Network
from core.methods.filter_norm import filter_norm
from core.outcome import Outcome
from core.progress import Progress
from core.state import State
from core.target_settings import Target
from core.targets import Goal
from core.training.port import FitResult
from core.training.trainer import Trainer
from core.training.vicinity import Vicinity, changed_layers, units_of, vicinity
from core.training_settings import FineTune, Local, Moments, Policy, Sgd, Training, WeightNoise
from tests.core.fakes import Dying, Events, Killed, ScriptedTrainer, empty_state, small_dataset

TRAINING = Training(optimizer=Sgd(lr=0.05), batch_size=16)
BLOCKS = ["layer1.0", "layer2.0", "layer3.0"]


@pytest.fixture(scope="module")
def data() -> Dataset:
    return small_dataset(images=48)


def resnet(depth: int = 8) -> Network:
    torch.manual_seed(0)
    return trace(CifarResNet(depth, num_classes=4, in_channels=1), (1, 8, 8), format="safetensors")


def layers_of(names: list[str]) -> set[str]:
    """The units, by short names, that parameters belong to."""
    return {next((block for block in BLOCKS if name.startswith(block)), name.split(".")[0]) for name in names}


# --- which units -----------------------------------------------------------------------------------------------------


def test_units_are_blocks_and_what_lies_between_them() -> None:
    units = units_of(resnet())
    assert [unit[0].rpartition(".")[0] or unit[0] for unit in units] == ["conv1", *BLOCKS, "fc"]
    assert units[0] == ["conv1", "bn1"]
    assert "layer2.0.downsample.0" in units[2]


def test_without_blocks_layers_are_units() -> None:
    network = build("small_cnn", num_classes=4, in_channels=1, image_size=(8, 8))
    assert units_of(network) == [["conv1", "bn1"], ["conv2", "bn2"], ["conv3", "bn3"], ["fc"]]


def test_branches_are_one_unit() -> None:
    network = build("small_inception", num_classes=4, in_channels=1, image_size=(8, 8))
    units = units_of(network)
    flat = [layer for unit in units for layer in unit]
    assert sorted(flat) == sorted(network.layers())
    assert units[1] == [f"blocks.0.branch{number}.{layer}" for number in (1, 2) for layer in ("conv", "bn")]


def test_a_block_around_blocks_is_none() -> None:
    class Long(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.tail, self.last = (nn.Conv2d(i, 4, 3, padding=1) for i in (1, 4, 4))
            self.a, self.b, self.c, self.d = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
            self.scale = nn.Parameter(torch.ones(1, 4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = first = self.stem(x)
            x = x + self.b(self.a(x).relu())
            x = x + self.d(self.c(x).relu()) * self.scale
            return self.last(first + self.tail(x)).mean((2, 3))

    network = trace(Long(), (1, 8, 8), format="safetensors")
    assert units_of(network) == [["stem"], ["a", "b"], ["c", "d", "scale"], ["tail"], ["last"]]
    assert vicinity(network, ["d"], 0, 0) == [
        name for name, _ in network.named_parameters() if name.split(".")[0] in ("c", "d", "scale")
    ]


@pytest.mark.parametrize(
    ("wound", "left", "right", "expected"),
    [
        (["layer2.0.conv1"], 0, 0, {"layer2.0"}),
        (["layer2.0.conv1"], 1, 0, {"layer1.0", "layer2.0"}),
        (["layer2.0.conv1"], 0, 1, {"layer2.0", "layer3.0"}),
        (["conv1"], 5, 1, {"conv1", "bn1", "layer1.0"}),
        (["conv1", "layer3.0.bn1"], 0, 1, {"conv1", "bn1", "layer1.0", "layer3.0", "fc"}),
        (["layer1.0.conv1"], 1, 3, {"conv1", "bn1", *BLOCKS, "fc"}),
        ([], 0, 0, {"conv1", "bn1", *BLOCKS, "fc"}),
    ],
)
def test_so_many_blocks_left_and_right(wound: list[str], left: int, right: int, expected: set[str]) -> None:
    assert layers_of(vicinity(resnet(), wound, left, right)) == expected


def test_what_is_left_around_a_block_that_was_taken_out() -> None:
    """Of ResNet-14 (two blocks a stage) layer2.1 goes: its neighbours are layer2.0 and layer3.0."""
    before = resnet(14)
    after, entry = bypass(before, "layer2.1")
    units = units_of(before)
    found = vicinity(after, entry["removed"], 1, 1, units)
    assert {name.rsplit(".", 2)[0] for name in found if "downsample" not in name} == {"layer2.0", "layer3.0"}
    assert vicinity(after, entry["removed"], 0, 0, units) == []
    twice, second = bypass(after, "layer1.1")
    both = [*entry["removed"], *second["removed"]]
    names = vicinity(twice, both, 0, 1, units)
    assert {name.rsplit(".", 2)[0] for name in names if "downsample" not in name} == {"layer2.0", "layer3.0"}


def test_layers_that_came_later_are_trained() -> None:
    network = resnet()
    units = [unit for unit in units_of(network) if unit != ["fc"]]
    assert layers_of(vicinity(network, ["conv1"], 0, 0, units)) == {"conv1", "bn1", "fc"}


def test_what_a_cut_changes_is_the_wound() -> None:
    before = resnet()
    after, _ = cut(before, {"layer2.0.conv1": [0, 5]})
    assert changed_layers(before, after) == ["layer2.0.conv1", "layer2.0.bn1", "layer2.0.conv2"]
    gone, entry = bypass(resnet(14), "layer2.1")
    assert changed_layers(resnet(14), gone) == entry["removed"]


@settings(max_examples=30, deadline=None)
@given(
    wound=st.sets(st.sampled_from([layer for unit in units_of(resnet()) for layer in unit]), min_size=1),
    left=st.integers(0, 5),
    right=st.integers(0, 5),
)
def test_more_is_never_less(wound: set[str], left: int, right: int) -> None:
    network = resnet()
    found = set(vicinity(network, wound, left, right))
    assert {f"{name}.weight" for name in wound} <= found
    assert found <= set(vicinity(network, wound, left + 1, right)) & set(vicinity(network, wound, left, right + 1))


@pytest.mark.parametrize(
    ("grow", "epochs", "expected"),
    [
        (None, 3, [1, 1, 1]),
        (0.5, 8, [1, 1, 3, 3, 6, 6, 6, 6]),  # conv1 and fc are two units away: ⌊2 · (epoch - 1) / 4⌋
        (2, 4, [1, 3, 6, 6]),
        (1, 3, [1, 6, 6]),
    ],
)
def test_a_vicinity_that_grows(grow: float | int | None, epochs: int, expected: list[int]) -> None:
    near = Vicinity(resnet(), ["layer2.0.conv1"], Local(left=0, right=0, grow=grow))
    sizes = [len(layers_of(near.at(epoch, epochs))) for epoch in range(1, epochs + 1)]
    assert sizes == expected
    assert [set(near.at(n, epochs)) <= set(near.at(n + 1, epochs)) for n in range(1, epochs)] == [True] * (epochs - 1)


# --- what it does to a training --------------------------------------------------------------------------------------


def fit(
    data: Dataset, network: Network, state: State, training: Training = TRAINING, events: Events | None = None,
    **more: Any,
) -> FitResult:  # fmt: skip
    events = Events() if events is None else events
    made = Trainer(data, training=training, device=torch.device("cpu"), seed=0, original_macs=1, emit=events,
                   progress=Progress(events))  # fmt: skip
    return made.fit(network, training=training, label="fine_tune/0", state=state, **{"epochs": 4, **more})


def same(left: Network, right: Network) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_lies_outside_stays_to_the_bit(data: Dataset, tmp_path: Path) -> None:
    """Weights and BatchNorm statistics; with weight decay, momentum and clipping, which might reach them."""
    network, near = resnet(), Vicinity(resnet(), ["layer2.0.conv1"], Local(left=0, right=1))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    training = Training(optimizer=Sgd(lr=0.1, weight_decay=0.1), batch_size=16, clip_norm=1)
    result = fit(data, network, empty_state(tmp_path), training, moving=near.at)
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert layers_of(list(changed)) == {"layer2.0", "layer3.0"}
    assert "layer2.0.bn1.running_mean" in changed
    trained = sum(before[name].numel() for name in near.at(1, 4))
    assert [record["trained_params"] for record in result.epochs] == [trained] * 4
    assert result.cost.epoch_params == 4 * count(network).params, "the cost is of the whole network"
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_nothing_is_computed_backwards_in_front_of_it(data: Dataset, tmp_path: Path) -> None:
    network, seen = resnet(), {}

    def notice(name: str) -> Any:
        return lambda layer, inputs, output: seen.setdefault(name, set()).add((layer.training, output.requires_grad))

    for name in ("layer1.0.bn2", "layer2.0.bn2", "layer3.0.bn2"):
        network.layers()[name].register_forward_hook(notice(name))
    near = Vicinity(network, ["layer2.0.conv1"], Local(left=0, right=0))
    fit(data, network, empty_state(tmp_path), moving=near.at, epochs=1)
    while_training = {name: found - {(False, False)} for name, found in seen.items()}
    assert while_training["layer1.0.bn2"] == set(), "in evaluation mode, without a gradient"
    assert while_training["layer2.0.bn2"] == {(True, True)}
    assert while_training["layer3.0.bn2"] == {(False, True)}, "its statistics stay, gradients go through"


def test_a_vicinity_of_everything_is_the_whole_training(data: Dataset, tmp_path: Path) -> None:
    whole, local = resnet(), resnet()
    fit(data, whole, empty_state(tmp_path / "a"))
    fit(data, local, empty_state(tmp_path / "b"), moving=Vicinity(local, ["fc"], Local(left=4, right=0)).at)
    assert same(local, whole)


@pytest.mark.parametrize("kill_at", [1, 2, 3])
def test_a_growing_vicinity_resumes_in_the_same_bits(
    kill_at: int, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", 1)
    whole, resumed, killed = resnet(), resnet(), resnet()
    local = Local(left=0, right=0, grow=3)
    fit(data, whole, empty_state(tmp_path / "a"), moving=Vicinity(whole, ["fc"], local).at)
    state = State.open(tmp_path / "b", fingerprint={"test": "x"}, emit=(dying := Dying(kill_at)))
    with pytest.raises(Killed):
        fit(data, killed, state, events=dying, moving=Vicinity(killed, ["fc"], local).at)
    fit(data, resumed, empty_state(tmp_path / "b"), moving=Vicinity(resumed, ["fc"], local).at)
    assert same(resumed, whole)


def test_nothing_near_a_wound_is_refused(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid, match="nothing is left to be trained") as error:
        fit(data, resnet(), empty_state(tmp_path), moving=lambda epoch, epochs: [])
    assert error.value.faults[0].expected == "more blocks left and right in local"
    training = TRAINING.model_copy(update={"freeze": "classifier"})
    near = Vicinity(resnet(), ["fc"], Local(left=0, right=0))
    with pytest.raises(RecipeInvalid, match="nothing is left to be trained") as error:
        fit(data, resnet(), empty_state(tmp_path), training, moving=near.at)
    assert error.value.faults[0].pointer == "/training/freeze"


# --- as a recipe says it ---------------------------------------------------------------------------------------------


def prune(
    data: Dataset, workdir: Path, fine_tune: FineTune, trainer: Any = None, events: Events | None = None,
    filters: float = 0.85,
) -> Any:  # fmt: skip
    events = Events() if events is None else events
    network = resnet()
    made = trainer or Trainer(data, training=TRAINING, device=torch.device("cpu"), seed=0, original_macs=1,
                              emit=events, progress=Progress(events))  # fmt: skip
    outcome: Outcome = filter_norm(
        network, data, signal="weights", ratio_per_round=0.1, every_epochs=1, scope="global", normalize="none",
        target=Goal(Target(filters=filters), count(network)), fine_tune=fine_tune, channel_multiple=4, trainer=made,
        emit=events, state=State.open(workdir, fingerprint={"test": "x"}, emit=events).scope("method"),
    )  # fmt: skip
    return outcome


def test_each_fine_tuning_heals_what_was_cut_since_the_last(data: Dataset, tmp_path: Path) -> None:
    """From the cuts themselves: the blocks whose layers lost channels, or read fewer."""
    trainer = ScriptedTrainer()
    fine_tune = FineTune(epochs=3, policy=Policy(every=1), local=Local(left=0, right=0))
    outcome = prune(data, tmp_path, fine_tune, trainer)
    tuned = [moving for (label, _), moving in zip(trainer.labels, trainer.moving, strict=True) if "fine_tune" in label]
    assert [moving for (label, _), moving in zip(trainer.labels, trainer.moving, strict=True)
            if "prune" in label] == [None] * len(outcome.removed)  # fmt: skip
    assert len(tuned) == len(outcome.plan) >= 2
    for entry, moving in zip(outcome.plan, tuned, strict=True):
        assert moving is not None
        assert layers_of(sorted(entry["layers"])) <= layers_of(moving[0])
    assert any(layers_of(moving[0]) != {"conv1", "bn1", *BLOCKS, "fc"} for moving in tuned if moving), "some are local"


def test_only_the_small_fine_tunings_may_be_local(data: Dataset, tmp_path: Path) -> None:
    trainer = ScriptedTrainer()
    policy = Policy(low=1, high=Moments(loops=1))
    prune(data, tmp_path, FineTune(epochs=3, policy=policy, local=Local(fine_tunings="low")), trainer)
    found = {label: moving is not None for (label, _), moving in zip(trainer.labels, trainer.moving, strict=True)}
    assert found.pop("fine_tune/0") is False
    assert {label for label, local in found.items() if local} == {label for label in found if "fine_tune" in label}


def test_noise_is_for_what_is_trained(data: Dataset, tmp_path: Path) -> None:
    """With a rate of next to nothing the noise is all that changes."""
    tiny = Sgd(lr=1e-30, weight_decay=0)
    noisy = {"epochs": 1, "optimizer": tiny, "noise": WeightNoise(eta=1.0)}
    plain, local, everywhere = (
        prune(data, tmp_path / name, FineTune(**chosen), filters=0.98).network.state_dict()
        for name, chosen in {
            "plain": {"epochs": 1, "optimizer": tiny},
            "local": noisy | {"local": Local(left=0, right=0)},
            "everywhere": noisy,
        }.items()
    )
    weights = {name for name in plain if name.endswith("weight") and plain[name].dim() == 4}
    changed = {name for name in weights if not torch.equal(plain[name], local[name])}
    assert {name for name in weights if not torch.equal(plain[name], everywhere[name])} == weights
    assert changed < weights
    assert changed


@pytest.mark.parametrize("kill_at", [4, 5, 6])
def test_a_step_with_local_fine_tunings_resumes_in_the_same_bits(
    kill_at: int, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", 1)
    fine_tune = FineTune(epochs=2, policy=Policy(every=1), local=Local(left=0, right=0, grow=2))
    whole = prune(data, tmp_path / "a", fine_tune)
    with pytest.raises(Killed):
        prune(data, tmp_path / "b", fine_tune, events=Dying(kill_at))
    assert same(prune(data, tmp_path / "b", fine_tune).network, whole.network)
