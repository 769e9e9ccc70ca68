"""The saliency of blocks by linear probes: discrimination-based block pruning (DBP, Wang et al. 2019), as Velici 2022,
section 3.8 describes it.

    p_i = softmax(W_i ȳ_i + b_i)        ȳ_i (B, C_i): what block i gives, averaged over places; W_i (classes, C_i)
    A_i: accuracy of p_i on the images that blocks are scored on
    s_i = A_i − A_{i−1}

y_0 is what the first block reads. The network is frozen and in evaluation mode; each probe minimises its own
cross-entropy over train, not augmented, for three epochs at rates 0.1, 0.01 and 0.001, all in the same passes.

The paper leaves open what we had to choose: weights begin at zero, so that nothing but the order of the images is
drawn; SGD without weight decay or Nesterov's momentum. Block i − 1 is the one in front in execution order, whether it
may go or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx
from torch.nn import functional

from core.batch_size import inference_batch
from core.data.source import SplitName
from core.graph.blocks import find_blocks, innermost_residual
from core.saliency.block_values import NodeByNode, node_of, output_of
from core.training.memory_format import images_channels_last
from core.training.seeds import derived_seed
from core.training_settings import Sgd

if TYPE_CHECKING:
    from core.saliency.block_scores import Scoring

RATES = (0.1, 0.01, 0.001)
"""Learning rate of each epoch."""


def linear_probe(scoring: Scoring) -> dict[str, float]:
    """What each candidate adds to the accuracy of a linear classifier."""
    network = scoring.network.eval()
    blocks = innermost_residual(find_blocks(network))
    places = [node_of(network, blocks[0].entry), *(output_of(network, block) for block in blocks)]
    accuracies = _accuracies(scoring, places)
    gained = {block.own: after - before for block, (before, after) in zip(blocks, pairwise(accuracies), strict=True)}
    return {candidate.name: gained[candidate.blocks[0].own] for candidate in scoring.candidates}


def _accuracies(scoring: Scoring, places: Sequence[fx.Node]) -> list[float]:
    """Of a probe at each of `places`, once trained."""
    optimizer = scoring.trainer.training.optimizer
    momentum = optimizer.momentum if isinstance(optimizer, Sgd) else Sgd().momentum
    device = next(scoring.network.parameters()).device
    classes = len(scoring.data.classes)
    weights = [torch.zeros(classes, node.meta["shape"][1], device=device, requires_grad=True) for node in places]
    biases = [torch.zeros(classes, device=device, requires_grad=True) for _ in places]
    descent = torch.optim.SGD([*weights, *biases], lr=RATES[0], momentum=momentum)

    def said(features: Sequence[Tensor]) -> list[Tensor]:
        return [functional.linear(*each) for each in zip(features, weights, biases, strict=True)]

    for epoch, rate in enumerate(RATES):
        for group in descent.param_groups:
            group["lr"] = rate
        for features, labels in _features(scoring, places, "train", scoring.trainer.training.batch_size, epoch):
            losses = [functional.cross_entropy(logits, labels) for logits in said(features)]
            descent.zero_grad()
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            descent.step()
    right, images = torch.zeros(len(places), dtype=torch.int64, device=device), 0
    with torch.no_grad():
        for features, labels in _features(scoring, places, scoring.split, inference_batch(scoring.network)):
            right += (torch.stack(said(features)).argmax(2) == labels).sum(1)
            images += len(labels)
    return [count / images for count in right.tolist()]


def _features(
    scoring: Scoring, places: Sequence[fx.Node], split: SplitName, batch_size: int, epoch: int | None = None
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Per batch of a split what `places` give, averaged over all but images and channels, (B, C) each, and the labels
    (B,). epoch: of a training, whose order is drawn; None: in order."""
    network, data = scoring.network, scoring.data
    found: dict[fx.Node, Tensor] = {}

    def look(node: fx.Node, value: Tensor) -> Tensor:
        if node in wanted:
            found[node] = value.flatten(2).mean(2) if value.dim() > 2 else value
        return value

    wanted = set(places)
    run = NodeByNode(network.module, look)
    batches = data.batches(
        split,
        batch_size,
        epoch=epoch or 0,
        seed=derived_seed(scoring.seed, "linear probe"),
        shuffle=epoch is not None,
        device=next(network.parameters()).device,
    )
    for images, labels in batches:
        with torch.no_grad():
            run.run(images_channels_last(images, data.options.layout))
        yield [found[node] for node in places], labels
        scoring.looked(len(labels))
