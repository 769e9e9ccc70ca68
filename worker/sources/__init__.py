"""Datasets that are given by a URI: fetched once, by a worker itself, before they are checked. Then they are
stored bytes like any upload.

The child, which reads the file, never opens a connection.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.errors import Fault
from store import sources
from store.records import Dataset
from store.settings import Settings
from store.sources import FORMATS, SourceUri
from worker.guard import Order
from worker.sources.errors import ChecksumMismatch, SourceError, SourceRefused, Stopped
from worker.sources.files import copy_path
from worker.sources.https import HttpsRemote
from worker.sources.s3 import S3Remote
from worker.sources.transfer import Rules, Sink, download


@dataclass(frozen=True)
class Fetched:
    sha256: str
    bytes: int
    filename: str


def fetch(settings: Settings, dataset: Dataset, path: Path, order: Callable[[], Order | None]) -> Fetched:
    """What the dataset's URI names, in the new file `path`. `order` is asked all the time whether it is still wanted.

    Raises `SourceError` (the dataset is to be refused), `Stopped`, or `OSError` of this machine's disk.
    """
    source = sources.parse_uri(dataset.uri)
    fault = source if isinstance(source, Fault) else sources.refusal(source, settings)
    if fault is not None or isinstance(source, Fault):
        raise SourceRefused("the dataset may not be fetched by this worker", faults=[fault] if fault else [])
    rules = Rules(
        max_bytes=settings.max_upload_bytes, min_free_bytes=settings.min_free_bytes,
        idle_seconds=settings.upload_idle_seconds, until=time.monotonic() + settings.fetch_seconds_limit,
        order=order, pinned_sha256=dataset.pinned_sha256,
    )  # fmt: skip
    packed = False
    with path.open("w+b") as file:
        sink = Sink(path, file, rules)
        match source.scheme:
            case "file":
                folders = dataset.format in FORMATS[".zip"]
                packed = copy_path(source, settings.dataset_roots, sink, folders=folders)
            case "https":
                private, ca_file = settings.dataset_private_addresses, settings.dataset_ca_file
                download(HttpsRemote(source, rules, private=private, ca_file=ca_file), sink)
            case "s3":
                download(S3Remote(source, rules), sink)
    return _checked(dataset, source, sink, packed)


def _checked(dataset: Dataset, source: SourceUri, sink: Sink, packed: bool) -> Fetched:
    sha256 = sink.digest.hexdigest()
    if sink.size == 0:
        raise SourceRefused(f"{sources.shown(dataset.uri)} is empty")
    if dataset.pinned_sha256 not in (None, sha256):
        fault = Fault("/sha256", f"the {sink.size} bytes that are there have {sha256}", f"{dataset.pinned_sha256}")
        raise ChecksumMismatch(
            f"{sources.shown(dataset.uri)} has another sha256 than was said: {sha256} instead of "
            f"{dataset.pinned_sha256}", faults=[fault],
        )  # fmt: skip
    return Fetched(sha256, sink.size, f"{source.filename[:250]}.zip" if packed else source.filename[:255])


__all__ = ["Fetched", "SourceError", "Stopped", "fetch"]
