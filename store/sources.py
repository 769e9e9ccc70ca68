"""Where a dataset may come from: URIs, what they say, and what the operator allows. Nothing is opened here.

The API refuses with these rules at once, and the worker holds to them again before it fetches anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from core.errors import Fault
from core.job import DatasetFormat
from store.settings import BUCKET, HOST, Settings

Scheme = Literal["file", "https", "s3"]
FORMATS: Mapping[str, tuple[DatasetFormat, ...]] = {
    ".zip": ("image_folder", "parquet"), ".npz": ("npz",), ".parquet": ("parquet",),
}  # fmt: skip
"""What a file of this name may be, the first unless another is asked for. A zip's content says the rest."""

MAX_URI = 2_048
HTTPS_PORT = 443
BUILTIN = "builtin:digits"
SCHEMES = "https://host/file, s3://bucket/key, file:///folder/file or builtin:digits"
_SECRET = re.compile(
    r"(?i)(^|[-_.])(sig|signature|credential|token|secret|password|passwd|pwd|auth|key|apikey)$|token$"
)
_EXPECTED_NAME = f"a name ending in {', '.join(FORMATS)}, or format: image_folder, npz or parquet"


@dataclass(frozen=True)
class SourceUri:
    """A URI taken apart. `host` and `port`: of https. `bucket`: of s3. `path`: the decoded path of a file, the key in a
    bucket likewise, path and query for an https server. `filename`: the last part of it."""

    uri: str
    scheme: Scheme
    path: str
    filename: str
    host: str = ""
    port: int = HTTPS_PORT
    bucket: str = ""

    @property
    def is_folder(self) -> bool:
        """Whether it says of itself that it is a folder."""
        return self.scheme == "file" and self.path.endswith("/")


def shown(uri: str) -> str:
    """`uri` for messages and logs: without its query, which may hold what is nobody's business, nor a user."""
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" if parts.scheme else parts.path


def parse_uri(uri: str) -> SourceUri | Fault:
    """The URI, or what is wrong with it."""
    if len(uri) > MAX_URI:
        return Fault("/uri", f"{len(uri)} characters", f"at most {MAX_URI}")
    if re.search(r"[\x00-\x20\x7f\\]", uri):
        return Fault("/uri", "spaces, control characters or backslashes in the URI", "each as %20 and the like")
    scheme = uri.partition(":")[0].lower()
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        return Fault("/uri", "no URI", SCHEMES)
    if "@" in parts.netloc:
        message = "a user or password in the URI: it is kept in the record and shown in reports"
        return Fault("/uri", message, "no credentials; those of S3 are the worker's AWS_ variables")
    if "#" in uri:
        return Fault("/uri", "a fragment (#…)", "the URI of a whole file")
    match scheme:
        case "file":
            return _file(uri, parts.netloc, parts.path, parts.query)
        case "https":
            return _https(uri, parts.hostname or "", port, parts.path, parts.query)
        case "s3":
            return _s3(uri, parts.netloc, parts.path, parts.query)
        case "http":
            return Fault("/uri", "http:// can be read and changed on its way", "https://")
    return Fault("/uri", f"{scheme[:20] + ':' if ':' in uri else 'no scheme'!r} is not taken", SCHEMES)


def _file(uri: str, host: str, path: str, query: str) -> SourceUri | Fault:
    path = unquote(path)
    if host not in ("", "localhost") or query:
        return Fault("/uri", "a file:// URI of a host or with a query", "file:///folder/file")
    if not path.startswith("/") or re.search(r"[\x00-\x1f\x7f]", path) or ".." in path.split("/"):
        return Fault("/uri", "no absolute path, or one with .. or control characters", "file:///folder/file")
    name = PurePosixPath(path).name
    return SourceUri(uri, "file", path, name) if name else Fault("/uri", "no file is named", "file:///folder/file")


def _https(uri: str, host: str, port: int | None, path: str, query: str) -> SourceUri | Fault:
    netloc = f"[{host}]" if ":" in host else host
    if not HOST.fullmatch(netloc):
        return Fault("/uri", "no name of a host", "https://host/file, an international name as xn--…")
    secrets = sorted({name for name, _ in parse_qsl(query, keep_blank_values=True) if _SECRET.search(name)})
    if secrets:
        message = (
            f"a query that holds a credential ({', '.join(secrets)[:200]}): it is kept in the record and in reports"
        )
        return Fault("/uri", message, "the URI of a file that needs none; upload the file otherwise")
    target = quote(path or "/", safe="/%:@!$&'()*+,;=~-._") + (
        f"?{quote(query, safe='/%:@!$&()*+,;=~-._?')}" if query else ""
    )
    filename = unquote(path.rstrip("/").rpartition("/")[2])
    return SourceUri(uri, "https", target, filename or host, host=netloc, port=port or HTTPS_PORT)


def _s3(uri: str, bucket: str, path: str, query: str) -> SourceUri | Fault:
    key = unquote(path[1:])
    if not BUCKET.fullmatch(bucket):
        return Fault("/uri", "no name of a bucket", "s3://bucket/key")
    if query or {"", ".", ".."} & set(key.split("/")) or re.search(r"[\x00-\x1f\x7f]", key):
        return Fault("/uri", "no key of one object, or one with empty parts, . or .., or with ?", "s3://bucket/key")
    return SourceUri(uri, "s3", key, key.rpartition("/")[2], bucket=bucket)


def format_of(source: SourceUri, asked: DatasetFormat | None) -> DatasetFormat | Fault:
    """What the file is, as was asked for or as its name says; or what is wrong with that."""
    if asked == "digits":
        return Fault("/format", f"digits are {BUILTIN}", "image_folder, npz or parquet")
    suffix = PurePosixPath(source.filename).suffix.lower()
    possible = FORMATS[".zip"] if source.is_folder else FORMATS.get(suffix)  # a folder is packed
    if possible is None:
        if source.scheme == "file" and not suffix:  # a file or a folder
            return asked or FORMATS[".zip"][0]
        expected = _EXPECTED_NAME + "; a folder ends in /" * (source.scheme == "file")
        return asked or Fault("/format", f"the name {source.filename[:100]!r} says no format", expected)
    if asked is not None and asked not in possible:
        return Fault("/format", f"the file's name says {possible[0]}", f"{' or '.join(possible)}, or leave it out")
    return asked or possible[0]


def refusal(source: SourceUri, settings: Settings) -> Fault | None:
    """Why the operator's settings do not allow it; None where they do."""
    match source.scheme:
        case "file":
            path = PurePosixPath(source.path)
            if any(path.is_relative_to(root) and path != root for root in map(PurePosixPath, settings.dataset_roots)):
                return None
            return _not_allowed("folder", source.path, "roots")
        case "https":
            ports = [f"{source.host}:{source.port}"] + [source.host] * (source.port == HTTPS_PORT)
            return None if set(ports) & set(settings.dataset_hosts) else _not_allowed("host", ports[-1], "hosts")
        case "s3":
            return None if source.bucket in settings.dataset_buckets else (
                _not_allowed("bucket", source.bucket, "buckets")
            )  # fmt: skip


def _not_allowed(kind: str, name: str, setting: str) -> Fault:
    variable = f"BILLHOOK_DATASET_{setting.upper()}"
    return Fault("/uri", f"the {kind} {name[:300]!r} is not among those that the operator allows",
                 f"one that is listed in {variable}, or an upload")  # fmt: skip
