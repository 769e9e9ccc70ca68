"""`billhook recipes`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
import yaml
from rich.text import Text

from billhook.cli import tables
from billhook.cli.session import Session, command

recipes = typer.Typer(name="recipes", no_args_is_help=True, help="List and show ready-made recipes; the schema of all.")


@command(recipes, "list")
def list_recipes(session: Session) -> None:
    """List the recipes that the server has ready."""
    items = list(session.client.list_recipes())
    session.show([each.raw for each in items], lambda: tables.recipes(items))


@command(recipes, "show")
def show_recipe(session: Session, name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Print a ready-made recipe as YAML: a start for your own.

    \b
    Example:
      billhook recipes show filter_norm_half > mine.yaml
    """
    document = session.client.get_recipe(name)
    session.show(document, lambda: Text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True).rstrip()))


@command(recipes, "schema")
def show_schema(session: Session) -> None:
    """Print the JSON Schema of recipes: every field, its default and its bounds."""
    document = session.client.recipe_schema()
    session.show(document, lambda: Text(json.dumps(document, indent=2, ensure_ascii=False)))
