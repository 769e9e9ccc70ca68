"""A zip of class folders: cat/1.png, dog/2.jpg, … optionally under train/, val/ (or validation/) and test/.

One folder around everything is looked through; folders inside a class folder belong to the class. Two passes over the
archive: the first opens each image as far as its header, so that memory is taken once and bombs are found before
anything is decoded; the second decodes each image into its place. Pixels are taken as they are stored: transparency is
dropped (and counted), EXIF rotation is not applied, of an animation the first frame is taken.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from core.data.archive import GIB, Limits, first_faults, open_archive, read_member
from core.data.pixels import resize
from core.data.source import SPLIT_NAMES, Images, Source, SplitName, pointer
from core.errors import DatasetTooLarge, DatasetUnreadable, DatasetUnsuitable, Fault
from core.job import Preprocess

LIMITS = Limits()
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"})
MAX_PIXELS = 89_478_485  # of one image: Pillow's own limit, here an error instead of a warning
MAX_HELD_BYTES = 64 * GIB
UNREADABLE_SHARE = 0.01
SPLIT_FOLDERS: Mapping[str, SplitName] = {
    "train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test",
}  # fmt: skip
# notes that people leave beside their images; other files in a class folder count as unreadable images
_NOTES = frozenset({".txt", ".md", ".csv", ".json", ".xml", ".yaml", ".yml", ".html", ".pdf"})
_LITTER = frozenset({"__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini"})
_GREY_MODES = frozenset({"1", "L", "LA"})
_MODES = _GREY_MODES | {"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}


@dataclass(frozen=True)
class _Entry:
    member: zipfile.ZipInfo
    split: SplitName
    class_name: str


@dataclass(frozen=True)
class _Header:
    size: tuple[int, int]  # height, width
    mode: str
    transparent: bool


class _Unreadable(Exception):
    """One image cannot be decoded. The message is for the list in the summary."""


def read_image_folder(path: Path | None, preprocess: Preprocess) -> Source:
    """The images as a source. Raises `DatasetUnreadable`, `DatasetTooLarge` or `DatasetUnsuitable`, with the faults."""
    if path is None:
        raise DatasetUnreadable("image_folder needs a file", faults=[Fault("/file", "no file was given", "a zip file")])
    with open_archive(path, LIMITS) as (archive, members):
        entries, classes, notes = _sort_members(members)
        headers: dict[str, _Header] = {}
        unreadable: dict[str, str] = {}
        for entry in entries:
            try:
                headers[entry.member.filename] = _read_header(archive, entry.member)
            except _Unreadable as error:
                unreadable[entry.member.filename] = str(error)
        _check_share(unreadable, len(entries))
        size = preprocess.size or _common_size(headers)
        channels = 1 if preprocess.channels == "L" or _all_grey(headers) else 3
        entries = [entry for entry in entries if entry.member.filename in headers]
        splits = {}
        held_bytes = len(entries) * channels * size[0] * size[1]
        if held_bytes > MAX_HELD_BYTES:
            fault = Fault("/preprocess/size", f"{len(entries)} images of {size[0]}×{size[1]}×{channels} are {held_bytes} "
                          "bytes in memory", f"at most {MAX_HELD_BYTES} bytes: smaller or fewer images")  # fmt: skip
            raise DatasetTooLarge("the images do not fit in memory", faults=[fault])
        for name in SPLIT_NAMES:
            chosen = [entry for entry in entries if entry.split == name]
            if chosen:
                splits[name] = _decode_split(archive, chosen, classes, (channels, *size), unreadable)
        _check_share(unreadable, len(entries) + len(unreadable))
    details = {
        "unreadable": {"count": len(unreadable), "files": [list(item) for item in list(unreadable.items())[:100]]},
        "modes": dict(Counter(header.mode for header in headers.values())),
    }
    return Source(splits, classes, details, _warnings(headers, unreadable, notes, splits, classes))


def _sort_members(members: Sequence[zipfile.ZipInfo]) -> tuple[list[_Entry], tuple[str, ...], list[str]]:
    """Images with their split and class, the classes in the order of their names, and the notes left aside."""
    kept = [member for member in members if not _is_litter(member.filename)]
    paths = [PurePosixPath(member.filename).parts for member in kept]
    depth = _wrapper_depth(paths, [member.is_dir() for member in kept])
    entries: list[_Entry] = []
    notes: list[str] = []
    folders: dict[tuple[SplitName, str], int] = {}
    faults: list[Fault] = []
    tops = {parts[depth] for parts, member in zip(paths, kept, strict=True) if len(parts) > depth + (not member.is_dir())}
    in_splits = bool(tops & SPLIT_FOLDERS.keys())
    for top in sorted(tops - SPLIT_FOLDERS.keys() if in_splits else ()):
        faults.append(Fault(pointer("file", top), "a folder beside the splits", "train, val (or validation), test"))
    named = Counter(SPLIT_FOLDERS[top] for top in tops & SPLIT_FOLDERS.keys())
    for split in (split for split, count in named.items() if count > 1):
        faults.append(Fault("/file", f"more than one folder for {split}", "one of val, valid, validation"))
    if in_splits and "train" not in named:
        faults.append(Fault("/file", "no folder train", "train beside val or test, or class folders only"))
    for parts, member in zip(paths, kept, strict=True):
        inner = parts[depth:]
        if in_splits and inner and inner[0] not in SPLIT_FOLDERS and len(inner) > 1:
            continue  # a fault already
        split = SPLIT_FOLDERS[inner[0]] if in_splits and inner and inner[0] in SPLIT_FOLDERS else "train"
        inner = inner[1:] if in_splits and inner and inner[0] in SPLIT_FOLDERS else inner
        if member.is_dir():
            if inner:
                folders.setdefault((split, inner[0]), 0)
            continue
        suffix = PurePosixPath(member.filename).suffix.lower()
        if suffix in _NOTES:
            notes.append(member.filename)
        elif len(inner) < 2:
            faults.append(Fault(pointer("file", member.filename), "not in a class folder", "cat/1.png"))
        else:
            folders[split, inner[0]] = folders.get((split, inner[0]), 0) + (suffix in SUFFIXES)
            entries.append(_Entry(member, split, inner[0]))
    for (split, name), count in sorted(folders.items()):
        if count == 0:
            where = pointer("file", *([split] if in_splits else []), name)
            faults.append(Fault(where, f"the class folder {name!r} has no images", ", ".join(FORMATS)))
    classes = tuple(sorted({name for _, name in folders}))
    if len(classes) < 2:
        found = f"only the class folder {classes[0]!r}" if classes else "no class folder"
        faults.append(Fault("/file", f"{found} was found", "two class folders or more"))
    trained = {entry.class_name for entry in entries if entry.split == "train"}
    for name in sorted({entry.class_name for entry in entries} - trained):
        if "train" in named:
            message = f"the class {name!r} is not in train"
            faults.append(Fault(pointer("file", "train", name), message, "each class in train"))
    if faults:
        raise DatasetUnsuitable("the folders are no dataset of classes", faults=first_faults(faults))
    return entries, classes, notes


def _is_litter(name: str) -> bool:
    """What operating systems leave in archives."""
    parts = PurePosixPath(name).parts
    return not _LITTER.isdisjoint(parts) or any(part.startswith("._") for part in parts)


def _wrapper_depth(paths: Sequence[tuple[str, ...]], is_dir: Sequence[bool]) -> int:
    """How many folders are around everything: cats/1.png is a class already, data/cats/1.png may have one around."""
    depth = 0
    while True:
        files = [parts[depth:] for parts, folder in zip(paths, is_dir, strict=True) if not folder]
        tops = {parts[depth] for parts in paths if len(parts) > depth}
        below = {len(parts) for parts in files}
        if len(tops) != 1 or tops <= SPLIT_FOLDERS.keys() or not files or min(below) < 2 or max(below) < 3:
            return depth
        # a note beside the class folders (data/README.txt) does not keep the folder from being a wrapper
        if any(len(parts) == 2 and PurePosixPath(parts[1]).suffix.lower() not in _NOTES for parts in files):
            return depth
        depth += 1


def _open(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Image.Image:
    """The image, its header read. Raises `_Unreadable`, or `DatasetTooLarge` for a bomb."""
    if PurePosixPath(member.filename).suffix.lower() not in SUFFIXES:
        raise _Unreadable(f"not one of {', '.join(FORMATS)}")
    try:
        data = read_member(archive, member)
    except DatasetUnreadable as error:
        raise _Unreadable(error.faults[0].message) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
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


def _read_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> _Header:
    with _open(archive, member) as image:
        if image.mode not in _MODES:
            raise _Unreadable(f"pixel type {image.mode}, not 8 bits per channel")
        return _Header((image.height, image.width), image.mode, image.has_transparency_data)


def _all_grey(headers: Mapping[str, _Header]) -> bool:
    return all(header.mode in _GREY_MODES for header in headers.values())


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
    entries: Sequence[_Entry],
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
            decoded = _decode(archive, entry.member, shape[0])
        except _Unreadable as error:
            unreadable[entry.member.filename] = str(error)
            continue
        x[len(labels)] = resize(decoded[None], shape[1:])[0]
        labels.append(numbers[entry.class_name])
    return Images(x[: len(labels)], torch.tensor(labels, dtype=torch.int64))


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
        summary = Fault("/file", f"{len(unreadable)} of {images} images cannot be read", f"at most {UNREADABLE_SHARE:.0%}")
        raise DatasetUnreadable("too many images cannot be read", faults=[summary, *first_faults(faults)])


def _warnings(
    headers: Mapping[str, _Header],
    unreadable: Mapping[str, str],
    notes: Sequence[str],
    splits: Mapping[SplitName, Images],
    classes: Sequence[str],
) -> list[str]:
    found = []
    if unreadable:
        names = ", ".join(list(unreadable)[:10])
        found.append(f"{len(unreadable)} image(s) could not be read and were left out: {names}")
    if notes:
        found.append(f"{len(notes)} file(s) that are no images were left aside: {', '.join(notes[:10])}")
    transparent = sum(header.transparent for header in headers.values())
    if transparent:
        found.append(f"{transparent} image(s) have transparency, which was dropped")
    for name, images in splits.items():
        absent = [classes[label] for label in sorted(set(range(len(classes))) - set(images.y.tolist()))]
        if absent and name != "train":
            found.append(f"{name} has no images of {len(absent)} class(es): {', '.join(absent[:10])}")
    return found
