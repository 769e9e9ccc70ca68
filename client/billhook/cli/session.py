"""What every command has in common: the server's options, what goes to stdout and what to stderr, the exit code."""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any, Concatenate, ParamSpec

import typer
from rich.console import Console, RenderableType

from billhook.address import find_server
from billhook.clients import Client
from billhook.errors import (
    ApiError,
    BillhookError,
    InputInvalid,
    JobFailed,
    RequirementsMissed,
    UploadRefused,
)

P = ParamSpec("P")
OK, FAILED, BAD_USAGE, MISSED, INTERRUPTED = 0, 1, 2, 3, 130
EXIT_CODES = (
    "Exit codes: 0 done; 1 the job failed, the time was up, or the server failed; 2 bad usage (no such file, a recipe "
    "with faults, a model that cannot be taken, a wrong key); 3 the result misses the requirements; 130 interrupted."
)
# 4xx that are not about what was given: timeouts, conflicts with the state of things, too many requests
_NOT_USAGE = frozenset({408, 409, 425, 429})
_KEY = re.compile(r"\bbh_[\w-]{8,}")  # what a key looks like, wherever somebody put it by mistake
_SERVER_FAULTS = frozenset({"internal_error", "poison"})
_TIME_UP = "time_limit"  # of a dry run, which says nothing against what was given


def exit_code(error: BaseException) -> int:
    """The one table of exit codes."""
    match error:
        case RequirementsMissed():
            return MISSED
        case KeyboardInterrupt():
            return INTERRUPTED
        case InputInvalid():
            return BAD_USAGE
        case UploadRefused(code=code):
            return FAILED if code in _SERVER_FAULTS else BAD_USAGE
        case ApiError(code=code) if code == _TIME_UP:
            return FAILED
        case ApiError(status=status):
            return BAD_USAGE if 400 <= status < 500 and status not in _NOT_USAGE else FAILED
        case _:
            return FAILED


