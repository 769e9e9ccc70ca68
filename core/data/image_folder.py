"""A zip of class folders: cat/1.png, dog/2.jpg, … optionally under train/, val/ (or validation/) and test/.

One folder around everything is looked through; folders inside a class folder belong to the class. Two passes over the
archive, both on as many threads as torch has: the first opens each image as far as its header, so that memory or disk
is taken once and bombs are found before anything is decoded; the second decodes each image into its place, in memory or
in a file, once for all epochs. Pixels are taken as they are stored: transparency is
dropped (and counted), EXIF rotation is not applied, of an animation the first frame is taken.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from core.data.archive import Limits, first_faults, open_archive, read_member
from core.data.folders import SUFFIXES, Entry, Layout, lay_out
from core.data.pixels import resize
from core.data.shelf import Shelf
from core.data.source import SPLIT_NAMES, Images, Source, SplitName, pointer
from core.data.threads import in_order, torch_threads
from core.errors import DatasetTooLarge, DatasetUnreadable, DatasetUnsuitable, Fault
from core.job import Preprocess

LIMITS = Limits()
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
MAX_PIXELS = 89_478_485  # of one image: Pillow's own limit, here an error instead of a warning
UNREADABLE_SHARE = 0.01
_GREY_MODES = frozenset({"1", "L", "LA"})
_MODES = _GREY_MODES | {"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}


@dataclass(frozen=True, slots=True)
class _Header:
    size: tuple[int, int]  # height, width
    mode: str
    transparent: bool


class _Unreadable(Exception):
    """One image cannot be decoded. The message is for the list in the summary."""


def read_image_folder(path: Path | None, preprocess: Preprocess, shelf: Shelf | None = None) -> Source:
    """The images as a source, in `shelf`.

    Raises `DatasetUnreadable`, `DatasetTooLarge` or `DatasetUnsuitable`, with the faults.
    """
    if path is None:
        raise DatasetUnreadable("image_folder needs a file", faults=[Fault("/file", "no file was given", "a zip file")])
    shelf = shelf or Shelf()
    with open_archive(path, LIMITS) as (archive, members):
        layout = lay_out(members)
        unreadable: dict[str, str] = {}
        headers = _read_headers(archive, layout.entries, shelf, unreadable)
        size = preprocess.size or _common_size(headers)
        grey = preprocess.channels == "L" or all(header.mode in _GREY_MODES for header in headers.values())
        shape = (1 if grey else 3, *size)
        what = f"{len(headers)} images of {size[0]}×{size[1]}×{shape[0]}"
        shelf.reserve(len(headers) * math.prod(shape), pointer="/preprocess/size", what=what)
        splits = {}
        for name in SPLIT_NAMES:
            chosen = [entry for entry in layout.entries if entry.split == name and entry.member.filename in headers]
            if chosen:
                splits[name] = _decode_split(archive, chosen, layout.classes, headers, shape, shelf, unreadable)
        _check_share(unreadable, len(layout.entries))
    details = {
        "unreadable": {"count": len(unreadable), "files": [list(item) for item in list(unreadable.items())[:100]]},
        "modes": dict(Counter(header.mode for header in headers.values())),
    }
    return Source(splits, layout.classes, details, _warnings(headers, unreadable, layout, splits))


def _open(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Image.Image:
    """The image, its header read. Raises `_Unreadable`, or `DatasetTooLarge` for a bomb."""
    if PurePosixPath(member.filename).suffix.lower() not in SUFFIXES:
        raise _Unreadable(f"not one of {', '.join(FORMATS)}")
    try:
        data = read_member(archive, member)
    except DatasetUnreadable as error:
        raise _Unreadable(error.faults[0].message) from None
    try:
        # of some pixels past the limit Pillow only warns, see below; filters of warnings are not for threads
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        image = None
    except UnidentifiedImageError:
        raise _Unreadable(f"not one of {', '.join(FORMATS)}, or damaged") from None
    except MemoryError:
        raise
    except Exception as error:  # a decoder may raise anything on hostile bytes; each such file is counted and listed
        raise _Unreadable(f"damaged ({type(error).__name__})") from None
    if image is None or image.width * image.height > MAX_PIXELS:
        seen = "its header" if image is None else f"{image.width}×{image.height} pixels"
        fault = Fault(pointer("file", member.filename), f"{seen} says more than {MAX_PIXELS} pixels",
                      f"at most {MAX_PIXELS} pixels per image")  # fmt: skip
        raise DatasetTooLarge("an image is too large to be decoded", faults=[fault])
    return image


def _read_headers(
    archive: zipfile.ZipFile, entries: Sequence[Entry], shelf: Shelf, unreadable: dict[str, str]
) -> dict[str, _Header]:
    """By file name; the files that have none go to `unreadable`."""
    headers = {}

    def read(entry: Entry) -> _Header | str:
        try:
            return _read_header(archive, entry.member)
        except _Unreadable as error:
            return str(error)

    found = in_order(read, entries, threads=torch_threads(), cost=_packed_bytes, most=shelf.in_flight_bytes)
    for entry, header in zip(entries, found, strict=True):
        if isinstance(header, str):
            unreadable[entry.member.filename] = header
        else:
            headers[entry.member.filename] = header
    _check_share(unreadable, len(entries))
    return headers


def _read_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> _Header:
    with _open(archive, member) as image:
        if image.mode not in _MODES:
            raise _Unreadable(f"pixel type {image.mode}, not 8 bits per channel")
        return _Header((image.height, image.width), image.mode, image.has_transparency_data)


def _common_size(headers: Mapping[str, _Header]) -> tuple[int, int]:
    sizes = Counter(header.size for header in headers.values())
    common = sizes.most_common(1)[0][0]
    if len(sizes) > 1:
        named = ", ".join(f"{count} of {height}×{width}" for (height, width), count in sizes.most_common(10))
        message = f"images have {len(sizes)} sizes ({named}{', …' if len(sizes) > 10 else ''})"
        fault = Fault("/preprocess/size", message, f"the model's input size, such as {list(common)}: all are resized")
        raise DatasetUnsuitable("the images are of different sizes", faults=[fault])
    return common


def _decode_split(
    archive: zipfile.ZipFile,
    entries: Sequence[Entry],
    classes: Sequence[str],
    headers: Mapping[str, _Header],
    shape: tuple[int, int, int],
    shelf: Shelf,
    unreadable: dict[str, str],
) -> Images:
    """Decode each into its place; places of images that fail now (their headers were good) are cut off at the end."""
    rows = shelf.rows(len(entries), shape, torch.uint8)
    labels: list[int] = []
    numbers = {name: number for number, name in enumerate(classes)}

    def decode(entry: Entry) -> Tensor | str:
        try:
            return resize(_decode(archive, entry.member, shape[0])[None], shape[1:])
        except _Unreadable as error:
            return str(error)

    def cost(entry: Entry) -> int:
        height, width = headers[entry.member.filename].size
        return _packed_bytes(entry) + 8 * height * width  # as Pillow has it, and as an array

    decoded = in_order(decode, entries, threads=torch_threads(), cost=cost, most=shelf.in_flight_bytes)
    for entry, image in zip(entries, decoded, strict=True):
        if isinstance(image, str):
            unreadable[entry.member.filename] = image
        else:
            rows.write(len(labels), image)
            labels.append(numbers[entry.class_name])
    return Images(rows.finish(len(labels)), torch.tensor(labels, dtype=torch.int64))


def _packed_bytes(entry: Entry) -> int:
    return entry.member.file_size


def _decode(archive: zipfile.ZipFile, member: zipfile.ZipInfo, channels: int) -> Tensor:
    """(C, H, W) uint8"""
    with _open(archive, member) as image:
        try:
            pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
        except MemoryError:
            raise
        except Exception as error:  # as in _open
            raise _Unreadable(f"damaged ({type(error).__name__})") from None
    return torch.from_numpy(pixels).view(*pixels.shape[:2], channels).permute(2, 0, 1)


def _check_share(unreadable: Mapping[str, str], images: int) -> None:
    if len(unreadable) > UNREADABLE_SHARE * images:
        faults = [Fault(pointer("file", name), message) for name, message in unreadable.items()]
        message = f"{len(unreadable)} of {images} images cannot be read"
        summary = Fault("/file", message, f"at most {UNREADABLE_SHARE:.0%}")
        raise DatasetUnreadable("too many images cannot be read", faults=[summary, *first_faults(faults)])


def _warnings(
    headers: Mapping[str, _Header],
    unreadable: Mapping[str, str],
    layout: Layout,
    splits: Mapping[SplitName, Images],
) -> list[str]:
    found = []
    if unreadable:
        names = ", ".join(list(unreadable)[:10])
        found.append(f"{len(unreadable)} image(s) could not be read and were left out: {names}")
    if layout.notes:
        found.append(f"{len(layout.notes)} file(s) that are no images were left aside: {', '.join(layout.notes[:10])}")
    transparent = sum(header.transparent for header in headers.values())
    if transparent:
        found.append(f"{transparent} image(s) have transparency, which was dropped")
    for name, images in splits.items():
        present = set(images.y.tolist())
        absent = [class_name for label, class_name in enumerate(layout.classes) if label not in present]
        # a class that train has lost is refused by `order_classes`
        if absent and name != "train":
            found.append(f"{name} has no images of {len(absent)} class(es): {', '.join(absent[:10])}")
    return found
