"""What pydantic finds, as faults in plain words: where, what is wrong, what would be right. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from core.documents import pointer_to
from core.errors import Fault

Context = Mapping[str, Any]
# the error's `ctx` and the value -> what is wrong, what would be right
Words = Callable[[Context, Any], tuple[str, str | None]]

_SHOWN = 60  # characters of a value


def given(value: Any) -> str:
    """A value in a sentence: `the text 'abc'`, `a list`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text {value[:_SHOWN]!r}"
    if isinstance(value, int | float):
        return f"the number {str(value)[:_SHOWN]}"
    return "an object" if isinstance(value, Mapping) else "a list" if isinstance(value, list | tuple) else "a value"


def _belongs(wanted: str) -> Words:
    return lambda context, value: (f"{given(value)} is given where {wanted} belongs", wanted)


def _bound(key: str, words: str) -> Words:
    return lambda context, value: (f"{given(value)} is out of range", f"{words} {context[key]:g}")


def _count(key: str, words: str, things: str) -> Words:
    return lambda context, value: (f"{len(value)} {things} are {words}", _COUNTED[key].format(context[key], things))


def _key(context: Context) -> str:
    """The field that a union is told by."""
    return str(context["discriminator"]).strip("'")


_COUNTED = {"min_length": "at least {} {}", "max_length": "at most {} {}"}
_WANTED = {
    "an integer": ("int_type", "int_parsing", "int_from_float", "int_parsing_size"),
    "a number": ("float_type", "float_parsing"),
    "a finite number": ("finite_number",),
    "text": ("string_type", "string_unicode"),
    "true or false": ("bool_type", "bool_parsing"),
    "a list": ("tuple_type", "list_type"),
    "an object": ("model_type", "model_attributes_type", "dict_type"),
}
_WORDS: Mapping[str, Words] = {
    **{kind: _belongs(wanted) for wanted, kinds in _WANTED.items() for kind in kinds},
    "missing": lambda context, value: ("it is missing", None),
    "literal_error": lambda context, value: (f"{given(value)} is not one of what may be here", context["expected"]),
    "enum": lambda context, value: (f"{given(value)} is not one of what may be here", context["expected"]),
    "union_tag_invalid": lambda context, value: (
        f"no {_key(context)} {context['tag'][:_SHOWN]!r} is known here", context["expected_tags"],
    ),
    "union_tag_not_found": lambda context, value: (f"its {_key(context)} is missing", None),
    "greater_than": _bound("gt", "above"),
    "greater_than_equal": _bound("ge", "at least"),
    "less_than": _bound("lt", "below"),
    "less_than_equal": _bound("le", "at most"),
    "too_short": _count("min_length", "too few", "items"),
    "too_long": _count("max_length", "too many", "items"),
    "string_too_short": _count("min_length", "too few", "characters"),
    "string_too_long": _count("max_length", "too many", "characters"),
    "string_pattern_mismatch": lambda context, value: (f"{given(value)} is not of the form that is needed", None),
}  # fmt: skip


def plain_words(error: Mapping[str, Any]) -> tuple[str, str | None]:
    """What is wrong and, where that can be said of one error alone, what would be right. `error`: of `.errors()`."""
    context: Context = error.get("ctx", {})
    if words := _WORDS.get(error["type"]):
        return words(context, error.get("input"))
    expected = context.get("expected")
    return error["msg"].removeprefix("Value error, "), None if expected is None else str(expected)


def faults_of(error: ValidationError, model: type[BaseModel], *, prefix: str = "") -> list[Fault]:
    """The errors of validating a document as `model`, with JSON pointers into it behind `prefix`."""
    faults = []
    found = error.errors(include_url=False)
    for item in found:
        length = len(item["loc"])
        if item["type"] == "default_factory_not_called":
            continue  # a default that goes by another field, in which a fault is said already
        if item["type"] == "too_short" and any(
            len(o["loc"]) > length and o["loc"][:length] == item["loc"] for o in found
        ):
            continue  # pydantic counts only the items that are right; what is wrong with the others is said already
        path, field, owners = _place(model, item["loc"])
        if item["type"] == "extra_forbidden":
            known = sorted({name for owner in owners for name in _fields(owner)})
            message = f"unknown field {item['loc'][-1]!r}, or one that is not built yet"
            expected = f"one of {', '.join(known)}" if known else None
            path += pointer_to(item["loc"][-1])
        else:
            message, expected = plain_words(item)
            if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
                path += pointer_to(_key(item["ctx"]))
            if item["type"] == "union_tag_not_found":
                expected = ", ".join(sorted(repr(tag) for owner in _models(field) for tag in _tags(owner))) or None
            elif expected is None and item["type"] != "value_error" and field is not None:
                expected = _description(field)
        faults.append(Fault(prefix + path, message, expected))
    return faults


def _place(
    model: type[BaseModel], location: tuple[str | int, ...]
) -> tuple[str, FieldInfo | None, list[type[BaseModel]]]:
    """The pointer to a location, the innermost field there, and the models whose fields may follow.

    A tagged union puts its tag into the location, another union the name of a type: neither is a key of the document.
    """
    pointer, field, owners = "", None, [model]
    for part in location:
        if isinstance(part, int):
            pointer += pointer_to(part)
        elif fields := [found[part] for found in map(_fields, owners) if part in found]:
            pointer, field = pointer + pointer_to(part), fields[0]
            owners = [inner for found in fields for inner in _models(found)]
        elif tagged := [owner for owner in owners if part in _tags(owner)]:
            owners = tagged
    return pointer, field, owners


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """By the names that they have in a document."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _description(found: FieldInfo) -> str | None:
    """The field's own, or that of its type (`Requirement | None`)."""
    if found.description:
        return found.description
    within = (note for part in get_args(found.annotation) for note in getattr(part, "__metadata__", ()))
    return next((note.description for note in within if isinstance(note, FieldInfo) and note.description), None)


def _models(found: FieldInfo | None) -> list[type[BaseModel]]:
    return [] if found is None else list(_inside(found.annotation))


def _inside(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _inside(argument)


def _tags(model: type[BaseModel]) -> set[str]:
    """The texts that a field of the model must be: what a union can tell it by."""
    return {
        tag
        for found in model.model_fields.values()
        if get_origin(found.annotation) is Literal and len(get_args(found.annotation)) == 1
        for tag in get_args(found.annotation)
        if isinstance(tag, str)
    }
