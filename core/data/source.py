"""What a reader hands over: images as uint8 tensors, labels, and what was noticed on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from core.data.rows import Held, Rows

SplitName = Literal["train", "pruning", "validation", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "validation", "test")
"""Those that an upload may have itself; all of them every dataset has. "pruning" is taken from train, where wanted."""


class Images:
    """Images and their labels.

    x: (N, C, H, W), C = 1 (grey) or 3 (RGB), uint8, or float32 in 0-255 where uint8 would round: a tensor, which is
    held in memory, or `Rows`, which may be on disk. y: int64 (N,).
    """

    def __init__(self, x: Tensor | Rows, y: Tensor) -> None:
        self.rows = Held(x) if isinstance(x, Tensor) else x
        self.y = y

    @property
    def x(self) -> Tensor:
        """All images, of those that are held in memory. Of others `rows` gives what is wanted."""
        if not isinstance(self.rows, Held):
            raise TypeError("these images are not in memory: take what is wanted from `rows`")
        return self.rows.x

    def __len__(self) -> int:
        return len(self.y)


@dataclass
class Source:
    """A dataset as it was uploaded. `splits` has "train", and the others where the upload splits them off itself.

    `classes`: names in label order; none where there are no labels, which then are all 0. `details`: facts for the
    summary (JSON). `warnings`: sentences for the summary.
    """

    splits: dict[SplitName, Images]
    classes: tuple[str, ...]
    details: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def pointer(*parts: str | int) -> str:
    """An RFC 6901 JSON pointer. Places inside the uploaded file start with "file"."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)
