"""Documents that people write, in YAML or JSON: read as data only, and nothing of them lost on the way."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from billhook.errors import InputInvalid


class _Loader(yaml.SafeLoader):
    """The safe loader, with numbers as YAML 1.2 and JSON have them: YAML 1.1 takes `1e-4` for text."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        _refuse_repeated_names(node, set())
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def _refuse_repeated_names(node: yaml.Node | None, seen: set[int]) -> None:
    """Raises `yaml.MarkedYAMLError`. The parser would take the last of them and drop the others silently."""
    if node is None or id(node) in seen:  # an alias: what it stands for has been looked at
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_names(item, seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                problem = f"{name!r} is there already, in line {lines[name]}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            lines[name] = line
            _refuse_repeated_names(value, seen)


def read_document(path: Path, what: str) -> dict[str, Any]:
    """The mapping in the YAML or JSON file `path`. Raises `InputInvalid`, naming `what` it should be and the line."""
    try:
        document = yaml.load(path.read_text("utf-8"), _Loader)  # noqa: S506  a safe loader
    except FileNotFoundError:
        raise InputInvalid(f"there is no file {path} ({what})") from None
    except OSError as error:
        raise InputInvalid(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputInvalid(f"{path} is no text file; {what} is YAML or JSON") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
        raise InputInvalid(f"{path} is not valid YAML{where}: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(document, dict):
        raise InputInvalid(f"{path} holds no mapping; {what} is one")
    try:
        json.dumps(document, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputInvalid(f"{path} holds what JSON has no form for (put text in quotes): {error}") from None
    return document


def parse_document(text: str, what: str) -> dict[str, Any]:
    """The JSON object `text`. Raises `InputInvalid`, naming `what` it should be."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(pairs)
        if len(document) < len(pairs):
            names = [name for name, _ in pairs]
            repeated = next(name for name in names if names.count(name) > 1)
            raise InputInvalid(f"{what}: {repeated!r} is there more than once")
        return document

    try:
        document: dict[str, Any] = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise InputInvalid(f"{what} is not valid JSON: {error}") from None
    return document
