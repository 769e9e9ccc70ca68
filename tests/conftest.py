"""How the tests are dealt out where several processes run them (`make test`; `pytest -n`, of pytest-xdist)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SERVICES = frozenset({"api", "client", "e2e", "store", "worker"})
"""They start servers and workers, kill them and wait for them: one after the other."""

BY_NETWORK = frozenset({"core/graph/test_architectures.py", "zoo/test_subset.py"})
"""Long files whose tests are of one network each: those of a network go together. Of other files the whole does."""


def group_of(item: pytest.Item) -> str:
    """What goes to one process with this test."""
    place = item.path.relative_to(TESTS)
    if place.parts[0] in SERVICES:
        return "services"
    if place.as_posix() in BY_NETWORK:
        return f"{place.as_posix()} {item.name.partition('[')[2]}"
    return place.as_posix()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Before pytest-xdist looks, which is when all are there."""
    item.add_marker(pytest.mark.xdist_group(group_of(item)))


@pytest.fixture(scope="session", autouse=True)
def share_of_the_cores() -> Iterator[None]:
    """Each of several processes computes with its share of the cores."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(max(1, before // workers))
        yield
        torch.set_num_threads(before)
    else:
        yield
