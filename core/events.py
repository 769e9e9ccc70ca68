"""How core says what it does: `emit(name, **body)`. Torch-free.

Names are hierarchical (`prune/step/0/round/3`, `fine_tune/0/epoch/14`). The first part is the stage, one of `STAGES`;
`progress`, `checkpoint` and `artifact` (a file in `out/` that is complete) are read by the worker too. Bodies are JSON;
a float that JSON cannot hold is encoded explicitly by `jsonable`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

STAGES = ("import", "baseline", "prune", "fine_tune", "export", "measure")
READ_BY_WORKER = ("progress", "checkpoint", "artifact")


class Emit(Protocol):
    def __call__(self, name: str, /, **body: Any) -> None: ...


def jsonable(value: Any) -> Any:
    """`value` with NaN and infinities as {"$float": "nan" | "inf" | "-inf"}, tuples as lists, numpy scalars as numbers.

    Raises `TypeError` for anything else that JSON does not know.
    """
    if isinstance(value, bool | str | int) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes):
        return [jsonable(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and torch scalars and arrays
        return jsonable(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be put into an event")
