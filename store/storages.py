"""How a storage is reached: the URL's scheme says which kind it is, the environment holds credentials and endpoint."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from obstore.store import LocalStore, from_url

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

REQUEST_SECONDS = 30  # one request with its body, which is a part at most
PARTS_SECONDS = 180  # S3 may take minutes to put the parts of a large object together
CONNECT_SECONDS = 5
RETRIES = 3
PROBE_SECONDS = 5  # /readyz waits for this one
# of the variables, obstore forgets these as soon as it is given a single option of the client
_FLAGS = ("allow_http", "allow_invalid_certificates")
_TEXTS = ("proxy_url", "proxy_ca_certificate", "proxy_excludes", "user_agent")


def folder_of(storage_url: str) -> Path | None:
    """The folder of a local storage; None for one that is elsewhere."""
    parts = urlsplit(storage_url)
    return Path(parts.path) if parts.scheme == "file" else None


def open_storage(storage_url: str, *, seconds: float = REQUEST_SECONDS, retries: int = RETRIES) -> Any:
    """obstore's store at a URL. A storage that does not answer costs about `seconds`, retries included.

    obstore would try for three minutes, and a request of ours with it.
    """
    folder = folder_of(storage_url)
    if folder is not None:
        return LocalStore(folder, mkdir=True)
    client: ClientConfig = {
        "timeout": timedelta(seconds=seconds),
        "connect_timeout": timedelta(seconds=min(seconds, CONNECT_SECONDS)),
        **_client_variables(),  # type: ignore[typeddict-item]
    }
    retry: RetryConfig = {"max_retries": retries, "retry_timeout": timedelta(seconds=seconds)}
    return from_url(storage_url, client_options=client, retry_config=retry)


def _client_variables() -> dict[str, bool | str]:
    """What AWS_ variables say of the connection itself, as `AWS_ALLOW_HTTP=true`."""
    given: dict[str, bool | str] = {}
    for name in (*_FLAGS, *_TEXTS):
        value = os.environ.get(f"AWS_{name.upper()}")
        if value is not None:
            given[name] = value.strip().lower() in ("1", "true", "yes", "on") if name in _FLAGS else value
    return given
