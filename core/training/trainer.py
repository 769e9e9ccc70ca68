"""The trainer: SGD on cross-entropy over a dataset in memory, resumable at every epoch.

On the CPU a training that was stopped at any point and resumed from its last checkpoint ends in the same bits as one
that was not: order, augmentation and dropout of an epoch are drawn from (seed, label, epoch) alone, and weights and
optimizer buffers come back in the same memory layout.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from core.training.classifier import classifier_layers
from core.training.losses import distils, training_loss
from core.training.memory_format import images_channels_last, to_channels_last
from core.training.mixing import mixed
from core.training.optimizers import build_optimizer, load_optimizer, set_rate
from core.training.port import FitResult, Score, SplitName, add_costs
from core.training.schedules import Place, momentum_at, rate_factor
from core.training.seeds import derived_seed
from core.training_settings import Training

CHECKPOINT_SECONDS = 10.0
CHECKPOINT_EPOCHS = 5
"""A checkpoint is written after the first epoch of a training, then once 10 s have passed or 5 epochs are done since
the last: at most that much is repeated after a crash. Neither changes a number."""

RECALIBRATION_BATCH = 128
RECALIBRATION_IMAGES = 2_048
_LOSS_CHECK_STEPS = 50


@dataclass
class _Fit:
    """A training that is under way: all that a checkpoint of it holds, besides weights and optimizer."""

    epochs: list[dict[str, Any]]
    best: dict[str, Any] | None  # {"epoch", "accuracy", "loss", "weights"}
    cost: Cost


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
    ) -> FitResult:
        """Trains `network` in place for `epochs` epochs; with `restore_best` (default: as `training` says) it is left
        with the weights of the epoch that was best on validation, else with the last ones.

        `state` is this training's own scope; if it holds an earlier attempt at the training called `label`, that is
        continued. `on_batch(network)` is called after every optimizer step, `on_epoch(record)` after every epoch before
        a checkpoint is written, so that what the caller puts into its state there belongs to the same moment.
        Emits `<label>/epoch/<n>`, n from 1, and `<label>/stopped` where `early_stop` ends it before its last epoch.

        Raises `TrainingDiverged` where the loss is NaN or infinite, `RecipeInvalid` where batches are too small for
        BatchNorm, or nothing is left to be trained.
        """
        restore_best = training.restore_best if restore_best is None else restore_best
        network.to(self._device)
        to_channels_last(network)
        frozen = _frozen(network, training)
        moving = [item for item in network.parameters() if not any(item is one for one in frozen)]
        if not moving:
            fault = Fault("/training/freeze", "the classifier is all that the network has", "none")
            raise RecipeInvalid("nothing is left to be trained", faults=[fault])
        optimizer = build_optimizer(training.optimizer, moving)
        fit = _Fit([], None, Cost())
        if state.get("label") == label:
            fit = _Fit(list(state["epochs"]), state["best"], Cost(**state["cost"]))
            network.load_state_dict(state["weights"])
            load_optimizer(optimizer, state["optimizer"])
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
            rate, loss, accuracy = self._train(
                network,
                optimizer,
                training,
                epoch=epoch,
                epochs=epochs,
                label=label,
                macs=counts.macs,
                records=fit.epochs,
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
            }
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
                state.save(
                    label=label,
                    epochs=fit.epochs,
                    best=fit.best,
                    cost=fit.cost.model_dump(),
                    weights=network.state_dict(),
                    optimizer=optimizer.state_dict(),
                )
                saved_at, saved_epoch = self._clock(), epoch
        network.eval()
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
        self._original, self._teacher = network.clone(), None

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
        passes = sum(epochs * per_epoch * macs / self._original_macs for epochs, macs in trainings)
        self._progress.expect(self._prefix + part, passes=passes)

    def resumed(self, cost: Cost) -> None:
        """See `TrainerPort.resumed`."""
        self._progress.credit(cost.seconds)

    def _train(
        self,
        network: Network,
        optimizer: torch.optim.Optimizer,
        training: Training,
        *,
        epoch: int,
        epochs: int,
        label: str,
        macs: int,
        records: Sequence[dict[str, Any]],
        on_batch: Callable[[Network], None] | None,
    ) -> tuple[float, float, float]:
        """One epoch. Returns the rate at its first batch, and loss and accuracy averaged over it as it went."""
        seed = derived_seed(self._seed, label)
        torch.manual_seed(derived_seed(seed, f"dropout/{epoch}"))
        network.train()
        steps = self._dataset.batch_count("train", training.batch_size)
        losses = torch.zeros(steps, device=self._device)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)
        correct = torch.zeros((), dtype=torch.int64, device=self._device)
        rates: list[float] = []
        layout = self._dataset.options.layout
        for parameter in (frozen := _frozen(network, training)):
            parameter.requires_grad_(False)  # no gradient, and so no part in what clip_norm measures
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
            rates.append(training.optimizer.lr * rate_factor(training, place))
            set_rate(optimizer, rates[-1], momentum_at(training.schedule, place))
            optimizer.zero_grad(set_to_none=True)
            mix = mixed(images, labels, training.augment, seed=derived_seed(seed, f"mix/{epoch}/{step}"), layout=layout)
            images = images_channels_last(mix.images if mix else images, layout)
            logits = class_logits(network, images)
            loss = training_loss(logits, labels, training, mix=mix, teacher=self._answers(images, training))
            losses[step] = loss.detach()
            # every loss is looked at, but on an accelerator not one by one: that would wait for it at each step
            if self._device.type == "cpu" or step % _LOSS_CHECK_STEPS == _LOSS_CHECK_STEPS - 1 or step == steps - 1:
                _check_losses(losses[: step + 1], rates, label=self._prefix + label, epoch=epoch)
            loss.backward()  # type: ignore[no-untyped-call]
            if training.clip_norm:
                torch.nn.utils.clip_grad_norm_(network.parameters(), training.clip_norm)
            optimizer.step()
            loss_sum += loss.detach().double() * len(labels)
            correct += (logits.detach().argmax(1) == labels).sum()
            if on_batch is not None:
                on_batch(network)
            self._progress.advance(TRAINING_PASSES * len(labels) * macs / self._original_macs)
        for parameter in frozen:
            parameter.requires_grad_(True)
        images_in_all = len(self._dataset.splits["train"])
        return rates[0], loss_sum.item() / images_in_all, correct.item() / images_in_all

    def _answers(self, images: torch.Tensor, training: Training) -> torch.Tensor | None:
        """The teacher's logits, where the training wants them."""
        if not distils(training):
            return None
        if self._teacher is None:
            if self._original is None:
                raise ValueError("distill needs a teacher")
            self._teacher = self._original.clone().to(self._device).eval()
            to_channels_last(self._teacher)
        with torch.no_grad():
            return class_logits(self._teacher, images)


def _frozen(network: Network, training: Training) -> list[torch.nn.Parameter]:
    """The parameters that `training` leaves alone."""
    if training.freeze == "none":
        return []
    layers = network.layers()
    return [item for name in classifier_layers(network) for item in layers[name].parameters()]


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


def _check_losses(losses: torch.Tensor, rates: list[float], *, label: str, epoch: int) -> None:
    finite = torch.isfinite(losses)
    if bool(finite.all()):
        return
    step = int((~finite).nonzero()[0])
    raise TrainingDiverged(
        f"the loss became {losses[step].item()} in {label}, epoch {epoch}, step {step + 1}, at learning rate "
        f"{rates[step]:g}; a lower rate may help"
    )


def _epochs_since_best(records: Sequence[dict[str, Any]]) -> int:
    best, score = 0, None
    for record in records:
        found = Score(record["validation_accuracy"], record["validation_loss"], 1)
        if score is None or found.better_than(score):
            best, score = record["epoch"], found
    return len(records) - best


def _score_of(best: dict[str, Any], images: int) -> Score:
    return Score(best["accuracy"], best["loss"], images)
