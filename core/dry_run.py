"""What a job would come to, without its trainings: what would be cut, how large, how fast, at what cost.

The recipe's steps and controls run as in `core.pipeline`, by the same code and with the same refusals, but their
trainer trains nothing (`core.training.untrained`): filters and blocks are chosen by the weights that the steps begin
with.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from core.batch_size import inference_batch
from core.batchnorm import with_batch_norm
from core.beginning import begin, new_head
from core.blocks.analysis import order_of
from core.comparison import parity_inputs, sample_inputs
from core.controls import Failed, Ran, Surroundings, run_controls
from core.data.datasets import Dataset
from core.data.source import SplitName
from core.devices import require_device, require_precision, torch_settings
from core.dry_run_estimate import STEPS, Between, Rates, estimate, kinds_of_training
from core.dry_run_foreseen import assumptions, foreseen, layer_cuts, size_ratios, without_accuracy
from core.dry_run_report import DryRunReport, Size, StepCut
from core.dry_run_scoring import is_shown_images, scored_once, scoring_images, with_few
from core.events import Emit
from core.expected import scorings
from core.exports import Exports
from core.graph.counts import count
from core.graph.export import check_parity
from core.graph.external_data import parts, unpack
from core.graph.network import Network
from core.graph.plans import replay
from core.importing import read_inputs
from core.job import JobInputs
from core.outcome import Done
from core.progress import Progress
from core.reference import SPLITS, measured
from core.state import State
from core.steps import run_steps
from core.targets import target_results
from core.tasks import Figures, Gathering, Task, joined, task_of
from core.training.memory_format import images_channels_last
from core.training.timing import Rate, time_evaluation, time_training
from core.training.trainer import Trainer
from core.training.untrained import Booked, Untrained

BASELINE_IMAGES = 512
"""Of validation and of test, each, that tell whether the original is better than guessing; all, where these do not."""
LOOKED_AT_IMAGES = 64
PRUNING_IMAGES = 256
"""That norms of activations are noticed on in a round: of train, or of the pruning split."""
TIMING_SECONDS = 20.0
"""For all trainings together that are timed."""
EVALUATION_SECONDS = 2.0


def dry_run(inputs: JobInputs, workdir: Path, emit: Emit, *, timed: bool = True) -> DryRunReport:
    """What `core.pipeline.run` would do with `inputs`. `workdir` is for files meanwhile.

    timed: whether this machine and device are what the job would run on, so that its trainings are timed here.

    Raises whatever the job would be refused for before it trains: `ModelRefused`, `DatasetRefused`, `RecipeInvalid`,
    `DeviceUnavailable`, `BaselineNearChance`, `NothingRemoved`, `TargetUnreachable`, `ExactnessFailed`, `ParityFailed`.
    """
    device = require_device(inputs.device)
    if timed:
        require_precision(inputs.recipe, device)
    with torch_settings(device, inputs.threads):
        return _DryRun(inputs, workdir, emit, device, timed).run()


def _silent(name: str, /, **body: Any) -> None:
    """Nobody keeps the events of a dry run."""


class _DryRun:
    """One dry run, stage by stage. `booked`: the trainings that the steps and each control asked for."""

    def __init__(self, inputs: JobInputs, workdir: Path, emit: Emit, device: torch.device, timed: bool) -> None:
        self.inputs = inputs
        self.recipe = without_accuracy(inputs.recipe)
        self.workdir = workdir
        self.emit = emit
        self.device = device
        self.timed = timed
        self.threads = torch.get_num_threads()
        self.booked: dict[str, list[Booked]] = {}

    def run(self) -> DryRunReport:
        self.emit("import/start")
        uploaded, dataset = read_inputs(self.inputs, self.workdir / "images")
        images = parity_inputs(uploaded, dataset, "validation")
        if self.inputs.model.format == "onnx":
            check_parity(uploaded, self._original_file(), images)
        original = uploaded
        if self.recipe.head == "replace":
            original, _ = new_head(uploaded, self.recipe, len(dataset.classes))
        task = task_of(self.recipe, original, dataset, self.device)
        exports = Exports(
            original, export=self.recipe.export, folder=self.workdir / "exports",
            inputs=lambda: sample_inputs(dataset, "test", original.origin.static_batch or 1).numpy(),
            original_file=self._original_file if self._is_given else None,
        )  # fmt: skip
        begun = begin(self.inputs, uploaded, images, self.workdir, _silent, classes=len(dataset.classes))
        self.emit("baseline/start")
        accuracy = self._baseline(original, dataset, task)
        start = begun.network
        if self.recipe.batchnorm == "insert":
            sample = self._trainer(dataset, task).sample(start, label="batchnorm")
            start, _, _ = with_batch_norm(start, sample, images)
        self.emit("prune/start")
        began = time.perf_counter()
        ran, failed = self._steps_and_controls(start, original, dataset, task, exports, accuracy)
        cutting_seconds = time.perf_counter() - began
        done = ran.done
        self.emit("measure/start")
        rates = self._rates(start, done, dataset, task, cutting_seconds) if self.timed else None
        latency = exports.latency(done.network) if done.plan else None
        before, after = self._size(original, exports.bytes), self._size(done.network, exports.bytes)
        if self._is_given:
            given = sum(part.stat().st_size for part in parts(self._original_file()))
            before = before.model_copy(update={"file_bytes": given})
        ratios = size_ratios(before, after, latency)
        targets = target_results(self.recipe.steps, done, original=ran.original, exports=exports, accuracy=accuracy)
        required = self.inputs.recipe.requirements.overridden_by(self.inputs.requirements)
        requirements = foreseen(required, ratios, latency)
        held = [requirement.holds for requirement in requirements]
        return DryRunReport(
            original=before,
            pruned=after,
            ratios=ratios,
            latency=latency,
            steps=self._cuts(start, done, exports.bytes),
            targets=targets,
            target_met=all(target.met for target in targets),
            requirements=requirements,
            requirements_met=False if False in held else None if None in held else True,
            estimate=estimate(
                self.inputs.recipe, dataset, self.booked, done, rates,
                device=self.inputs.device, threads=self.threads,
                scorings=[
                    each for found in scorings(self.recipe, dataset, start, ran.original, exports).values()
                    for each in found
                ],
            ),
            recipe=self.inputs.recipe.model_dump(mode="json"),
            assumptions=assumptions(
                self.inputs.recipe, timed=self.timed, looked_at=LOOKED_AT_IMAGES, pruning=PRUNING_IMAGES,
                scored=scoring_images(original),
            ),
            warnings=[*dataset.warnings, *begun.warnings, *done.warnings, *failed],
        )  # fmt: skip

    # --- the original -------------------------------------------------------------------------------------------------

    def _baseline(self, original: Network, dataset: Dataset, task: Task) -> float:
        """The original's accuracy on some images, 0-1; 0 of one with a new classifier, which knows nothing yet.

        Raises `BaselineNearChance` as the job would: before that, all images of validation and test are asked.
        """
        if self.recipe.head == "replace":
            return 0.0
        figures = joined([self._figures(original, dataset, task, split) for split in SPLITS])
        asked = not self.recipe.allow_near_chance and self.recipe.weights == "uploaded"
        if asked and task.doubt(figures) is not None:
            _, figures = measured(original, self._trainer(dataset, task), _silent)
            task.check_original(figures)
        return task.accuracy(figures)

    def _figures(self, network: Network, dataset: Dataset, task: Task, split: SplitName) -> Figures:
        """What the task sees of some images of a split, taken at random."""
        network.to(self.device).eval()
        found = Gathering(len(dataset.splits[split]))
        seen = 0
        with torch.inference_mode():
            for images, labels in dataset.batches(split, inference_batch(network), shuffle=True, device=self.device):
                images = images_channels_last(images, dataset.options.layout)
                found.add(task.figures(task.outputs(network, images), task.wanted(images, labels)))
                seen += len(labels)
                if seen >= BASELINE_IMAGES:
                    break
        return found.figures()

    # --- steps and controls -------------------------------------------------------------------------------------------

    def _steps_and_controls(
        self, start: Network, original: Network, dataset: Dataset, task: Task, exports: Exports, accuracy: float
    ) -> tuple[Ran, list[str]]:
        """What the steps leave of `start`, and the controls that fail, in words."""
        recipe, progress = scored_once(self.recipe), Progress(_silent)

        shown = any(is_shown_images(step) for step in recipe.steps)

        def trainer(prefix: str = "") -> Untrained:
            looks = shown or any(getattr(step, "signal", None) == "activations" for step in recipe.steps)
            made = Untrained(
                dataset, training=recipe.training, device=self.device, seed=recipe.seed, accuracy=accuracy,
                looked_at=LOOKED_AT_IMAGES if looks else 0, task=task, prefix=prefix,
                booked=self.booked.setdefault(prefix.rstrip("/").rpartition("/")[2] or STEPS, []),
            )  # fmt: skip
            return made

        counts, some = count(original), with_few(dataset, {"pruning": PRUNING_IMAGES})
        if shown:
            some = with_few(some, dict.fromkeys(("train", "validation", "pruning"), scoring_images(original)))
        done = run_steps(
            recipe.steps, start, some, original=counts, accuracy=accuracy, export=recipe.export, exports=exports,
            seed=recipe.seed, trainer=trainer(), progress=progress, emit=_silent, state=State.unsaved(),
            epochs_budget=recipe.epochs_budget,
        )  # fmt: skip
        ran = Ran(start, done, counts, accuracy)
        around = Surroundings(
            recipe=self.recipe, dataset=some, trainer=trainer, progress=progress, emit=_silent, state=State.unsaved(),
            exports=exports,
        )  # fmt: skip
        failed = []
        for control in run_controls(ran, around):
            if isinstance(control, Failed):
                failed.append(f"the control {control.name} failed: {control.reason}")
            else:
                failed += control.warnings
        return ran, failed

    def _cuts(self, start: Network, done: Done, file_bytes: Callable[[Network], int]) -> list[StepCut]:
        """What each step removes."""
        found = []
        network, entries = start, list(done.plan)
        for index, (step, removed) in enumerate(zip(self.recipe.steps, done.removed, strict=True)):
            own, history = done.entries[index], done.blocks[index]
            smaller = replay(network, entries[:own])
            found.append(
                StepCut(step=index, method=step.method, rounds=len(removed), after=self._size(smaller, file_bytes),
                        layers=layer_cuts(network, smaller), blocks=[] if history is None else order_of(history))
            )  # fmt: skip
            network, entries = smaller, entries[own:]
        return found

    def _size(self, network: Network, file_bytes: Callable[[Network], int]) -> Size:
        counts = count(network)
        return Size(params=counts.params, macs=counts.macs, filters=counts.filters, blocks=counts.blocks,
                    file_bytes=file_bytes(network))  # fmt: skip

    # --- times --------------------------------------------------------------------------------------------------------

    def _rates(self, start: Network, done: Done, dataset: Dataset, task: Task, cutting_seconds: float) -> Rates:
        """What an image takes of the networks in front of the steps and behind them."""
        kinds = kinds_of_training(self.booked)
        both = (count(start).macs, count(done.network).macs)

        def between(time_it: Callable[[Network, bool], Rate]) -> Between:
            first = time_it(start, False)
            last = time_it(done.network, True) if done.plan else first
            return Between(first, both[0], last, both[1])

        seconds = TIMING_SECONDS / max(1, 2 * len(kinds))
        return Rates(
            training={
                kind: between(
                    lambda network, cut, training=training: time_training(  # type: ignore[misc]
                        network, training, dataset, task=task, device=self.device, seconds=seconds,
                        plan=done.plan if cut else (),
                    )
                )
                for kind, training in kinds.items()
            },
            evaluation=between(
                lambda network, _: time_evaluation(
                    network, dataset, task=task, device=self.device, seconds=EVALUATION_SECONDS / 2
                )
            ),
            cutting_seconds=cutting_seconds,
        )  # fmt: skip

    def _trainer(self, dataset: Dataset, task: Task) -> Trainer:
        """A real one, to look at images with."""
        return Trainer(
            dataset, training=self.recipe.training, device=self.device, seed=self.recipe.seed, original_macs=1,
            emit=_silent, progress=Progress(_silent), task=task,
        )  # fmt: skip

    @property
    def _is_given(self) -> bool:
        """Whether the original is the upload, in a file that ONNX Runtime opens."""
        return self.inputs.model.format == "onnx" and self.recipe.head == "keep"

    def _original_file(self) -> Path:
        """The upload as a file that ONNX Runtime opens."""
        return unpack(self.inputs.model.path, self.workdir / "original")
