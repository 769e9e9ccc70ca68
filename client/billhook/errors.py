"""Every error that the client raises on purpose: one tree, rooted at `BillhookError`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from billhook.results import Job, Pruned


@dataclass(frozen=True)
class Fault:
    """One problem in what was given. `pointer` is an RFC 6901 JSON pointer into it ("" for the whole)."""

    pointer: str
    message: str
    expected: str | None = None


class BillhookError(Exception):
    """The root. `code` is stable, `message` is a sentence for a person, `faults` lists every problem found."""

    code = "error"

    def __init__(self, message: str, *, faults: Iterable[Fault] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.faults = tuple(faults)

    def as_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {"code": self.code, "message": self.message, "faults": [asdict(fault) for fault in self.faults]}


class InputInvalid(BillhookError):
    """What was given cannot be used, found before anything was sent: a file that is not there, a broken recipe file."""

    code = "input_invalid"


class ConnectionFailed(BillhookError):
    """The server could not be reached, or the connection broke and stayed broken."""

    code = "connection_failed"
    silent = False
    """Whether it was there, and nothing came for too long."""


class ServerNotFound(ConnectionFailed):
    """No server was named, and none has been started on this machine."""

    code = "server_not_found"


class Timeout(BillhookError):
    """The time that the caller gave was up."""

    code = "timeout"


class ApiError(BillhookError):
    """The server answered with a problem document (RFC 9457), or with something that is no answer of Billhook's."""

    def __init__(
        self, message: str, *, status: int, code: str, title: str | None = None, faults: Iterable[Fault] = ()
    ) -> None:
        super().__init__(message, faults=faults)
        self.status = status
        self.code = code
        self.title = title
        self.repeated = False
        """Whether the request had been sent before, so that an earlier try may have done what this one could not."""

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "status": self.status}


class UploadRefused(BillhookError):
    """The server checked a model or a dataset and cannot take it. `code` and `faults` are the server's."""

    def __init__(self, message: str, *, subject: str, code: str, faults: Iterable[Fault] = ()) -> None:
        super().__init__(message, faults=faults)
        self.subject = subject
        self.code = code


class JobFailed(BillhookError):
    """The job ended without a result. `code` and `faults` are the job's."""

    def __init__(self, message: str, *, job: Job, code: str, faults: Iterable[Fault] = ()) -> None:
        super().__init__(message, faults=faults)
        self.job = job
        self.code = code


class JobCancelled(JobFailed):
    """Somebody cancelled the job."""


class RequirementsMissed(BillhookError):
    """The job succeeded and its file was downloaded, but the result misses what was required of it."""

    code = "requirements_missed"

    def __init__(self, message: str, *, result: Pruned) -> None:
        super().__init__(message)
        self.result = result


class ChecksumMismatch(BillhookError):
    """The bytes are not those that were promised. Nothing is left at the target."""

    code = "checksum_mismatch"
