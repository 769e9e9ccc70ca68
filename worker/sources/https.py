"""A file from an https server: one host, looked up once, its certificate checked. No redirects, no proxies."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urljoin

from store.sources import SourceUri, shown
from worker.sources.addresses import resolve
from worker.sources.errors import Interrupted, SourceError, SourceNotFound, SourceRefused, Stopped
from worker.sources.transfer import TICK_SECONDS, Rules

CHUNK = 2**20
CONNECT_SECONDS = 10.0
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class HttpsRemote:
    """The file that a URI names. `private`: whether its host may be at a private address. `ca_file`: authorities that
    are trusted beside the system's."""

    def __init__(self, source: SourceUri, rules: Rules, *, private: bool = False, ca_file: Path | None = None) -> None:
        self._source = source
        self._rules = rules
        self._private = private
        self._tls = ssl.create_default_context()
        try:
            if ca_file is not None:
                self._tls.load_verify_locations(ca_file)
        except OSError:
            raise SourceRefused("the file in BILLHOOK_DATASET_CA_FILE holds no certificates, or is not there") from None
        self._addresses: Sequence[str] = ()

    def open(self, start: int, version: str | None) -> HttpsPart:
        """Raises `Interrupted` or a `SourceError`."""
        if not self._addresses:
            self._addresses = resolve(self._source.host, self._source.port, private=self._private)
        connection = _Pinned(self._source, self._addresses, self._tls, self._rules.idle_seconds)
        watch = _Watch(connection, self._rules)
        headers = {"User-Agent": "billhook", "Accept": "*/*", "Accept-Encoding": "identity"}
        if start and version is not None:
            headers |= {"Range": f"bytes={start}-", "If-Range": version}
        try:
            connection.request("GET", self._source.path, headers=headers)
            response = connection.getresponse()
            begin, total = self._answer(response, "Range" in headers, start, version)
            # the answer to a range need not say again what the file is known by
            known = _version(response) or (version if begin else None)
            return HttpsPart(response, watch, begin, total, known)
        except ssl.SSLCertVerificationError as error:
            watch.close()
            reason = error.verify_message
            raise SourceRefused(f"the certificate of {self._source.host} is not trusted: {reason}") from None
        except (OSError, http.client.HTTPException) as error:
            watch.close()
            raise Interrupted(_reason(error)) from None
        except BaseException:
            watch.close()
            raise

    def _answer(
        self, response: http.client.HTTPResponse, ranged: bool, start: int, version: str | None
    ) -> tuple[int, int | None]:
        """Where what is sent begins, and the size of the whole. Raises `Interrupted` or a `SourceError`."""
        status, called = response.status, shown(self._source.uri)
        if status in _REDIRECTS:
            target = _target(self._source.uri, response.headers.get("Location", ""))
            raise SourceRefused(f"{called} redirects to {target}; redirects are not followed: give that address itself")
        if status in (404, 410):
            raise SourceNotFound(f"there is no file at {called}: the server answers {_status(status)}")
        if status in _PASSING:
            raise Interrupted(f"the server answers {_status(status)}")
        if status == 416:
            raise Interrupted("the file became shorter", restart=True)
        if status != 200 and not (status == 206 and ranged):
            raise SourceRefused(f"{called} cannot be had: the server answers {_status(status)}")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise SourceRefused(f"{called} is sent packed, though it was asked for as it is")
        if status == 206:
            match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if match is None or int(match[1]) != start or _version(response) not in (version, None):
                raise Interrupted("the server sends another part than the one that was asked for", restart=True)
            return start, int(match[3])
        if response.length is None and not response.chunked and self._rules.pinned_sha256 is None:
            # its end could be where the connection broke
            raise SourceRefused(
                f"the server does not say how long {called} is: give its sha256 to have it all the same"
            )
        return 0, response.length


class HttpsPart:
    """What the server sends on one connection."""

    def __init__(
        self, response: http.client.HTTPResponse, watch: _Watch, start: int, total: int | None, version: str | None
    ) -> None:
        self.start = start
        self.total = total
        self.version = version
        self._response = response
        self._watch = watch

    def chunks(self) -> Iterator[bytes]:
        """Raises `Interrupted`."""
        while True:
            try:
                data = self._response.read1(CHUNK)
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise Interrupted(_reason(error)) from None
            if not data:
                return
            yield data

    def close(self) -> None:
        self._watch.close()


class _Pinned(http.client.HTTPSConnection):
    """A connection to one of the addresses that were looked up, whatever the name means by now."""

    def __init__(self, source: SourceUri, addresses: Sequence[str], tls: ssl.SSLContext, idle_seconds: float) -> None:
        super().__init__(source.host, source.port, timeout=idle_seconds, context=tls)
        self._tls = tls
        self._addresses = addresses
        self._idle_seconds = idle_seconds
        self.raw: socket.socket | None = None

    def connect(self) -> None:
        for number, address in enumerate(self._addresses):
            try:
                self.raw = socket.create_connection((address, self.port), min(CONNECT_SECONDS, self._idle_seconds))
                break
            except OSError:
                if number == len(self._addresses) - 1:
                    raise
        assert self.raw is not None
        self.raw.settimeout(self._idle_seconds)
        # the handshake apart, so that it too can be broken off
        secured = self._tls.wrap_socket(
            self.raw, server_hostname=self.host.strip("[]"), do_handshake_on_connect=False
        )  # fmt: skip
        self.sock = self.raw = secured
        secured.do_handshake()


class _Watch(threading.Thread):
    """Breaks the connection when the fetch is not wanted any more, or has taken too long: a server that sends a byte
    now and then would hold it for ever."""

    def __init__(self, connection: _Pinned, rules: Rules) -> None:
        super().__init__(name="fetch-watch", daemon=True)
        self._connection = connection
        self._rules = rules
        self._closed = threading.Event()
        self.start()

    def close(self) -> None:
        """The end of the connection too."""
        self._closed.set()
        self.join()
        self._connection.close()

    def run(self) -> None:
        while not self._closed.wait(TICK_SECONDS):
            try:
                self._rules.check()
            except (Stopped, SourceError):
                if (raw := self._connection.raw) is not None:
                    with suppress(OSError):
                        socket.socket.shutdown(
                            raw, socket.SHUT_RDWR
                        )  # not the TLS layer's own: that one forgets its state


def _target(uri: str, location: str) -> str:
    """Where a redirect leads, to be shown."""
    try:
        return shown(urljoin(uri, location))[:500]
    except ValueError:
        return "what is no address"


def _version(response: http.client.HTTPResponse) -> str | None:
    """What `If-Range` may be asked with: a strong ETag, or a date of the last change that is older than the answer."""
    if (etag := response.headers.get("ETag")) is not None:
        return None if etag.startswith("W/") else etag
    changed, sent = response.headers.get("Last-Modified"), response.headers.get("Date")
    if changed is None or sent is None:
        return None
    try:
        settled = (parsedate_to_datetime(sent) - parsedate_to_datetime(changed)).total_seconds() >= 1
    except (TypeError, ValueError):
        return None
    return changed if settled else None


def _status(status: int) -> str:
    try:
        return f"{status} ({HTTPStatus(status).phrase})"
    except ValueError:
        return str(status)


def _reason(error: Exception) -> str:
    """In words, without what the server said."""
    if isinstance(error, TimeoutError):
        return "the server did not answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "the host refuses connections"
    if isinstance(error, ssl.SSLError):
        return f"the connection could not be secured ({error.reason or 'it broke off'})"
    return f"the connection broke off ({type(error).__name__})"
