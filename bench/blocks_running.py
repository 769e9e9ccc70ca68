"""One row of `bench.blocks` on one trained network: the recipe's steps as a job runs them, and what came of them."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bench.blocks_originals import Images, Original, silent, untrained
from bench.blocks_rows import Row, Study
from core.controls import Failed, Ran, Surroundings, run_controls
from core.data.datasets import Dataset
from core.errors import BillhookError
from core.events import Emit
from core.exports import Exports
from core.graph.counts import Counts, count
from core.graph.network import Network
from core.outcome import Done, Outcome
from core.progress import Progress
from core.recipe import Recipe, parse_recipe
from core.report import Cost
from core.state import State
from core.step_settings import Train
from core.steps import run_steps
from core.tasks import task_of
from core.training.port import FitResult
from core.training.trainer import Trainer

RECALIBRATED = re.compile(r"prune/step/\d+/round/(\d+)/recalibrate")
FINE_TUNED = re.compile(r"fine_tune/\d+(?:/round/(\d+))?")


class Log:
    """An `Emit` that keeps errors on test in a file, so that a row that is gone on with has those of its first attempt,
    too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.events: dict[str, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                event = json.loads(line)
                self.events[event["name"]] = event["body"]

    def __call__(self, name: str, /, **body: Any) -> None:
        if name.startswith("test/"):
            self.events[name] = body
            with self._path.open("a") as file:
                file.write(json.dumps({"name": name, "body": body}) + "\n")


class TestedTrainer(Trainer):
    """A trainer that tells the error on test after every fine-tuning, and where there is none (`removals`) after every
    removal; nothing else reads it."""

    __test__ = False  # no test, for pytest

    def __init__(self, data: Dataset, *, emit: Emit, removals: bool, **named: Any) -> None:
        super().__init__(data, emit=emit, **named)
        self._removals = removals
        self._tell = emit

    def recalibrate(self, network: Network, *, label: str) -> int:
        """See `Trainer.recalibrate`."""
        batches = super().recalibrate(network, label=label)
        if self._removals and RECALIBRATED.fullmatch(label):
            self._tell(f"test/{label}", error=1 - self.evaluate(network, "test").accuracy)
        return batches

    def fit(self, network: Network, *, label: str, **named: Any) -> FitResult:
        """See `Trainer.fit`."""
        found = super().fit(network, label=label, **named)
        if FINE_TUNED.fullmatch(label):
            self._tell(f"test/{label}", error=1 - self.evaluate(network, "test").accuracy)
        return found


def run_row(
    row: Row, study: Study, original: Original, images: Images, folder: Path, device: torch.device
) -> dict[str, Any]:
    """The row's result, JSON. Where its code raises: `status` failed, with the error. `folder`: of its checkpoint,
    deleted in the end."""
    began = time.monotonic()
    found: dict[str, Any] = {
        "row": row.name, "seed": original.seed, "signature": row.signature(study), "recipe": row.recipe,
        "start": row.start, "status": "done", "error": None,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    try:
        found |= _measured(row, study, original, images, folder, device)
    except Exception as error:  # a row that fails is told as such, and the others are run
        found |= {"status": "failed", "error": _told(error)}
    shutil.rmtree(folder, ignore_errors=True)
    return found | {"seconds": time.monotonic() - began}


def _told(error: Exception) -> str:
    faults = [f"{fault.pointer}: {fault.message}" for fault in error.faults] if isinstance(error, BillhookError) else []
    return "; ".join([f"{type(error).__name__}: {error}", *faults])


def _measured(
    row: Row, study: Study, original: Original, images: Images, folder: Path, device: torch.device
) -> dict[str, Any]:
    recipe = parse_recipe({**row.recipe, "seed": original.seed})
    data = images.with_pruning if row.pruning_split else images.whole
    log = Log(folder / "events.jsonl")
    state = State.open(folder, fingerprint={"row": row.signature(study), "seed": str(original.seed)}, emit=silent)
    trained = untrained(study, original.seed)
    trained.load_state_dict(original.weights if row.start is None else original.checkpoints[row.start])
    counts = count(trained)
    network = trained
    if isinstance(recipe.steps[0], Train):  # the original's training, which is done
        network = untrained(study, original.seed)
        _train_is_done(network, trained, original, state)

    def trainer(prefix: str = "") -> TestedTrainer:
        return TestedTrainer(
            data, training=recipe.training, device=device, seed=recipe.seed, original_macs=counts.macs,
            emit=silent if prefix else log, progress=progress, task=task_of(recipe, trained, data, device),
            prefix=prefix, removals=not epochs,
        )  # fmt: skip

    epochs = row.recipe["steps"][-1]["fine_tune"]["epochs"]
    progress = Progress(silent)
    own = trainer()
    exports = Exports(
        trained, export=recipe.export, folder=folder / "exports",
        inputs=lambda: next(iter(data.batches("test", 1)))[0].numpy(),
    )  # fmt: skip
    accuracy = own.evaluate(trained, "validation").accuracy
    done = run_steps(
        recipe.steps, network, data, original=counts, accuracy=accuracy, export=recipe.export, exports=exports,
        seed=recipe.seed, trainer=own, progress=progress, emit=log, state=state,
    )  # fmt: skip
    result, cost, warnings = done.network, done.cost, done.warnings
    if row.control:
        around = Surroundings(recipe, data, trainer, progress, silent, state, exports)
        result, cost, warnings = _control(recipe, network, done, counts, accuracy, around)
    left, history = count(result), done.blocks[-1]
    return {
        "test_error": 1 - own.evaluate(result, "test").accuracy,
        "validation_error": 1 - own.evaluate(result, "validation").accuracy,
        "blocks": left.blocks,
        "params": left.params,
        "original_params": counts.params,
        "original_test_error": original.test_error,
        "cost": cost.model_dump(),
        "history": None if history is None else history.model_dump(),
        "rounds": rounds(done, log.events),
        "warnings": warnings,
        "torch": torch.__version__,
    }


def _train_is_done(network: Network, trained: Network, original: Original, state: State) -> None:
    if "steps" not in state:
        before = Done(network)
        before.add(Outcome(trained, [], [], Cost(), [], accuracy=original.validation_accuracy))
        state.put(**before.values())


def _control(
    recipe: Recipe, start: Network, done: Done, counts: Counts, accuracy: float, around: Surroundings
) -> tuple[Network, Cost, list[str]]:
    """The recipe's only control."""
    (control,) = run_controls(Ran(start, done, counts, accuracy), around)
    if isinstance(control, Failed):
        raise RuntimeError(f"control {control.name}: {control.reason}")
    return control.network, control.cost, control.warnings


def rounds(done: Done, events: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each round of the last step: blocks that were left, and errors on test (0-1) after the removal, where that was
    measured, and after the fine-tuning, where one followed."""
    points = [point for point in done.front if point.step == done.steps - 1 and point.round > 0]
    cut, tuned = dict[int, float](), dict[int, float]()
    for name, body in events.items():
        label = name.removeprefix("test/")
        if match := RECALIBRATED.fullmatch(label):
            cut[int(match[1])] = body["error"]
        elif match := FINE_TUNED.fullmatch(label):
            tuned[int(match[1]) if match[1] else len(points)] = body["error"]
    return [
        {"blocks": point.blocks, "test_error": cut.get(point.round), "tuned_error": tuned.get(point.round)}
        for point in points
    ]
