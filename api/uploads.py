"""Uploads: streamed to a temporary file and hashed on the way, as multipart/form-data or as a raw body.

Nothing is opened here beyond its bytes' hash. Whatever goes wrong, the temporary file goes away and no record is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from api.bodies import check_length, media_type, refuse_encoding, too_large
from api.errors import Refused
from api.spool import Spool, SpoolFile
from core.errors import Fault

MAX_FIELDS = 16
MAX_FIELD_BYTES = 64 * 2**10
MULTIPART_SLACK = MAX_FIELDS * (MAX_FIELD_BYTES + 2**10)  # what may surround the file itself


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
    request: Request, spool: Spool, formats: Mapping[str, str], fields: frozenset[str]
) -> AsyncIterator[Received]:
    """The upload in the body, in a temporary file that lives as long as the block, unless it is moved into the storage.

    `formats` maps the file name extensions that are taken to format names; `fields` are the options that may come with
    the file, as form fields, or as query parameters of a raw body.

    Raises `Refused`: `body_too_large`, `media_type_unsupported` (compressed on the way), `storage_full`,
    `upload_incomplete`, `upload_timeout`, `multipart_invalid`, `request_invalid` (no file, an empty one, an extension
    that is not taken). Unknown fields are in `Received.faults`.
    """
    refuse_encoding(request)
    form = media_type(request) == "multipart/form-data"
    announced = check_length(request, spool.settings.max_upload_bytes, MULTIPART_SLACK if form else 0)
    async with spool.file(announced or 0) as file:
        sink = _Sink(file, formats)
        given = await (_read_form if form else _read_raw)(request, spool, sink)
        sha256 = await file.finish()
        known = {key: value for key, value in given.items() if key in fields}
        expected = f"one of {', '.join(sorted(fields))}"
        unknown = tuple(Fault(f"/{key}", "unknown field", expected) for key in given if key not in fields)
        if faults := sink.faults():
            raise Refused("request_invalid", "the upload cannot be used", faults=[*faults, *unknown])
        yield Received(file.path, sink.filename or "", sha256, file.size, known, unknown)


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


@dataclass
class _Sink:
    """The file among what comes in: there is one, and its name is taken."""

    file: SpoolFile
    formats: Mapping[str, str]
    filename: str | None = None
    files: int = 0

    def begin(self, filename: str | None) -> None:
        """A file begins. Its name is checked before its bytes are read."""
        self.filename = filename
        self.files += 1
        if self.files > 1:
            raise Refused("request_invalid", "one file at a time", faults=[Fault("/file", "there is more than one")])
        if faults := check_filename(filename, self.formats):
            raise Refused("request_invalid", "the upload cannot be used", faults=faults)

    def faults(self) -> list[Fault]:
        if self.files == 0:
            return [Fault("/file", "there is no file", f"one of {', '.join(self.formats)}")]
        return [] if self.file.size else [Fault("/file", "the file is empty")]


async def _chunks(request: Request, idle_seconds: float) -> AsyncIterator[bytes]:
    """The body as it comes in; a client that stops sending is given up."""
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(idle_seconds):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Refused("upload_timeout", "the upload stalled and was given up") from None
        except ClientDisconnect:
            raise Refused("upload_incomplete", "the connection broke before the upload was complete") from None
        yield chunk


async def _read_raw(request: Request, spool: Spool, sink: _Sink) -> dict[str, str]:
    query = dict(request.query_params)
    query.pop("wait", None)
    sink.begin(query.pop("filename", None))
    async for chunk in _chunks(request, spool.settings.upload_idle_seconds):
        sink.file.take(chunk)
        await sink.file.flush()
    return query


async def _read_form(request: Request, spool: Spool, sink: _Sink) -> dict[str, str]:
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
        async for chunk in _chunks(request, spool.settings.upload_idle_seconds):
            read += len(chunk)
            limit = spool.settings.max_upload_bytes
            if read > limit + MULTIPART_SLACK:  # what stands before and behind the parts, too
                raise too_large(limit)
            parser.write(chunk)
            await sink.file.flush()
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
            self._sink.file.take(memoryview(data)[start:end])
            return
        kept = self.fields[self._name]
        kept += data[start:end]
        if len(kept) > MAX_FIELD_BYTES:
            fault = Fault(f"/{self._name}", "the field is too long", f"at most {MAX_FIELD_BYTES} bytes")
            raise Refused("request_invalid", "the form cannot be read", faults=[fault])

    def end(self) -> None:
        self.complete = True
