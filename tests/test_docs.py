"""Docs are tested: every recipe field, requirement, setting and route is documented; every link leads somewhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from api import errors
from core import baselines, block_settings, recipe, step_settings, training_settings
from core.graph.onnx_constants import FOLDERS
from core.graph.operators import READERS
from core.sections import Section
from core.steps import METHODS

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("client/*.md")]
SECTIONS = list(dict.fromkeys(
    item
    for module in (recipe, step_settings, block_settings, training_settings, baselines)
    for name, item in vars(module).items()
    if isinstance(item, type) and issubclass(item, Section) and not name.startswith("_")
))  # fmt: skip


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_recipe_field_is_documented(section: type) -> None:
    text = (ROOT / "docs" / "recipes.md").read_text()
    words = set(re.findall(r"\w+", text))
    assert set(section.model_fields) <= words  # type: ignore[attr-defined]


def test_the_settings_page_is_that_of_the_code() -> None:
    expected = runpy.run_path(str(ROOT / "docs" / "make_settings.py"))["settings_page"]()
    assert (ROOT / "docs" / "settings.md").read_text() == expected, "run: python docs/make_settings.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_operator_is_documented() -> None:
    """By name, in the list at the end of docs/models.md, and no other."""
    listed = (ROOT / "docs" / "models.md").read_text().partition("## Operators of ONNX")[2]
    found = re.findall(r"`([A-Z]\w+)`", listed.partition(". `ConstantOfShape`")[0])
    assert found == sorted({*READERS, *FOLDERS, "Constant", "Shape"})


def test_every_method_has_a_page() -> None:
    for method in METHODS:
        assert (ROOT / "docs" / "methods" / f"{method}.md").exists()


def test_every_code_of_an_error_is_documented() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", (ROOT / "docs" / "http.md").read_text(), re.MULTILINE)
    assert {code: int(status) for code, status in rows} == errors.STATUSES
