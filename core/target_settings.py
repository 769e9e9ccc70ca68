"""Targets of a recipe's steps, as data: what may remain at most, and what it may cost. Torch-free."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from core.sections import Section

Remaining = Annotated[float, Field(gt=0, le=1)] | Annotated[int, Field(ge=1)]


class Target(Section):
    """What must remain at most: a float is a share of the original (0.5 = half), an integer a count. All must hold.

    `blocks` are residual blocks that hold no other. `size` is of the exported ONNX file, in bytes. `latency` is a
    share: ONNX Runtime on the CPU, batch 1, one thread. `max_accuracy_drop` is a guard: the step ends with the smallest
    network it has seen that lost no more than that much of the original's validation accuracy (0-1), whether or not the
    rest of the target is met with it.
    """

    params: Remaining | None = None
    macs: Remaining | None = None
    filters: Remaining | None = None
    blocks: Remaining | None = None
    size: Remaining | None = None
    latency: Annotated[float, Field(gt=0, lt=1)] | None = None
    max_accuracy_drop: Annotated[float, Field(ge=0, lt=1)] | None = None

    @field_validator("params", "macs", "filters", "blocks", "size", mode="before")
    @classmethod
    def _share_or_count(cls, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            if value is None:
                return value
            raise ValueError("must be a number: a share of the original as a float (0.5) or a count as an integer")
        if isinstance(value, float) and not 0 < value < 1:
            raise ValueError(
                "a float is a share of the original, between 0 and 1; 1.0 is none. An absolute count is an integer"
            )
        if isinstance(value, int) and value < 1:
            raise ValueError("a count is at least 1")
        return value

    @field_validator("latency", mode="before")
    @classmethod
    def _share(cls, value: Any) -> Any:
        if value is not None and not (isinstance(value, float) and 0 < value < 1):
            raise ValueError(
                "must be a share of the original's as a float between 0 and 1: milliseconds would be another target on "
                "each machine"
            )
        return value

    @model_validator(mode="after")
    def _not_empty(self) -> Target:
        if self.latency is None and not self.sizes():
            raise ValueError(
                "needs at least one of params, macs, filters, blocks, size, latency; max_accuracy_drop is a guard "
                "beside them"
            )
        return self

    def sizes(self) -> dict[str, float]:
        """What must remain at most, of what is set and can be told without measuring."""
        return self.model_dump(exclude_none=True, exclude={"latency", "max_accuracy_drop"})
