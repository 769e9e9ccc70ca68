"""How the tests are dealt out where several processes run them (`make test`; `pytest -n`): file by file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3_server import S3, serving

TESTS = Path(__file__).parent
LONG = (
    "zoo/test_subset.py", "e2e/test_backends.py", "core/graph/test_architectures.py", "api/test_contract.py",
)  # fmt: skip
"""They begin first, so that no process is left alone with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.relative_to(TESTS).as_posix() not in LONG)


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


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    with serving() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """A real S3 server with an empty bucket, and the AWS_ variables that lead there."""
    s3_server.reset()
    for name, value in s3_server.variables().items():
        monkeypatch.setenv(name, value)
    return s3_server
