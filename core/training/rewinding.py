"""Setting weights back before a whole fine-tuning (`FineTune.rewind`).

Velici 2022, figure 2.3: pruning takes away what training has shown to matter less, and the weights that remain may be
those of the moment, those of the trained network (Hu et al. 2016), or those that its training began with (Frankle &
Carbin 2019). BatchNorm statistics are measured afresh by the caller: those of the source are of a larger network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.graph.network import Network
from core.graph.plans import replay
from core.training.memory_format import to_channels_last
from core.training_settings import Rewind


@dataclass(frozen=True)
class Origins:
    """What a step can go back to.

    Attributes:
        trained: the network that the step was given.
        initial: gives the one that the recipe's steps began with, without what steps before this one have removed;
            None: it is the same.
    """

    trained: Network
    initial: Callable[[], Network] | None = None

    def set_back(self, network: Network, rewind: Rewind, plan: Sequence[Mapping[str, Any]]) -> None:
        """Gives `network`, in place, the weights and statistics that `rewind` says, those that `plan` has left of them.

        plan: of the step so far; replayable on both. Raises `CutRefused` where it does not lead to `network`.
        """
        source = self.trained if rewind == "trained" or self.initial is None else self.initial()
        network.load_state_dict(replay(source, plan).state_dict())
        to_channels_last(network)  # the same bits of what follows, however often the job was resumed
