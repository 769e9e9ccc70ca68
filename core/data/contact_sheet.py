"""A contact sheet: some training images of each class in one PNG, as the model gets them in size and colour, but as
pixels, before `mean` and `std`. What a person looks at to see whether labels and preprocessing are right.
"""

from __future__ import annotations

import io
import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from core.data.datasets import Dataset, SplitName
from core.state import write_atomically

NAME = "contact_sheet.png"
MAX_CLASSES = 20
COLUMNS = 10
ROWS = 10
"""Of a dataset without classes."""

SMALL, LARGE = 64, 96
"""Pixels of the longer side: small images are enlarged by a whole factor up to SMALL, large ones reduced to LARGE."""

GAP, MARGIN, NAMES, LINE, FONT = 4, 8, 150, 16, 12  # pixels; NAMES: of the column of names, at most
PAPER, INK = 232, 0  # not white: many images are


def write_contact_sheet(dataset: Dataset, out: Path) -> None:
    """The sheet of `dataset` as `out`/contact_sheet.png. Raises whatever goes wrong; then there is no file."""
    out.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    contact_sheet(dataset).save(buffer, format="PNG", optimize=True)
    write_atomically(out / NAME, buffer.getvalue())


def contact_sheet(dataset: Dataset) -> Image.Image:
    """A row for each class, at most 20, with its name and at most 10 of its training images, spread evenly over them;
    without classes a grid of images. Mode L for grey images, else RGB."""
    rows = _rows(dataset)
    channels, *sides = dataset.image_shape
    width, height = cell_size(sides[0], sides[1])
    font = ImageFont.load_default(FONT)
    rows = [(shortened(name, font, NAMES), indices) for name, indices in rows]
    names = max(math.ceil(font.getlength(name)) for name, _ in rows)
    left = MARGIN + (names + 2 * GAP if names else 0)
    pitch = max(height, LINE) + GAP
    unshown = len(dataset.classes) - MAX_CLASSES
    size = (
        left + COLUMNS * (width + GAP) - GAP + MARGIN,
        2 * MARGIN + len(rows) * pitch - GAP + (LINE if unshown > 0 else 0),
    )
    sheet = Image.new("L" if channels == 1 else "RGB", size, PAPER if channels == 1 else (PAPER,) * 3)
    draw = ImageDraw.Draw(sheet)
    ink = INK if channels == 1 else (INK,) * 3
    for row, (name, indices) in enumerate(rows):
        top = MARGIN + row * pitch
        draw.text((MARGIN, top), name, fill=ink, font=font)
        for column, pixels in enumerate(_images(dataset, "train", indices) if indices else ()):
            cell = _cell(pixels, (width, height))
            sheet.paste(cell, (left + column * (width + GAP), top))
    if unshown > 0:
        draw.text((MARGIN, size[1] - MARGIN - LINE), f"and {unshown} more classes", fill=ink, font=font)
    return sheet


def cell_size(height: int, width: int) -> tuple[int, int]:
    """(width, height) of an image on the sheet."""
    longer = max(height, width)
    if longer > LARGE:
        return max(1, round(width * LARGE / longer)), max(1, round(height * LARGE / longer))
    factor = max(1, SMALL // longer)
    return width * factor, height * factor


def shortened(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """`name` in at most `width` pixels, in letters that the font has: accents are left out, other scripts are ?."""
    decomposed = unicodedata.normalize("NFKD", name[:200])
    plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    text = "".join(letter if " " <= letter <= "~" else "?" for letter in plain)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _rows(dataset: Dataset) -> list[tuple[str, list[int]]]:
    """Name and training images of each row. The class's position goes first: a name of another script is only ?."""
    if not dataset.classes:
        chosen = _spread(len(dataset.splits["train"]), ROWS * COLUMNS)
        return [("", chosen[start : start + COLUMNS]) for start in range(0, len(chosen), COLUMNS)]
    labels = dataset.splits["train"].y
    found = []
    for position, name in enumerate(dataset.classes[:MAX_CLASSES]):
        members = torch.nonzero(labels == position).flatten()
        found.append((f"{position}: {name}", [int(members[place]) for place in _spread(len(members), COLUMNS)]))
    return found


def _spread(among: int, count: int) -> list[int]:
    """At most `count` places among so many, evenly apart."""
    count = min(among, count)
    return [place * among // count for place in range(count)]


def _images(dataset: Dataset, split: SplitName, indices: Sequence[int]) -> Tensor:
    """Images as held or stored, (len(indices), C, H, W)."""
    return dataset.splits[split].rows.take(torch.tensor(indices))


def _cell(pixels: Tensor, size: tuple[int, int]) -> Image.Image:
    """An image (C, H, W) with values of 0-255, in the size that it has on the sheet."""
    values = pixels.to(torch.float32).nan_to_num().round().clamp(0, 255).to(torch.uint8)
    array = values[0] if len(values) == 1 else values.permute(1, 2, 0)
    image = Image.fromarray(array.contiguous().numpy())
    larger = size[0] >= image.width and size[1] >= image.height
    return image.resize(size, Image.Resampling.NEAREST if larger else Image.Resampling.BOX)
