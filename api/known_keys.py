"""Keys that were good a moment ago, so that not every request asks the database who it is from."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

from store.columns import now_utc
from store.keys import Principal

MOST = 10_000


class KnownKeys:
    """What keys stood for when they were last looked up, by their hash. Good ones only, for `seconds`; 0: for no time.

    A key that is revoked or expires opens this server's doors for that much longer.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._now = now
        self._known: dict[bytes, tuple[Principal, float]] = {}

    def recall(self, secret: str) -> Principal | None:
        found = self._known.get(_digest(secret))
        return found[0] if found is not None and self._now() < found[1] else None

    def last(self, secret: str) -> Principal | None:
        """What the key stood for when it was last looked up, however long ago; for when nobody can be asked."""
        found = self._known.get(_digest(secret))
        ended = found is not None and found[0].expires_at is not None and found[0].expires_at <= now_utc()
        return None if found is None or ended else found[0]

    def keep(self, secret: str, principal: Principal) -> None:
        if len(self._known) >= MOST:
            self._known.clear()
        self._known[_digest(secret)] = principal, self._now() + self._seconds

    def drop(self, secret: str) -> None:
        """It opens nothing any more."""
        self._known.pop(_digest(secret), None)

    def forget(self, key_id: str) -> None:
        """What is known of this key is to be asked anew: it was changed or revoked."""
        self._known = {digest: known for digest, known in self._known.items() if known[0].key_id != key_id}


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
