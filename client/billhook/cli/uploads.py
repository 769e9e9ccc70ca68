"""`billhook models` and `billhook datasets`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from billhook.cli import graph_tables, tables
from billhook.cli.progress import ProgressDisplay
from billhook.cli.prune import document_argument, shape_argument
from billhook.cli.session import Session, command
from billhook.errors import ApiError, InputInvalid

Limit = Annotated[int, typer.Option("--limit", metavar="N", min=1, help="At most so many, the newest.")]
Timeout = Annotated[float | None, typer.Option(
    "--timeout", metavar="SECONDS", min=0, help="Give up when it takes longer.")]  # fmt: skip

models = typer.Typer(name="models", no_args_is_help=True, help="Add models; list, show and delete them.")
datasets = typer.Typer(name="datasets", no_args_is_help=True, help="Add datasets; list, show and delete them.")


@command(models, "list")
def list_models(session: Session, limit: Limit = 50) -> None:
    """List your models, newest first."""
    items = list(session.client.list_models(limit=limit))
    session.show([each.raw for each in items], lambda: tables.models(items))


@command(models, "show")
def show_model(
    session: Session,
    model: Annotated[str, typer.Argument(metavar="MODEL_ID")],
    layers: Annotated[bool, typer.Option("--layers", help="Its layers.")] = False,
    groups: Annotated[bool, typer.Option("--groups", help="Channels that are removed together.")] = False,
    blocks: Annotated[bool, typer.Option("--blocks", help="Blocks, branches and plain layers.")] = False,
    frozen: Annotated[bool, typer.Option("--frozen", help="What may not be removed, and why.")] = False,
) -> None:
    """Show a model: its layers, channel groups, blocks, and what is frozen.

    Of one that was refused, why. With one or more of the options, only those tables.

    \b
    Examples:
      billhook models show mdl_…
      billhook models show mdl_… --blocks --frozen
    """
    chosen = {"layers": layers, "groups": groups, "blocks": blocks, "frozen": frozen}
    sections = [name for name, wanted in chosen.items() if wanted]
    if sections:
        graph = session.client.get_model_graph(model)
        session.show({name: graph.raw[name] for name in sections}, lambda: graph_tables.graph(graph, sections))
        return
    found = session.client.get_model(model)
    if found.state != "ready":
        session.show(found.raw, lambda: tables.record(found.raw))
        return
    try:
        whole = session.client.get_model_graph(model)
    except ApiError as error:
        if error.status != 404:
            raise
        session.note(f"note: {error.message}")
        session.show(found.raw, lambda: tables.record(found.raw))
        return
    session.show({**found.raw, "graph": whole.raw}, lambda: graph_tables.model(found, whole))


@command(models, "add")
def add_model(
    session: Session,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="An ONNX, .pt2 or safetensors file, or a zip (of ONNX).")
    ] = None,
    architecture: Annotated[
        str | None, typer.Option(metavar="NAME", help="For safetensors: resnet20, timm:NAME, …")
    ] = None,
    input_shape: Annotated[str | None, typer.Option(metavar="C,H,W", help="For safetensors, e.g. 3,32,32.")] = None,
    job: Annotated[
        str | None, typer.Option(metavar="JOB_ID", help="Instead of a file: a model that this job has made.")
    ] = None,
    artifact: Annotated[
        str | None, typer.Option(metavar="NAME", help="With --job: which file of it; pruned.onnx if left out.")
    ] = None,
    timeout: Timeout = None,
) -> None:
    """Add a model and wait until the server has checked it.

    A file that the server has is not sent again. Files beside an ONNX model
    that hold its weights (model.onnx.data) are sent with it, as one zip.

    \b
    Examples:
      billhook models add model.onnx
      billhook models add exported.pt2
      billhook models add weights.safetensors \\
          --architecture resnet20 --input-shape 3,32,32
      billhook models add --job job_… \\
          --artifact checkpoint_step0_epoch0010.onnx
    """
    if (file is None) == (job is None):
        raise InputInvalid("a model is FILE, or --job and --artifact: one of them")
    if file is None:
        assert job is not None
        if architecture is not None or input_shape is not None:
            raise InputInvalid("--architecture and --input-shape are for a safetensors file, not for --job")
        model = session.client.model_from_job(job, artifact or "pruned.onnx", timeout=timeout)
        session.show(model.raw, lambda: graph_tables.record(model))
        return
    if artifact is not None:
        raise InputInvalid("--artifact is for --job")
    with ProgressDisplay(session.err) as display:
        display.show_upload("model", str(file))
        model = session.client.upload_model(
            file, architecture=architecture, input_shape=shape_argument(input_shape), timeout=timeout,
            on_bytes=lambda sent, total: display.show_upload("model", str(file), sent / max(total, 1)),
        )  # fmt: skip
    session.show(model.raw, lambda: graph_tables.record(model))


@command(models, "delete")
def delete_model(session: Session, model: Annotated[str, typer.Argument(metavar="MODEL_ID")]) -> None:
    """Delete a model. Jobs that are over keep their results."""
    session.client.delete_model(model)
    session.show({"deleted": model}, f"{model} was deleted")


@command(datasets, "list")
def list_datasets(session: Session, limit: Limit = 50) -> None:
    """List your datasets, newest first."""
    items = list(session.client.list_datasets(limit=limit))
    session.show([each.raw for each in items], lambda: tables.datasets(items))


@command(datasets, "show")
def show_dataset(
    session: Session,
    dataset: Annotated[str, typer.Argument(metavar="DATASET_ID")],
    contact_sheet: Annotated[Path | None, typer.Option(
        "--contact-sheet", metavar="FILE.png|FOLDER", help="Save a picture of some images of each class there instead.",
    )] = None,
) -> None:  # fmt: skip
    """Show a dataset: its images per split and class, its options, and why it was refused if it was.

    \b
    Examples:
      billhook datasets show ds_…
      billhook datasets show ds_… --contact-sheet sheet.png
    """
    if contact_sheet is not None:
        file = session.client.dataset_contact_sheet(dataset, contact_sheet)
        session.show(file.as_dict(), f"{file.path}: {tables.size(file.bytes)}")
        return
    found = session.client.get_dataset(dataset)
    session.show(found.raw, lambda: tables.record(found.raw))


@command(datasets, "add")
def add_dataset(
    session: Session,
    source: Annotated[str, typer.Argument(
        metavar="SOURCE",
        help="A zip, npz or parquet file, a folder of images (one folder per class), builtin:digits, or what the "
        "server fetches: https://…, s3://…, file:///…",
    )],
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
    format: Annotated[str | None, typer.Option(
        "--format", metavar="FORMAT", help="Where the name does not say it: image_folder, npz or parquet.",
    )] = None,
    sha256: Annotated[str | None, typer.Option(
        "--sha256", metavar="SHA256", help="What the file must have; another one is refused.",
    )] = None,
    timeout: Timeout = None,
) -> None:  # fmt: skip
    """Add a dataset and wait until the server has checked it.

    A folder is zipped on the way (images only, the same bytes every time), so
    that it too is sent once only. The same file with other options is
    another dataset.

    What an https://, s3:// or file:// URI names is fetched by the server,
    once, where its operator allows it; every job then has the same bytes.
    With --sha256, what the server has already is not fetched again.

    \b
    Examples:
      billhook datasets add builtin:digits
      billhook datasets add photos/ --splits '{"validation": 0.1, "test": 0.2}'
      billhook datasets add images.zip --preprocess preprocess.yaml
      billhook datasets add images.zip --splits '{"classes": ["cat", "dog"]}'
      billhook datasets add cifar100.parquet --columns '{"label": "coarse_label"}'
      billhook datasets add https://data.example.com/images.zip --sha256 9f86d0…
      billhook datasets add s3://sets/train.parquet
    """
    with ProgressDisplay(session.err) as display:
        display.show_upload("dataset", source)
        dataset = session.client.add_dataset(
            source, preprocess=document_argument("--preprocess", preprocess),
            splits=document_argument("--splits", splits), columns=document_argument("--columns", columns),
            format=format, sha256=sha256, timeout=timeout,
            on_bytes=lambda sent, total: display.show_upload("dataset", source, sent / max(total, 1)),
        )  # fmt: skip
    session.show(dataset.raw, lambda: tables.record(dataset.raw))


@command(datasets, "delete")
def delete_dataset(session: Session, dataset: Annotated[str, typer.Argument(metavar="DATASET_ID")]) -> None:
    """Delete a dataset. Jobs that are over keep their results."""
    session.client.delete_dataset(dataset)
    session.show({"deleted": dataset}, f"{dataset} was deleted")
