"""What a report tells of a step that removes blocks, as data (Velici 2022, sections 3.3 and 3.4). Torch-free;
`core.blocks.analysis` makes it.

A unit is what is scored and goes at once: a block, or with `replace` neighbours, named a+b. Blocks have the names that
they had in the network that the step was given.
"""

from __future__ import annotations

from pydantic import Field

from core.records import Number, Record


class BlockRound(Record):
    """One round. Accuracies are on validation, 0-1; null: not measured."""

    round: int
    scores: dict[str, Number] = Field(
        description="that the round went by, of each unit that could go; the lowest goes first. With equalise those "
        "of groups whose turn it was not may be missing"
    )
    scored_after: int = Field(
        description="rounds that were done when it was scored; fewer than round - 1: these scores are of an earlier, "
        "larger network"
    )
    removed: list[str] = Field(description="units, in the order in which they went")
    group: str | None = Field(None, description="whose turn it was, with equalise")
    left: dict[str, int] = Field(description="blocks of each group, afterwards")
    params: int = Field(description="afterwards")
    accuracy_before: Number | None = Field(description="in front of the round, as trained until then")
    accuracy_cut: Number | None = Field(description="without what it removed, once that has faded, not fine-tuned")
    accuracy_tuned: Number | None = Field(None, description="after the fine-tuning that followed; null: none did")
    epochs: int = Field(0, description="of the fine-tuning that followed")
    whole: bool = Field(False, description="that one was a whole fine-tuning, not one of the few epochs of `low`")


class BlockHistory(Record):
    """What a step that removes blocks did, round by round, those rounds included that a guard took back."""

    saliency: str = ""
    blocks: dict[str, str] = Field({}, description="group of each block that may go, in execution order")
    params: int = Field(0, description="of the network that the step was given")
    accuracy: Number | None = Field(None, description="on validation, of that network")
    rounds: list[BlockRound] = Field(default=[])


class BlockRanking(Record):
    """What was removed, in order, then what is left by score, the lowest first. Kendall's tau-b goes over the units
    that are in both rankings; units of equal score are tied; null: nothing to compare."""

    removed: int = Field(description="how many units were removed then: the first so many of the ranking")
    units: list[str]
    tau_previous: Number | None = Field(description="against the ranking before this one")
    tau_final: Number | None = Field(description="against that at the end of the step (section 3.3.1)")


class BlockAgreement(Record):
    """Of two runs, both with `removed` units gone. tau: Kendall's tau-b."""

    removed: int
    overlap: Number | None = Field(description="share of the removed units that both have removed; null of none")
    tau: Number | None = Field(description="of the rankings")
    tau_order: Number | None = Field(
        description="of the order of removal alone, over the units that both have removed by then (section 3.4)"
    )


class BlockComparison(Record):
    """How alike two runs chose (section 3.3.1), at each number of removed units that both had a ranking at."""

    with_run: str
    agreements: list[BlockAgreement]


class BlockAnalysis(BlockHistory):
    """A step that removes blocks: its rounds, and what they say together."""

    step: int
    run: str = Field(description="pruned; or random, the control")
    rounds_kept: int = Field(description="fewer than there are: a guard took the others back")
    order: list[str] = Field(description="units in the order in which they were removed")
    rankings: list[BlockRanking] = Field(description="in front of each round, and at the end by the last scores")
    fine_tunings: int = Field(description="whole ones, with an accuracy before and after")
    correlation: Number | None = Field(
        description="Pearson's, of validation accuracy before and after those (section 3.3.3); null: fewer than three, "
        "or all alike"
    )
    comparison: BlockComparison | None = Field(None, description="with the control random, where that ran")
