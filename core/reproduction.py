"""What decides a job's result, and how to get it again."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from typing import Any

from core.job import JobInputs


def fingerprint(inputs: JobInputs) -> dict[str, str]:
    """sha256 of everything that decides the result, part by part: a checkpoint of other inputs is not gone on from."""
    parts = {
        "model": inputs.model.model_dump(mode="json", exclude={"path"}),
        "dataset": [item.model_dump(mode="json", exclude={"path", "uri"}) for item in inputs.datasets],
        "recipe": inputs.recipe.model_dump(mode="json"),
    }
    if inputs.weights is not None:
        parts["weights"] = inputs.weights.model_dump(mode="json", exclude={"path"})
    return {name: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest() for name, part in parts.items()}


def described(inputs: JobInputs, splits: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs as a report has them: no paths; `splits`: of the dataset's summary."""
    return {
        "model": inputs.model.model_dump(mode="json", exclude={"path"}),
        **({} if inputs.weights is None else {"weights": inputs.weights.model_dump(mode="json", exclude={"path"})}),
        "datasets": [{**item.model_dump(mode="json", exclude={"path"}), "splits": splits} for item in inputs.datasets],
        "requirements": inputs.requirements.model_dump(mode="json", exclude_none=True),
        "fingerprint": fingerprint(inputs),
    }


def reproduce(inputs: JobInputs) -> str:
    """Two commands that do it again: over HTTP, and without the service."""
    model, dataset = inputs.model, inputs.datasets[0]
    if dataset.format == "digits":
        data = "builtin:digits"
    elif dataset.uri == "upload":
        data = f"DATASET  # sha256 {dataset.sha256}"
    else:
        data = f"{shlex.quote(dataset.uri)} --data-sha256 {dataset.sha256}"
    words = ["billhook prune MODEL"]
    if model.options.architecture is not None and model.options.input_shape is not None:
        shape = ",".join(map(str, model.options.input_shape))
        words.append(f"--architecture {model.options.architecture} --input-shape {shape}")
    sections = {name: getattr(dataset.options, name) for name in ("preprocess", "splits", "columns")}
    if dataset.format == "parquet" or dataset.uri != "upload":
        words.append(f"--format {dataset.format}")
    for name, options in sections.items():
        given = options.model_dump_json(exclude_defaults=True)
        if given != "{}":
            words.append(f"--{name} {shlex.quote(given)}")
    for name, (sign, number) in inputs.requirements.comparisons().items():
        words.append(f"--require {shlex.quote(f'{name}{sign}{number!r}')}")
    words.append(f"--device {inputs.device} --recipe recipe.json --output pruned.onnx --data {data}")
    told = f"# MODEL: sha256 {model.sha256}\n"
    if inputs.weights is not None:
        told += f"# {inputs.recipe.weights} in recipe.json: the id of a model with sha256 {inputs.weights.sha256}\n"
    return f"{told}{' '.join(words)}\npython -m core.pipeline JOB.json WORKDIR"
