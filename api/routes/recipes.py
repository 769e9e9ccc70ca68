"""The ready-made recipes, and the schema of all recipes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import JsonValue

from api.errors import Refused
from api.pages import PageSize
from api.recipe_files import NAME
from api.schemas import RecipeInfo, RecipePage
from api.services import Shared
from core.recipe import Recipe, recipe_schema

router = APIRouter(prefix="/v1/recipes", tags=["recipes"])


@router.get("")
def list_recipes(
    services: Shared,
    page_size: PageSize = 50,
    page_token: Annotated[str | None, Query(pattern=NAME.pattern, description="next_page_token of a page")] = None,
) -> RecipePage:
    """The recipes that can be named in a job, by name."""
    found = [
        RecipeInfo(name=name, description=recipe.description)
        for name, recipe in services.recipes.valid().items()
        if page_token is None or name > page_token
    ]
    more = len(found) > page_size
    return RecipePage(items=found[:page_size], next_page_token=found[page_size - 1].name if more else None)


@router.get("/schema")
def get_schema() -> dict[str, JsonValue]:
    """The JSON Schema of a recipe document."""
    return recipe_schema()


@router.get("/{name}")
def get_recipe(name: str, services: Shared) -> Recipe:
    """One recipe, with every default filled in."""
    recipe = services.recipes.valid().get(name)
    if recipe is None:
        raise Refused("not_found", "there is no recipe of that name")
    return recipe
