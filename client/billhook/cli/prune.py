"""`billhook prune`: the one that pipelines use."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from billhook.cli import dry_run_tables, tables
from billhook.cli.progress import ProgressDisplay
from billhook.cli.session import MISSED, OK, Session, command
from billhook.documents import parse_document, read_document
from billhook.errors import InputInvalid, RequirementsMissed
from billhook.operations.prune import Progress, how_left
from billhook.operations.recipes import Recipe
from billhook.results import Pruned

_REQUIREMENT = re.compile(r"\s*([a-z_]+)\s*(<=|>=|<|>)\s*([0-9.eE+-]+)\s*")
_RECIPE_FILE = re.compile(r".*(/|\\|\.ya?ml$|\.json$)")
REPORT_SUFFIXES = (".md", ".json")


def add_to(app: typer.Typer) -> None:
    command(app, "prune")(prune)


def prune(
    session: Session,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="An ONNX, zip, .pt2 or safetensors file, or the id of a model.")
    ],
    data: Annotated[str, typer.Option(
        "--data", metavar="DATASET",
        help="A zip, npz or parquet file, a folder of images (one folder per class), builtin:digits, the id of a "
        "dataset, or what the server fetches: https://…, s3://…, file:///…",
    )],
    recipe: Annotated[str, typer.Option(
        "--recipe", metavar="NAME|FILE", help="A ready-made recipe by name, or your own (.yaml, .json).",
    )],
    output: Annotated[Path | None, typer.Option(
        "--output", "-o", metavar="FILE|FOLDER",
        help="Where the pruned network goes: a file, replaced if it is there, or a folder, for pruned.onnx in it. "
        "Needed but for --dry-run.",
    )] = None,
    dry_run: Annotated[bool, typer.Option(
        "--dry-run", help="Only say what it would come to: nothing is trained, and nothing written.",
    )] = False,
    architecture: Annotated[str | None, typer.Option(
        metavar="NAME", help="For safetensors: what the weights are of, e.g. resnet20 or timm:NAME.",
    )] = None,
    input_shape: Annotated[str | None, typer.Option(
        metavar="C,H,W", help="For safetensors: the shape of the input, e.g. 3,32,32.",
    )] = None,
    preprocess: Annotated[str | None, typer.Option(
        metavar="FILE|JSON", help="From images to the model's input: size, mean, std, channels, layout, class_order.",
    )] = None,
    splits: Annotated[str | None, typer.Option(
        metavar="FILE|JSON",
        help="Shares of validation and test where the data has none, of a pruning split, and which classes: "
        "validation, test, pruning, seed, classes, holdout_classes.",
    )] = None,
    columns: Annotated[str | None, typer.Option(
        metavar="FILE|JSON", help="For Parquet, where the names are unusual: image, label, split.",
    )] = None,
    data_format: Annotated[str | None, typer.Option(
        "--format", metavar="FORMAT", help="Of the data, where its name does not say it: image_folder, npz, parquet.",
    )] = None,
    data_sha256: Annotated[str | None, typer.Option(
        metavar="SHA256", help="What the dataset's file must have; the server then fetches it once only.",
    )] = None,
    require: Annotated[list[str] | None, typer.Option(
        metavar="'NAME<=NUMBER'", help="What the result must keep to. Repeat it for more than one.",
    )] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the job; may hold / as a path.")] = None,
    tag: Annotated[list[str] | None, typer.Option(metavar="TAG", help="A tag of the job; repeat it for more.")] = None,
    device: Annotated[str | None, typer.Option(metavar="auto|cpu|cuda:N", help="Where the server works on it.")] = None,
    timeout: Annotated[float | None, typer.Option(
        metavar="SECONDS", min=0, help="Cancel the job and exit with 1 when all of it takes longer.",
    )] = None,
    report: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Also write the report there: Markdown (.md) or JSON (.json).",
    )] = None,
) -> int:  # fmt: skip
    """Prune a model on the server, and download the smaller ONNX file.

    Has the recipe, the requirements and the device checked first. Then
    uploads what the server has not seen (by hash), waits until it has been
    checked, starts the job, shows how far it is, downloads the result,
    verifies its checksum, and prints a table of before and after. The result
    is a drop-in replacement: the same inputs, outputs and opset. One that is
    larger than a file can be has its weights in a second one beside it, which
    is called pruned.onnx.data whatever the first one is.

    Ctrl-C cancels the job on the server; a second one, a second later or
    more, leaves at once.

    \b
    Examples:
      billhook prune model.onnx --data builtin:digits \\
          --recipe filter_norm_half --output pruned.onnx
      billhook prune model.onnx --data photos/ --recipe mine.yaml \\
          --preprocess '{"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}' \\
          --output pruned.onnx
      billhook prune model.onnx --data images.zip --recipe filter_norm_half \\
          --require 'accuracy_drop<=0.01' --require 'latency_ratio<=0.6' \\
          --output pruned.onnx --report report.md
      billhook prune weights.safetensors --architecture resnet20 \\
          --input-shape 3,32,32 --data cifar.npz \\
          --recipe filter_norm_half --output pruned.onnx
      billhook prune model.onnx --data s3://sets/train.parquet \\
          --recipe filter_norm_half --output pruned.onnx

    With --dry-run the server makes the cuts without training: it prints the
    layers before and after, size, measured latency, an estimate of time and
    cost, and what only the job itself can tell. --output, --report, --name and
    --tag may be left standing; no job is made and no file written. It exits
    with 3 where a requirement is missed that can be judged already, and with 2
    for whatever the job would be refused for.

    Requirements are about accuracy, accuracy_drop, params_ratio, macs_ratio,
    file_bytes_ratio, latency_ratio and peak_memory_ratio (pruned / original).
    """
    if output is None and not dry_run:
        raise InputInvalid("Missing option '--output': where the pruned network goes; or --dry-run, to only ask")
    if report is not None and report.suffix.lower() not in REPORT_SUFFIXES:
        raise InputInvalid(f"--report {report}: the name must end in one of {', '.join(REPORT_SUFFIXES)}")
    if report is not None and not report.absolute().parent.is_dir():
        raise InputInvalid(f"--report {report}: there is no folder {report.absolute().parent}")
    given: dict[str, Any] = {
        "architecture": architecture, "input_shape": shape_argument(input_shape),
        "preprocess": document_argument("--preprocess", preprocess), "splits": document_argument("--splits", splits),
        "columns": document_argument("--columns", columns), "data_format": data_format, "data_sha256": data_sha256,
        "requirements": dict(map(requirement, require or [])) or None, "device": device, "timeout": timeout,
    }  # fmt: skip
    if output is None or dry_run:
        return _dry_run(session, model, data, recipe, given)
    more: dict[str, Any] = {}
    missed: RequirementsMissed | None = None
    try:
        with ProgressDisplay(session.err) as display:

            def tell(progress: Progress) -> None:
                if progress.job is not None:
                    if "job" not in more:
                        session.note(f"submitted as {progress.job.id}")
                    more["job"] = progress.job.raw
                if progress.phase in ("cancelled", "not cancelled"):
                    more["cancelled"] = progress.phase == "cancelled"
                _tell(session, display, progress, {"upload model": model, "upload dataset": data})

            result = session.client.prune(
                model, data, recipe_argument(recipe), output, name=name, tags=tag or [], on_progress=tell, **given
            )  # fmt: skip
    except RequirementsMissed as error:
        missed, result = error, error.result
    except (Exception, KeyboardInterrupt) as error:
        return session.fail(error, **more)
    session.show(_document(result, missed), lambda: tables.report(result.report))
    for file in (result.file, *result.file.beside):
        session.note(f"{file.path}: {tables.size(file.bytes)}, sha256 {file.sha256}")
    if report is not None:
        _write_report(session, result, report)
    if missed is not None:
        session.note(missed.message)
        return MISSED
    return OK


def _dry_run(session: Session, model: str, data: str, recipe: str, given: dict[str, Any]) -> int:
    sources = {"upload model": model, "upload dataset": data}
    with ProgressDisplay(session.err) as display:
        result = session.client.dry_run(
            model, data, recipe_argument(recipe),
            on_progress=lambda progress: _tell(session, display, progress, sources), **given,
        )  # fmt: skip
    found = result.report
    document = {
        "requirements_met": found.requirements_met, "target_met": found.target_met, "model": result.model.id,
        "dataset": result.dataset.id, "dry_run": found.raw,
    }  # fmt: skip
    session.show(document, lambda: dry_run_tables.dry_run(found))
    return MISSED if found.requirements_met is False else OK


def _tell(session: Session, display: ProgressDisplay, progress: Progress, sources: dict[str, str]) -> None:
    match progress.phase:
        case "upload model" | "upload dataset":
            kind = progress.phase.removeprefix("upload ")
            display.show_upload(kind, sources[progress.phase], progress.fraction)
        case "run" if progress.job is not None:
            display.show_job(progress.job, progress.events)
        case "cancelling":
            session.note("cancelling the job; interrupt again to leave at once")
        case "cancelled" | "not cancelled":
            session.note(how_left(progress))
        case phase:
            display.show(phase, progress.fraction)


def _document(result: Pruned, missed: RequirementsMissed | None) -> dict[str, Any]:
    document: dict[str, Any] = {
        **result.file.as_dict(),
        "requirements_met": result.report.requirements_met, "target_met": result.report.target_met,
        "drop_in": result.report.drop_in,
        "model": result.model.id, "dataset": result.dataset.id, "job": result.job.raw, "report": result.report.raw,
    }  # fmt: skip
    return document if missed is None else {**document, "error": missed.as_dict()}


def _write_report(session: Session, result: Pruned, path: Path) -> None:
    if path.suffix.lower() == ".md":
        text = session.client.get_report_markdown(result.job.id)
    else:
        text = json.dumps(result.report.raw, indent=2, ensure_ascii=False) + "\n"
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise InputInvalid(f"{path} cannot be written: {error.strerror}") from None


# --- arguments -------------------------------------------------------------------------------------------------------


def recipe_argument(text: str) -> Recipe:
    """A path where it looks like one (a slash, or ends in .yaml, .yml, .json), else the name of a ready-made recipe."""
    return Path(text) if _RECIPE_FILE.match(text) else text


def shape_argument(text: str | None) -> list[int] | None:
    if text is None:
        return None
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*){2}", text):
        raise InputInvalid(f"--input-shape {text!r} is no shape: expected channels, height, width, e.g. 3,32,32")
    return [int(part) for part in text.split(",")]


def document_argument(option: str, text: str | None) -> dict[str, Any] | None:
    """JSON where it begins with a brace, else the name of a YAML or JSON file."""
    if text is None:
        return None
    if not text.lstrip().startswith("{"):
        return read_document(Path(text), option)
    return parse_document(text, option)


def requirement(text: str) -> tuple[str, str]:
    """`latency_ratio<=0.6` as ("latency_ratio", "<= 0.6"); the server knows which names there are."""
    match = _REQUIREMENT.fullmatch(text)
    if match is None:
        raise InputInvalid(f"--require {text!r}: expected a name, one of <= >= < >, and a number: 'latency_ratio<=0.6'")
    return match[1], f"{match[2]} {match[3]}"
