"""`make data`: Fashion-MNIST (60,000 + 10,000 images, 28×28 grey, 10 classes) as `data/fashion-mnist.npz`.

Reads the IDX files of Debian's package `dataset-fashion-mnist`: installed, or fetched by `apt-get download` and
unpacked into a temporary folder (no root needed). Nothing else is fetched.
"""

from __future__ import annotations

import gzip
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).parent.parent
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """One IDX file (gzipped or not) of unsigned bytes: magic 0x0000 08 rank, big-endian dimensions, data."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if raw[:3] != b"\x00\x00\x08":
        raise SystemExit(f"{path.name} is no IDX file of unsigned bytes")
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(tuple(shape))


def _find(folder: Path, name: str) -> Path:
    for suffix in (".gz", ""):
        if (path := folder / (name + suffix)).exists():
            return path
    raise SystemExit(f"{name} is not in {folder}")


def _fetch(folder: Path) -> Path:
    try:
        subprocess.run(["apt-get", "download", "dataset-fashion-mnist"], cwd=folder, check=True)
        package = next(folder.glob("*.deb"))
        subprocess.run(["dpkg", "-x", package, folder / "unpacked"], check=True)
    except (OSError, subprocess.CalledProcessError, StopIteration) as error:
        raise SystemExit(
            "Fashion-MNIST comes from Debian's package dataset-fashion-mnist; install that first"
        ) from error
    return folder / "unpacked" / INSTALLED.relative_to("/")


def main() -> int:
    target = ROOT / "data" / "fashion-mnist.npz"
    if target.exists():
        print(f"{target} is there already")
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = INSTALLED if INSTALLED.exists() else _fetch(Path(temporary))
        arrays = {key: read_idx(_find(folder, name)) for key, name in FILES.items()}
    target.parent.mkdir(exist_ok=True)
    np.savez_compressed(target, **arrays)
    print(f"{target}: " + ", ".join(f"{key} {value.shape}" for key, value in arrays.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
