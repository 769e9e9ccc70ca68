"""A zip of class folders: cat/1.png, dog/2.jpg, … optionally under train/, val/ (or validation/) and test/. Or, without
labels, of images in no folder or all in one.

One folder around everything is looked through; folders inside a class folder belong to the class. Two passes over the
archive, both on as many threads as torch has: the first opens each image as far as its header, so that memory or disk
is taken once and bombs are found before anything is decoded; the second decodes each image into its place, in memory or
in a file, once for all epochs. Pixels are taken as they are stored: transparency is dropped (and counted), EXIF
rotation is not applied, of an animation the first frame is taken.
"""

from __future__ import annotations

import math
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from core.data.archive import Limits, open_archive, read_member
from core.data.decoding import (
    FORMATS,
    GREY_MODES,
    Header,
    Unreadable,
    check_share,
    common_size,
    decode,
    decoded_bytes,
    image_warnings,
    read_header,
)
from core.data.folders import SUFFIXES, Entry, Layout, lay_out
from core.data.pixels import resize
from core.data.shelf import Shelf
from core.data.source import SPLIT_NAMES, Images, Source, SplitName, pointer
from core.data.threads import in_order, torch_threads
from core.errors import DatasetUnreadable, Fault
from core.job import Preprocess

LIMITS = Limits()


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
        size = preprocess.size or common_size(Counter(header.size for header in headers.values()))
        grey = preprocess.channels == "L" or all(header.mode in GREY_MODES for header in headers.values())
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


def _bytes_of(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Raises `Unreadable`."""
    if PurePosixPath(member.filename).suffix.lower() not in SUFFIXES:
        raise Unreadable(f"not one of {', '.join(FORMATS)}")
    try:
        return read_member(archive, member)
    except DatasetUnreadable as error:
        raise Unreadable(error.faults[0].message) from None


def _read_headers(
    archive: zipfile.ZipFile, entries: Sequence[Entry], shelf: Shelf, unreadable: dict[str, str]
) -> dict[str, Header]:
    """By file name; the files that have none go to `unreadable`."""
    headers: dict[str, Header] = {}
    alike: dict[Header, Header] = {}  # one for all images that are alike: there may be millions of them

    def read(entry: Entry) -> Header | str:
        try:
            return read_header(_bytes_of(archive, entry.member), pointer("file", entry.member.filename))
        except Unreadable as error:
            return str(error)

    found = in_order(read, entries, threads=torch_threads(), cost=_packed_bytes, most=shelf.in_flight_bytes)
    for entry, header in zip(entries, found, strict=True):
        if isinstance(header, str):
            unreadable[entry.member.filename] = header
        else:
            headers[entry.member.filename] = alike.setdefault(header, header)
    _check_share(unreadable, len(entries))
    return headers


def _decode_split(
    archive: zipfile.ZipFile,
    entries: Sequence[Entry],
    classes: Sequence[str],
    headers: Mapping[str, Header],
    shape: tuple[int, int, int],
    shelf: Shelf,
    unreadable: dict[str, str],
) -> Images:
    """Decode each into its place; places of images that fail now (their headers were good) are cut off at the end."""
    rows = shelf.rows(len(entries), shape, torch.uint8)
    labels: list[int] = []
    numbers = {name: number for number, name in enumerate(classes or [""])}

    def placed(entry: Entry) -> Tensor | str:
        try:
            image = decode(_bytes_of(archive, entry.member), pointer("file", entry.member.filename), shape[0])
        except Unreadable as error:
            return str(error)
        return resize(image[None], shape[1:])

    def cost(entry: Entry) -> int:
        return _packed_bytes(entry) + decoded_bytes(headers[entry.member.filename].size)

    decoded = in_order(placed, entries, threads=torch_threads(), cost=cost, most=shelf.in_flight_bytes)
    for entry, image in zip(entries, decoded, strict=True):
        if isinstance(image, str):
            unreadable[entry.member.filename] = image
        else:
            rows.write(len(labels), image)
            labels.append(numbers[entry.class_name])
    return Images(rows.finish(len(labels)), torch.tensor(labels, dtype=torch.int64))


def _packed_bytes(entry: Entry) -> int:
    return entry.member.file_size


def _check_share(unreadable: Mapping[str, str], images: int) -> None:
    check_share({pointer("file", name): message for name, message in unreadable.items()}, images)


def _warnings(
    headers: Mapping[str, Header],
    unreadable: Mapping[str, str],
    layout: Layout,
    splits: Mapping[SplitName, Images],
) -> list[str]:
    transparent = sum(header.transparent for header in headers.values())
    found = image_warnings(list(unreadable), transparent, splits, layout.classes)
    if not layout.classes:
        found.append("no labels: the images are not in folders of classes; for tasks that need none")
    if layout.notes:
        found.append(f"{len(layout.notes)} file(s) that are no images were left aside: {', '.join(layout.notes[:10])}")
    return found
