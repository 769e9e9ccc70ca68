"""What happened how often: rows that only grow, written in the transaction of what they count.

So they survive restarts, are the same for every process, and count what was rolled back not at all and what was tried
again once. A count is kept with its session and written when the transaction is about to commit, in one order: whoever
writes counters holds all rows of jobs that it needs already, so nobody waits for a job while holding a counter. Each
process has its stripe of each counter, so that busy workers do not queue for one row.
"""

from __future__ import annotations

import json
import math
import secrets
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from store.records import Counter, TerminalState

STRIPES = 16
_STRIPE = secrets.randbelow(STRIPES)
_COUNTED = "billhook_counted"
Labels = tuple[tuple[str, str], ...]

# what a failed job is counted as; a child may say what it likes, and each label is a series for ever
FAILURES = frozenset({
    "artifact_corrupt", "artifact_missing", "baseline_near_chance", "checkpoint_unusable", "cut_refused",
    "dataset_mismatch", "dataset_too_large", "dataset_unreadable", "dataset_unsuitable", "device_unavailable",
    "disk_full", "disk_limit", "exactness_failed", "internal_error", "memory_limit", "model_too_large",
    "model_unreadable", "not_found", "nothing_removed", "operator_unknown", "output_limit", "output_refused",
    "parity_failed", "poison", "pruning_failed", "recipe_invalid", "target_unreachable", "time_limit",
    "training_diverged",
})  # fmt: skip


def count(session: Session, name: str, amount: float = 1.0, **labels: str) -> None:
    """Add `amount` to the counter `name` with these labels, when `session` commits (`store.database.transaction`).

    Raises `ValueError` for what is negative or not finite.
    """
    if not (math.isfinite(amount) and amount >= 0):
        raise ValueError(f"a counter only grows, and {amount} is not what it can grow by")
    counted = session.info.setdefault(_COUNTED, defaultdict(float))
    counted[name, json.dumps(labels, sort_keys=True, separators=(",", ":"))] += amount


def count_finished(session: Session, state: TerminalState, error: Mapping[str, Any] | None = None) -> None:
    """A job is over; `error` is why it failed."""
    count(session, "jobs_finished", state=state)
    if state == "failed":
        code = None if error is None else error.get("code")
        count(session, "jobs_failed", code=code if code in FAILURES else "other")


def write(session: Session) -> None:
    """Write what was counted in this session's transaction: the last thing that it does."""
    counted = session.info.pop(_COUNTED, None)
    if not counted:
        return
    rows = [
        {"name": name, "labels": labels, "stripe": _STRIPE, "value": amount}
        for (name, labels), amount in sorted(counted.items())
    ]
    session.flush()
    if session.get_bind().dialect.name == "postgresql":
        upsert = postgresql.insert(Counter).values(rows)
        session.execute(upsert.on_conflict_do_update(
            index_elements=["name", "labels", "stripe"], set_={"value": Counter.value + upsert.excluded.value}
        ))  # fmt: skip
    else:
        upsert_here = sqlite.insert(Counter).values(rows)
        session.execute(upsert_here.on_conflict_do_update(
            index_elements=["name", "labels", "stripe"], set_={"value": Counter.value + upsert_here.excluded.value}
        ))  # fmt: skip


def read(session: Session) -> dict[str, dict[Labels, float]]:
    """Every counter: name -> labels -> value."""
    found: dict[str, dict[Labels, float]] = defaultdict(dict)
    query = select(Counter.name, Counter.labels, func.sum(Counter.value)).group_by(Counter.name, Counter.labels)
    for name, labels, value in session.execute(query):
        found[name][tuple(sorted(json.loads(labels).items()))] = value
    return found
