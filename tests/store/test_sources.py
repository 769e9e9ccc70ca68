"""URIs of datasets: whatever is written in one, what is allowed is what was meant."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Fault
from core.job import DatasetFormat
from store.settings import Settings
from store.sources import SourceUri, format_of, parse_uri, refusal, shown

ALLOWING = Settings(
    _env_file=None, dataset_hosts=("data.example.com",), dataset_buckets=("sets",), dataset_roots=(Path("/srv/sets"),),
)  # fmt: skip


def allowed(uri: str) -> SourceUri | None:
    source = parse_uri(uri)
    return None if isinstance(source, Fault) or refusal(source, ALLOWING) else source


@given(
    st.text(max_size=60), st.sampled_from(["https://data.example.com", "s3://sets", "file:///srv/sets", "https:", ""])
)
def test_no_text_leads_elsewhere(text: str, start: str) -> None:
    source = allowed(start + text)
    if source is None:
        return
    match source.scheme:
        case "https":
            assert (source.host, source.port) == ("data.example.com", 443)
            assert source.path.startswith("/")
            assert source.path.isascii()
            assert not set(source.path) & set(" \r\n\t#")
        case "s3":
            assert source.bucket == "sets"
        case "file":
            assert source.path.startswith("/srv/sets/")
            assert ".." not in source.path.split("/")
            assert "\0" not in source.path


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), min_size=1, max_size=4))
def test_paths_come_back_as_they_were(parts: list[str]) -> None:
    parts = [part.replace("/", "_") for part in parts]
    path = "/".join(parts)
    source = allowed(f"file:///srv/sets/{quote(path)}")
    if {".", ".."} & set(parts):
        return
    assert source is not None
    assert source.path == f"/srv/sets/{path}"
    in_bucket = allowed(f"s3://sets/{quote(path)}")
    assert in_bucket is not None
    assert (in_bucket.path, in_bucket.filename) == (path, parts[-1])


def test_what_is_shown_has_no_query_and_no_user() -> None:
    assert shown("https://ann:pw@a.com:8443/x.zip?token=abc#part") == "https://a.com:8443/x.zip"
    assert shown("file:///srv/sets/x.zip") == "file:///srv/sets/x.zip"


@pytest.mark.parametrize(
    ("uri", "setting"),
    [
        ("https://data.example.com/d.zip", "BILLHOOK_DATASET_HOSTS"),
        ("s3://sets/d.zip", "BILLHOOK_DATASET_BUCKETS"),
        ("file:///srv/sets/d.zip", "BILLHOOK_DATASET_ROOTS"),
    ],
)
def test_nothing_is_allowed_by_default(uri: str, setting: str) -> None:
    source = parse_uri(uri)
    assert isinstance(source, SourceUri)
    fault = refusal(source, Settings(_env_file=None))
    assert fault is not None
    assert setting in str(fault.expected)
    assert refusal(source, ALLOWING) is None


@pytest.mark.parametrize(
    ("uri", "asked", "format"),
    [
        ("file:///srv/sets/photos", None, "image_folder"),
        ("file:///srv/sets/photos", "image_folder", "image_folder"),
        ("file:///srv/sets/images", "npz", "npz"),
        ("file:///srv/sets/images", "parquet", "parquet"),
        ("file:///srv/sets/images.v2", "npz", "npz"),
        ("file:///srv/sets/v1.5/", None, "image_folder"),
        ("file:///srv/sets/a.npz/", "parquet", "parquet"),
        ("https://data.example.com/images", "npz", "npz"),
        ("s3://sets/a.PARQUET", None, "parquet"),
    ],
)
def test_the_format_is_what_is_asked_for_where_the_name_does_not_say_it(
    uri: str, asked: DatasetFormat | None, format: DatasetFormat
) -> None:  # fmt: skip
    source = parse_uri(uri)
    assert isinstance(source, SourceUri)
    assert format_of(source, asked) == format


@pytest.mark.parametrize(
    ("uri", "asked", "expected"),
    [
        ("file:///srv/sets/v1.5", None, "a folder ends in /"),
        ("https://data.example.com/v1.5", None, "or format: image_folder, npz or parquet"),
        ("file:///srv/sets/photos/", "npz", "image_folder or parquet, or leave it out"),
        ("file:///srv/sets/a.zip", "npz", "image_folder or parquet, or leave it out"),
    ],
)
def test_a_format_that_is_wrong_or_unknown(uri: str, asked: DatasetFormat | None, expected: str) -> None:
    source = parse_uri(uri)
    assert isinstance(source, SourceUri)
    fault = format_of(source, asked)
    assert isinstance(fault, Fault)
    assert str(fault.expected).endswith(expected)
