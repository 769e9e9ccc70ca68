"""`billhook keys`."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated

import typer

from billhook.cli import tables
from billhook.cli.session import Session, command
from billhook.errors import InputInvalid

KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", show_default=False)]
_SPAN = re.compile(r"([0-9]{1,5})([dw])", re.ASCII)
_DAYS = {"d": 1, "w": 7}

keys = typer.Typer(name="keys", no_args_is_help=True, help="Make keys for people and pipelines; list and revoke them.")


@command(keys, "add")
def add_key(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for: ci, laptop, prometheus.")],
    scope: Annotated[list[str] | None, typer.Option(
        "--scope", metavar="SCOPE", show_default=False,
        help="May be repeated: read, write, keys, metrics, admin. Default: read and write.",
    )] = None,
    expires: Annotated[str | None, typer.Option(
        "--expires", metavar="WHEN", help="90d, 12w, or a date such as 2030-12-31. Default: with the key you use.",
    )] = None,
    owner: Annotated[str | None, typer.Option(
        "--owner", metavar="OWNER", help="Whose models, datasets and jobs it opens. Default: yours.",
    )] = None,
) -> None:  # fmt: skip
    """Make a key. It is printed this once; the server keeps only its hash.

    The key alone goes to stdout, so that a script can take it; what else is
    to be said goes to stderr.

    \b
      read     look at models, datasets and jobs
      write    make, cancel and delete them
      keys     manage the keys of the same owner
      metrics  read /metrics
      admin    manage the keys of all owners (a new owner begins with its
               first key), and read /metrics

    A key gives no more than it has: no scope that it lacks, no other owner
    (admin may both), and no later end.

    \b
    Examples:
      export BILLHOOK_KEY=$(billhook keys add ci --expires 90d)
      billhook keys add viewer --scope read
      billhook keys add first --owner team-a --scope read --scope write \\
          --scope keys
      billhook keys add prometheus --scope metrics > prometheus.key
    """
    days, end = _end(expires)
    made = session.client.create_key(
        name, tuple(scope or ("read", "write")), owner=owner, expires_in_days=days, expires_at=end
    )
    until = "for good" if made.expires_at is None else f"until {tables.moment(made.expires_at)}"
    session.note(f"{made.id}: {made.name}, of {made.owner}, {', '.join(made.scopes)}, {until}. Keep it now: it is not "
                 "told again")  # fmt: skip
    session.tell_secret(made.raw, made.secret)


def _end(text: str | None) -> tuple[int | None, datetime | None]:
    """The days from now, or the time, that `--expires` says; a date is its first moment here."""
    if text is None:
        return None, None
    if found := _SPAN.fullmatch(text):
        return int(found[1]) * _DAYS[found[2]], None
    try:
        return None, datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise InputInvalid(f"--expires: {text!r} is neither 90d nor 12w nor a date such as 2030-12-31") from None


@command(keys, "list")
def list_keys(
    session: Session,
    owner: Annotated[str | None, typer.Option(metavar="OWNER", help="Only this owner's (scope admin).")] = None,
    state: Annotated[str | None, typer.Option(metavar="STATE", help="active, expired or revoked.")] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="At most so many, the newest.")] = 50,
) -> None:
    """List the keys of your owner, newest first; with the scope admin, all.

    The keys themselves are not told. When one was last used is known to about
    ten minutes.

    \b
    Example:
      billhook keys list --state active
    """
    items = list(session.client.list_keys(owner=owner, state=state, limit=limit))
    session.show([each.raw for each in items], lambda: tables.keys(items))


@command(keys, "show")
def show_key(session: Session, key_id: KeyId) -> None:
    """Show what is known of a key: its scopes, its end, who made it."""
    found = session.client.get_key(key_id)
    session.show(found.raw, lambda: tables.record(found.raw))


@command(keys, "revoke")
def revoke_key(session: Session, key_id: KeyId) -> None:
    """Revoke a key. From now on it opens nothing; its record stays.

    Keys that it made go on: `billhook keys list --json` says which those are
    (created_by).
    """
    session.client.revoke_key(key_id)
    session.show({"revoked": key_id}, f"{key_id} was revoked")
