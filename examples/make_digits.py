"""Makes core/data/digits.npz from scikit-learn's copy of the UCI digits (needs `pip install scikit-learn`).

    python -m examples.make_digits [FILE]

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998,
https://doi.org/10.24432/C50P49, CC BY 4.0. Changed: 0..16 becomes round(value * 255 / 16) as uint8.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

DIGITS = Path(__file__).parent.parent / "core" / "data" / "digits.npz"


def main(path: Path) -> None:
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
    np.savez_compressed(path, x_train=images, y_train=digits.target.astype(np.uint8))
    print(f"{path}: {len(images)} images, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DIGITS)
