"""Reading YAML (of which JSON is a part) as a document to be validated: data only, and nothing of it lost."""

from __future__ import annotations

import re
from typing import Any

import yaml

from core.errors import Fault


class DocumentInvalid(ValueError):
    """The text is no such document; `faults` say where."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(fault.message for fault in faults))
        self.faults = faults


class _Loader(yaml.SafeLoader):
    """The safe loader, with numbers as YAML 1.2 and JSON have them: YAML 1.1 takes `1e-4` for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def load_yaml(text: str) -> Any:
    """What YAML or JSON text says. Raises `DocumentInvalid`: no YAML, or a name that is there twice in one mapping."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if faults := _repeated(node, "", set()):
                raise DocumentInvalid(faults)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except DocumentInvalid:
        raise
    except (yaml.YAMLError, ValueError) as error:  # the latter: a date that is none
        raise DocumentInvalid([Fault("", str(error), "YAML or JSON")]) from None
    except RecursionError:
        raise DocumentInvalid([Fault("", "nested too deeply", "YAML or JSON")]) from None


def pointer_to(part: str | int) -> str:
    """One step of a JSON pointer (RFC 6901)."""
    return "/" + str(part).replace("~", "~0").replace("/", "~1")


def _repeated(node: yaml.Node, pointer: str, seen: set[int]) -> list[Fault]:
    """A fault for each name that comes again. The parser would take the last and drop the others silently."""
    if id(node) in seen:  # an alias: what it stands for has been looked at
        return []
    seen.add(id(node))
    faults: list[Fault] = []
    if isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            faults += _repeated(item, pointer + pointer_to(position), seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name = str(key.value)
            here, line = pointer + pointer_to(name), key.start_mark.line + 1
            if name in lines:
                message = f"{name!r} is there more than once, in the lines {lines[name]} and {line}"
                faults.append(Fault(here, message, "each name once"))
            lines[name] = line
            faults += _repeated(value, here, seen)
    return faults
