"""To give back the image that was put in: autoencoders. No labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.errors import BaselineNearChance, Fault
from core.graph.network import Network
from core.job import Preprocess
from core.tasks.ssim import ssim
from core.tasks.task import Figures, OutputKind, bootstrap_difference, run
from core.training.mixing import Mixed
from core.training.port import Score
from core.training_settings import Training


class Reconstruction:
    """See `core.tasks.task.Task`. The first output is an image, of the shape of the input.

    Both are brought back to pixels of 0 to 1 by undoing the normalisation. accuracy: mean structural similarity (SSIM,
    Wang et al. 2004). loss: (1 − w)·L1 + w·(1 − SSIM), the weighted average of
    Gschoßmann 2021, section 4.2, w = `ssim_weight`. measures: `ssim`; `l1`, the mean absolute difference of pixels.
    """

    teacher = None

    def __init__(self, options: Preprocess, ssim_weight: float) -> None:
        self._options = options
        self._ssim_weight = ssim_weight

    def outputs(self, network: Network, images: Tensor) -> tuple[Tensor, ...]:
        return (self._pixels(run(network, images)[0]),)

    def wanted(self, images: Tensor, labels: Tensor, training: Training | None = None) -> tuple[Tensor, ...]:
        return (self._pixels(images),)

    def loss(
        self, outputs: tuple[Tensor, ...], wanted: tuple[Tensor, ...], training: Training, mix: Mixed | None = None
    ) -> tuple[Tensor, Figures]:
        difference, similarity = _compared(outputs[0], wanted[0])
        loss = self._weighed(difference, similarity).mean()
        return loss, {"ssim": similarity.detach().double()}

    def figures(self, outputs: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> Figures:
        """Each float64 (B,). ssim, l1: see the class. flat: l1 of the image's own mean colour in its place."""
        difference, similarity = _compared(outputs[0], wanted[0])
        flat = (wanted[0] - wanted[0].mean((2, 3), keepdim=True)).abs().mean((1, 2, 3))
        return {"ssim": similarity.double(), "l1": difference.double(), "flat": flat.double()}

    def accuracy(self, figures: Figures) -> float:
        return figures["ssim"].mean().item()

    def score(self, figures: Figures) -> Score:
        similarity, difference = figures["ssim"].mean().item(), figures["l1"].mean().item()
        loss = self._weighed(figures["l1"], figures["ssim"]).mean().item()
        return Score(similarity, loss, len(figures["ssim"]), {"ssim": similarity, "l1": difference})

    def of_file(self, outputs: Sequence[NDArray[np.float32]], kind: OutputKind, classes: int) -> tuple[Tensor, ...]:
        return (self._pixels(torch.from_numpy(outputs[0])),)

    def difference(self, ours: Figures, theirs: Figures) -> tuple[float, float, float]:
        return bootstrap_difference(self, ours, theirs)

    def doubt(self, figures: Figures) -> str | None:
        if figures["l1"].mean() < figures["flat"].mean():
            return None
        return "no better than the mean colour of each image"

    def check_original(self, figures: Figures) -> None:
        if self.doubt(figures) is None:
            return
        found, flat = figures["l1"].mean().item(), figures["flat"].mean().item()
        faults = [
            Fault("/preprocess", "the images may not be what the model was trained on",
                  "the training's own size, scale, mean, std, channels (RGB or BGR) and layout"),
            Fault("/recipe/allow_near_chance", "the job stops here unless the recipe says otherwise", "true, to go on"),
        ]  # fmt: skip
        raise BaselineNearChance(
            f"the original's images differ from the given ones by {found:.4f} a pixel (of 0 to 1); their own mean "
            f"colour would differ by {flat:.4f}",
            faults=faults,
        )

    def _pixels(self, images: Tensor) -> Tensor:
        """Model input, in whatever layout, as (B, C, H, W) with 0 black and 1 white."""
        options = self._options
        images = images if options.layout == "NCHW" else images.permute(0, 3, 1, 2)
        mean, std = (
            torch.tensor(values, dtype=images.dtype, device=images.device).view(1, -1, 1, 1)
            for values in (options.mean, options.std)
        )
        return (images * std + mean) / (255 * options.scale)

    def _weighed(self, difference: Tensor, similarity: Tensor) -> Tensor:
        return (1 - self._ssim_weight) * difference + self._ssim_weight * (1 - similarity)


def _compared(said: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
    """Mean absolute difference and SSIM of each image, (B,) each."""
    return (said - given).abs().mean((1, 2, 3)), ssim(said, given)
