"""The union of ids against a plain union-find."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from core.graph.ids import components


def plainly(count: int, edges: list[tuple[int, int]]) -> list[int]:
    labels = list(range(count))
    for a, b in edges:
        old, new = max(labels[a], labels[b]), min(labels[a], labels[b])
        labels = [new if label == old else label for label in labels]
    return labels


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_components_are_those_of_a_plain_union_find(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 30))
    ids = st.integers(0, count - 1)
    edges = data.draw(st.lists(st.tuples(ids, ids), max_size=40))
    left, right = np.array([a for a, _ in edges], dtype=np.int64), np.array([b for _, b in edges], dtype=np.int64)
    assert components(count, [left], [right]).tolist() == plainly(count, edges)


def test_a_long_chain_is_one_class() -> None:
    count = 100_000
    order = np.random.default_rng(0).permutation(count)
    assert not components(count, [order[:-1]], [order[1:]]).any()


def test_no_edges_no_unions() -> None:
    assert components(3, [], []).tolist() == [0, 1, 2]
