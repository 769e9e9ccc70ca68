"""onnx's own backend node tests, for every operator on the list: each passes, or is skipped for a listed reason.

The counts are those of `docs/results/onnx-node-tests.md`, which `python -m bench.onnx_node_tests` writes: what is newly
skipped, passed or failed shows here as a page that is out of date.
"""

from __future__ import annotations

from functools import lru_cache

import pytest

from bench.onnx_node_tests import FOLDED, PAGE, REASONS, Result, listed, page, run
from core.graph.operators import READERS


@lru_cache(maxsize=1)
def results() -> tuple[Result, ...]:
    return tuple(run(test) for test in listed())


@pytest.mark.parametrize("operator", sorted({*READERS, *FOLDED}))
def test_every_case_of_the_operator_passes_or_is_skipped_for_a_listed_reason(operator: str) -> None:
    own = [result for result in results() if result.test.operator == operator]
    assert {result.test.name: result.failed for result in own if result.failed} == {}
    assert {result.reason for result in own} <= {None, *REASONS}


def test_the_counts_are_those_of_the_page() -> None:
    assert page(results()) == PAGE.read_text(), "run: python -m bench.onnx_node_tests"
