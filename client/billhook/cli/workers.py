"""`billhook workers`."""

from __future__ import annotations

from typing import Annotated

import typer

from billhook.cli import tables
from billhook.cli.session import Session, command


def add_to(app: typer.Typer) -> None:
    """Make the command one of `app`."""
    command(app, "workers")(list_workers)


def list_workers(
    session: Session,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="At most so many, the last started.")] = 200,
) -> None:
    """List the server's workers: where each runs, what it serves, and whether it is at work.

    One that is silent has not been heard of for a while; what it worked on goes
    to another. What others work on is not told, only that a worker is busy.

    \b
    Example:
      billhook workers --json
    """
    items = list(session.client.list_workers(limit=limit))
    session.show([each.raw for each in items], lambda: tables.workers(items))
