"""What a deployment pipeline insists on (`requirements`). Torch-free."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Annotated

from pydantic import Field

from core.sections import Section

_REQUIREMENT = re.compile(r"^\s*(<=|>=|<|>)\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*$")
COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
Requirement = Annotated[
    str,
    Field(pattern=_REQUIREMENT.pattern, description='a comparison and a number, as "<= 0.01"', examples=["<= 0.01"]),
]


class Requirements(Section):
    """What a pipeline insists on: a comparison and a number, e.g. `<= 0.01`. Evaluated into the report.

    `accuracy` is the pruned file's test accuracy (0-1) and `accuracy_drop` the original's minus it; `top_5`
    (classification of more than five classes), `ssim` and `l1` (reconstruction), `relative_error` and `cosine`
    (imitation) are the pruned file's on test; the ratios are pruned over original; `latency_ratio` is of medians on the
    CPU, batch 1, one thread.
    """

    accuracy: Requirement | None = None
    accuracy_drop: Requirement | None = None
    top_5: Requirement | None = None
    ssim: Requirement | None = None
    l1: Requirement | None = None
    relative_error: Requirement | None = None
    cosine: Requirement | None = None
    params_ratio: Requirement | None = None
    macs_ratio: Requirement | None = None
    file_bytes_ratio: Requirement | None = None
    latency_ratio: Requirement | None = None
    peak_memory_ratio: Requirement | None = None

    def comparisons(self) -> dict[str, tuple[str, float]]:
        """Each requirement that is set, as (comparison, number)."""
        found: dict[str, tuple[str, float]] = {}
        for name in Requirements.model_fields:
            text = getattr(self, name)
            if text is not None:
                match = _REQUIREMENT.match(text)
                assert match is not None  # the pattern is validated
                found[name] = (match[1], float(match[2]))
        return found

    def overridden_by(self, other: Requirements) -> Requirements:
        """These, with each field that `other` sets taken from it (a job's own over its recipe's)."""
        return self.model_copy(update=other.model_dump(exclude_none=True))
