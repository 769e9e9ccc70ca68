"""Original and pruned, measured side by side, and what that says about targets and requirements."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor

from core.batch_size import inference_batch
from core.controls import Control
from core.data.datasets import Dataset
from core.data.source import SplitName
from core.events import Emit
from core.graph.counts import count
from core.graph.external_data import parts
from core.graph.network import Network
from core.graph.softmax import final_softmax
from core.measure.accuracy import score_file
from core.measure.latency import measure_latency
from core.measure.layers import layer_milliseconds
from core.measure.memory import MemoryNotMeasured, measure_memory
from core.measure.sessions import execution_providers
from core.recipe import Recipe
from core.report import Confusion, ControlResult, Latency, Layer, Memory, RequirementResult, SplitScore, Variant
from core.requirements import COMPARISONS, Requirements
from core.task_settings import MEASURES
from core.tasks.classification import Classification, confusion
from core.tasks.task import Figures, OutputKind, Task

LATENCY_SECONDS = 6.0
"""Budget of one latency setting for each variant; it ends sooner where three windows agree."""
PARITY_IMAGES = 32
TRAIN_IMAGES = 2_000
"""Of the training split, for the gap between accuracies on what was trained on and on what was not."""
MEMORY_NOISE = 0.1
"""Noise, as a share of the figure, that a reader is told of."""


def sample_inputs(dataset: Dataset, split: SplitName, images: int) -> Tensor:
    """Exactly `images` model inputs (images, ...) from the front of a split, over again where it has fewer."""
    rows = dataset.splits[split].rows
    return dataset.preprocess(rows.take(torch.arange(images) % len(rows)))


def parity_inputs(network: Network, dataset: Dataset, split: SplitName) -> Tensor:
    """Real inputs to compare files and networks on: 32, or as many as there are and as memory has room for."""
    return sample_inputs(dataset, split, min(inference_batch(network, PARITY_IMAGES), len(dataset.splits[split])))


def output_kind(network: Network) -> OutputKind:
    """What the first output is: a final Softmax, in whatever shape it leaves, gives probabilities."""
    softmax = final_softmax(network.output_nodes()[0])
    if softmax is None:
        return "logits"
    return "probabilities" if softmax.target is torch.ops.aten.softmax.int else "log_probabilities"


def measure(
    files: Mapping[str, Path],
    networks: Mapping[str, Network],
    dataset: Dataset,
    *,
    task: Task,
    device: str,
    threads: int,
    emit: Emit,
) -> tuple[dict[str, Variant], dict[str, Figures]]:
    """Measures ONNX files (`files`, by variant) in ONNX Runtime; `networks` are the same, for the counts.

    Accuracy with `threads` threads; latency of all variants interleaved, at the batch size that the file fixes, else 1:
    on the CPU with one thread (first in the list), with `threads` threads where that is more, and on `device` where it
    is a GPU that ONNX Runtime can use. Memory on the CPU with one thread. Besides the variants, the task's
    figures of each on test.
    """
    first = next(iter(networks.values()))
    batch = first.origin.static_batch or 1
    inputs = sample_inputs(dataset, "test", batch).numpy()
    splits: tuple[SplitName, ...] = ("validation", "test", "train")
    scores: dict[str, dict[str, SplitScore]] = {}
    seen: dict[str, Figures] = {}
    for name, path in files.items():
        kind, size = output_kind(networks[name]), inference_batch(networks[name])
        scores[name] = {}
        for split in splits:
            most = TRAIN_IMAGES if split == "train" else None
            scores[name][split], figures = score_file(
                path, dataset, split, batch_size=size, task=task, output=kind, threads=threads, most=most
            )
            if split == "test":
                seen[name] = figures
        emit(f"measure/{name}/accuracy", **{split: score.model_dump() for split, score in scores[name].items()})
    settings = [("cpu", 1)] + ([("cpu", threads)] if threads > 1 else [])
    if device != "cpu" and "CUDAExecutionProvider" in execution_providers():
        settings.append((device, 1))
    latencies: dict[str, list[Latency]] = {name: [] for name in files}
    for where, number in settings:
        found = measure_latency(
            files, inputs, threads=number, device=where, budget_seconds=LATENCY_SECONDS * len(files)
        )
        for name, latency in found.items():
            latencies[name].append(latency)
            emit(f"measure/{name}/latency/{where}/{number}", **latency.model_dump(exclude={"samples_ms"}))
    memories: dict[str, Memory | None] = dict.fromkeys(files)
    try:
        memories.update(measure_memory(files, batch_size=batch, input_shape=inputs.shape[1:]))
    except MemoryNotMeasured as error:  # one figure less; the job is done all the same
        emit("measure/memory_failed", reason=error.reason)
    variants = {}
    for name, path in files.items():
        counts = count(networks[name])
        memory = memories[name]
        if memory is not None:
            emit(f"measure/{name}/memory", **memory.model_dump())
        content = path.read_bytes()
        variants[name] = Variant(
            **scores[name],
            params=counts.params,
            macs=counts.macs,
            filters=counts.filters,
            blocks=counts.blocks,
            file_bytes=sum(part.stat().st_size for part in parts(path)),
            opset=opset_of(content),
            sha256=hashlib.sha256(content).hexdigest(),
            latency=latencies[name],
            memory=memory,
        )
    return variants, seen


def control_results(controls: Sequence[Control], seen: Mapping[str, Figures], task: Task) -> list[ControlResult]:
    """Each control against the pruned network, by what each says to the images of test."""
    found = []
    for control in controls:
        middle, low, high = task.difference(seen["pruned"], seen[control.name])
        found.append(
            ControlResult(
                name=control.name,
                budget=control.budget,
                cost=control.cost,
                accuracy_difference=middle,
                accuracy_difference_low=low,
                accuracy_difference_high=high,
            )
        )
    return found


def doubted_controls(names: Sequence[str], seen: Mapping[str, Figures], task: Task) -> list[str]:
    """A warning for each control that is no better than guessing: it is no control."""
    doubts = {name: task.doubt(seen[name]) for name in names}
    return [
        f"the control {name} is {doubt} on test: its training has failed, and that the pruned network is better says "
        "nothing"
        for name, doubt in doubts.items()
        if doubt is not None
    ]


MAX_CONFUSION = 100
"""Classes of which a report has a confusion matrix: it grows with their square."""


def confusions(seen: Mapping[str, Figures], dataset: Dataset, task: Task) -> Confusion | None:
    """Which classes each variant takes for which, on test; None in other tasks and of too many classes."""
    if not isinstance(task, Classification) or len(dataset.classes) > MAX_CONFUSION:
        return None
    counts = {name: confusion(figures, len(dataset.classes)).tolist() for name, figures in seen.items()}
    return Confusion(classes=list(dataset.classes), counts=counts)


def opset_of(file: bytes) -> int:
    """The opset of an ONNX file that is known to be whole."""
    opsets = onnx.load_model_from_string(file).opset_import
    return int(next(item.version for item in opsets if item.domain in ("", "ai.onnx")))


def ratios(original: Variant, pruned: Variant) -> dict[str, float]:
    """pruned / original, and `accuracy_drop` = original − pruned on test. Without those that `unmeasured` names."""
    figures, others = _figures(original), _figures(pruned)
    missing = unmeasured(original, pruned)
    found = {f"{name}_ratio": others[name] / figures[name] for name in figures if f"{name}_ratio" not in missing}
    # 0.98 - 0.97 is 0.010000000000000009, which would miss a requirement of <= 0.01
    return {**found, "accuracy_drop": round(original.test.accuracy - pruned.test.accuracy, 12)}


def unmeasured(original: Variant, pruned: Variant) -> dict[str, str]:
    """The ratios that cannot be told, and why: nothing was there to begin with, or less than can be seen."""
    reasons = {f"{name}_ratio": "the original has none" for name, figure in _figures(original).items() if figure == 0}
    memories = {"original": original.memory, "pruned": pruned.memory}
    if None in memories.values():
        reasons["peak_memory_ratio"] = "not measured: the measuring process failed"
    hidden = {name: memory for name, memory in memories.items() if memory is not None and not memory.above_noise}
    if hidden:
        told = (
            f"{memory.peak_memory_bytes:,} bytes of the {name} in a noise of {memory.noise_bytes:,}"
            for name, memory in hidden.items()
        )
        reasons["peak_memory_ratio"] = f"too small to measure: {' and '.join(told)}"
    return reasons


def _figures(variant: Variant) -> dict[str, float]:
    """What ratios are made of, by their name."""
    return {
        "params": variant.params,
        "macs": variant.macs,
        "filters": variant.filters,
        "file_bytes": variant.file_bytes,
        "latency": variant.latency[0].latency_ms_p50,
        "peak_memory": variant.memory.peak_memory_bytes if variant.memory is not None else 0,
    }


def requirement_results(requirements: Requirements, original: Variant, pruned: Variant) -> list[RequirementResult]:
    """Each requirement that is set, against what was measured; what could not be measured is not passed."""
    values = {**ratios(original, pruned), **pruned.test.measures, "accuracy": pruned.test.accuracy}
    missing = unmeasured(original, pruned) | dict.fromkeys(
        {name for names in MEASURES.values() for name in names} - values.keys(), "not measured in this task"
    )
    return [
        RequirementResult(
            name=name,
            required=f"{sign} {number:g}",
            measured=values.get(name),
            passed=name in values and COMPARISONS[sign](values[name], number),
            note=missing.get(name),
        )
        for name, (sign, number) in requirements.comparisons().items()
    ]


def layer_table(files: Mapping[str, Path], networks: Mapping[str, Network], dataset: Dataset) -> list[Layer]:
    """Each layer of the original and what is left of it (0 of one that is gone), with milliseconds in ONNX Runtime
    where they can be told."""
    before, after = count(networks["original"]).layers, count(networks["pruned"]).layers
    inputs = sample_inputs(dataset, "test", networks["original"].origin.static_batch or 1).numpy()
    times = {name: layer_milliseconds(files[name], inputs, before) for name in ("original", "pruned")}
    return [
        Layer(
            name=name,
            kind=layer.kind,
            channels_before=layer.channels,
            channels_after=after[name].channels if name in after else 0,
            params_before=layer.params,
            params_after=after[name].params if name in after else 0,
            macs_before=layer.macs,
            macs_after=after[name].macs if name in after else 0,
            latency_ms_before=times["original"][name],
            latency_ms_after=times["pruned"][name],
        )
        for name, layer in before.items()
    ]


def changed_interface(variants: Mapping[str, Variant], recipe: Recipe) -> list[str]:
    """Why the file does not take the place of the upload; nothing where it does."""
    found = []
    if recipe.head == "replace":
        found.append(
            "head: replace: the file is no drop-in replacement of the upload, its output has the dataset's classes in "
            "their order; `original` is the network with the new classifier as the train steps before pruning left it"
        )
    uploaded, exported = variants["original"].opset, variants["pruned"].opset
    if uploaded != exported:
        found.append(f"exported as opset {exported}, uploaded as {uploaded}: not drop-in")
    return found


def unused_pruning(dataset: Dataset, recipe: Recipe) -> list[str]:
    """A warning where images were kept from the training for nothing."""
    if "pruning" not in dataset.splits or recipe.uses_pruning_split:
        return []
    images = len(dataset.splits["pruning"])
    return [f"the {images} images of the dataset's pruning split were neither scored on nor trained on"]


def doubts(variants: Mapping[str, Variant]) -> list[str]:
    """What a reader of the measurements should know."""
    found = []
    for index, latency in enumerate(variants["original"].latency):
        setting = f"{latency.device}, batch {latency.batch_size}, {latency.threads} thread(s)"
        pruned = variants["pruned"].latency[index]
        if not (latency.stable and pruned.stable):
            found.append(f"latency on {setting} is unstable: no three windows in a row agreed within 10 %")
        if pruned.latency_ms_p50 >= latency.latency_ms_p50:
            found.append(f"the pruned network is not faster on {setting}; widths may not suit its kernels")
    missing = unmeasured(variants["original"], variants["pruned"]).get("peak_memory_ratio")
    if missing is not None:
        found.append(f"no ratio of peak memory: {missing}")
    else:
        found += [
            f"peak memory of the {name} is {memory.peak_memory_bytes:,} bytes in a noise of {memory.noise_bytes:,}"
            for name in ("original", "pruned")
            if (memory := variants[name].memory) is not None
            and memory.noise_bytes > MEMORY_NOISE * memory.peak_memory_bytes
        ]
    if (images := variants["pruned"].test.images) < 1_000:
        found.append(f"the test split has {images} images: one image is {100 / images:.2f} % of them")
    return found
