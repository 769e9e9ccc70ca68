"""The ready-made recipes, and the schema of all recipes."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import JsonValue

from api.errors import Refused
from api.schemas import RecipeInfo, RecipePage
from api.services import Shared
from core.recipe import Recipe, recipe_schema

router = APIRouter(prefix="/v1/recipes", tags=["recipes"])


@router.get("")
def list_recipes(services: Shared) -> RecipePage:
    """The recipes that can be named in a job."""
    valid = services.recipes.valid()
    return RecipePage(items=[RecipeInfo(name=name, description=recipe.description) for name, recipe in valid.items()])


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
