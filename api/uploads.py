"""Uploads: streamed to a temporary file and hashed on the way, as multipart/form-data or as a raw body.

Nothing is opened here beyond its bytes' hash. Whatever goes wrong, the temporary file goes away and no record is made.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from api.bodies import check_length, media_type, too_large
from api.errors import Refused
from core.errors import Fault
from store.settings import Settings

BUFFER_BYTES = 2**20
MAX_FIELDS = 16
MAX_FIELD_BYTES = 64 * 2**10
MULTIPART_SLACK = MAX_FIELDS * (MAX_FIELD_BYTES + 2**10)  # what may surround the file itself
STALE_SECONDS = 86_400


@dataclass(frozen=True)
class Received:
    """A complete upload: the file, what it is called, and the other fields of the form or the query.

    `faults`: of fields that are not known. Whoever reads the known ones refuses both together.
    """

    path: Path
    filename: str
    sha256: str
    bytes: int
    fields: Mapping[str, str]
    faults: tuple[Fault, ...] = ()


@asynccontextmanager
async def receive_upload(
    request: Request, settings: Settings, formats: Mapping[str, str], fields: frozenset[str]
) -> AsyncIterator[Received]:
    """The upload in the body, in a temporary file that lives as long as the block.

    `formats` maps the file name extensions that are taken to format names; `fields` are the options that may come with
    the file, as form fields, or as query parameters of a raw body.

    Raises `Refused`: `body_too_large`, `storage_full`, `upload_incomplete`, `upload_timeout`, `multipart_invalid`,
    `request_invalid` (no file, an empty one, an extension that is not taken). Unknown fields are in `Received.faults`.
    """
    form = media_type(request) == "multipart/form-data"
    announced = check_length(request, settings.max_upload_bytes, MULTIPART_SLACK if form else 0)
    _check_space(settings, announced or 0)
    settings.uploads_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=settings.uploads_dir, prefix="upload-")
    try:
        with os.fdopen(handle, "wb", buffering=0) as file:
            sink = _Sink(file, settings, formats)
            given = await (_read_form if form else _read_raw)(request, settings, sink)
            await sink.flush()
        known = {key: value for key, value in given.items() if key in fields}
        expected = f"one of {', '.join(sorted(fields))}"
        unknown = tuple(Fault(f"/{key}", "unknown field", expected) for key in given if key not in fields)
        if faults := sink.faults():
            raise Refused("request_invalid", "the upload cannot be used", faults=[*faults, *unknown])
        yield Received(Path(name), sink.filename or "", sink.sha256.hexdigest(), sink.size, known, unknown)
    finally:
        Path(name).unlink(missing_ok=True)


def remove_stale(settings: Settings) -> None:
    """Remove what a killed server left of its uploads: temporary files that nobody wrote to for a day."""
    for path in settings.uploads_dir.glob("upload-*"):
        if time.time() - path.stat().st_mtime > STALE_SECONDS:
            path.unlink(missing_ok=True)


def check_filename(filename: str | None, formats: Mapping[str, str]) -> list[Fault]:
    """What is wrong with the file's name: the extension says the format."""
    expected = f"a file name ending in {', '.join(formats)}"
    if not filename:
        return [Fault("/filename", "the file has no name", expected)]
    if len(filename) > 255 or any(character < " " or character == "\x7f" for character in filename):
        return [Fault("/filename", "the file name is too long, or holds control characters", expected)]
    if Path(filename).suffix.lower() not in formats:
        return [Fault("/filename", f"a file of the kind {Path(filename).suffix or 'without extension'!r} is not taken",
                      expected)]  # fmt: skip
    return []


def _check_space(settings: Settings, announced: int) -> None:
    folder = settings.uploads_dir
    while not folder.exists():
        folder = folder.parent
    # the file lies here and then, for a moment, in the storage too, which by default is on the same disk
    free = shutil.disk_usage(folder).free
    if free - 2 * announced < settings.min_free_bytes:
        raise Refused(
            "storage_full",
            f"this server has not enough free space: {free / 2**20:.0f} MiB are free, the upload needs "
            f"{2 * announced / 2**20:.0f} MiB, and {settings.min_free_bytes / 2**20:.0f} MiB must stay free "
            "(BILLHOOK_MIN_FREE_BYTES)",
        )


