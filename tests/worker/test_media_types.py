"""As what a job's files are handed out."""

from __future__ import annotations

import pytest

from worker.attempt import media_type_of


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("report.json", "application/json"),
        ("report.md", "text/markdown; charset=utf-8"),
        ("blocks.svg", "image/svg+xml"),
        ("pruned.onnx", "application/octet-stream"),
    ],
)
def test_by_the_ending(name: str, media_type: str) -> None:
    assert media_type_of(name) == media_type
