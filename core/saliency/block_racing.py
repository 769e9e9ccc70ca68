"""Racing: candidates that are clearly worse than the best are dropped after part of the images (Maron & Moore 1993).

Of two candidates i and j let m be the images seen on which exactly one of them is wrong, and d the errors that i has
more than j, −m ≤ d ≤ m. If i made no more errors than j on all images, then by Hoeffding's inequality

    P(d > √(2 m ln(1/δ))) ≤ δ        for images in random order, drawn without replacement (Hoeffding 1963, section 6)

so i is surely worse than j where d is larger. It is dropped where it is surely worse than k others, k being how many
must be kept. That one of the k best is ever dropped has a probability of at most 1 − confidence, with
δ = (1 − confidence) / (k · (candidates − 1) · looks).

Differs from Maron & Moore: differences of pairs are bounded, not each mean, and only where a pair differs; theirs would
be √(2 n ln(1/δ)) for n images seen. δ is shared out over pairs and looks.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from core.block_settings import Racing


class Race:
    """A race between candidates.

    Args:
        names: of the candidates.
        keep: how many of the best must not be dropped.
        ends: how many images have been seen after each batch, the last being all. Candidates are dropped after those
            batches with which `racing.first` of all images are seen, except the last.

    Attributes:
        running: who has not been dropped.
    """

    def __init__(self, names: Collection[str], racing: Racing, *, keep: int, ends: Sequence[int]) -> None:
        self._names = list(names)
        self._keep = keep
        self._looks = {end for end in ends[:-1] if end >= racing.first * ends[-1]}
        chances = max(1, keep * (len(self._names) - 1) * len(self._looks))
        self._log = math.log(chances / (1 - racing.confidence))
        self._images = 0
        self._more = torch.zeros(len(self._names), len(self._names), dtype=torch.int64)
        self._dropped: list[tuple[str, dict[str, float]]] = []
        self.running = tuple(self._names)

    def seen(self, wrong: Mapping[str, Tensor]) -> None:
        """The next batch: of each one running, which images it told wrong, bool (B,)."""
        places = [self._names.index(name) for name in self.running]
        rows = torch.stack([wrong[name] for name in self.running]).cpu().double()  # (running, B)
        self._more[torch.tensor(places)[:, None], torch.tensor(places)] += (rows @ (1 - rows).T).long()
        self._images += rows.shape[1]
        if self._images in self._looks:
            self._drop(places)

    def errors(self, finished: Mapping[str, float]) -> dict[str, float]:
        """The error of each candidate: of those running as they `finished`; of one that was dropped the most that it
        makes with any of the k that were best then, whose difference it had to them. So none of it is among the k
        least."""
        found = dict(finished)
        for name, behind in reversed(self._dropped):
            found[name] = max(found[other] + gap for other, gap in behind.items())
        return {name: found[name] for name in self._names}

    def _drop(self, places: list[int]) -> None:
        more = self._more[places][:, places]  # (running, running): images that only the first one told wrong
        gaps, differ = more - more.T, more + more.T
        surely_worse = gaps > (2 * differ * self._log).sqrt()
        dropped = surely_worse.sum(1) >= self._keep
        # fewest errors first: those against any one candidate order them
        best = sorted(range(len(places)), key=lambda index: int(gaps[index, 0]))[: self._keep]
        names = self.running
        for index in torch.nonzero(dropped).flatten().tolist():
            behind = {names[other]: int(gaps[index, other]) / self._images for other in best}
            self._dropped.append((names[index], behind))
        self.running = tuple(name for name, gone in zip(names, dropped.tolist(), strict=True) if not gone)
