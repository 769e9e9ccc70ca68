"""What a child says and leaves, made fit to be stored. It is not trusted: what it says here is shown in every list.

Whatever is not as it should be is an `OutputRefused`, or is left out where the answer is an error already.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from core.errors import BillhookError, Fault
from core.report import Report

REQUIRED_OUTPUTS = ("pruned.onnx", "report.json", "report.md", "plan.json", "weights.safetensors")
MAX_REPORT_BYTES = 64 * 2**20
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
        return Report.model_validate(json.loads(files["report.json"].read_bytes(), object_hook=_float_again))
    except ValidationError as error:
        raise OutputRefused(
            "the job's report.json is not a report", faults=_faults(error, "/out/report.json")
        ) from None
    except (ValueError, RecursionError) as error:
        raise OutputRefused("the job's report.json is not JSON") from error


def short_results(report: Report) -> dict[str, Any]:
    """What a list of jobs shows of a report: ratios, test accuracies, and whether target and requirements were met."""
    return {
        "ratios": dict(report.ratios),
        "accuracy": {name: variant.test.accuracy for name, variant in report.variants.items()},
        "target_met": report.target_met,
        "requirements_met": report.requirements_met,
    }


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
