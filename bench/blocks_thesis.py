"""The lines of the page's tables: rows of `bench.blocks` beside the thesis' numbers for ResNet-110 on CIFAR-10.

Numbers are test errors in %, with ± standard error where the thesis gives it, and costs in million epoch-parameters.
Where only a figure shows them, the figure is named.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.blocks_rows import NOISES, SALIENCIES, THRESHOLDS, Study, fade_epochs


@dataclass(frozen=True)
class Line:
    """`half`, `most`: the row whose error is told at that size; None: none. `thesis_*`: error and cost, as printed."""

    told: str
    half: str | None
    most: str | None
    thesis_half: str = "–"
    thesis_most: str = "–"


@dataclass(frozen=True)
class Section:
    heading: str
    told: str
    lines: tuple[Line, ...]


def sections(study: Study) -> list[Section]:
    return [
        _saliencies(),
        _rescored(),
        _schedules(study),
        _phased(study),
        _structures(),
        _checkpoints(study),
        _scratch(study),
        _details(),
    ]


def _saliencies() -> Section:
    figures = {"oracle": "6.73 ± 0.15, cost 158.9 (table 4.1)", "activation_change": "6.84, cost 177.8 (table 3.3)",
               "linear_probe": "6.75 (DBP, three fine-tunings of about 100 epochs; table 3.7)",
               "block_gradient_max": "figure 3.12: far above the others"}  # fmt: skip
    return Section(
        "Saliencies, with four fine-tunings",
        "Section 3.3.4, figures 3.11 and 3.12.",
        tuple(
            Line(f"`{name}`", f"loops-4/{name}/half", None, figures.get(name, "figure 3.11: within their errors"))
            for name in SALIENCIES
        ),
    )


def _rescored() -> Section:
    return Section(
        "The oracle scored less often, equalised, or on other images; no fine-tuning",
        "Sections 3.3, 3.7 and 4.3, figures 3.5, 3.28 and 4.5a; one run each passes both sizes.",
        (
            Line("scored every round", "none/oracle", "none/oracle", "figure 3.5", "figure 3.5"),
            Line("every 2", "none/oracle-every-2", "none/oracle-every-2", "figure 3.5: as every round",
                 "figure 3.5: a little worse"),
            Line("every 4", "none/oracle-every-4", "none/oracle-every-4", "figure 3.5: almost as every round",
                 "figure 3.5: a little worse"),
            Line("once", "none/oracle-once", "none/oracle-once", "figure 3.5: worse", "figure 3.5: far worse"),
            Line("equalised groups", "none/oracle-equalised", "none/oracle-equalised", "figure 4.5a: slightly worse",
                 "figure 4.5a: slightly worse"),
            Line("on the pruning split", "none/oracle-pruning-split", "none/oracle-pruning-split",
                 "figure 3.28: no difference", "figure 3.28: no difference"),
        ),
    )  # fmt: skip


def _schedules(study: Study) -> Section:
    thresholds = {
        0.1: ("6.69 ± 0.21, cost 64.9", "8.17 ± 0.23, cost 130"),
        0.05: ("6.82 ± 0.30, cost 73.5", "8.03 ± 0.13, cost 161.3"),
        0.01: ("6.48 ± 0.09, cost 264.7 (table 3.6)", "7.97 ± 0.25, cost 523.5 (table 3.6)"),
    }
    return Section(
        "When there is a fine-tuning",
        "Sections 3.5.3 to 3.5.5, 3.6.1 and 4.1, tables 3.3, 3.6 and 4.1. The thesis' thresholds are continued runs "
        "with a fine-tuning forced at half; ours are runs of their own."
        + (" Low 3 is as long as a whole fine-tuning here." if study.epochs == 3 else ""),
        (
            Line("once", "once/half", "once/most", "6.95 ± 0.15, cost 35.6", "10.56 ± 0.55, cost 7.4"),
            Line("two", "loops-2/half", "loops-2/most", "6.66 at 25 of 54, cost 59.8 (table 3.3)", "figure 3.21"),
            Line("four", "loops-4/oracle/half", "loops-4/oracle/most", "6.73 ± 0.15, cost 158.9",
                 "9.24 ± 0.27, cost 112"),
            Line("every 2", "every-2/half", "every-2/most", "6.66 ± 0.06, cost 400.4", "8.20 ± 0.16, cost 623.4"),
            *(Line(f"threshold {value}", f"threshold-{value}/half", f"threshold-{value}/most", *thresholds[value])
              for value in THRESHOLDS),
            Line("low 1, then once", "low-1/half", "low-1/most", "6.50, cost 81.4", "8.06, cost 61.4"),
            Line("low 3, then once", "low-3/half", "low-3/most", "6.78, cost 120.7", "8.03, cost 160.1"),
            Line("every 2, constant rate 0.001", None, "every-2-constant-rate/most", "–",
                 "9.46, cost 802 (table 3.4); figure 3.25"),
        ),
    )  # fmt: skip


def _phased(study: Study) -> Section:
    short, half = fade_epochs(study)
    whole = study.epochs
    return Section(
        "Fading",
        "Section 4.2, tables 4.2 (10 epochs in all, no standard errors), 4.3 (50) and 4.4 (50, a threshold of 0.01). "
        f"S epochs of fading and {whole} - S of fine-tuning after each round, or when they are due.",
        (
            Line("simple", "every/most", "every/most", "6.76 ± 0.06 (50); 7.27 (10)", "9.28 ± 0.15 (50); 10.38 (10)"),
            Line(f"S = {short}", "fade-short/most", "fade-short/most", "6.80 ± 0.05 (S = 10 of 50); 7.18 (1 of 10)",
                 "9.08 ± 0.08 (S = 10 of 50); 10.19 (1 of 10)"),
            Line(f"S = {half}", "fade-half/most", "fade-half/most", "7.24 (5 of 10)", "10.47 (5 of 10)"),
            Line(f"stochastic, S = {half}", "fade-stochastic/most", "fade-stochastic/most", "future work",
                 "future work"),
            Line(f"lazy, S = {half}, threshold 0.01", None, "fade-lazy/most", "6.91 ± 0.07 (S = 10 of 50)",
                 "9.30 ± 0.10 (S = 10 of 50)"),
            Line("simple, threshold 0.01", None, "threshold-0.01/most", "6.94 ± 0.05", "9.12 ± 0.05"),
        ),
    )  # fmt: skip


def _structures() -> Section:
    return Section(
        "Equalised groups, replacement, soft pruning",
        "Sections 4.3 and 4.5, figures 4.5b and 4.7. Replacement: k = 2, low 1 where the thesis has low 3. Soft: as "
        "many epochs as a fine-tuning has, then a fine-tuning; beside it one fine-tuning of as many epochs.",
        (
            Line("equalised, fading as above", "equalised/most", "equalised/most", "figure 4.5b: as a free choice",
                 "figure 4.5b: as a free choice"),
            Line("replaced by random weights", "replace-random/half", "replace-random/most",
                 "figure 4.7: within 0.2 of the others", "figure 4.7"),
            Line("replaced by zeros", "replace-zero/half", "replace-zero/most", "figure 4.7", "figure 4.7"),
            Line("soft", "soft/half", None, "future work"),
            Line("once, twice as long", "once-twice-as-long/half", None),
        ),
    )  # fmt: skip


def _checkpoints(study: Study) -> Section:
    thesis = (
        ("7.80", "13.77"),
        ("6.73", "9.25"),
        ("6.67 (30)", "8.67 (30)"),
        ("6.76 (250)", "9.45 (250)"),
        ("7.14 (450)", "9.88 (450)"),
    )
    lines = [
        Line(f"{epoch} of {study.original_epochs} epochs" if epoch else "random weights", f"checkpoint-{epoch}/half",
             f"checkpoint-{epoch}/most", *numbers)
        for epoch, numbers in zip(study.checkpoints, thesis, strict=True)
    ]  # fmt: skip
    return Section(
        "Checkpoints of the original's training, one total budget",
        f"Section 4.4, table 4.5 (one run each; the epoch in brackets, of 500). {study.original_epochs} epochs in all, "
        "the original's before the checkpoint included; costs are of the fine-tuning alone.",
        (*lines, Line("trained, once", "once/half", "once/most", "6.95", "10.56")),
    )


def _scratch(study: Study) -> Section:
    return Section(
        "Against training from scratch",
        f"Section 3.5.2, figure 3.17: {study.long_epochs} epochs each, the thesis' 400.",
        (
            Line("pruned, one fine-tuning", "once-long/half", "once-long/most", "6.45, cost 279.0 (tables 3.3 and A.1)",
                 "8.66 (table 4.5)"),
            Line("the same structure from scratch", "scratch-same/half", "scratch-same/most",
                 "figure 3.17: the worst", "figure 3.17: the worst"),
            Line("the standard structure of that size from scratch", "scratch-standard/half", "scratch-standard/most",
                 "6.21 (table 4.5)", "7.54 (table 4.5)"),
        ),
    )  # fmt: skip


def _details() -> Section:
    noises = (
        Line(f"block_gradient, noise η = {eta}", f"noise-{eta}/half", None, "figure 3.27: 0.1 to 0.2 less")
        for eta in NOISES
    )
    return Section(
        "Scores on other images, noise, distillation, rewinding",
        "Sections 3.6, 3.7, 6.1.5 and 6.1.6; four fine-tunings, but for local training, which is low 1.",
        (
            Line("validation split", "loops-4/oracle/half", None, "6.73 ± 0.15"),
            Line("pruning split, held out", "pruning-split/half", None, "figure 3.29: worse"),
            Line("pruning split, trained on", "pruning-split-trained-on/half", None, "figure 3.30: as validation"),
            Line("block_gradient, no noise", "loops-4/block_gradient/half", None, "figure 3.27"),
            *noises,
            Line("classifier frozen", "freeze-classifier/half", None, "3.9: no improvement"),
            Line("distilled", "distill/half", None, "future work"),
            Line("rewound to the trained weights", "rewind-trained/half", None),
            Line("rewound to the initial weights", "rewind-initial/half", None),
            Line("low 1, everything trained", "low-1/half", None, "6.50, cost 81.4"),
            Line("low 1, trained near the removed block", "local/half", None, "future work"),
        ),
    )
