"""One job: a model, a dataset and a recipe in; a smaller ONNX file and a measured report out. The one way in.

Stages: import, baseline, prune and fine_tune (the recipe's steps), export, measure. Everything that takes long is
resumable from `<workdir>/state`. `<workdir>/out` gets pruned.onnx, weights.safetensors, plan.json, recipe.json and,
where blocks were removed, blocks.svg: the same bytes for the same inputs on the same machine; and report.json and
report.md.

    python -m core.pipeline JOB.json WORKDIR

runs a job without the service (JOB.json is a `core.job.JobInputs`) and prints its events, one JSON object per line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_safetensors

from core.batchnorm import with_batch_norm, without_batch_norm
from core.beginning import begin, new_head
from core.blocks.results import tell_blocks
from core.comparison import (
    changed_interface,
    confusions,
    control_results,
    doubted_controls,
    doubts,
    layer_table,
    measure,
    parity_inputs,
    ratios,
    requirement_results,
    sample_inputs,
    unused_pruning,
)
from core.controls import Control, Failed, Ran, Surroundings, expected, run_controls
from core.data.datasets import Dataset
from core.devices import require_device, require_precision, torch_settings
from core.errors import BillhookError, ExactnessFailed, ParityFailed
from core.events import Emit, jsonable
from core.expected import MEASURE_SECONDS, besides_training, scorings
from core.exports import Exports
from core.graph.counts import COUNTED, NOT_COUNTED, Counts, count
from core.graph.export import check_parity, write_onnx
from core.graph.external_data import unpack
from core.graph.groups import channel_groups
from core.graph.network import Network
from core.importing import read_inputs
from core.inspection import tensor_json
from core.job import JobInputs
from core.kept import PROOF_IMAGES, Keeper
from core.measure.environment import environment
from core.outcome import Done
from core.progress import Progress
from core.reference import KEY, Reference, measured
from core.report import Check, Report
from core.report_markdown import to_markdown
from core.reproduction import described, fingerprint, reproduce
from core.state import State, write_atomically
from core.steps import planned, run_steps
from core.targets import latency_doubts, target_results
from core.tasks import Task, task_of
from core.training.trainer import Trainer


def run(inputs: JobInputs, workdir: Path, emit: Emit) -> Report:
    """Does the job. `workdir` may hold the state of an earlier attempt at the same job, which is then continued.

    Raises a `BillhookError`: whatever the inputs are refused for (`ModelRefused`, `DatasetRefused`, `RecipeInvalid`,
    `DeviceUnavailable`, `BaselineNearChance`), what the recipe cannot do (`PruningError`, `TrainingDiverged`), a proof
    that does not hold (`ExactnessFailed`, `ParityFailed`), or `CheckpointUnusable`.
    """
    device = require_device(inputs.device)
    require_precision(inputs.recipe, device)
    with torch_settings(device, inputs.threads):
        return _Job(inputs, workdir, emit, device).run()


class _Job:
    """One run of the pipeline, stage by stage."""

    def __init__(self, inputs: JobInputs, workdir: Path, emit: Emit, device: torch.device) -> None:
        self.inputs = inputs
        self.recipe = inputs.recipe
        self.workdir = workdir
        self.out = workdir / "out"
        self.emit = emit
        self.device = device
        self.progress = Progress(emit)
        self.threads = torch.get_num_threads()
        self.checks: list[Check] = []
        self.controls: list[Control] = []
        self.warnings: list[str] = []
        self.summary: dict[str, Any] = {}

    def run(self) -> Report:
        self.out.mkdir(parents=True, exist_ok=True)
        state = State.open(self.workdir, fingerprint=fingerprint(self.inputs), emit=self.emit)
        uploaded, dataset = self._import()
        original = uploaded
        if self.recipe.head == "replace":
            original, _ = new_head(uploaded, self.recipe, len(dataset.classes))
        counts = count(original)
        task = task_of(self.recipe, original, dataset, self.device)
        trainer = self._trainer(task, dataset, counts)
        self.exports = Exports(
            original, export=self.recipe.export, folder=self.workdir / "exports", measured=self.progress.tick,
            inputs=lambda: sample_inputs(dataset, "test", original.origin.static_batch or 1).numpy(),
            original_file=self._original_file if self._is_given else None,
        )  # fmt: skip
        self._plan(original, counts, dataset, trainer)
        images = parity_inputs(original, dataset, "validation")
        begun = begin(self.inputs, uploaded, images, self.workdir, self.emit, classes=len(dataset.classes))
        self.checks += begun.checks
        self.warnings += begun.warnings
        start, inserted = self._insert(begun.network, dataset, trainer)
        reference = Reference(start, trainer, self.recipe, state=state, emit=self.emit)
        self._baseline(original, dataset, trainer, state)
        images = images[:PROOF_IMAGES]
        done = run_steps(
            self.recipe.steps,
            start,
            dataset,
            original=counts,
            accuracy=state["baseline"]["validation"] if self.recipe.head == "keep" else reference,
            export=self.recipe.export,
            exports=self.exports,
            seed=self.recipe.seed,
            trainer=trainer,
            progress=self.progress,
            emit=self.emit,
            state=state,
            epochs_budget=self.recipe.epochs_budget,
            keep=Keeper(self.workdir, opset=self.recipe.export.opset, inserted=inserted, images=images, emit=self.emit),
        )
        accuracy = state["baseline" if self.recipe.head == "keep" else KEY]["validation"]
        original = original if self.recipe.head == "keep" else reference.network
        self._controls(task, Ran(start, done, counts, accuracy), dataset, state)
        if inserted is not None and self.recipe.head == "replace":
            original, _, checks, _ = without_batch_norm(original, inserted, images)
            self.checks += [check.model_copy(update={"name": f"{check.name}/original"}) for check in checks]
        if inserted is not None:
            self._fold(done, inserted, dataset)
        done.plan = [*begun.plan, *done.plan]
        files = self._export(original, done, dataset)
        return self._measure(task, files, original, accuracy, done, dataset)

    def _trainer(self, task: Task, dataset: Dataset, counts: Counts, prefix: str = "") -> Trainer:
        return Trainer(
            dataset,
            training=self.recipe.training,
            device=self.device,
            seed=self.recipe.seed,
            original_macs=counts.macs,
            emit=self.emit,
            progress=self.progress,
            task=task,
            prefix=prefix,
        )

    def _import(self) -> tuple[Network, Dataset]:
        self.emit("import/start", model=self.inputs.model.sha256, dataset=self.inputs.datasets[0].sha256)
        self.progress.begin("import", "import")
        network, dataset = read_inputs(self.inputs, self.workdir / "images")
        if self.inputs.model.format == "onnx":
            # that ONNX Runtime and we read the same network out of the file, before anything is built on it
            images = parity_inputs(network, dataset, "validation")
            check = check_parity(network, self._original_file(), images)
            self.checks.append(check.model_copy(update={"name": "parity/import"}))
        counts = count(network)
        self.emit("import/model", opset=network.origin.opset, params=counts.params, macs=counts.macs,
                  filters=counts.filters, layers=len(counts.layers),
                  inputs=[tensor_json(item) for item in network.inputs],
                  outputs=[tensor_json(item) for item in network.outputs])  # fmt: skip
        self.summary = dataset.summary()
        self.emit("import/dataset", **self.summary)
        self.progress.end("import")
        return network, dataset

    def _plan(self, original: Network, counts: Counts, dataset: Dataset, trainer: Trainer) -> None:
        """Tells the progress what is to come. Of each step that is a guess from the original; the step corrects it."""
        for part, work in besides_training(self.recipe, dataset).items():
            self.progress.expect(part, passes=work.passes, seconds=work.seconds)
        for index, step in enumerate(self.recipe.steps):
            trainer.expect(f"step/{index}", planned(step, original, counts, self.recipe.export, self.exports))
        for index, found in scorings(self.recipe, dataset, original, counts, self.exports).items():
            trainer.expect_scoring(f"step/{index}", found)
        for part, trainings in expected(self.recipe, original, counts, self.exports).items():
            trainer.expect(part, trainings)

    def _baseline(self, original: Network, dataset: Dataset, trainer: Trainer, state: State) -> None:
        """The original on the dataset, through torch. One with a new classifier is looked at once that is trained."""
        self.emit("baseline/start")
        self.progress.begin("baseline", "baseline")
        if self.recipe.head == "keep" and "baseline" not in state:
            found, figures = measured(original, trainer, self.emit)
            if not self.recipe.allow_near_chance and self.recipe.weights == "uploaded":
                trainer.task.check_original(figures)
            state.put(baseline=found)
        self.progress.end("baseline")

    def _insert(self, original: Network, dataset: Dataset, trainer: Trainer) -> tuple[Network, dict[str, Any] | None]:
        """What the steps begin with: the original, with BatchNorms and their plan entry where the recipe wants them. A
        later attempt does it again: the same images give the same statistics."""
        if self.recipe.batchnorm == "keep":
            return original, None
        images = parity_inputs(original, dataset, "validation")
        network, entry, check = with_batch_norm(original, trainer.sample(original, label="batchnorm"), images)
        self.checks.append(check)
        self.emit("import/batchnorm", layers=entry["layers"], exactness=check.error)
        return network, entry

    def _fold(self, done: Done, inserted: dict[str, Any], dataset: Dataset) -> None:
        """Takes the inserted BatchNorms out of what the steps have left."""
        images = parity_inputs(done.network, dataset, "test")
        done.network, entries, checks, warnings = without_batch_norm(done.network, inserted, images)
        done.plan = [inserted, *done.plan, *entries]
        done.checks += checks
        done.warnings += warnings
        self.emit("export/batchnorm", layers=entries[0]["into"] if entries else {}, warnings=warnings)
        for control in [*self.controls]:
            images = parity_inputs(control.network, dataset, "test")
            try:
                control.network, _, checks, warnings = without_batch_norm(control.network, inserted, images)
            except ExactnessFailed as error:
                self._leave_out(control, error)
                continue
            done.checks += [check.model_copy(update={"name": f"{check.name}/{control.name}"}) for check in checks]
            self.warnings += [f"control {control.name}: {warning}" for warning in warnings]

    def _controls(self, task: Task, ran: Ran, dataset: Dataset, state: State) -> None:
        """Runs the recipe's baselines, and takes out of them the BatchNorms that are only for the training."""
        around = Surroundings(
            recipe=self.recipe,
            dataset=dataset,
            trainer=lambda prefix: self._trainer(task, dataset, ran.original, prefix),
            progress=self.progress,
            emit=self.emit,
            state=state.scope("controls"),
            exports=self.exports,
        )
        for control in run_controls(ran, around):
            if isinstance(control, Failed):
                self.warnings.append(f"the control {control.name} failed: {control.reason}")
            else:
                self.warnings += control.warnings
                self.controls.append(control)

    def _leave_out(self, control: Control, error: BillhookError) -> None:
        """A control whose proof fails is no reason to lose the result; it is no control either."""
        self.controls.remove(control)
        self.warnings.append(f"the control {control.name} failed: {error.message}")

    def _export(self, original: Network, done: Done, dataset: Dataset) -> dict[str, Path]:
        """Writes the deterministic files and proves the ONNX. Returns the files that are compared."""
        self.emit("export/start")
        self.progress.begin("export", "export")
        original.to("cpu").eval()
        pruned = done.network.to("cpu").eval()
        images = parity_inputs(original, dataset, "test")
        files = {"original": self.workdir / "original.onnx", "pruned": self.out / "pruned.onnx"}
        opset = self.recipe.export.opset
        if self._is_given:
            files["original"] = self._original_file()
        else:  # nothing that ONNX Runtime opens, or not what was uploaded: the original is what we export of it
            write_onnx(original, files["original"], opset=opset)
            check = check_parity(original, files["original"], images)
            self.checks.append(check.model_copy(update={"name": "parity/original"}))
        limit = self.recipe.export.external_data_bytes
        write_onnx(pruned, files["pruned"], opset=opset, external_data_bytes=limit)
        check = check_parity(pruned, files["pruned"], images).model_copy(update={"name": "parity/export"})
        self.checks += [*done.checks, check]
        self.emit("export/parity", **check.model_dump())
        for control in [*self.controls]:
            path = self.workdir / "controls" / f"{control.name}.onnx"
            path.parent.mkdir(exist_ok=True)
            network = control.network.to("cpu").eval()
            write_onnx(network, path, opset=opset, external_data_bytes=limit)
            try:
                check = check_parity(network, path, images)
            except ParityFailed as error:
                self._leave_out(control, error)
                continue
            files[control.name] = path
            self.checks.append(check.model_copy(update={"name": f"parity/{control.name}"}))
        weights = {name: tensor.contiguous() for name, tensor in pruned.state_dict().items()}
        write_atomically(self.out / "weights.safetensors", save_safetensors(weights))
        self._write_json("plan.json", {"version": 1, "model": self.inputs.model.sha256, "plan": done.plan})
        self._write_json("recipe.json", self.recipe.model_dump(mode="json"))
        self.progress.end("export")
        return files

    def _measure(
        self, task: Task, files: Mapping[str, Path], original: Network, accuracy: float, done: Done, dataset: Dataset
    ) -> Report:
        """Measures, and writes the report. accuracy: the original's on validation."""
        self.emit("measure/start")
        scored = len(files) * (len(dataset.splits["validation"]) + len(dataset.splits["test"]))
        seconds = len(files) / 2 * MEASURE_SECONDS + self.progress.seconds_of(scored)
        self.progress.expect("measure", seconds=seconds)
        self.progress.begin("measure", "measure")

        def emit(name: str, /, **body: Any) -> None:
            self.emit(name, **body)
            self.progress.tick()

        networks = {"original": original, "pruned": done.network}
        networks |= {control.name: control.network for control in self.controls}
        variants, seen = measure(
            files, networks, dataset, task=task, device=self.inputs.device, threads=self.threads, emit=emit
        )
        found = ratios(variants["original"], variants["pruned"])
        requirements = requirement_results(
            self.recipe.requirements.overridden_by(self.inputs.requirements), variants["original"], variants["pruned"]
        )
        targets = target_results(
            self.recipe.steps, done, original=count(original), exports=self.exports, accuracy=accuracy
        )
        report = Report(
            variants=variants,
            ratios=found,
            drop_in=not (not_drop_in := changed_interface(variants, self.recipe)),
            target_met=all(target.met for target in targets),
            targets=targets,
            requirements=requirements,
            requirements_met=all(requirement.passed for requirement in requirements),
            checks=self.checks,
            layers=layer_table(files, networks, dataset),
            frozen=channel_groups(original).frozen,
            front=done.front,
            cost=done.cost,
            checkpoints=done.checkpoints,
            blocks=tell_blocks(done, self.controls, self.out, self.emit),
            controls=control_results(self.controls, seen, task),
            confusion=confusions(seen, dataset, task),
            macs_counted=COUNTED,
            macs_not_counted=NOT_COUNTED,
            warnings=[
                *dataset.warnings,
                *unused_pruning(dataset, self.recipe),
                *done.warnings,
                *self.warnings,
                *not_drop_in,
                *doubts(variants),
                *latency_doubts(targets, found["latency_ratio"]),
                *doubted_controls([control.name for control in self.controls], seen, task),
            ],
            inputs=described(self.inputs, self.summary["splits"]),
            recipe=self.recipe.model_dump(mode="json"),
            environment=environment(self.inputs.device, self.threads),
            reproduce=reproduce(self.inputs),
        )
        self.progress.end("measure")
        self._write_json("report.json", jsonable(report.model_dump(mode="json")))
        write_atomically(self.out / "report.md", to_markdown(report).encode())
        self.emit("measure/report", ratios=found, target_met=report.target_met,
                  requirements_met=report.requirements_met)  # fmt: skip
        return report

    @property
    def _is_given(self) -> bool:
        """Whether the original is the upload, in a file that ONNX Runtime opens."""
        return self.inputs.model.format == "onnx" and self.recipe.head == "keep"

    def _original_file(self) -> Path:
        """The upload as a file that ONNX Runtime opens; a zip of a model and its data is unpacked for that."""
        return unpack(self.inputs.model.path, self.workdir / "original")

    def _write_json(self, name: str, document: Any) -> None:
        content = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(self.out / name, content.encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m core.pipeline JOB.json WORKDIR`. The exit status: 0, or 1 after an error, which goes to stderr."""
    parser = argparse.ArgumentParser(prog="python -m core.pipeline", description="run one job without the service")
    parser.add_argument("job", type=Path, help="a core.job.JobInputs as JSON")
    parser.add_argument("workdir", type=Path, help="gets state/ and out/; an earlier run's state is continued")
    given = parser.parse_args(arguments)

    def emit(name: str, /, **body: Any) -> None:
        sys.stdout.write(json.dumps({"name": name, "body": jsonable(body)}, allow_nan=False) + "\n")
        sys.stdout.flush()

    try:
        run(JobInputs.model_validate_json(given.job.read_bytes()), given.workdir, emit)
    except BillhookError as error:
        sys.stderr.write(json.dumps(error.as_dict(), indent=1) + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