@dataclass
class _Sink:
    """Where the bytes of the file go."""

    file: IO[bytes]
    settings: Settings
    formats: Mapping[str, str]
    filename: str | None = None
    size: int = 0
    files: int = 0
    sha256: Any = field(default_factory=hashlib.sha256)
    _buffer: bytearray = field(default_factory=bytearray)

    def begin(self, filename: str | None) -> None:
        """A file begins. Its name is checked before its bytes are read."""
        self.filename = filename
        self.files += 1
        if self.files > 1:
            raise Refused("request_invalid", "one file at a time", faults=[Fault("/file", "there is more than one")])
        if faults := check_filename(filename, self.formats):
            raise Refused("request_invalid", "the upload cannot be used", faults=faults)

    def take(self, data: bytes | memoryview) -> None:
        self.size += len(data)
        if self.size > self.settings.max_upload_bytes:
            raise too_large(self.settings.max_upload_bytes)
        self._buffer += data

    async def flush(self, at_least: int = 0) -> None:
        """Write and hash what has come in, in a thread, if it is `at_least` so many bytes."""
        if len(self._buffer) > at_least:
            chunk, self._buffer = self._buffer, bytearray()
            await run_in_threadpool(self._write, chunk)

    def _write(self, chunk: bytearray) -> None:
        if self.size % (64 * BUFFER_BYTES) < len(chunk):  # now and then: the length may not have been announced
            _check_space(self.settings, 0)
        view = memoryview(chunk)
        self.sha256.update(view)
        try:
            while view:
                view = view[self.file.write(view) :]
        except OSError as error:
            raise Refused("storage_full", "the upload could not be written to this server's disk") from error

    def faults(self) -> list[Fault]:
        if self.files == 0:
            return [Fault("/file", "there is no file", f"one of {', '.join(self.formats)}")]
        return [] if self.size else [Fault("/file", "the file is empty")]


async def _chunks(request: Request, settings: Settings) -> AsyncIterator[bytes]:
    """The body as it comes in; a client that stops sending is given up."""
    stream = request.stream()
    while True:
        try:
            chunk = await asyncio.wait_for(anext(stream), settings.upload_idle_seconds)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Refused("upload_timeout", "the upload stalled and was given up") from None
        except ClientDisconnect:
            raise Refused("upload_incomplete", "the connection broke before the upload was complete") from None
        yield chunk


async def _read_raw(request: Request, settings: Settings, sink: _Sink) -> dict[str, str]:
    query = dict(request.query_params)
    query.pop("wait", None)
    sink.begin(query.pop("filename", None))
    async for chunk in _chunks(request, settings):
        sink.take(chunk)
        await sink.flush(BUFFER_BYTES)
    return query


async def _read_form(request: Request, settings: Settings, sink: _Sink) -> dict[str, str]:
    _, parameters = parse_options_header(request.headers.get("content-type", ""))
    boundary = parameters.get(b"boundary")
    if not boundary:
        raise Refused("multipart_invalid", "the header Content-Type names no boundary")
    form = _Form(sink)
    if stray := set(request.query_params) - {"wait"}:
        faults = [Fault(f"/{name}", "with a form, this goes into the form") for name in sorted(stray)]
        raise Refused("parameter_invalid", f"{len(faults)} parameter(s) cannot be used", faults=faults)
    read = 0
    try:
        parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
        async for chunk in _chunks(request, settings):
            read += len(chunk)
            if read > settings.max_upload_bytes + MULTIPART_SLACK:  # what stands before and behind the parts, too
                raise too_large(settings.max_upload_bytes)
            parser.write(chunk)
            await sink.flush(BUFFER_BYTES)
        parser.finalize()
    except FormParserError:
        raise Refused("multipart_invalid", "the body is not valid multipart/form-data") from None
    if not form.complete:
        raise Refused("upload_incomplete", "the form ends in the middle")
    try:
        return {name: value.decode("utf-8") for name, value in form.fields.items()}
    except UnicodeDecodeError:
        raise Refused("multipart_invalid", "a field of the form is not UTF-8") from None


class _Form:
    """The callbacks of the parser: the part `file` goes to the sink, the others are kept, within bounds."""

    def __init__(self, sink: _Sink) -> None:
        self.fields: dict[str, bytearray] = {}
        self.complete = False
        self._sink = sink
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._name: str | None = None
        self._parts = 0

    def callbacks(self) -> dict[str, Any]:
        names = ("part_begin", "part_data", "header_begin", "header_field", "header_value", "header_end",
                 "headers_finished", "end")  # fmt: skip
        return {f"on_{name}": getattr(self, name) for name in names}

    def part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_FIELDS:
            raise Refused("multipart_invalid", f"the form has more than {MAX_FIELDS} parts")
        self._disposition = b""

    def header_begin(self) -> None:
        self._header, self._value = bytearray(), bytearray()

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)

    def headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name == "file":
            self._name = None
            self._sink.begin(options.get(b"filename", b"").decode("utf-8", "replace") or None)
            return
        if not name or name in self.fields or len(name) > 100 or "\0" in name:
            fault = Fault(f"/{name[:100]}", "a part of the form without a name, or with one that was there already")
            raise Refused("request_invalid", "the form cannot be read", faults=[fault])
        if b"filename" in options:
            fault = Fault(f"/{name}", "a file in a field that takes text", "the file belongs in the field file")
            raise Refused("request_invalid", "the form cannot be read", faults=[fault])
        self._name = name
        self.fields[name] = bytearray()

    def part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name is None:
            self._sink.take(memoryview(data)[start:end])
            return
        kept = self.fields[self._name]
        kept += data[start:end]
        if len(kept) > MAX_FIELD_BYTES:
            fault = Fault(f"/{self._name}", "the field is too long", f"at most {MAX_FIELD_BYTES} bytes")
            raise Refused("request_invalid", "the form cannot be read", faults=[fault])

    def end(self) -> None:
        self.complete = True
