"""What a child says and leaves, made fit to be stored. It is not trusted: what it says here is shown in every list.

Whatever is not as it should be is an `OutputRefused`, or is left out where the answer is an error already.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.dry_run_report import DryRunReport
from core.errors import BillhookError, Fault
from core.events import STAGES
from core.graph_report import GraphTotals, NetworkGraph
from core.report import Report
from worker.lines import EventLine, deeper_than
from worker.png import NotPng, check_png

REQUIRED_OUTPUTS = ("pruned.onnx", "report.json", "report.md", "plan.json", "weights.safetensors")
GRAPH = "graph.json"
CONTACT_SHEET = "contact_sheet.png"
MAX_REPORT_BYTES = 64 * 2**20
MAX_DEPTH = 64
MAX_FAULTS = 100
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class OutputRefused(BillhookError):
    """What the child left or said is not what is taken from it."""

    code = "output_refused"


def checked_report(files: Mapping[str, Path]) -> Report:
    """The report among the files that a job left. Raises `OutputRefused` if a file that every job has is missing or
    empty, or the report is not one."""
    faults = [
        Fault(f"/out/{name}", "is empty" if name in files else "is missing", "a file that every job leaves")
        for name in REQUIRED_OUTPUTS
        if name not in files or files[name].stat().st_size == 0
    ]
    if faults:
        raise OutputRefused("the job ended without all of its files", faults=faults)
    if files["report.json"].stat().st_size > MAX_REPORT_BYTES:
        raise OutputRefused(f"the job's report is larger than {MAX_REPORT_BYTES} bytes")
    try:
        document = json.loads(files["report.json"].read_bytes(), object_hook=_float_again)
        if deeper_than(document, MAX_DEPTH):
            raise OutputRefused(f"the job's report.json is nested more than {MAX_DEPTH} deep")
        return Report.model_validate(document)
    except ValidationError as error:
        raise OutputRefused(
            "the job's report.json is not a report", faults=_faults(error, "/out/report.json")
        ) from None
    except (ValueError, RecursionError) as error:
        raise OutputRefused("the job's report.json is not JSON") from error


class _Answer(BaseModel):
    """What others rely on in an answer of a child; it may say more."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Tensor(_Answer):
    name: str
    shape: list[int | str]


class ModelSummary(_Answer):
    sha256: str
    params: int
    macs: int
    inputs: list[_Tensor]
    outputs: list[_Tensor]
    graph: GraphTotals


class _Split(_Answer):
    images: int
    per_class: dict[str, int]


class DatasetSummary(_Answer):
    images: int
    classes: list[str]
    image_shape: Annotated[list[int], Field(min_length=3, max_length=3)]
    splits: dict[str, _Split]


SUMMARIES: Mapping[str, type[_Answer]] = {"model": ModelSummary, "dataset": DatasetSummary}


def checked_summary(kind: Literal["model", "dataset"], body: Mapping[str, Any]) -> Mapping[str, Any]:
    """`body`, what a child found in an upload. Raises `OutputRefused` if it is no summary."""
    try:
        SUMMARIES[kind].model_validate(body)
    except ValidationError as error:
        raise OutputRefused(f"what was found in the {kind} is not a summary", faults=_faults(error, "")) from error
    return body


def checked_dry_run(body: Mapping[str, Any]) -> dict[str, Any]:
    """What a child found of a job that is only asked about. Raises `OutputRefused` if it is no such report."""
    try:
        return DryRunReport.model_validate(body).model_dump(mode="json")
    except ValidationError as error:
        raise OutputRefused("what the dry run found is not a report of one", faults=_faults(error, "")) from None


