"""The log: one JSON object a line on standard error, readable instead where that is a terminal.

The same keys everywhere: `request_id`, `job`, `attempt`, `worker`, and `subject` for a model or dataset. What is bound
(`structlog.contextvars`) stands in every line of that request or attempt, those of other libraries included; a thread
that is to have it is started in a copy of the context (`ContextThread`). Secrets are taken out of all that a line
holds, whoever says it.
"""

from __future__ import annotations

import contextvars
import logging
import re
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import structlog

QUIET = ("amqp", "kombu", "celery.bootsteps", "celery.utils.functional", "httpx", "httpcore", "alembic", "sqlalchemy")
"""What says much of little at level info."""
_SECRETS = (
    (re.compile(r"\bbh_[A-Za-z0-9_-]{16,}"), "bh_…"),  # a key of ours
    (re.compile(r"(\bBearer\s+)[^\s\"'\\]+", re.IGNORECASE), r"\1…"),
    (re.compile(r"(://[^/\s:@\"']*):[^/\s\"']*@"), r"\1:…@"),  # the password of a URL
    (
        re.compile(
            r"((?:password|passwd|secret|token|secret_access_key|signature)[\"']?\s*[=:]\s*[\"']?)[^\s&\"',;\\)}]+",
            re.IGNORECASE,
        ),
        r"\1…",
    ),
)
_SECRET_NAMES = re.compile(r"(?:.*_)?(?:password|passwd|secret|token|secret_access_key|authorization)", re.IGNORECASE)
log = structlog.get_logger("billhook")


def configure_logs(level: str = "info", **always: str) -> None:
    """Configure structlog and the standard library's logging for this process. `level`: debug, info, warning or error;
    `always`: what stands in every line, such as `worker`."""

    def name(_logger: Any, _method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {**always, **line}

    shared: tuple[structlog.typing.Processor, ...] = (
        structlog.contextvars.merge_contextvars,
        name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,  # without the values of variables: a key may be among them
        _without_secrets,
    )
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer(default=repr)
    )
    handler = _StandardError()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            foreign_pre_chain=shared,
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for library in QUIET:
        logging.getLogger(library).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )  # fmt: skip
    logging.captureWarnings(True)
    sys.excepthook = _unforeseen


def without_secrets(text: str) -> str:
    """`text` with keys, passwords and tokens left out, as far as they can be told by how they look."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


class ContextThread(threading.Thread, ABC):
    """A daemon thread whose log lines have what was bound where it was made. Subclasses say in `work` what it does."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._context_of_maker = contextvars.copy_context()

    def run(self) -> None:
        self._context_of_maker.run(self.work)

    @abstractmethod
    def work(self) -> None: ...


class _StandardError(logging.StreamHandler[Any]):
    """Standard error, whatever it is by then."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _without_secrets(_logger: Any, _method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {
        key: value if key.startswith("_") else _cleaned(key, value) for key, value in line.items()
    }  # _: structlog's


def _cleaned(key: str, value: Any) -> Any:
    if isinstance(value, bool | int | float) or value is None:
        return value
    if _SECRET_NAMES.fullmatch(key):
        return "…"
    if isinstance(value, Mapping):
        return {str(name): _cleaned(str(name), inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned("", inner) for inner in value]
    return without_secrets(value if isinstance(value, str) else repr(value))


def _unforeseen(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What nobody caught ends the process in a line of the log, not in text that no rule was applied to."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        log.critical("ended by an unexpected error", exc_info=(kind, error, trace))
