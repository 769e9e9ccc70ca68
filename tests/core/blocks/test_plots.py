"""The picture of removed blocks: what is in it, the same bytes every time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from xml.etree import ElementTree

from core.block_report import BlockAnalysis
from core.blocks.analysis import analyses
from core.blocks.plots import blocks_svg
from tests.core.blocks.test_analysis import FIRST, history, round_of

AGAIN = (
    "import hashlib; from tests.core.blocks.test_plots import told; from core.blocks.plots import blocks_svg; "
    "print(hashlib.sha256(blocks_svg(told())).hexdigest())"
)


def told() -> list[BlockAnalysis]:
    """Two steps, a control at the first; the second replaces neighbours and is fine-tuned."""
    replaced = history(round_of(1, {"a+b": 1.0, "$x^{<&": 2.0}, ["a+b"], accuracy_tuned=0.85, epochs=2, whole=True))
    return analyses([FIRST, replaced], [3, 1], [FIRST])


def test_it_is_a_picture_of_each_step_and_the_same_bytes_again() -> None:
    picture = blocks_svg(told())
    root = ElementTree.fromstring(picture)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    text = picture.decode()
    axes = text.count('<g id="axes_')
    assert axes == 8  # four panels of each step
    assert "<script" not in text
    assert "dc:date" not in text
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", AGAIN], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == hashlib.sha256(picture).hexdigest()


def test_other_rounds_are_another_picture() -> None:
    assert blocks_svg(told()) != blocks_svg(told()[:2])


def test_what_was_not_measured_is_not_drawn() -> None:
    unknown = history(round_of(1, {"a": float("nan")}, ["a"], accuracy_cut=None, accuracy_before=None))
    unknown.accuracy = None
    assert blocks_svg(analyses([unknown, history()], [1, 0], []))
