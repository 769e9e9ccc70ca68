"""The digits that are built in: 1,797 grey images of 8×8 pixels, ten classes.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998,
https://doi.org/10.24432/C50P49, licence CC BY 4.0; the test part, as `sklearn.datasets.load_digits` has it.
Changed: the original's 0..16 are held as round(value · 255 / 16), so that 0-255 is the range here as everywhere
(the original is round(held · 16 / 255)). `examples/make_digits.py` makes the file.
"""

from __future__ import annotations

from pathlib import Path

from core.data.npz import read_npz
from core.data.source import Source
from core.errors import DatasetRefused, Fault
from core.job import Preprocess

DIGITS = Path(__file__).with_name("digits.npz")


def read_digits(path: Path | None, preprocess: Preprocess) -> Source:
    """The built-in digits. They are not split: train, validation and test are all taken from the whole."""
    if path is not None:
        fault = Fault("/format", "digits is built in and takes no file", "builtin:digits, or another format")
        raise DatasetRefused("digits takes no file", faults=[fault])
    source = read_npz(DIGITS, preprocess)
    source.details["source"] = (
        "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, "
        "https://doi.org/10.24432/C50P49, CC BY 4.0; 0..16 held as round(value * 255 / 16)"
    )
    return source
