"""The rows of `bench.blocks`: each is a recipe for one trained network, in the order in which they are run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

ALL_IMAGES = 60_000
SALIENCIES = (
    "oracle", "random", "activation_change", "weights_mean", "block_gradient", "block_gradient_max", "activation_mean",
    "activation_change_plus_one", "linear_probe",
)  # fmt: skip
THRESHOLDS = (0.1, 0.05, 0.01)
NOISES = (0.0001, 0.1112)
AT_ITS_END = {"loops": 1}
RATES = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
ORIGINAL = {
    "optimizer": RATES,
    "schedule": {"name": "multistep", "milestones": [0.5, 0.75]},
    "batch_size": 128,
    "augment": "crop_flip",
}
"""How the networks are trained that are pruned (section 3.2)."""
FINE_TUNING = ORIGINAL | {"schedule": {"name": "multistep", "milestones": [0.2, 0.4]}}
"""The thesis' 10 and 20 of 50 epochs."""
LONG = ORIGINAL | {"schedule": {"name": "multistep", "milestones": [0.625, 0.9375]}}
"""Its 250 and 375 of 400 epochs (section 3.5.2)."""
CONSTANT = {"optimizer": RATES | {"lr": 0.001}, "schedule": {"name": "constant"}}


@dataclass(frozen=True)
class Study:
    """What a run of the benchmark is about. `images`: for training, validation among them. `epochs`: of one whole
    fine-tuning, the thesis' 50."""

    images: int = 5_000
    depth: int = 20
    epochs: int = 3
    device: str = "cpu"

    @property
    def blocks(self) -> int:
        return (self.depth - 2) // 2

    @property
    def targets(self) -> dict[str, int]:
        """Blocks that are left where half of them go (27 of the thesis' 54) and where most do (45 of 54)."""
        return {"half": self.blocks // 2, "most": 9 if self.blocks == 54 else self.blocks // 3}

    @property
    def original_epochs(self) -> int:
        """The thesis' 500."""
        return 10 * self.epochs

    @property
    def long_epochs(self) -> int:
        """The thesis' 400."""
        return 8 * self.epochs

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """Epochs of the original's training whose networks are pruned, 0: none of it. The last leaves `epochs`."""
        whole = self.original_epochs
        return tuple(sorted({0, 1, max(2, round(0.06 * whole)), whole // 2, whole - self.epochs}))

    @property
    def is_whole(self) -> bool:
        return self.images == ALL_IMAGES

    @property
    def name(self) -> str:
        """Of its folder: what results may be told together."""
        return f"resnet{self.depth}-{self.images}-images-{self.epochs}-epochs-{self.device.partition(':')[0]}"


@dataclass(frozen=True)
class Row:
    """One configuration. `recipe`: without its seed. `start`: the epoch of the original's training whose network it
    begins with; None: the trained one. `pruning_split`: whether a tenth of the images is held out for scores.
    `control`: whether its result is that of the recipe's control, not of the pruned network."""

    name: str
    recipe: Mapping[str, Any]
    start: int | None = None
    pruning_split: bool = False
    control: bool = False

    def signature(self, study: Study) -> str:
        """What a result was made from: another one is not of this row."""
        text = json.dumps([asdict(self), asdict(study)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def rows(study: Study) -> list[Row]:
    """All of them, the most telling and the cheap ones first."""
    found = [
        *_untuned(study),
        *_loops(study),
        *_schedules(study),
        *_phased(study),
        *_structures(study),
        *_details(study),
        *_checkpoints(study),
        *_long(study),
    ]
    assert len({row.name for row in found}) == len(found)
    return found


def _recipe(
    study: Study,
    target: str,
    *,
    policy: Any = "once",
    epochs: int | None = None,
    fine_tune: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] = FINE_TUNING,
    **fields: Any,
) -> dict[str, Any]:
    tuning = {"policy": policy, "epochs": study.epochs if epochs is None else epochs, **(fine_tune or {})}
    step = {"method": "block_removal", "target": {"blocks": study.targets[target]}, **fields, "fine_tune": tuning}
    return {"training": dict(training), "steps": [step]}


def _scores(saliency: str) -> dict[str, Any]:
    """linear_probe is evaluated once (Wang et al. 2019)."""
    return {"saliency": saliency, **({"rescore_every": None} if saliency == "linear_probe" else {})}


def _untuned(study: Study) -> list[Row]:
    """Without fine-tuning (figures 3.5 to 3.8): a run passes all sizes."""

    def row(name: str, pruning_split: bool = False, **fields: Any) -> Row:
        return Row(f"none/{name}", _recipe(study, "most", epochs=0, **fields), pruning_split=pruning_split)

    found = [row(saliency, **_scores(saliency)) for saliency in SALIENCIES]
    found += [row(f"oracle-every-{every}", rescore_every=every) for every in (2, 4)]
    return [
        *found,
        row("oracle-once", rescore_every=None),
        row("oracle-equalised", equalise=True),
        row("oracle-pruning-split", pruning_split=True, scores="pruning_split"),
    ]


def _loops(study: Study) -> list[Row]:
    """Four fine-tunings (figures 3.11 and 3.12), and fewer (section 3.5.3)."""
    four = {"loops": 4}
    saliencies = [
        Row(f"loops-4/{saliency}/half", _recipe(study, "half", policy=four, **_scores(saliency)))
        for saliency in SALIENCIES
    ]
    policies: dict[str, Any] = {"once": "once", "loops-2": {"loops": 2}}
    fewer = [
        Row(f"{name}/{target}", _recipe(study, target, policy=policy))
        for target in study.targets
        for name, policy in policies.items()
    ]
    return [*saliencies[:1], *fewer, Row("loops-4/oracle/most", _recipe(study, "most", policy=four)), *saliencies[1:]]


def _schedules(study: Study) -> list[Row]:
    """When there is a fine-tuning (sections 3.5.4, 3.5.5, 4.1), and at which rate (3.6.1)."""
    policies: dict[str, Any] = {f"low-{low}": {"low": low, "high": AT_ITS_END} for low in (1, 3)}
    policies |= {f"threshold-{threshold}": {"threshold": threshold} for threshold in THRESHOLDS}
    policies["every-2"] = {"every": 2}
    found = [
        Row(f"{name}/{target}", _recipe(study, target, policy=policy))
        for name, policy in policies.items()
        for target in study.targets
    ]
    constant = _recipe(study, "most", policy={"every": 2}, fine_tune=CONSTANT)
    return [*found, Row("every-2-constant-rate/most", constant)]


def _phased(study: Study) -> list[Row]:
    """Fading within the same number of epochs (section 4.2). Each round has a fine-tuning: a run passes all sizes."""

    def row(name: str, policy: Mapping[str, Any], length: int, **fade: Any) -> Row:
        epochs = max(int(bool(fade.get("lazy"))), study.epochs - length)  # a lazy fade is in front of a fine-tuning
        fields = {"fade": {"epochs": length, **fade}} if length else {}
        return Row(f"{name}/most", _recipe(study, "most", policy=policy, epochs=epochs, **fields))

    short, half = fade_epochs(study)
    every, threshold = {"every": 1}, {"threshold": THRESHOLDS[-1]}
    return [
        row("every", every, 0),
        row("fade-short", every, short),
        row("fade-half", every, half),
        row("fade-stochastic", every, half, mask="stochastic"),
        row("fade-lazy", threshold, half, lazy=True),
    ]


def fade_epochs(study: Study) -> tuple[int, int]:
    """S, of the epochs of a fine-tuning: the thesis' 10 of 50, and half of them."""
    return max(1, study.epochs // 5), min(study.epochs, max(2, study.epochs // 2))


def _structures(study: Study) -> list[Row]:
    """Equalised groups (section 4.3), replacement and soft pruning (4.5)."""
    short, _ = fade_epochs(study)
    equalised = _recipe(
        study, "most", policy={"every": 1}, epochs=study.epochs - short, fade={"epochs": short}, equalise=True
    )
    low = {"low": 1, "high": AT_ITS_END}
    replaced = [
        Row(f"replace-{weights}/{target}",
            _recipe(study, target, policy=low, replace={"neighbours": 2, "with": weights}))
        for weights in ("random", "zero")
        for target in study.targets
    ]  # fmt: skip
    soft = _recipe(study, "half", soft={"epochs": study.epochs})
    return [
        Row("equalised/most", equalised),
        *replaced,
        Row("soft/half", soft),
        Row("once-twice-as-long/half", _recipe(study, "half", epochs=2 * study.epochs)),
    ]


def _details(study: Study) -> list[Row]:
    """What blocks are scored on (section 3.7), and what is done in a fine-tuning (3.6, 6.1, rewinding)."""
    four = {"loops": 4}
    scored = {
        "pruning-split": _recipe(study, "half", policy=four, scores="pruning_split"),
        "pruning-split-trained-on": _recipe(
            study, "half", policy=four, scores="pruning_split", fine_tune={"pruning_split": "trained_on"}
        ),
    }
    tuned: dict[str, dict[str, Any]] = {
        **{f"noise-{eta}": {"noise": {"eta": eta}} for eta in NOISES},
        "freeze-classifier": {"freeze": "classifier"},
        "distill": {"distill": {"temperature": 4.0, "weight": 0.5}},
        "rewind-trained": {"rewind": "trained"},
    }
    found = [Row(f"{name}/half", recipe, pruning_split=True) for name, recipe in scored.items()]
    for name, fields in tuned.items():
        saliency: dict[str, Any] = {"saliency": "block_gradient"} if "noise" in fields else {}  # as in section 3.6.2
        found.append(Row(f"{name}/half", _recipe(study, "half", policy=four, fine_tune=fields, **saliency)))
    local = {"local": {"left": 1, "right": 1, "fine_tunings": "low"}}
    found.append(
        Row("local/half", _recipe(study, "half", policy={"low": 1, "high": AT_ITS_END}, fine_tune=local))
    )  # fmt: skip
    initial = _recipe(study, "half", policy=four, fine_tune={"rewind": "initial"})
    first = {"method": "train", "epochs": study.original_epochs, "schedule": ORIGINAL["schedule"]}
    return [*found, Row("rewind-initial/half", initial | {"weights": "random", "steps": [first, *initial["steps"]]})]


def _checkpoints(study: Study) -> list[Row]:
    """The original after some of its training, and as many epochs in all as the original takes (section 4.4)."""
    return [
        Row(f"checkpoint-{epoch}/{target}",
            _recipe(study, target, epochs=study.original_epochs - epoch, training=ORIGINAL), start=epoch)
        for target in study.targets
        for epoch in study.checkpoints
    ]  # fmt: skip


def _long(study: Study) -> list[Row]:
    """One long fine-tuning, and as long a training of random weights (section 3.5.2, figure 3.17)."""
    found = []
    for target in study.targets:
        long = _recipe(study, target, epochs=study.long_epochs, training=LONG)
        found.append(Row(f"once-long/{target}", long))
        for name, own in {"same": {}, "standard": {"structure": "standard"}}.items():
            control = {"scratch": {"budget": study.long_epochs, **own}}
            recipe = _recipe(study, target, epochs=0, training=LONG) | {"baselines": [control]}
            found.append(Row(f"scratch-{name}/{target}", recipe, control=True))
    return found
