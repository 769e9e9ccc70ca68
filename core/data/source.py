"""What a reader hands over: images as uint8 tensors, labels, and what was noticed on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

SplitName = Literal["train", "validation", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "validation", "test")


@dataclass
class Images:
    """x: (N, C, H, W), C = 1 (grey) or 3 (RGB), uint8, or float32 in 0-255 where uint8 would round. y: int64 (N,)."""

    x: Tensor
    y: Tensor

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
