"""A zip of class folders: cat/1.png, dog/2.jpg, … optionally under train/, val/ (or validation/) and test/.

One folder around everything is looked through; folders inside a class folder belong to the class. Two passes over the
archive: the first opens each image as far as its header, so that memory is taken once and bombs are found before
anything is decoded; the second decodes each image into its place. Pixels are taken as they are stored: transparency is
dropped (and counted), EXIF rotation is not applied, of an animation the first frame is taken.
"""

from __future__ import annotations

import math
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import torch

from core.data.archive import GIB, Limits, open_archive, read_member
from core.data.decoding import (
    FORMATS,
    GREY_MODES,
    Header,
    Unreadable,
    check_share,
    common_size,
    decode,
    image_warnings,
    read_header,
)
from core.data.folders import SUFFIXES, Entry, Layout, lay_out
from core.data.pixels import resize
from core.data.source import SPLIT_NAMES, Images, Source, SplitName, pointer
from core.errors import DatasetTooLarge, DatasetUnreadable, Fault
from core.job import Preprocess

LIMITS = Limits()
MAX_HELD_BYTES = 64 * GIB


def read_image_folder(path: Path | None, preprocess: Preprocess) -> Source:
    """The images as a source. Raises `DatasetUnreadable`, `DatasetTooLarge` or `DatasetUnsuitable`, with the faults."""
    if path is None:
        raise DatasetUnreadable("image_folder needs a file", faults=[Fault("/file", "no file was given", "a zip file")])
    with open_archive(path, LIMITS) as (archive, members):
        layout = lay_out(members)
        unreadable: dict[str, str] = {}
        headers = _read_headers(archive, layout.entries, unreadable)
        size = preprocess.size or common_size(Counter(header.size for header in headers.values()))
        grey = preprocess.channels == "L" or all(header.mode in GREY_MODES for header in headers.values())
        shape = (1 if grey else 3, *size)
        check_memory(len(headers), shape)
        splits = {}
        for name in SPLIT_NAMES:
            chosen = [entry for entry in layout.entries if entry.split == name and entry.member.filename in headers]
            if chosen:
                splits[name] = _decode_split(archive, chosen, layout.classes, shape, unreadable)
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


def _read_headers(archive: zipfile.ZipFile, entries: Sequence[Entry], unreadable: dict[str, str]) -> dict[str, Header]:
    """By file name; the files that have none go to `unreadable`."""
    headers = {}
    for entry in entries:
        try:
            headers[entry.member.filename] = read_header(
                _bytes_of(archive, entry.member), pointer("file", entry.member.filename)
            )
        except Unreadable as error:
            unreadable[entry.member.filename] = str(error)
    _check_share(unreadable, len(entries))
    return headers


def check_memory(images: int, shape: tuple[int, int, int]) -> None:
    held = images * math.prod(shape)
    if held > MAX_HELD_BYTES:
        channels, height, width = shape
        message = f"{images} images of {height}×{width}×{channels} take {held} bytes of memory"
        fault = Fault("/preprocess/size", message, f"at most {MAX_HELD_BYTES} bytes: smaller or fewer images")
        raise DatasetTooLarge("the images do not fit in memory", faults=[fault])


def _decode_split(
    archive: zipfile.ZipFile,
    entries: Sequence[Entry],
    classes: Sequence[str],
    shape: tuple[int, int, int],
    unreadable: dict[str, str],
) -> Images:
    """Decode into one tensor; rows of images that fail now (their headers were good) are cut off at the end."""
    x = torch.empty((len(entries), *shape), dtype=torch.uint8)
    labels: list[int] = []
    numbers = {name: number for number, name in enumerate(classes)}
    for entry in entries:
        try:
            decoded = decode(_bytes_of(archive, entry.member), pointer("file", entry.member.filename), shape[0])
        except Unreadable as error:
            unreadable[entry.member.filename] = str(error)
            continue
        x[len(labels)] = resize(decoded[None], shape[1:])[0]
        labels.append(numbers[entry.class_name])
    return Images(x[: len(labels)], torch.tensor(labels, dtype=torch.int64))


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
    if layout.notes:
        found.append(f"{len(layout.notes)} file(s) that are no images were left aside: {', '.join(layout.notes[:10])}")
    return found
