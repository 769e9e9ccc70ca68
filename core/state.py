"""The checkpoint: what a run must know to go on where it was, in one file, written whole or not at all.

`<workdir>/state/checkpoint.safetensors` holds tensors as such and everything else as JSON in its header. Nothing is
pickled. Random states are not saved: every draw in core is made from (seed, purpose, epoch), so there are none.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from core.errors import CheckpointUnusable
from core.events import Emit

FILE = "state/checkpoint.safetensors"
VERSION = 1


class State(Mapping[str, Any]):
    """Values that survive the process: None, bool, int, float, str, tensors, and lists, tuples and dicts of them.

    `save(**values)` is the only thing that writes. `put(**values)` changes values that the next `save`, by whomever,
    will write: so a method's accumulators and a trainer's weights land in the same file, of the same moment. `scope`
    gives a part of its own to somebody who is called (the trainer, by a method). Tensors are copied to the CPU when
    they are put; what is read must not be changed in place.
    """

    def __init__(self, file: _File | None, values: dict[str, Any]) -> None:
        self._file = file
        self._values = values

    @classmethod
    def open(cls, workdir: Path, *, fingerprint: Mapping[str, str], emit: Emit) -> State:
        """The state in `workdir`; empty where there is no checkpoint.

        `fingerprint`: hashes of everything that the run is made from. Raises `CheckpointUnusable` where the file is
        damaged, or was written by a run with another fingerprint.
        """
        file = _File(workdir / FILE, dict(fingerprint), emit)
        return cls(file, file.read())

    @classmethod
    def unsaved(cls) -> State:
        """An empty one that no file is behind: what is saved is remembered as long as the process lives."""
        return cls(None, {})

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def scope(self, name: str) -> State:
        """The part called `name`, made empty where it is not there. Its `save` writes the whole file."""
        return State(self._file, self._values.setdefault(name, {}))

    def put(self, **values: Any) -> None:
        """Changes values without writing."""
        self._values.update({key: _snapshot(value) for key, value in values.items()})

    def drop(self, *keys: str) -> None:
        """Forgets values, if they are there, without writing."""
        for key in keys:
            self._values.pop(key, None)

    def save(self, **values: Any) -> None:
        """Changes values and writes everything: temporary file, fsync, rename. Emits `checkpoint`."""
        self.put(**values)
        if self._file is not None:
            self._file.write()


class _File:
    """The file behind a state and all its scopes."""

    def __init__(self, path: Path, fingerprint: dict[str, str], emit: Emit) -> None:
        self.path = path
        self.fingerprint = fingerprint
        self.emit = emit
        self.number = 0
        self.root: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return self.root
        try:
            header_bytes = int.from_bytes(content[:8], "little")
            header = json.loads(content[8 : 8 + header_bytes])["__metadata__"]["billhook"]
            document = json.loads(header)
            tensors = load_safetensors(content)
            intact = document["version"] == VERSION and document["digest"] == _digest(document["values"], tensors)
        except (SafetensorError, ValueError, KeyError, TypeError):
            intact = False
        if not intact:
            raise CheckpointUnusable("the checkpoint is damaged; delete it to start over")
        theirs = document["fingerprint"]
        different = sorted(key for key in theirs | self.fingerprint if theirs.get(key) != self.fingerprint.get(key))
        if different:
            raise CheckpointUnusable(f"the checkpoint belongs to a job with another {', '.join(different)}")
        self.number = document["number"]
        self.root = cast(dict[str, Any], _decode(document["values"], tensors))
        return self.root

    def write(self) -> None:
        tensors: dict[str, Tensor] = {}
        values = _encode(self.root, tensors)
        self.number += 1
        document = {
            "version": VERSION,
            "number": self.number,
            "fingerprint": self.fingerprint,
            "digest": _digest(values, tensors),
            "values": values,
        }
        content = save_safetensors(tensors, metadata={"billhook": json.dumps(document, allow_nan=False)})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, content)
        self.emit("checkpoint", file=FILE, number=self.number)


def write_atomically(path: Path, content: bytes) -> None:
    """`content` as the file `path`: readers, and a crash at any moment, see the old file or the new one, whole."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)  # the rename itself must reach the disk, too
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _snapshot(value: Any) -> Any:
    """A copy that later training does not reach."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, Mapping):
        return {key: _snapshot(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_snapshot(item) for item in value)
    return value


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON for `value`; what JSON lacks becomes a one-key object ($tensor, $float, $tuple, $items)."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {"$tensor": name}
    if isinstance(value, tuple):
        return {"$tuple": [_encode(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_encode(item, tensors) for item in value]
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _encode(item, tensors) for key, item in value.items()}
        return {"$items": [[_encode(key, tensors), _encode(item, tensors)] for key, item in value.items()]}
    raise TypeError(f"{type(value).__name__} cannot be put into a checkpoint")


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"$float": text}:
            return float(text)
        case {"$tensor": name}:
            return tensors[name]
        case {"$tuple": items}:
            return tuple(_decode(item, tensors) for item in items)
        case {"$items": items}:
            return {_decode(key, tensors): _decode(item, tensors) for key, item in items}
    return {key: _decode(item, tensors) for key, item in value.items()}


def _digest(values: Any, tensors: Mapping[str, Tensor]) -> str:
    """sha256 over values and tensors: safetensors itself would not notice a flipped bit in a weight."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()
