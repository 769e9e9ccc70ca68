"""The networks that `bench.blocks` prunes: one per seed, trained once, with what they were on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.blocks_rows import ORIGINAL, Study
from core.data.datasets import Dataset, load_dataset
from core.events import Emit
from core.graph.architectures import build
from core.graph.network import Network
from core.job import DatasetInput, DatasetOptions, Preprocess, Splits
from core.progress import Progress
from core.state import State
from core.training.trainer import Trainer
from core.training_settings import Training

DATA = Path(__file__).parent.parent / "data" / "fashion-mnist.npz"
PREPROCESS = Preprocess(mean=(0.286,), std=(0.353,))


def silent(name: str, /, **body: Any) -> None:
    pass


@dataclass
class Images:
    """Fashion-MNIST, or part of it: of `images` training images a tenth is the validation split, the same in all; as
    many test images at most."""

    images: int
    folder: Path

    @cached_property
    def whole(self) -> Dataset:
        return self._loaded(None)

    @cached_property
    def with_pruning(self) -> Dataset:
        """With a pruning split, as large as the validation split, held out of train."""
        return self._loaded(1 / 9)

    def _loaded(self, pruning: float | None) -> Dataset:
        path = self.folder / "data.npz"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            np.savez(path, allow_pickle=False, **part(self.images))
        options = DatasetOptions(preprocess=PREPROCESS, splits=Splits(pruning=pruning))
        return load_dataset(DatasetInput(path=path, sha256=None, format="npz", options=options))


def part(images: int) -> dict[str, np.ndarray[Any, Any]]:
    """So many training and test images, drawn by a fixed seed; the first tenth of the former is for validation."""
    if not DATA.exists():
        raise SystemExit("data/fashion-mnist.npz is missing: `make data` writes it")
    with np.load(DATA) as arrays:
        whole = {name: arrays[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    drawn = np.random.default_rng(0)
    chosen = drawn.permutation(len(whole["x_train"]))[:images]
    tested = np.sort(drawn.permutation(len(whole["x_test"]))[:images])
    first = images // 10
    return {
        "x_val": whole["x_train"][chosen[:first]], "y_val": whole["y_train"][chosen[:first]],
        "x_train": whole["x_train"][chosen[first:]], "y_train": whole["y_train"][chosen[first:]],
        "x_test": whole["x_test"][tested], "y_test": whole["y_test"][tested],
    }  # fmt: skip


@dataclass(frozen=True)
class Original:
    """A trained network. `weights`: of its best epoch; `checkpoints`: by the epochs done, 0 the random ones. Accuracies
    and errors are shares, 0-1."""

    seed: int
    weights: Mapping[str, Tensor]
    checkpoints: Mapping[int, Mapping[str, Tensor]]
    validation_accuracy: float
    test_error: float
    checkpoint_errors: Mapping[int, float]


def untrained(study: Study, seed: int) -> Network:
    size = (28, 28)
    return build(f"resnet{study.depth}", num_classes=10, in_channels=1, image_size=size, seed=seed).eval()


def original(
    study: Study, seed: int, data: Dataset, folder: Path, device: torch.device, on_epoch: Callable[[], None]
) -> Original:
    """Trains it, or goes on where an earlier attempt was stopped, or reads what there is in `folder`."""
    state = State.open(folder, fingerprint={"study": study.name, "seed": str(seed)}, emit=silent)
    if "weights" not in state:
        _train(study, seed, data, state, device, silent, on_epoch)
    return Original(
        seed,
        state["weights"],
        dict(state["checkpoints"]),
        state["validation_accuracy"],
        state["test_error"],
        dict(state["checkpoint_errors"]),
    )


def _train(
    study: Study,
    seed: int,
    data: Dataset,
    state: State,
    device: torch.device,
    emit: Emit,
    on_epoch: Callable[[], None],
) -> None:
    network = untrained(study, seed)
    training = Training.model_validate(ORIGINAL)
    trainer = Trainer(
        data, training=training, device=device, seed=seed, original_macs=1, emit=emit, progress=Progress(emit)
    )
    if "checkpoints" not in state:
        state.put(
            checkpoints={0: network.state_dict()}, checkpoint_errors={0: 1 - trainer.evaluate(network, "test").accuracy}
        )

    def look(record: dict[str, Any]) -> None:
        epoch = record["epoch"]
        if epoch in study.checkpoints:
            network.eval()
            error = 1 - trainer.evaluate(network, "test").accuracy
            state.put(
                checkpoints={**state["checkpoints"], epoch: network.state_dict()},
                checkpoint_errors={**state["checkpoint_errors"], epoch: error},
            )
        on_epoch()

    fit = trainer.fit(
        network,
        training=training,
        epochs=study.original_epochs,
        label="train",
        state=state.scope("fit"),
        on_epoch=look,
    )
    assert fit.score is not None
    state.drop("fit")
    state.save(
        weights=network.state_dict(),
        validation_accuracy=fit.score.accuracy,
        test_error=1 - trainer.evaluate(network, "test").accuracy,
    )