def checked_graph(files: Mapping[str, Path]) -> Path:
    """The description of a model's graph among the files that its check left. Raises `OutputRefused` if it is none."""
    path = files.get(GRAPH)
    if path is None or path.stat().st_size == 0:
        raise OutputRefused("the check ended without a description of the model's graph")
    if path.stat().st_size > MAX_REPORT_BYTES:
        raise OutputRefused(f"the description of the model's graph is larger than {MAX_REPORT_BYTES} bytes")
    try:
        NetworkGraph.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise OutputRefused(
            "what the check left is no description of a graph", faults=_faults(error, f"/out/{GRAPH}")
        ) from None
    return path


def checked_contact_sheet(files: Mapping[str, Path]) -> Path | None:
    """The contact sheet among the files that a dataset's check left; None where it could make none. Raises
    `OutputRefused` if it is no PNG, or too large a one."""
    path = files.get(CONTACT_SHEET)
    if path is None:
        return None
    try:
        check_png(path)
    except NotPng as error:
        raise OutputRefused(f"the dataset's contact sheet {error}") from None
    return path


def short_results(report: Report) -> dict[str, Any]:
    """What a list of jobs shows of a report: ratios, test accuracies, and whether target and requirements were met."""
    return {
        "ratios": dict(report.ratios),
        "accuracy": {name: variant.test.accuracy for name, variant in report.variants.items()},
        "target_met": report.target_met,
        "drop_in": report.drop_in,
        "requirements_met": report.requirements_met,
    }


def split_progress(events: Sequence[EventLine]) -> tuple[list[EventLine], dict[str, Any] | None]:
    """The events for the log, and what the last `progress` among them says: it is a column of the job, not history."""
    logged = [event for event in events if event[0] != "progress"]
    bodies = [body for name, body in events if name == "progress"]
    if not bodies:
        return logged, None
    stage = bodies[-1].get("stage")
    return logged, {
        "stage": stage if stage in STAGES else None,
        "progress": _number(bodies[-1].get("fraction")),
        "eta_seconds": _number(bodies[-1].get("eta_seconds")),
    }


def _number(value: Any) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of more digits than any float has
        return None


def last_stage(events: Sequence[EventLine]) -> str | None:
    """The stage that the events belong to: the first part of their names."""
    named = [stage for name, _ in events if (stage := name.partition("/")[0]) in STAGES]
    return named[-1] if named else None


def error_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """A child's error as {code, message, faults}, whatever else it put there left out."""
    faults = body.get("faults")
    return {
        "code": _text(body.get("code"), 100) or "internal_error",
        "message": _text(body.get("message"), 10_000) or "the job failed and did not say why",
        "faults": [_fault(fault) for fault in faults if _is_fault(fault)][:MAX_FAULTS]
        if isinstance(faults, list)
        else [],
    }


def _is_fault(fault: Any) -> bool:
    return isinstance(fault, dict) and isinstance(fault.get("pointer"), str) and isinstance(fault.get("message"), str)


def _fault(fault: Mapping[str, Any]) -> dict[str, str | None]:
    return Fault(fault["pointer"][:1_000], fault["message"][:2_000], _text(fault.get("expected"), 2_000)).as_dict()


def _text(value: Any, length: int) -> str | None:
    return value[:length] if isinstance(value, str) else None


def unexpected(error: Exception, work: Literal["job", "check", "dry run"] = "job") -> dict[str, Any]:
    """The error of a job or check that met a defect of ours: what it was, and nothing of what it says."""
    message = f"an unexpected {type(error).__name__} in the worker ended the {work}; its log has the details"
    return {"code": "internal_error", "message": message, "faults": []}


def _float_again(document: dict[str, Any]) -> Any:
    """The number that `core.events.jsonable` had to write as an object."""
    if document.keys() == {"$float"} and isinstance(document["$float"], str):
        return _FLOATS.get(document["$float"], document)
    return document


def _faults(error: ValidationError, pointer: str) -> list[Fault]:
    """The first of pydantic's faults. Its messages name types, and hold nothing of the input."""
    return [
        Fault(f"{pointer}/{'/'.join(str(part)[:100] for part in fault['loc'])}", fault["msg"][:200])
        for fault in error.errors(include_url=False, include_input=False)[:20]
    ]
