"""Ids: `job_` and 26 characters that sort by the time they were made, with 72 random bits."""

from __future__ import annotations

import secrets
import time
from typing import Literal

Prefix = Literal["mdl", "ds", "job", "att", "key", "out", "dry", "wrk"]
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u


def new_id(prefix: Prefix) -> str:
    """A new id: 56 bits of microseconds since 1970, then 72 random bits, so that ids sort by when they were made."""
    number = (time.time_ns() // 1_000) << 72 | secrets.randbits(72)
    digits = []
    for _ in range(26):  # 26 * 5 = 130 >= 128 bits
        number, digit = divmod(number, 32)
        digits.append(_ALPHABET[digit])
    return f"{prefix}_{''.join(reversed(digits))}"
