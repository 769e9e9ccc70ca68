"""The saliency of blocks by the gradient of the loss (van Amersfoort et al. 2020; Velici 2022, section 3.3.2).

    y = shortcut(x) + m_i · H_i(x)        m_i = 1, a number, of each block i
    g_i = ∂loss / ∂m_i,   s_i = |g_i|     loss: the mean over the images

Differs from the paper: units are blocks, as in the thesis; the network is in evaluation mode; the loss is the task's
own, without label smoothing and distillation. The images are the first `batches` minibatches, of the recipe's size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from core.blocks.scoring_work import BACKWARD
from core.graph.network import Network
from core.saliency.block_values import NodeByNode, finite, residual_path
from core.training.memory_format import images_channels_last

if TYPE_CHECKING:
    from core.saliency.block_scores import Scoring


def block_gradient(scoring: Scoring) -> dict[str, float]:
    """|∂loss/∂m| of each candidate."""
    return {name: abs(gradient) for name, gradient in gradients(scoring).items()}


def block_gradient_max(scoring: Scoring) -> dict[str, float]:
    """−|∂loss/∂m|: the largest goes first. The negative control of figure 3.12."""
    return {name: -abs(gradient) for name, gradient in gradients(scoring).items()}


def gradients(scoring: Scoring) -> dict[str, float]:
    """∂loss/∂m of each candidate, by its name; 0 where the loss does not depend on it."""
    network, data, task = scoring.network.eval(), scoring.data, scoring.trainer.task
    training = scoring.trainer.training.model_copy(update={"label_smoothing": 0.0, "distill": None})
    device = next(network.parameters()).device
    masks = {}
    for candidate in scoring.candidates:
        (block,) = candidate.blocks
        masks[residual_path(network, block).name] = torch.ones((), device=device, requires_grad=True)
    total = torch.zeros(len(masks), dtype=torch.float64, device=device)
    seen = 0
    batches = data.batches(scoring.split, training.batch_size, device=device)
    with _masked(network, masks), _frozen(network), torch.enable_grad():
        for images, labels in islice(batches, scoring.batches):
            images = images_channels_last(images, data.options.layout)
            wanted = task.wanted(images, labels, training)
            loss, _ = task.loss(task.outputs(network, images), wanted, training)
            found = torch.autograd.grad(loss, list(masks.values()), allow_unused=True, materialize_grads=True)
            total += torch.stack(found).double() * len(labels)
            seen += len(labels)
            scoring.looked(BACKWARD * len(labels))
    names = [candidate.name for candidate in scoring.candidates]
    return finite(dict(zip(names, (total / seen).tolist(), strict=True)))


@contextmanager
def _masked(network: Network, masks: dict[str, Tensor]) -> Iterator[None]:
    """Meanwhile the values of the nodes called as in `masks` are multiplied by these."""

    def look(node: fx.Node, value: Tensor) -> Tensor:
        mask = masks.get(node.name)
        return value if mask is None else value * mask

    def through(module: fx.GraphModule, inputs: tuple[Tensor, ...]) -> Any:
        return NodeByNode(module, look).run(*inputs)

    before, network.through = network.through, through
    try:
        yield
    finally:
        network.through = before


@contextmanager
def _frozen(network: Network) -> Iterator[None]:
    """Meanwhile no parameter gets a gradient, and nothing is kept for one."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
