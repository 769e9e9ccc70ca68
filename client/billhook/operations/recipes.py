"""What is asked for, whatever it is to be done to: a recipe, requirements, a device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from billhook.documents import read_document
from billhook.steps import Operation, blocking

Recipe = str | Path | Mapping[str, Any]
"""The name of a ready-made recipe, a `Path` to a YAML or JSON file, or the document itself."""


def read_recipe(recipe: Recipe) -> Operation[str | Mapping[str, Any]]:
    """The document of a recipe that is a file, else what was given. Raises `InputInvalid`."""
    if not isinstance(recipe, Path):
        return recipe
    return (yield from blocking(lambda: read_document(recipe, "a recipe")))


def request(
    recipe: Recipe | None, requirements: Mapping[str, str] | None, device: str | None
) -> Operation[dict[str, Any]]:
    """The part of a request's body that says so; what is None is left out."""
    if recipe is not None:
        recipe = yield from read_recipe(recipe)
    body = {
        "recipe": dict(recipe) if isinstance(recipe, Mapping) else recipe, "device": device,
        "requirements": dict(requirements) if requirements else None,
    }  # fmt: skip
    return {key: value for key, value in body.items() if value is not None}
