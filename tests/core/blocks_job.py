"""Jobs that remove blocks of a small trained ResNet, on the digits."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from core import pipeline
from core.job import DatasetInput, JobInputs, ModelInput
from core.recipe import parse_recipe
from core.report import Report
from tests.core.fakes import Events

ROOT = Path(__file__).parent.parent.parent
DIGITS = DatasetInput(path=None, sha256=None, format="digits")


def as_input(path: Path) -> ModelInput:
    return ModelInput(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), format="onnx")


MODEL = as_input(ROOT / "examples" / "digits_resnet20.onnx")
"""ResNet-20, three groups of three blocks."""
RATE = {"optimizer": {"name": "sgd", "lr": 0.02}}


def blocks(**fields: Any) -> dict[str, Any]:
    """A step that goes from nine blocks to six by the mean of weights, with one epoch of fine-tuning."""
    step = {"method": "block_removal", "saliency": "weights_mean", "target": {"blocks": 6}, "blocks_per_round": 2}
    return {**step, "fine_tune": {"epochs": 1, **RATE}, **fields}


def run(workdir: Path, events: Events | None = None, *, checkpoint: ModelInput | None = None, **recipe: Any) -> Report:
    document = {"training": {"batch_size": 64}, "export": {"channel_multiple": 4}, **recipe}
    inputs = JobInputs(model=MODEL, datasets=(DIGITS,), recipe=parse_recipe(document), threads=1, weights=checkpoint)
    events = Events() if events is None else events
    report = pipeline.run(inputs, workdir, events)
    assert not events.not_taken()
    return report


def weights_of(workdir: Path) -> dict[str, torch.Tensor]:
    return load_file(workdir / "out" / "weights.safetensors")


def plan_of(workdir: Path) -> list[dict[str, Any]]:
    plan: list[dict[str, Any]] = json.loads((workdir / "out" / "plan.json").read_text())["plan"]
    return plan
