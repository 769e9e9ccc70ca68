"""Recipes."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from api.schemas.base import In, Out
from core.recipe import Recipe
from core.requirements import Requirements

DEVICE = re.compile(r"auto|cpu|cuda:[0-9]{1,3}", re.ASCII)


class RecipeRequest(In):
    """What is to be done, whatever to: a recipe, what insists on its result, and where it is to run."""

    recipe: str | dict[str, JsonValue] = Field(description="the name of a ready-made recipe, or a recipe document")
    requirements: Requirements = Field(Requirements(), description="override the recipe's own field by field")
    device: str = Field("auto", pattern=f"^({DEVICE.pattern})$", description="auto, cpu or cuda:N")


class RecipeInfo(Out):
    name: str
    description: str | None


class CheckedRecipe(Out):
    recipe: Recipe = Field(description="the recipe with every default filled in")


class RecipePage(Out):
    items: list[RecipeInfo]
    next_page_token: str | None


class RecipeSchema(BaseModel):
    """A JSON Schema (draft 2020-12) of recipe documents."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    type: Literal["object"]
    title: str
    description: str
    properties: dict[str, dict[str, JsonValue]] = Field(description="the fields of a recipe")
    required: list[str]
    defs: dict[str, dict[str, JsonValue]] = Field(alias="$defs", description="what the fields are made of")
