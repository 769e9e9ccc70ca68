"""YAML and JSON as documents: numbers are numbers, and a name that is there twice is refused."""

from __future__ import annotations

import pytest

from core.documents import DocumentInvalid, load_yaml
from core.errors import RecipeInvalid
from core.recipe import load_recipe


def pointers(text: str) -> list[str]:
    with pytest.raises(DocumentInvalid) as caught:
        load_yaml(text)
    return [fault.pointer for fault in caught.value.faults]


def test_what_is_read() -> None:
    assert load_yaml("a: [1, 0.5, x, true, null]\nb: {c: 2}") == {"a": [1, 0.5, "x", True, None], "b": {"c": 2}}
    assert load_yaml('{"a": [1e-3, 2]}') == {"a": [0.001, 2]}
    assert load_yaml("") is None
    assert load_yaml("a: &x [1]\nb: *x") == {"a": [1], "b": [1]}
    assert load_yaml("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}") == {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}


def test_exponents_without_a_point_are_numbers() -> None:
    assert load_yaml("[1e-4, -2E+3, 5e2, .5e1, 1.5e3]") == [1e-4, -2e3, 5e2, 5.0, 1.5e3]
    assert load_yaml('["1e-4", e4, 1e, 0x1e4, 12]') == ["1e-4", "e4", "1e", 0x1E4, 12]


def test_every_name_that_comes_again_is_told() -> None:
    text = "seed: 1\nsteps:\n- {method: a, method: b}\n- a/b: 1\n  a/b: 2\nseed: 2\n"
    assert pointers(text) == ["/steps/0/method", "/steps/1/a~1b", "/seed"]
    with pytest.raises(DocumentInvalid, match="'seed' is there more than once, in the lines 1 and 6"):
        load_yaml(text)
    assert pointers('{"a": 1, "a": 1}') == ["/a"]


@pytest.mark.parametrize(
    "text", ["a: [", "a: !!python/object:os.system x", "a: 1\n b: 2", "a: 2026-13-45", "&a [*a", "[" * 5_000]
)
def test_what_is_no_document(text: str) -> None:
    assert pointers(text) == [""]


def test_a_recipe_says_so_too() -> None:
    with pytest.raises(RecipeInvalid) as caught:
        load_recipe("seed: 1\nseed: 2\nsteps: [{method: filter_norm, target: {params: 0.5}}]")
    assert [fault.pointer for fault in caught.value.faults] == ["/seed"]
