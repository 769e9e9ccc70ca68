"""The ready-made recipes, and the schema of all recipes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from api import submission
from api.bodies import parse_json, read_body, require_json
from api.conditional import send_document
from api.errors import Refused
from api.idempotency import NeedlessKey
from api.openapi import RECIPE_CHECK
from api.pages import PageSize
from api.recipe_files import NAME
from api.schemas.recipes import CheckedRecipe, RecipeInfo, RecipePage, RecipeSchema
from api.services import Caller, Services, Shared
from core.recipe import Recipe, recipe_schema

router = APIRouter(prefix="/v1/recipes", tags=["recipes"])
NameToken = Annotated[str | None, Query(pattern=f"^{NAME.pattern}$", description="next_page_token of a page")]


@router.get("")
def list_recipes(
    services: Shared,
    page_size: PageSize = 50,
    page_token: Annotated[
        str | None, Query(pattern=f"^{NAME.pattern}$", description="next_page_token of a page")
    ] = None,
) -> RecipePage:
    """The recipes that can be named in a job, by name."""
    found = [
        RecipeInfo(name=name, description=recipe.description)
        for name, recipe in services.recipes.valid().items()
        if page_token is None or name > page_token
    ]
    more = len(found) > page_size
    return RecipePage(items=found[:page_size], next_page_token=found[page_size - 1].name if more else None)


@router.get("/schema", response_model=RecipeSchema)
def get_schema(request: Request) -> Response:
    """The JSON Schema of a recipe document. `ETag` is the sha256 of the answer; `If-None-Match` is honoured."""
    return send_document(request, recipe_schema())


@router.post("/check", openapi_extra=RECIPE_CHECK)
async def check_recipe(request: Request, services: Shared, caller: Caller, _key: NeedlessKey = None) -> CheckedRecipe:
    """Hold a recipe, its requirements and a device against what this server can do, as `POST /v1/jobs` does.

    Before anything is uploaded: the same faults with the same pointers, or the recipe with every default filled in.
    Nothing is kept: with an `Idempotency-Key` that came before, it is simply answered again.
    """
    require_json(request)
    body = await read_body(request, services.settings)
    return await run_in_threadpool(_checked, services, caller.owner, body)


def _checked(services: Services, owner: str, body: bytes) -> CheckedRecipe:
    document, recipes, devices = parse_json(body), services.recipes, services.settings.devices
    recipe = services.read(lambda session: submission.check_recipe(session, owner, document, recipes, devices))
    return CheckedRecipe(recipe=recipe)


@router.get("/{name}")
def get_recipe(name: str, services: Shared) -> Recipe:
    """One recipe, with every default filled in."""
    recipe = services.recipes.valid().get(name)
    if recipe is None:
        raise Refused("not_found", "there is no recipe of that name")
    return recipe
