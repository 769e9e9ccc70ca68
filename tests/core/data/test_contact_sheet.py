"""The contact sheet: which images are where on it, and what no name or size may do to it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont

from core.data.contact_sheet import (
    COLUMNS,
    FONT,
    GAP,
    LARGE,
    MARGIN,
    NAME,
    NAMES,
    PAPER,
    cell_size,
    contact_sheet,
    shortened,
    write_contact_sheet,
)
from core.data.datasets import Dataset, Split
from core.data.rows import Held
from core.job import Preprocess
from tests.core.fakes import small_dataset
from worker.png import MAX_BYTES, check_png


def cells(sheet: Image.Image, size: tuple[int, int], row: int, pitch: int, columns: int = COLUMNS) -> np.ndarray:
    """The cells of a row, (columns, height, width, ...)."""
    width, height = size
    left = sheet.width - MARGIN - COLUMNS * (width + GAP) + GAP
    top = MARGIN + row * pitch
    pixels = np.asarray(sheet)
    found = [
        pixels[top : top + height, left + n * (width + GAP) : left + n * (width + GAP) + width] for n in range(columns)
    ]
    return np.stack(found)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_row_holds_training_images_of_its_class_spread_over_them(channels: int) -> None:
    dataset = small_dataset(images=100, channels=channels, preprocess=Preprocess(mean=(0.5,), std=(0.1,)))
    sheet = contact_sheet(dataset)
    assert sheet.mode == ("L" if channels == 1 else "RGB")
    train = dataset.splits["train"]
    for row in range(4):
        held = train.x[train.y == row]
        chosen = held[[n * 25 // 10 for n in range(10)]]
        wanted = chosen.repeat_interleave(8, 2).repeat_interleave(8, 3).permute(0, 2, 3, 1).squeeze(-1)
        assert np.array_equal(cells(sheet, (64, 64), row, 64 + GAP), wanted.numpy()), "pixels, not normalised"
    assert sheet.height == 2 * MARGIN + 4 * (64 + GAP) - GAP


def test_a_class_of_few_images_has_them_once_and_one_of_none_an_empty_row() -> None:
    dataset = small_dataset(images=8)
    train = dataset.splits["train"]
    fewer = Split(train.x[:3], train.y[:3], train.given, train.index_sha256)
    dataset = dataclasses.replace(dataset, splits={**dataset.splits, "train": fewer})
    sheet = contact_sheet(dataset)
    for row in range(4):
        found = cells(sheet, (64, 64), row, 64 + GAP)
        assert (found[1:] == PAPER).all()
        assert (found[0] == PAPER).all() == (row == 3)


def test_a_dataset_without_classes_is_a_grid_without_names() -> None:
    dataset = small_dataset(images=25)
    sheet = contact_sheet(dataclasses.replace(dataset, classes=()))
    assert sheet.size == (2 * MARGIN + 10 * (64 + GAP) - GAP, 2 * MARGIN + 3 * (64 + GAP) - GAP)
    last = cells(sheet, (64, 64), 2, 64 + GAP)
    assert (last[5:] == PAPER).all()
    held = dataset.splits["train"].x[24, 0].repeat_interleave(8, 0).repeat_interleave(8, 1)
    assert np.array_equal(last[4], held.numpy())


def test_of_many_classes_the_first_are_shown_and_the_rest_counted() -> None:
    dataset = small_dataset(images=200, classes=50)
    sheet = contact_sheet(dataset)
    assert sheet.height == 2 * MARGIN + 20 * (64 + GAP) - GAP + 16
    assert (np.asarray(sheet)[-MARGIN - 16 : -MARGIN] < PAPER).any(), "and 30 more classes"


def test_float_images_are_rounded_and_odd_numbers_do_no_harm() -> None:
    dataset = small_dataset(images=8)
    x = dataset.splits["train"].x.float()
    x[0, 0, 0, :4] = torch.tensor([float("nan"), float("inf"), -5.0, 99.6])
    train = dataset.splits["train"].with_rows(Held(x))
    sheet = contact_sheet(dataclasses.replace(dataset, splits={**dataset.splits, "train": train}))
    assert cells(sheet, (64, 64), 0, 64 + GAP)[0][0, 4:32:8].tolist() == [0, 255, 0, 100]


def test_large_images_are_reduced() -> None:
    x = torch.full((8, 3, 300, 200), 90, dtype=torch.uint8)
    dataset = small_dataset(images=8, channels=3)
    train = dataset.splits["train"].with_rows(Held(x))
    sheet = contact_sheet(dataclasses.replace(dataset, splits={**dataset.splits, "train": train}))
    assert cell_size(300, 200) == (64, LARGE)
    assert (cells(sheet, (64, LARGE), 0, LARGE + GAP, 2) == 90).all()


@given(height=st.integers(1, 8192), width=st.integers(1, 8192))
def test_a_cell_is_enlarged_by_whole_factors_and_never_large(height: int, width: int) -> None:
    across, down = cell_size(height, width)
    assert 1 <= across <= LARGE
    assert 1 <= down <= LARGE
    if max(height, width) <= LARGE:
        assert across % width == 0
        assert across // width == down // height


@settings(deadline=None, max_examples=60)
@given(name=st.text(max_size=300))
def test_any_name_is_drawn_in_the_space_that_there_is(name: str) -> None:
    font = ImageFont.load_default(FONT)
    text = shortened(name, font, NAMES)
    assert font.getlength(text) <= NAMES
    assert text.isascii()
    assert text.isprintable()


def test_names_of_other_scripts() -> None:
    font = ImageFont.load_default(FONT)
    assert shortened("café", font, NAMES) == "cafe"
    assert shortened("猫\n犬", font, NAMES) == "???"
    assert shortened("m" * 100, font, NAMES).endswith("m...")
    names = ("猫" * 200, "a\nb", "\U0001f600", "ﷺ")
    sheet = contact_sheet(dataclasses.replace(small_dataset(), classes=names))
    assert sheet.width <= 2 * MARGIN + NAMES + 2 * GAP + 10 * (64 + GAP)


def noise(size: tuple[int, int], classes: int) -> Dataset:
    """What compresses worst."""
    dataset = small_dataset(images=COLUMNS * classes, classes=classes, channels=3)
    x = torch.randint(0, 256, (COLUMNS * classes, 3, *size), dtype=torch.uint8)
    train = dataset.splits["train"].with_rows(Held(x))
    return dataclasses.replace(dataset, splits={**dataset.splits, "train": train})


def test_the_largest_sheet_is_what_the_worker_takes(tmp_path: Path) -> None:
    write_contact_sheet(noise((LARGE, LARGE), 21), tmp_path)
    width, height = check_png(tmp_path / NAME)
    assert 5_000_000 < (tmp_path / NAME).stat().st_size < MAX_BYTES
    with Image.open(tmp_path / NAME) as image:
        image.load()
        assert image.size == (width, height)


def test_the_same_dataset_makes_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_contact_sheet(small_dataset(), tmp_path / folder)
    assert (tmp_path / "a" / NAME).read_bytes() == (tmp_path / "b" / NAME).read_bytes()
