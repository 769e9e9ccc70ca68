"""The command `billhook`: all its commands, and the way in."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import billhook
from billhook.cli import jobs, keys, prune, recipes, uploads, workers
from billhook.cli.session import BAD_USAGE, EXIT_CODES, INTERRUPTED, Session
from billhook.errors import InputInvalid

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False,
    epilog=EXIT_CODES,
)  # fmt: skip


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"billhook {billhook.__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[bool, typer.Option(
        "--version", callback=_print_version, is_eager=True, help="Print the version.",
    )] = False,
) -> None:  # fmt: skip
    """Prune convolutional networks on a Billhook server.

    \b
    Start here:
      billhook up                      start a server on this machine
      billhook recipes list            see what can be done
      billhook prune model.onnx --data photos/ --recipe filter_norm_half \\
          --output pruned.onnx

    The server and its key: --server and --key of every command, or
    BILLHOOK_SERVER and BILLHOOK_KEY, or those of the server that runs here.
    """


@app.command("up", context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
             add_help_option=False)  # fmt: skip
def up(context: typer.Context) -> None:
    """Start a server on this machine: the API and one worker, in one folder.

    Takes the options of `billhook-server` (try `billhook up --help`). Ctrl-C
    ends it.
    """
    name = "billhook-server"
    beside = Path(sys.executable).with_name(name)
    server = str(beside) if beside.is_file() and os.access(beside, os.X_OK) else shutil.which(name)
    if server is None:
        missing = InputInvalid(
            f"{name} is not installed here: this is the client alone. Install the service (clone its repository and "
            "run `make up`, or `pip install '.[cpu]'` there), or use one elsewhere with --server"
        )
        raise typer.Exit(Session(None, None, False, False).fail(missing))
    os.execv(server, [server, *context.args])  # noqa: S606  the server takes this process's place, and its signals


prune.add_to(app)
app.add_typer(uploads.models)
app.add_typer(uploads.datasets)
app.add_typer(recipes.recipes)
jobs.add_to(app)
app.add_typer(keys.keys)
workers.add_to(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments` (default: those of the process). The exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(args=given, prog_name="billhook", standalone_mode=False)
    except typer.TyperException as error:
        if not error.format_message():  # no command at all: the help was printed
            return BAD_USAGE
        _, _, key = " ".join(given).replace("=", " ").partition("--key ")
        session = Session(None, key.partition(" ")[0] or None, False, "--json" in given)
        session.fail(InputInvalid(error.format_message()))
        context = getattr(error, "ctx", None)
        session.note(f"try: {context.command_path if context is not None else 'billhook'} --help")
        return BAD_USAGE
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:  # outside of any command's own handling
        return Session(None, None, False, "--json" in given).fail(error)
    return int(code or 0)
