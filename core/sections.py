"""What the sections of a recipe are made of. Torch-free."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict

Item = TypeVar("Item")
Items = Annotated[tuple[Item, ...], Strict(False)]  # a document has lists, strictly no tuples
Share = Annotated[float, Field(gt=0, lt=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Epochs = Annotated[int, Field(ge=0, le=10_000)]
Span = Annotated[int, Field(ge=1, le=10_000)] | Share
"""Of a training: a float is a share of it, an integer a number of epochs."""


class Section(BaseModel):
    # strict: true is no number, "1" no integer; an integer is a number all the same
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def check_span(value: Any) -> Any:
    """Refuses what is neither a share nor a number of epochs, in words."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number: a share of the training as a float (0.5), or epochs as an integer")
    if isinstance(value, float) and not 0 < value < 1:
        raise ValueError("a float is a share of the training, between 0 and 1; a number of epochs is an integer")
    if isinstance(value, int) and value < 1:
        raise ValueError("a number of epochs is at least 1")
    return value
