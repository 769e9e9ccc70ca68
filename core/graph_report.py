"""What a network is made of, as JSON: layers, channel groups, blocks, and what is frozen and why. Torch-free models.

`core/graph/description.py` fills them in; `GET /v1/models/{id}/graph` answers with the whole, a model's record holds
the totals. Shapes are those of one example (no batch), parameters are numbers that training may change, one
multiply-accumulate is one MAC, counted for one example.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from core.report import Frozen


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class GraphLayer(_Record):
    """A layer with parameters."""

    name: str
    kind: str = Field(description="Conv2d, Linear, BatchNorm2d, …", examples=["Conv2d"])
    input_shape: list[int] = Field(description="at its first use")
    output_shape: list[int]
    channels: int = Field(description="output channels")
    params: int
    macs: int = Field(description="of all its uses")
    groups: list[str] = Field(description="channel groups that its output channels are in")
    frozen: bool = Field(description="none of its output channels may be removed")


class GraphGroup(_Record):
    """Channels that are removed together: unit u from all of these layers at once."""

    name: str
    width: int = Field(description="units; where it cannot be cut, those that are frozen")
    unit_channels: int = Field(description="channels of the first producer in each unit")
    cuttable: bool
    always_kept: int = Field(description="further units of the same layers that are frozen")
    producers: list[str] = Field(description="layers that lose output channels")
    carriers: list[str] = Field(description="normalisations that lose them")
    consumers: list[str] = Field(description="layers that lose input channels")


class GraphBranch(_Record):
    """One branch of a block that ends in a concatenation."""

    name: str
    layers: list[str]
    params: int
    macs: int
    bypassable: bool = Field(description="whether it can be taken out")
    reason: str | None = Field(None, description="why it cannot")


class GraphBlock(_Record):
    """A residual block, a block of branches that end in a concatenation, or a plain layer between equal shapes.

    A residual block is bypassed as output = shortcut(input), a plain layer as output = input; branches go one by one.
    """

    name: str
    kind: Literal["residual", "branches", "layer"]
    position: int = Field(description="among those of its kind, in execution order, from 0")
    layers: list[str]
    removed: list[str] = Field(description="the layers that a bypass takes away: not those of a projection")
    params: int = Field(description="of what a bypass takes away; of branches, all of them together")
    macs: int
    input_shape: list[int]
    output_shape: list[int]
    shortcut: Literal["identity", "projection", "resampled"] | None = Field(
        None,
        description="of a residual block: the input itself, a path with weights, or one that only pools, pads, slices",
    )
    projection: bool = Field(description="whether the shortcut has weights")
    alike: str = Field(description="the first block with the same operators and shapes: the name of their group")
    inside: str | None = Field(None, description="the innermost block that it lies in")
    bypassable: bool
    reason: str | None = Field(None, description="why it cannot be bypassed")
    branches: list[GraphBranch] = []


class GraphTotals(_Record):
    """The counts. A parameter is free to go where a channel that it makes or reads may be removed."""

    params: int
    macs: int
    filters: int = Field(description="output channels of all convolutions")
    layers: int
    groups: int
    cuttable_groups: int
    residual_blocks: int
    branch_blocks: int
    plain_layers: int
    bypassable: int = Field(description="residual blocks, branches and plain layers that can be taken out, one by one")
    frozen: int = Field(description="operators that freeze channels")
    free_params: int
    free_params_share: float = Field(ge=0, le=1, description="of all parameters")
    conv_params: int
    free_conv_params_share: float = Field(ge=0, le=1, description="of the parameters of convolutions")


class NetworkGraph(_Record):
    version: Literal[1] = 1
    totals: GraphTotals
    layers: list[GraphLayer]
    groups: list[GraphGroup]
    blocks: list[GraphBlock]
    frozen: list[Frozen] = Field(description="operators that freeze channels, the layers that these are of, and why")
