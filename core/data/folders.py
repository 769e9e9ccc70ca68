"""Which split and class each file of an image folder belongs to, by its name alone."""

from __future__ import annotations

import dataclasses
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from core.data.archive import first_faults
from core.data.source import SplitName, pointer
from core.errors import DatasetUnsuitable, Fault

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"})
SPLIT_FOLDERS: Mapping[str, SplitName] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
# notes that people leave beside their images; any other file in a class folder counts as an unreadable image
_NOTES = frozenset({".txt", ".md", ".csv", ".json", ".xml", ".yaml", ".yml", ".html", ".pdf"})
_LITTER = frozenset({"__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a class folder."""

    member: zipfile.ZipInfo
    split: SplitName
    class_name: str


@dataclass(frozen=True)
class Layout:
    """The files of the class folders; the class names in order, none where there are no labels (then every entry has
    the class ""); the notes that are left aside."""

    entries: list[Entry]
    classes: tuple[str, ...]
    notes: list[str]


def lay_out(members: Sequence[zipfile.ZipInfo]) -> Layout:
    """Members of the archive by split and class. Raises `DatasetUnsuitable` with every fault of the folders.

    One folder around everything is looked through. The split folders are either all there is at the top, or the class
    folders are; folders inside a class folder belong to the class. Images in no folder, or all in one, have no labels.
    """
    paths = [(member, PurePosixPath(member.filename).parts) for member in members if not is_litter(member.filename)]
    wrapped = _wrapper_depth(paths)
    paths = [(member, parts[wrapped:]) for member, parts in paths]
    tops = {parts[0] for member, parts in paths if len(parts) > (0 if member.is_dir() else 1)}
    in_splits = bool(tops & SPLIT_FOLDERS.keys())
    faults = _split_folder_faults(tops) if in_splits else []
    entries: list[Entry] = []
    loose: list[Entry] = []
    notes: list[str] = []
    images: Counter[tuple[SplitName, str]] = Counter()
    for member, parts in paths:
        split: SplitName = "train"
        inner = parts
        if in_splits and parts and parts[0] in SPLIT_FOLDERS:
            split, inner = SPLIT_FOLDERS[parts[0]], parts[1:]
        elif in_splits and len(parts) > 1:
            continue  # in a folder beside the splits, which is a fault already
        suffix = PurePosixPath(member.filename).suffix.lower()
        if member.is_dir():
            if inner:
                images[split, inner[0]] += 0
        elif suffix in _NOTES:
            notes.append(member.filename)
        elif len(inner) < 2:
            loose.append(Entry(member, split, ""))
        else:
            images[split, inner[0]] += suffix in SUFFIXES
            entries.append(Entry(member, split, inner[0]))
    names = {name for _, name in images}
    unlabelled = len(names) + bool(loose) == 1 and any((*images.values(), loose))
    if unlabelled:
        entries = [*loose, *(dataclasses.replace(entry, class_name="") for entry in entries)]
        names = set()
    else:
        faults += [
            Fault(pointer("file", entry.member.filename), "not in a class folder", "a name like cat/1.png")
            for entry in loose
        ]
        faults += _class_faults(images)
    if faults:
        raise DatasetUnsuitable("the folders do not make a dataset of classes", faults=first_faults(faults))
    return Layout(entries, tuple(sorted(names)), notes)


def is_litter(name: str) -> bool:
    """What operating systems leave in archives."""
    parts = PurePosixPath(name).parts
    return not _LITTER.isdisjoint(parts) or any(part.startswith("._") for part in parts)


def _wrapper_depth(paths: Sequence[tuple[zipfile.ZipInfo, tuple[str, ...]]]) -> int:
    """How many folders are around everything. cats/1.png alone is a class; data/cats/1.png has a folder around it."""
    depth = 0
    while True:
        tops = {parts[depth] for _, parts in paths if len(parts) > depth}
        files = [parts[depth:] for member, parts in paths if not member.is_dir()]
        images = [parts for parts in files if PurePosixPath(parts[-1]).suffix.lower() not in _NOTES]
        # image files directly inside make it a class folder
        if len(tops) != 1 or tops <= SPLIT_FOLDERS.keys() or not images or min(map(len, images)) < 3:
            return depth
        depth += 1


def _split_folder_faults(tops: set[str]) -> list[Fault]:
    faults = [
        Fault(pointer("file", top), "a folder beside the split folders", "train, val (or validation) and test only")
        for top in sorted(tops - SPLIT_FOLDERS.keys())
    ]
    named = Counter(SPLIT_FOLDERS[top] for top in tops & SPLIT_FOLDERS.keys())
    if named["validation"] > 1:
        faults.append(Fault("/file", "more than one folder for validation", "one of val, valid, validation"))
    if not named["train"]:
        faults.append(Fault("/file", "no folder train", "train beside val or test, or class folders only"))
    return faults


def _class_faults(images: Mapping[tuple[SplitName, str], int]) -> list[Fault]:
    """images: how many files with an image's suffix each class folder of each split has."""
    faults = []
    for (split, name), count in sorted(images.items()):
        if count == 0:
            message = f"the class folder {name!r} of {split} has no images"
            faults.append(Fault(pointer("file", split, name), message, f"images: {', '.join(sorted(SUFFIXES))}"))
    trained = {name for split, name in images if split == "train"}
    names = {name for _, name in images}
    if len(names) < 2:
        found = f"only the class folder {names.pop()!r}" if names else "no class folder"
        faults.append(Fault("/file", f"{found} was found", "two class folders or more"))
    elif trained:
        for name in sorted(names - trained):
            faults.append(Fault(pointer("file", "train", name), f"no class folder {name!r} in train", "each class"))
    return faults
