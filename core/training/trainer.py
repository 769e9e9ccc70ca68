"""The trainer: gradient descent on a task's loss over a dataset, resumable at every epoch.

On the CPU a training that was stopped at any point and resumed from its last checkpoint ends in the same bits as one
that was not: order, augmentation and dropout of an epoch are drawn from (seed, label, epoch) alone, and weights and
optimizer buffers come back in the same memory layout.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch

from core.batch_size import inference_batch
from core.data.datasets import Dataset
from core.errors import TrainingDiverged
from core.events import Emit
from core.graph.batch_norm import recalibrate
from core.graph.counts import count
from core.graph.network import Network
from core.progress import SCORING, TRAINING_PASSES, Progress
from core.report import Cost
from core.state import State
from core.tasks.classification import Classification
from core.tasks.task import Figures, Gathering, Task
from core.training.budget import EpochsBudget
from core.training.checkpoints import Fit
from core.training.features import FeatureMatching, matches
from core.training.forward import Forward
from core.training.freezing import trained_only, trained_parameters
from core.training.losses import check_losses, distils
from core.training.memory_format import images_channels_last, to_channels_last
from core.training.mixing import mixed
from core.training.port import FitResult, Moment, ParameterGroup, Score, SplitName, add_costs
from core.training.schedules import Place, momentum_at, rate_factor
from core.training.seeds import derived_seed
from core.training.stepping import Stepping
from core.training_settings import Training

CHECKPOINT_SECONDS = 10.0
CHECKPOINT_EPOCHS = 5
"""A checkpoint is written after the first epoch of a training, then once 10 s have passed or 5 epochs are done since
the last: at most that much is repeated after a crash. Neither changes a number."""

RECALIBRATION_BATCH = 128
RECALIBRATION_IMAGES = 2_048
_LOSS_CHECK_STEPS = 50


class Trainer:
    """Trains and evaluates networks on one dataset. See `core.training.port.TrainerPort` for what methods use of it.

    Args:
        dataset: with splits train and validation; its `batches` give model inputs.
        training: the recipe's defaults.
        device: where networks are put.
        seed: of the recipe.
        original_macs: of the original network, the unit of the progress.
        task: what training minimises and evaluation measures; classification, where none is given.
        prefix: in front of the names of events and of the parts of the progress; no number depends on it.
        clock: seconds; only `seconds` in events and ledger and the times of checkpoints depend on it.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        training: Training,
        device: torch.device,
        seed: int,
        original_macs: int,
        emit: Emit,
        progress: Progress,
        task: Task | None = None,
        prefix: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.training = training
        self.budget = EpochsBudget()
        self.plan: Sequence[Mapping[str, Any]] = ()
        self.warnings: list[str] = []
        self._dataset = dataset
        self._with_pruning: Dataset | None = None
        self._device = device
        self._seed = seed
        self._original_macs = original_macs
        self._emit = emit
        self._progress = progress
        self._prefix = prefix
        self.task: Task = Classification() if task is None else task
        self._clock = clock

    def fit(
        self,
        network: Network,
        *,
        training: Training,
        epochs: int,
        label: str,
        state: State,
        before: Callable[[Moment], None] | None = None,
        on_batch: Callable[[Network], None] | None = None,
        on_epoch: Callable[[dict[str, Any]], None] | None = None,
        restore_best: bool | None = None,
        moving: Callable[[int, int], Collection[str]] | None = None,
        penalty: Callable[[Network], torch.Tensor] | None = None,
        groups: Sequence[ParameterGroup] = (),
        plan: Sequence[Mapping[str, Any]] = (),
    ) -> FitResult:
        """Trains `network` in place for `epochs` epochs, or as many of them as `budget` has left; with `restore_best`
        (default: as `training` says) it is left with the weights of the epoch that was best on validation, else with
        the last ones.

        `state` is this training's own scope; if it holds an earlier attempt at the training called `label`, that is
        continued. `before(moment)` is called in front of every epoch, every batch and every validation,
        `on_batch(network)` after every optimizer step, `on_epoch(record)` after every epoch before a checkpoint is
        written, so that what the caller puts into its state there belongs to the same moment; its `last` says whether
        it is the last one.
        `moving(n, epochs)` names the parameters that epoch n trains, never fewer than the epoch before; None: all.
        `penalty(network)`, a number, is added to the loss of every step; `groups` have rates of their own. `plan`: what
        this step of the recipe has done to the network so far; feature matching goes by it.
        Emits `<label>/epoch/<n>`, n from 1, and `<label>/stopped` where `early_stop` ends it before its last epoch.

        Raises `TrainingDiverged` where the loss is NaN or infinite, `RecipeInvalid` where batches are too small for
        BatchNorm, or nothing is left to be trained.
        """
        restore_best = training.restore_best if restore_best is None else restore_best
        network.to(self._device)
        to_channels_last(network)
        epochs = self.budget.within(epochs)
        trained = trained_parameters(network, training, moving, epochs)
        stepping = Stepping(network, training, trained[-1], groups=groups, device=self._device)
        forward, extras = self._forward(network, training, label, plan)
        if penalty is not None:
            extras["penalty"] = lambda images: penalty(network)
        parameters = dict(network.named_parameters())
        fit = Fit.resumed(label, state, network, stepping)
        self._progress.credit(fit.cost.seconds)
        counts = count(network)
        self._progress.stage((self._prefix + label).partition("/")[0])
        saved_at, saved_epoch = self._clock(), len(fit.epochs)
        for epoch in range(len(fit.epochs) + 1, epochs + 1):
            if training.early_stop and _epochs_since_best(fit.epochs) >= training.early_stop:
                self._emit(
                    f"{self._prefix}{label}/stopped", epoch=epoch - 1, epochs=epochs, early_stop=training.early_stop
                )
                break
            started = self._clock()
            if before is not None:
                before(Moment("epoch", epoch, epochs))
            with trained_only(network, trained[epoch - 1]), forward.holds(network, trained[epoch - 1]):
                rate, loss, accuracy, parts = self._train(
                    network,
                    stepping,
                    training,
                    epoch=epoch,
                    epochs=epochs,
                    label=label,
                    macs=counts.macs,
                    records=fit.epochs,
                    extras=extras,
                    before=before,
                    on_batch=on_batch,
                )
            if before is not None:
                before(Moment("validation", epoch, epochs))
            score = self.evaluate(network, "validation", macs=counts.macs)
            if not math.isfinite(score.loss):
                raise TrainingDiverged(
                    f"the validation loss is {score.loss} after {self._prefix}{label}, epoch {epoch}, at learning rate "
                    f"{rate:g}; a lower rate may help"
                )
            seconds = self._clock() - started
            images = len(self._data(training).splits["train"])
            record = {
                "epoch": epoch,
                "loss": loss,
                "train_accuracy": accuracy,
                "validation_accuracy": score.accuracy,
                "validation_loss": score.loss,
                **({"validation_measures": dict(score.measures)} if score.measures else {}),
                "lr": rate,
                "seconds": seconds,
                "images": images,
                **parts,
            }
            if moving is not None:
                record["trained_params"] = sum(parameters[name].numel() for name in trained[epoch - 1])
            fit.epochs.append(record)
            spent = Cost(epochs=1, epoch_params=counts.params, images=images, seconds=seconds)
            fit.cost = add_costs(fit.cost, spent)
            if restore_best and (fit.best is None or score.better_than(_score_of(fit.best, score.images))):
                weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
                fit.best = {"epoch": epoch, "accuracy": score.accuracy, "loss": score.loss, "weights": weights}
            self._emit(f"{self._prefix}{label}/epoch/{epoch}", **record)
            if on_epoch is not None:
                late = bool(training.early_stop) and _epochs_since_best(fit.epochs) >= training.early_stop
                on_epoch({**record, "last": epoch == epochs or late})
            waited = self._clock() - saved_at >= CHECKPOINT_SECONDS or epoch - saved_epoch >= CHECKPOINT_EPOCHS
            if epoch == 1 or (waited and epoch < epochs):
                fit.save(state, network, stepping)
                saved_at, saved_epoch = self._clock(), epoch
        network.eval()
        self.budget.spent += len(fit.epochs)
        if not fit.epochs:
            return FitResult([], None, None, fit.cost)
        kept = fit.epochs[-1]
        if fit.best is not None:
            network.load_state_dict(fit.best["weights"])
            kept = fit.epochs[fit.best["epoch"] - 1]
        images = len(self._dataset.splits["validation"])
        score = Score(kept["validation_accuracy"], kept["validation_loss"], images)
        used = {"epochs_kept": kept["epoch"], "epoch_params_kept": kept["epoch"] * counts.params}
        return FitResult(fit.epochs, score, kept["epoch"], fit.cost.model_copy(update=used))

    def teach(self, network: Network) -> None:
        """From now on `distill` is about the answers of `network`; a copy of it is made."""
        if self.task.teacher is not None:
            self.task.teacher.replace(network)

    def evaluate(self, network: Network, split: SplitName, *, macs: int | None = None) -> Score:
        """Accuracy and loss on a split. `macs`: of the network, if the caller knows them."""
        return self.task.score(self.figures(network, split, macs=macs))

    def figures(self, network: Network, split: SplitName, *, macs: int | None = None) -> Figures:
        """What the task sees of a split, in eval mode, without gradients.

        `macs`: of the network, if the caller knows them (only the progress needs them).
        """
        macs = count(network).macs if macs is None else macs
        network.to(self._device)
        network.eval()
        found = Gathering(len(self._dataset.splits[split]))
        with torch.inference_mode():
            for images, labels in self._dataset.batches(split, inference_batch(network), device=self._device):
                images = images_channels_last(images, self._dataset.options.layout)
                wanted = self.task.wanted(images, labels)
                found.add(self.task.figures(self.task.outputs(network, images), wanted))
                self._progress.advance(len(labels) * macs / self._original_macs)
        return found.figures()

    def recalibrate(self, network: Network, *, label: str) -> int:
        """BatchNorm statistics from `sample`."""
        to_channels_last(network)  # as after a training: a resumed run has read it from a checkpoint
        return recalibrate(network, self.sample(network, label=label))

    def sample(self, network: Network, *, label: str) -> Iterator[torch.Tensor]:
        """Batches of at most 2,048 images of train in all, not augmented, in an order drawn from `label`."""
        network.to(self._device)
        size = inference_batch(network, RECALIBRATION_BATCH)
        batches = self._dataset.batches(
            "train", size, seed=derived_seed(self._seed, label), shuffle=True, device=self._device
        )
        return (images for (images, _), _ in zip(batches, range(RECALIBRATION_IMAGES // size), strict=False))

    def expect(self, part: str, trainings: Sequence[tuple[int, int]]) -> None:
        """See `TrainerPort.expect`."""
        train, validation = (len(self._dataset.splits[name]) for name in ("train", "validation"))
        per_epoch = TRAINING_PASSES * train + validation
        passes, left = 0.0, self.budget.left
        for epochs, macs in trainings:
            epochs = epochs if left is None else min(epochs, left)
            left = None if left is None else left - epochs
            passes += epochs * per_epoch * macs / self._original_macs
        self._progress.expect(self._prefix + part, passes=passes)

    def expect_scoring(self, part: str, scorings: Sequence[tuple[int, int]]) -> None:
        """See `TrainerPort.expect_scoring`."""
        passes = sum(images * macs for images, macs in scorings) / self._original_macs
        self._progress.expect(f"{self._prefix}{part}/{SCORING}", passes=passes)

    def scored(self, part: str, images: float, macs: int) -> None:
        """See `TrainerPort.scored`."""
        self._progress.advance(images * macs / self._original_macs, f"{self._prefix}{part}/{SCORING}")

    def resumed(self, cost: Cost) -> None:
        """See `TrainerPort.resumed`."""
        self._progress.credit(cost.seconds)
        self.budget.spent += cost.epochs

    def _data(self, training: Training) -> Dataset:
        """The dataset with what `training` is about as its split train."""
        if training.pruning_split == "held_out":
            return self._dataset
        if self._with_pruning is None:
            self._with_pruning = self._dataset.with_pruning_in_train()
        return self._with_pruning

    def _train(
        self,
        network: Network,
        stepping: Stepping,
        training: Training,
        *,
        epoch: int,
        epochs: int,
        label: str,
        macs: int,
        records: Sequence[dict[str, Any]],
        extras: Mapping[str, Callable[[torch.Tensor], torch.Tensor]],
        before: Callable[[Moment], None] | None,
        on_batch: Callable[[Network], None] | None,
    ) -> tuple[float, float, float, dict[str, float]]:
        """One epoch. Returns the rate at its first batch, and averaged over it as it went loss, accuracy, and what each
        of `extras` added to the loss of a batch of images."""
        seed = derived_seed(self._seed, label)
        torch.manual_seed(derived_seed(seed, f"dropout/{epoch}"))
        data = self._data(training)
        steps = data.batch_count("train", training.batch_size)
        losses = torch.zeros(steps, device=self._device)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)
        found = Gathering(len(data.splits["train"]))
        added = {name: torch.zeros_like(loss_sum) for name in extras}
        rates: list[float] = []
        layout = data.options.layout
        batches = data.batches(
            "train",
            training.batch_size,
            epoch=epoch,
            seed=seed,
            shuffle=True,
            augment=training.augment,
            device=self._device,
        )
        for step, (images, labels) in enumerate(batches):
            if before is not None:
                before(Moment("batch", epoch, epochs, step))
            place = Place((epoch - 1) * steps + step, steps, epochs, records)
            rates.append(stepping.begin(rate_factor(training, place), momentum_at(training.schedule, place)))
            mix = mixed(images, labels, training.augment, seed=derived_seed(seed, f"mix/{epoch}/{step}"), layout=layout)
            images = images_channels_last(mix.images if mix else images, layout)
            wanted = self.task.wanted(images, labels, training)
            loss, figures = self.task.loss(self.task.outputs(network, images), wanted, training, mix)
            for name, extra in extras.items():
                loss = loss + (more := extra(images))
                added[name] += more.detach().double() * len(labels)
            losses[step] = loss.detach()
            # every loss is looked at, but on an accelerator not one by one: that would wait for it at each step
            if self._device.type == "cpu" or step % _LOSS_CHECK_STEPS == _LOSS_CHECK_STEPS - 1 or step == steps - 1:
                check_losses(losses[: step + 1], rates, label=self._prefix + label, epoch=epoch)
            stepping.end(loss)
            loss_sum += loss.detach().double() * len(labels)
            found.add(figures)
            if on_batch is not None:
                on_batch(network)
            self._progress.advance(TRAINING_PASSES * len(labels) * macs / self._original_macs)
        images_in_all = len(data.splits["train"])
        parts = {name: total.item() / images_in_all for name, total in added.items()}
        return rates[0], loss_sum.item() / images_in_all, self.task.accuracy(found.figures()), parts

    def _forward(
        self, network: Network, training: Training, label: str, plan: Sequence[Mapping[str, Any]]
    ) -> tuple[Forward, dict[str, Callable[[torch.Tensor], torch.Tensor]]]:
        """How `network` is to be run, and what feature matching adds to the loss."""

        def failed(reason: str) -> None:
            self._emit(f"{self._prefix}{label}/not_compiled", reason=reason)
            self.warnings.append(f"{self._prefix}{label} ran uncompiled: torch.compile failed ({reason})")

        weight = training.distill.features if training.distill is not None else 0.0
        if not weight:
            if distils(training):
                self._teacher().through = Forward(training, self._device)
            return Forward(training, self._device, failed=failed), {}
        teacher = self._teacher()
        found = matches(teacher, network, [*self.plan, *plan])
        ours = Forward(training, self._device, keep=list(found), failed=failed)
        teacher.through = theirs = Forward(training, self._device, keep=list(found))
        matching = FeatureMatching(found, ours, theirs, teacher.logits)
        return ours, {"features": lambda images: weight * matching.loss(images)}

    def _teacher(self) -> Network:
        if self.task.teacher is None:
            raise ValueError("distill needs a teacher")
        return self.task.teacher.network


def _epochs_since_best(records: Sequence[dict[str, Any]]) -> int:
    best, score = 0, None
    for record in records:
        found = Score(record["validation_accuracy"], record["validation_loss"], 1)
        if score is None or found.better_than(score):
            best, score = record["epoch"], found
    return len(records) - best


def _score_of(best: dict[str, Any], images: int) -> Score:
    return Score(best["accuracy"], best["loss"], images)
