"""Datasets that are given by a URI: fetched by one worker, checked by another, each in its own queue."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from store import outbox, uploads
from store.database import reading, transaction
from store.errors import LeaseLost
from store.records import Dataset
from tests.store.conftest import NOW, OWNER


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def to_fetch(engine: Engine, **given: Any) -> str:
    values = {"sha256": None, "bytes": 0, "uri": "https://a.com/d.zip", "pinned_sha256": "a" * 64, "now": NOW}
    with transaction(engine) as session:
        return uploads.create_dataset(
            session, owner=OWNER, filename="d.zip", format="image_folder", options={}, **(values | given)
        )[0].id  # fmt: skip


def rings(engine: Engine, seconds: float) -> list[tuple[str, str]]:
    with reading(engine) as session:
        return [(message.topic, message.queue) for message in outbox.due(session, at(seconds))]


def test_a_dataset_is_fetched_and_then_checked_each_in_its_queue(engine: Engine) -> None:
    dataset_id = to_fetch(engine)
    assert rings(engine, 0) == [("fetch_dataset", "fetch")]
    with transaction(engine) as session:
        assert uploads.claim_check(session, dataset_id, at(0)) is None, "there is nothing to check yet"
        first = uploads.claim_check(session, dataset_id, at(0), fetching=True)
        assert first is not None
        uploads.release_check(session, first, at(1), delay=45)
    assert rings(engine, 44) == []
    assert rings(engine, 46) == [("fetch_dataset", "fetch")]
    with transaction(engine) as session:
        second = uploads.claim_check(session, dataset_id, at(46), fetching=True)
        assert second is not None
        assert uploads.claim_check(session, dataset_id, at(47), fetching=True) is None, "somebody is at it"
        uploads.set_fetched(session, second, "a" * 64, 9, "e.zip", at(50))
    assert rings(engine, 50) == [("inspect_dataset", "inspect")]
    with transaction(engine) as session:
        assert not uploads.extend_check(session, second, at(51)), "it is given back"
        assert uploads.claim_check(session, dataset_id, at(51), fetching=True) is None
        assert uploads.claim_check(session, dataset_id, at(51)) is not None


def test_a_fetch_that_kills_three_workers_is_refused(engine: Engine) -> None:
    dataset_id = to_fetch(engine)
    with transaction(engine) as session:
        for number in range(3):
            assert uploads.claim_check(session, dataset_id, at(100 * number), fetching=True) is not None
        assert uploads.claim_check(session, dataset_id, at(300), fetching=True) is None
        assert (uploads.get(session, Dataset, OWNER, dataset_id).refusal or {})["code"] == "poison"
    assert rings(engine, 9_999) == []
    assert to_fetch(engine) == dataset_id
    assert rings(engine, 0) == [("fetch_dataset", "fetch")], "posted again, it is tried again"


def test_an_upload_takes_the_check_from_whoever_fetches_the_same(engine: Engine) -> None:
    dataset_id = to_fetch(engine)
    with transaction(engine) as session:
        fetching = uploads.claim_check(session, dataset_id, at(0), fetching=True)
    assert fetching is not None
    assert to_fetch(engine, sha256="a" * 64, bytes=5, uri="upload", pinned_sha256=None, now=at(1)) == dataset_id
    assert rings(engine, 1) == [("inspect_dataset", "inspect")]
    with pytest.raises(LeaseLost), transaction(engine) as session:
        uploads.set_refused(session, fetching, {"code": "source_unavailable"})
    with pytest.raises(LeaseLost), transaction(engine) as session:
        uploads.set_fetched(session, fetching, "a" * 64, 5, "d.zip")
    with pytest.raises(LeaseLost), transaction(engine) as session:
        uploads.release_check(session, fetching)
    with transaction(engine) as session:
        check = uploads.claim_check(session, dataset_id, at(1))
        assert check is not None
        found = uploads.get(session, Dataset, OWNER, dataset_id)
        assert (found.uri, found.sha256, found.check_count) == ("upload", "a" * 64, 1)
    assert to_fetch(engine, sha256="a" * 64, bytes=5, uri="upload", pinned_sha256=None, now=at(2)) == dataset_id
    with transaction(engine) as session:
        uploads.set_ready(session, check, {})  # a check of the bytes goes on when they are posted again
