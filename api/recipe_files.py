"""The ready-made recipes: one YAML file each in the folder of the settings."""

from __future__ import annotations

import re
from pathlib import Path

import structlog

from core.errors import RecipeInvalid
from core.recipe import Recipe, load_recipe

log = structlog.get_logger()
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}", re.ASCII)


class RecipeFiles:
    """The recipes in `folder`, each under its file's name. Read again when asked: a file may be put there any time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """The names of the files; not all of them need be valid."""
        return sorted(path.stem for path in self._folder.glob("*.yaml") if NAME.fullmatch(path.stem))

    def get(self, name: str) -> Recipe | None:
        """The recipe of that name, None if there is none. Raises `RecipeInvalid` if its file is not right."""
        # only a listed name becomes part of a path
        if name not in self.names():
            return None
        recipe = load_recipe((self._folder / f"{name}.yaml").read_text("utf-8"))
        return recipe.model_copy(update={"name": recipe.name or name})

    def valid(self) -> dict[str, Recipe]:
        """Every recipe that is right, by name. The others are logged and left out."""
        found: dict[str, Recipe] = {}
        for name in self.names():
            try:
                recipe = self.get(name)
            except (RecipeInvalid, OSError, UnicodeDecodeError) as error:
                log.warning("a recipe file is not valid and is left out", recipe=name, error=str(error))
                continue
            if recipe is not None:
                found[name] = recipe
        return found
