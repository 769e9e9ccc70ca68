"""What a block is called, by the names of the layers inside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def block_names(kinds: Sequence[str], layers: Sequence[Sequence[str]]) -> list[str]:
    """A name for each block of `layers`, each another.

    It is what its layers' names have in front of them all, "layer1.0", where that is this block's alone; else the first
    and the last, "conv2..conv4". A plain layer (of kind "layer") has its own. What is taken by then gets a number.
    """
    paths = [common_path(found) for found in layers]
    seen = Counter(path for path, kind in zip(paths, kinds, strict=True) if kind != "layer")
    taken: Counter[str] = Counter()
    names = []
    for path, found, kind in zip(paths, layers, kinds, strict=True):
        name = path
        if kind == "layer":
            name = found[0]
        elif not path or (seen[path] > 1 and len(found) > 1):
            name = f"{found[0]}..{found[-1]}"
        taken[name] += 1
        names.append(name if taken[name] == 1 else f"{name}#{taken[name]}")
    return names


def common_path(names: Sequence[str]) -> str:
    """The dotted path that all names begin with; of one name, the name."""
    if not names:
        return ""
    first, last = min(names).split("."), max(names).split(".")
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return ".".join(first[:same])


def below(path: str, block: str) -> str:
    """The first part of a path behind its block's name; a path elsewhere, as it is."""
    inside = f"{path}.".startswith(f"{block}.")
    return f"{path}.".removeprefix(f"{block}.").split(".")[0] if inside else path