class Session:
    """One run of one command. stdout carries the result (with `json`: one JSON document), stderr everything else."""

    def __init__(self, server: str | None, key: str | None, insecure_http: bool, json: bool) -> None:
        self._server, self._key, self._insecure_http = server, key, insecure_http
        self._client: Client | None = None
        self._answered = False
        self.json = json
        # a pipe has no width: lines of tables are not to be broken there
        self.out = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
        self.err = Console(highlight=False, stderr=True, soft_wrap=True)

    @property
    def client(self) -> Client:
        """The client; the server is looked up on first use. Raises `ServerNotFound`, `InputInvalid`."""
        if self._client is None:
            address = find_server(self._server, self._key, insecure_http=self._insecure_http)
            self._key = address.key
            self._client = Client(address.url, address.key, insecure_http=self._insecure_http)
        return self._client

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def show(self, document: Any, rendered: RenderableType | Callable[[], RenderableType]) -> None:
        """The result: `document` with --json, else `rendered` (called if it is a function)."""
        if self.json:
            self.print_json(document)
        else:
            self.out.print(rendered() if callable(rendered) else rendered, markup=False)

    def tell_secret(self, document: Any, secret: str) -> None:
        """The result where it is a new key, in clear: `document`, which holds it, with --json, else the key alone."""
        self._answered = True
        sys.stdout.write((json.dumps(document, indent=2, ensure_ascii=False) if self.json else secret) + "\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """A line for the person, on stderr."""
        self.err.print(self._redacted(text), markup=False)

    def fail(self, error: BaseException, **more: Any) -> int:
        """Tell what went wrong, on stderr and with --json on stdout too. The exit code."""
        if isinstance(error, KeyboardInterrupt):
            described: dict[str, Any] = {"code": "interrupted", "message": "interrupted", "faults": []}
        elif isinstance(error, BillhookError):
            described = error.as_dict()
        else:
            message = f"unexpected {type(error).__name__}: {error}; this is a fault of billhook itself"
            described = {"code": "client_fault", "message": message, "faults": []}
            if os.environ.get("BILLHOOK_DEBUG"):
                self.note("".join(traceback.format_exception(error)))
        self.note(("" if isinstance(error, RequirementsMissed) else "error: ") + described["message"])
        for fault in described["faults"]:
            expected = f" (expected: {fault['expected']})" if fault["expected"] else ""
            self.note(f"  {fault['pointer'] or '/'}: {fault['message']}{expected}")
        if self.json and not self._answered:
            if isinstance(error, JobFailed):
                more.setdefault("job", error.job.raw)
            self.print_json({**more, "error": described})
        return exit_code(error)

    def print_json(self, document: Any) -> None:
        """`document` on stdout."""
        self._answered = True
        sys.stdout.write(self._redacted(json.dumps(document, indent=2, ensure_ascii=False)) + "\n")
        sys.stdout.flush()

    def print_line(self, document: Any) -> None:
        """`document` on one line of stdout: one of many, as they come."""
        self._answered = True
        sys.stdout.write(self._redacted(json.dumps(document, ensure_ascii=False)) + "\n")
        sys.stdout.flush()

    def _redacted(self, text: str) -> str:
        for key in (self._key, os.environ.get("BILLHOOK_KEY")):
            if key and key.strip():
                text = text.replace(key.strip(), "[key]")
        return _KEY.sub("[key]", text)


# --- commands --------------------------------------------------------------------------------------------------------

_PANEL = "Server and output"
ServerOption = Annotated[str | None, typer.Option(
    "--server", metavar="URL", rich_help_panel=_PANEL,
    help="Address of the server. Default: BILLHOOK_SERVER, else the server started here by `billhook up`.",
)]  # fmt: skip
KeyOption = Annotated[str | None, typer.Option(
    "--key", metavar="KEY", rich_help_panel=_PANEL, show_default=False,
    help="The key. Default: BILLHOOK_KEY (better: others on this machine can see a command line), else that of the "
    "server started here.",
)]  # fmt: skip
InsecureOption = Annotated[bool, typer.Option(
    "--insecure-http", rich_help_panel=_PANEL,
    help="Send the key over plain http to another machine. Or BILLHOOK_INSECURE_HTTP=1.",
)]  # fmt: skip
JsonOption = Annotated[bool, typer.Option(
    "--json", rich_help_panel=_PANEL, help="Print one JSON document on stdout; everything else goes to stderr.",
)]  # fmt: skip

_SHARED = {"server": (ServerOption, None), "key": (KeyOption, None),
           "insecure_http": (InsecureOption, False), "json": (JsonOption, False)}  # fmt: skip


def command(
    app: typer.Typer, name: str
) -> Callable[[Callable[Concatenate[Session, P], int | None]], Callable[Concatenate[Session, P], int | None]]:
    """Make a function a command of `app`: its first argument is the `Session`, the rest are the command's own.

    The function returns the exit code (None = 0); every error becomes a message and an exit code here.
    """

    def register(
        function: Callable[Concatenate[Session, P], int | None],
    ) -> Callable[Concatenate[Session, P], int | None]:
        signature = inspect.signature(function, eval_str=True)
        shared = [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
            for option, (annotation, default) in _SHARED.items()
        ]

        def invoke(**values: Any) -> None:
            session = Session(*[values.pop(option, default) for option, (_, default) in _SHARED.items()])
            try:
                code = function(session, **values)  # type: ignore[call-arg]
            except BrokenPipeError:  # whoever read the output has gone: nothing to say, nobody to say it to
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                code = FAILED
            except (Exception, KeyboardInterrupt) as error:
                if isinstance(error, (typer.Exit, typer.TyperException)):
                    raise
                code = session.fail(error)
            finally:
                session.close()
            raise typer.Exit(code or OK)

        parameters = [*signature.parameters.values()][1:]
        own = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
        invoke.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
        invoke.__annotations__ = {each.name: each.annotation for each in [*own, *shared]}
        invoke.__doc__ = function.__doc__
        app.command(name, epilog=EXIT_CODES)(invoke)
        return function

    return register
