"""Values whose batch is not in front, or not alone in its dimension: what attention blocks make of images for a moment.

The canonical graph keeps the batch in front, so that such a value is no node of it: what reads it reads the node that
it is made of, until the batch is in front again.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

Place = int | tuple[int, ...]


@dataclass(frozen=True)
class Turned:
    """Dimension i of the value is dimension `order[i]` of `node`. Of the dimension with the batch, dimension 0 of
    `node`, it may be several: heads are folded into the batch, or the batch into rows, the first counting slowest."""

    node: fx.Node
    order: tuple[Place, ...]

    @property
    def plain(self) -> bool:
        """Whether it is the node as it is."""
        return self.order == tuple(range(len(self.order)))

    @property
    def batch(self) -> int:
        """Which dimension of the value holds the batch."""
        return next(axis for axis in range(len(self.order)) if self.dim(axis) == 0)

    def dim(self, axis: int) -> int:
        """The dimension of the node that `axis` of the value is; 0 where the batch is in it."""
        place = self.order[axis]
        return place if isinstance(place, int) else 0

    def dims(self, axis: int) -> tuple[int, ...]:
        """All dimensions of the node that `axis` of the value is."""
        place = self.order[axis]
        return (place,) if isinstance(place, int) else place

    def without(self, axes: set[int]) -> tuple[Place, ...]:
        """The order once the dimensions `axes` of the value, not the batch's, are gone from the node too."""
        gone = [self.dim(axis) for axis in axes]

        def counted(dim: int) -> int:
            return dim - sum(other < dim for other in gone)

        left = [place for axis, place in enumerate(self.order) if axis not in axes]
        return tuple(counted(place) if isinstance(place, int) else tuple(map(counted, place)) for place in left)


@dataclass(frozen=True)
class Layout:
    """Where the batch lies in a value whose node has its dimensions in order: the batch, then the `before` that are in
    front of it in the value, then those that are folded into it (`left` count slower than it, `right` faster), then
    the others."""

    before: int = 0
    left: int = 0
    right: int = 0

    def of(self, node: fx.Node) -> Turned:
        first, last = self.before + 1, self.before + 1 + self.left + self.right
        group = (*range(first, first + self.left), 0, *range(first + self.left, last))
        batch: Place = group if len(group) > 1 else 0
        return Turned(node, (*range(1, first), batch, *range(last, len(node.meta["shape"]))))


def laid_out(value: Turned) -> tuple[list[int], Layout]:
    """The order in which the node's dimensions are those of a `Layout`, and that layout."""
    place = value.batch
    group = value.dims(place)
    at = group.index(0)
    dims = [dim for axis in range(len(value.order)) for dim in value.dims(axis)]
    dims.remove(0)
    return [0, *dims], Layout(place, at, len(group) - at - 1)
