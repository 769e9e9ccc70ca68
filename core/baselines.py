"""Baselines of a recipe: what the pruned network is held against, as data. Torch-free; `core.controls` runs them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_serializer

from core.sections import Section
from core.training_settings import Overrides, Training

Kind = Literal["unpruned", "random", "scratch"]
Name = Literal["unpruned", "random", "scratch", "scratch_standard"]
"""Of a control, everywhere: in events, files, tables."""
Epochs = Annotated[int, Field(ge=1, le=100_000)]


def _budget(value: Any) -> Any:
    if value in ("equal_epochs", "equal_cost") or (type(value) is int and value >= 1):
        return value
    raise ValueError("is equal_epochs, equal_cost or a number of epochs, at least 1")


class Scratch(Overrides):
    """A smaller architecture, trained from random weights with the recipe's `training`, or what overrides it here: but
    for `distill` and `freeze`, which are of the original's weights and hold here only where they are said here.

    `structure`: that of the pruned network; or the `standard` one of a network with as many blocks, the original's with
    as many in each group as can be (Velici 2022, sections 3.5 and 4.4), for a recipe that removes blocks.
    `budget`: `equal_epochs`, as many epochs as the pruned network was trained for in the job; `equal_cost`, as many as
    come to the same epoch-parameters (Liu et al. 2019, scratch-B); or a number of epochs.
    """

    structure: Literal["pruned", "standard"] = "pruned"
    budget: Annotated[Literal["equal_epochs", "equal_cost"] | Epochs, BeforeValidator(_budget)] = "equal_cost"

    def training(self, defaults: Training) -> Training:
        """What it is trained with."""
        return self.resolved(defaults.model_copy(update={"distill": None, "freeze": "none"}))


class Baseline(Section):
    """`unpruned`: the original, given the same training. `random`: the same amount removed at random, by the same
    steps. `scratch`: the pruned architecture, or the standard one with as many blocks, from random weights."""

    kind: Kind
    scratch: Scratch | None = None

    @property
    def settings(self) -> Scratch:
        return self.scratch or Scratch()

    @property
    def name(self) -> Name:
        return "scratch_standard" if self.settings.structure == "standard" else self.kind

    @model_serializer
    def _as_written(self) -> dict[str, Any] | str:
        if self.scratch is None:
            return self.kind
        return {"scratch": {name: value for name, value in self.scratch.model_dump().items() if value is not None}}


def _baseline(value: Any) -> Any:
    if isinstance(value, Baseline):
        return value
    if isinstance(value, dict) and list(value) == ["scratch"] and isinstance(value["scratch"], dict):
        return {"kind": "scratch", "scratch": value["scratch"]}
    if isinstance(value, str) and value in ("unpruned", "random", "scratch"):
        return {"kind": value}
    raise ValueError(
        "is one of unpruned, random, scratch, {scratch: {structure: pruned | standard, budget: equal_epochs | "
        "equal_cost | N}}"
    )


AnyBaseline = Annotated[
    Baseline, BeforeValidator(_baseline, json_schema_input_type=Kind | dict[Literal["scratch"], Scratch])
]
