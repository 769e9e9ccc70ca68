"""Which precisions a recipe trains in, and whether a device has them. Torch-free: the API asks it, too."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from core.documents import pointer_to
from core.errors import Fault
from core.recipe import Recipe

ON_CPU = ("float32", "bfloat16")


def precision_faults(recipe: Recipe, allowed: Collection[str], where: str, *, prefix: str = "") -> list[Fault]:
    """A fault for each `precision` in the recipe that is not `allowed` on the device that `where` describes."""
    expected = ", ".join(allowed)
    return [
        Fault(prefix + pointer, f"{precision} is not for {where}", expected)
        for pointer, precision in _precisions(recipe.model_dump(mode="json"))
        if precision not in allowed
    ]


def _precisions(document: Any, pointer: str = "") -> Iterator[tuple[str, str]]:
    items: Any = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        place = pointer + pointer_to(key)
        if key == "precision" and isinstance(value, str):
            yield place, value
        elif isinstance(value, dict | list):
            yield from _precisions(value, place)
