"""The trainer: SGD on cross-entropy over a dataset in memory, resumable at every epoch.

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
from torch.nn import functional

from core.batch_size import inference_batch
from core.data.datasets import Dataset
from core.errors import Fault, RecipeInvalid, TrainingDiverged
from core.events import Emit
from core.graph.batch_norm import recalibrate
from core.graph.counts import count
from core.graph.network import Network
from core.progress import TRAINING_PASSES, Progress
from core.report import Cost
from core.state import State
from core.training.budget import EpochsBudget
from core.training.checkpoints import Fit
from core.training.features import FeatureMatching, matches
from core.training.forward import Forward
from core.training.freezing import trained_only, trained_parameters
from core.training.losses import check_losses, distils, training_loss
from core.training.memory_format import images_channels_last, to_channels_last
from core.training.mixing import mixed
from core.training.port import FitResult, ParameterGroup, Score, SplitName, add_costs
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
        teacher: whose answers `distill` is about: the original. A copy of it is made.
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
        teacher: Network | None = None,
        prefix: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.training = training
        self.budget = EpochsBudget()
        self.plan: Sequence[Mapping[str, Any]] = ()
        self.warnings: list[str] = []
        self._dataset = dataset
        self._device = device
        self._seed = seed
        self._original_macs = original_macs
        self._emit = emit
        self._progress = progress
        self._prefix = prefix
        self._original = teacher
        self._teacher: Network | None = None
        self._clock = clock

    def fit(
        self,
        network: Network,
        *,
        training: Training,
        epochs: int,
        label: str,
        state: State,
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
        continued. `on_batch(network)` is called after every optimizer step, `on_epoch(record)` after every epoch before
        a checkpoint is written, so that what the caller puts into its state there belongs to the same moment.
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
                    on_batch=on_batch,
                )
            score = self.evaluate(network, "validation", macs=counts.macs)
            if not math.isfinite(score.loss):
                raise TrainingDiverged(
                    f"the validation loss is {score.loss} after {self._prefix}{label}, epoch {epoch}, at learning rate "
                    f"{rate:g}; a lower rate may help"
                )
            seconds = self._clock() - started
            images = len(self._dataset.splits["train"])
            record = {
                "epoch": epoch,
                "loss": loss,
                "train_accuracy": accuracy,
                "validation_accuracy": score.accuracy,
                "validation_loss": score.loss,
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
                on_epoch(record)
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

    def evaluate(self, network: Network, split: SplitName, *, macs: int | None = None) -> Score:
        """Accuracy and loss on a split, in eval mode, without gradients, on the logits.

        `macs`: of the network, if the caller knows them (only the progress needs them).
        """
        macs = count(network).macs if macs is None else macs
        network.to(self._device)
        network.eval()
        loss, correct = 0.0, 0
        with torch.inference_mode():
            for images, labels in self._dataset.batches(split, inference_batch(network), device=self._device):
                logits = class_logits(network, images_channels_last(images, self._dataset.options.layout))
                loss += functional.cross_entropy(logits, labels, reduction="sum").item()
                correct += int((logits.argmax(1) == labels).sum())
                self._progress.advance(len(labels) * macs / self._original_macs)
        images_in_all = len(self._dataset.splits[split])
        return Score(correct / images_in_all, loss / images_in_all, images_in_all)

    def recalibrate(self, network: Network, *, label: str) -> int:
        """BatchNorm statistics from `sample`."""
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

    def resumed(self, cost: Cost) -> None:
        """See `TrainerPort.resumed`."""
        self._progress.credit(cost.seconds)
        self.budget.spent += cost.epochs

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
        on_batch: Callable[[Network], None] | None,
    ) -> tuple[float, float, float, dict[str, float]]:
        """One epoch. Returns the rate at its first batch, and averaged over it as it went loss, accuracy, and what each
        of `extras` added to the loss of a batch of images."""
        seed = derived_seed(self._seed, label)
        torch.manual_seed(derived_seed(seed, f"dropout/{epoch}"))
        steps = self._dataset.batch_count("train", training.batch_size)
        losses = torch.zeros(steps, device=self._device)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)
        correct = torch.zeros((), dtype=torch.int64, device=self._device)
        added = {name: torch.zeros_like(loss_sum) for name in extras}
        rates: list[float] = []
        layout = self._dataset.options.layout
        batches = self._dataset.batches(
            "train",
            training.batch_size,
            epoch=epoch,
            seed=seed,
            shuffle=True,
            augment=training.augment,
            device=self._device,
        )
        for step, (images, labels) in enumerate(batches):
            place = Place((epoch - 1) * steps + step, steps, epochs, records)
            rates.append(stepping.begin(rate_factor(training, place), momentum_at(training.schedule, place)))
            mix = mixed(images, labels, training.augment, seed=derived_seed(seed, f"mix/{epoch}/{step}"), layout=layout)
            images = images_channels_last(mix.images if mix else images, layout)
            logits = class_logits(network, images)
            loss = training_loss(logits, labels, training, mix=mix, teacher=self._answers(images, training))
            for name, extra in extras.items():
                loss = loss + (more := extra(images))
                added[name] += more.detach().double() * len(labels)
            losses[step] = loss.detach()
            # every loss is looked at, but on an accelerator not one by one: that would wait for it at each step
            if self._device.type == "cpu" or step % _LOSS_CHECK_STEPS == _LOSS_CHECK_STEPS - 1 or step == steps - 1:
                check_losses(losses[: step + 1], rates, label=self._prefix + label, epoch=epoch)
            stepping.end(loss)
            loss_sum += loss.detach().double() * len(labels)
            correct += (logits.detach().argmax(1) == labels).sum()
            if on_batch is not None:
                on_batch(network)
            self._progress.advance(TRAINING_PASSES * len(labels) * macs / self._original_macs)
        images_in_all = len(self._dataset.splits["train"])
        parts = {name: total.item() / images_in_all for name, total in added.items()}
        return rates[0], loss_sum.item() / images_in_all, correct.item() / images_in_all, parts

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
                self._asked().through = Forward(training, self._device)
            return Forward(training, self._device, failed=failed), {}
        teacher = self._asked()
        found = matches(teacher, network, [*self.plan, *plan])
        ours = Forward(training, self._device, keep=list(found), failed=failed)
        teacher.through = theirs = Forward(training, self._device, keep=list(found))
        matching = FeatureMatching(found, ours, theirs, teacher.logits)
        return ours, {"features": lambda images: weight * matching.loss(images)}

    def _asked(self) -> Network:
        """The teacher, in evaluation mode on the device."""
        if self._teacher is None:
            if self._original is None:
                raise ValueError("distill needs a teacher")
            self._teacher = self._original.clone().to(self._device).eval()
            to_channels_last(self._teacher)
        return self._teacher

    def _answers(self, images: torch.Tensor, training: Training) -> torch.Tensor | None:
        """The teacher's logits, where the training wants them."""
        if not distils(training):
            return None
        with torch.no_grad():
            return class_logits(self._asked(), images)


def class_logits(network: Network, images: torch.Tensor) -> torch.Tensor:
    """The first output in front of a final Softmax, for model input `images` (B, ...), as (B, classes).

    Raises `RecipeInvalid` where a batch is too small for a BatchNorm in training mode.
    """
    try:
        outputs = network.logits(images)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        fault = Fault(
            "/training/batch_size",
            f"a batch of {len(images)} image(s) leaves BatchNorm one value per channel",
            "a batch_size of at least 2, and at least 2 training images",
        )
        raise RecipeInvalid("batches are too small for the network's BatchNorm", faults=[fault]) from None
    logits: torch.Tensor = outputs[0] if isinstance(outputs, tuple | list) else outputs
    return logits.flatten(1)  # (B, classes, 1, 1) where the network ends in a convolution


def _epochs_since_best(records: Sequence[dict[str, Any]]) -> int:
    best, score = 0, None
    for record in records:
        found = Score(record["validation_accuracy"], record["validation_loss"], 1)
        if score is None or found.better_than(score):
            best, score = record["epoch"], found
    return len(records) - best


def _score_of(best: dict[str, Any], images: int) -> Score:
    return Score(best["accuracy"], best["loss"], images)
