"""An object in a bucket, piece by piece, so that what broke off is gone on with. Credentials: the AWS_ variables."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.store import S3Store

from store.sources import SourceUri
from worker.sources.errors import Interrupted, SourceNotFound, SourceRefused
from worker.sources.transfer import Rules

if TYPE_CHECKING:
    from obstore import GetOptions

Answer = TypeVar("Answer")
PIECE_BYTES = 8 * 2**20
RETRIES = 2  # of one request; a piece that fails for good is one of the tries of the whole
# without AWS_ variables the machine is asked, which in a cloud may have a role
_NO_CREDENTIALS = re.compile(r"performing (PUT \S+/latest/api/token|GET \S+/latest/meta-data/iam/) ")
MakeStore = Callable[[str, Rules], Any]


def open_bucket(bucket: str, rules: Rules) -> Any:
    """The bucket, with credentials and endpoint from the environment."""
    seconds = timedelta(seconds=rules.idle_seconds)
    # options of our own make obstore forget this one
    plain = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")
    return S3Store(
        bucket,
        client_options={
            "timeout": seconds,
            "connect_timeout": min(seconds, timedelta(seconds=10)),
            "allow_http": plain,
        },
        retry_config={"max_retries": RETRIES, "retry_timeout": seconds},
    )


class S3Remote:
    """The object that a URI names."""

    def __init__(self, source: SourceUri, rules: Rules, make_store: MakeStore = open_bucket) -> None:
        self._source = source
        self._called = f"s3://{source.bucket}/{source.path}"
        try:
            self._store = make_store(source.bucket, rules)
        except BaseError:
            raise SourceRefused(f"{self._called}: the worker's AWS_ variables do not make a connection") from None

    def open(self, start: int, version: str | None) -> S3Part:
        """Raises `Interrupted` or a `SourceError`."""
        found = self.ask(lambda: obstore.head(self._store, self._source.path))
        if found["e_tag"] != version:
            start = 0
        return S3Part(self, start, found["size"], found["e_tag"])

    def piece(self, start: int, end: int, version: str | None) -> bytes:
        """Raises `Interrupted` or a `SourceError`."""
        options: GetOptions = {"range": (start, end)}
        if version is not None:
            options["if_match"] = version
        return self.ask(lambda: bytes(obstore.get(self._store, self._source.path, options=options).bytes()))

    def ask(self, what: Callable[[], Answer]) -> Answer:
        try:
            return what()
        except (BaseError, OSError) as error:
            raise self._told(error) from None

    def _told(self, error: Exception) -> Exception:
        """What is wrong, in words without the error's own: they hold addresses and answers of the storage."""
        if _NO_CREDENTIALS.search(str(error)):
            return SourceRefused(f"{self._called}: the worker has no credentials in its AWS_ variables or its machine")
        match error:
            case FileNotFoundError():
                return SourceNotFound(f"there is no object {self._called}")
            case PermissionDeniedError() | UnauthenticatedError():
                return SourceRefused(f"the storage does not let the worker read {self._called}")
            case PreconditionError():
                return Interrupted("the object changed meanwhile", restart=True)
        return Interrupted(f"the storage does not answer as it should ({type(error).__name__})")


class S3Part:
    def __init__(self, remote: S3Remote, start: int, total: int, version: str | None) -> None:
        self.start = start
        self.total: int | None = total
        self.version = version
        self._remote = remote
        self._end = total

    def chunks(self) -> Iterator[bytes]:
        """Raises `Interrupted` or a `SourceError`."""
        for start in range(self.start, self._end, PIECE_BYTES):
            end = min(start + PIECE_BYTES, self._end)
            data = self._remote.piece(start, end, self.version)
            yield data
            if len(data) != end - start:
                raise Interrupted(f"{len(data)} bytes came, of {end - start}")

    def close(self) -> None:
        """Each piece is a request of its own."""
