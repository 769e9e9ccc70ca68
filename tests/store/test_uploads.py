"""Models and datasets: known by content and options; checked by one worker at a time."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from store import jobs, leases, outbox, uploads
from store.database import reading, transaction
from store.errors import InUse, LeaseLost, NotFound
from store.records import Dataset, Model
from tests.store.conftest import NOW, OWNER


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def add(engine: Engine, **given: Any) -> tuple[Model, bool]:
    values: dict[str, Any] = {
        "owner": OWNER, "sha256": "a" * 64, "bytes": 7, "filename": "m.onnx", "format": "onnx", "options": {},
        "now": NOW,
    }  # fmt: skip
    with transaction(engine) as session:
        return uploads.create_model(session, **(values | given))


def test_the_same_upload_is_known(engine: Engine) -> None:
    model, new = add(engine)
    assert new
    assert (model.state, model.summary, model.refusal) == ("checking", None, None)
    again, new = add(engine, filename="other.onnx")
    assert not new
    assert (again.id, again.filename) == (model.id, "m.onnx")


@pytest.mark.parametrize("different", [{"owner": "bob"}, {"sha256": "b" * 64}, {"options": {"architecture": "vgg16"}},
                                       {"format": "safetensors"}])  # fmt: skip
def test_another_owner_content_option_or_format_is_another_model(engine: Engine, different: dict[str, Any]) -> None:
    first, _ = add(engine)
    second, new = add(engine, **different)
    assert new
    assert first.id != second.id


def test_the_order_of_options_does_not_matter(engine: Engine) -> None:
    first, _ = add(engine, options={"a": {"x": 1, "y": [1, 2]}, "b": 2})
    second, new = add(engine, options={"b": 2, "a": {"y": (1, 2), "x": 1}})
    assert not new
    assert first.id == second.id


def test_a_built_in_dataset_is_known_without_content(engine: Engine) -> None:
    def digits(options: dict[str, Any]) -> tuple[Dataset, bool]:
        with transaction(engine) as session:
            return uploads.create_dataset(session, owner=OWNER, sha256=None, bytes=0, filename="digits",
                                          format="digits", options=options, uri="builtin:digits")  # fmt: skip

    first, new = digits({})
    assert new
    assert first.uri == "builtin:digits"
    assert digits({})[1] is False
    assert digits({"splits": {"seed": 1}})[1] is True


def fetched(engine: Engine, sha256: str, pinned: str | None = None, **given: Any) -> str:
    """A dataset by reference; where it is new, a worker has its file."""
    with transaction(engine) as session:
        dataset, new = uploads.create_dataset(
            session, owner=OWNER, sha256=None, bytes=0, filename="d.zip", format="image_folder", options={},
            uri="https://a.com/d.zip", pinned_sha256=pinned, **given,
        )  # fmt: skip
    if new:
        with transaction(engine) as session:
            check = uploads.claim_check(session, dataset.id, fetching=True)
            assert check is not None
            uploads.set_fetched(session, check, sha256, 9, "e.zip")
            check = uploads.claim_check(session, dataset.id)
            assert check is not None
            uploads.set_ready(session, check, {})
    return dataset.id


def test_what_was_fetched_is_known_by_its_content_once(engine: Engine) -> None:
    first, second = fetched(engine, "a" * 64), fetched(engine, "a" * 64)
    assert first != second
    assert fetched(engine, "a" * 64, pinned="a" * 64) == first
    with transaction(engine) as session:
        found = [uploads.get(session, Dataset, OWNER, each) for each in (first, second)]
        assert [(each.sha256, each.bytes, each.filename, each.state) for each in found] == [
            ("a" * 64, 9, "e.zip", "ready")
        ] * 2
    with transaction(engine) as session:
        dataset, new = uploads.create_dataset(
            session, owner=OWNER, sha256="a" * 64, bytes=9, filename="mine.zip", format="image_folder", options={}
        )
        assert (dataset.id, new) == (first, False)


def test_what_was_fetched_for_a_check_that_was_lost_is_not_recorded(engine: Engine) -> None:
    with transaction(engine) as session:
        dataset, _ = uploads.create_dataset(
            session, owner=OWNER, sha256=None, bytes=0, filename="d.zip", format="image_folder", options={},
            uri="https://a.com/d.zip",
        )  # fmt: skip
    with transaction(engine) as session:
        check = uploads.claim_check(session, dataset.id, fetching=True)
    assert check is not None
    with transaction(engine) as session:
        uploads.delete(session, Dataset, OWNER, dataset.id)
    with pytest.raises(LeaseLost), transaction(engine) as session:
        uploads.set_fetched(session, check, "a" * 64, 9, "e.zip")


def test_lists_are_newest_first_in_pages(engine: Engine) -> None:
    ids = [add(engine, sha256=digit * 64)[0].id for digit in "abc"]
    add(engine, owner="bob")
    with reading(engine) as session:
        found = uploads.find(session, Model, OWNER, limit=2)
        assert [model.id for model in found] == [ids[2], ids[1]]
        assert [model.id for model in uploads.find(session, Model, OWNER, before=ids[1])] == [ids[0]]
        assert [model.id for model in uploads.find(session, Model, OWNER, sha256="b" * 64)] == [ids[1]]
        assert uploads.find(session, Model, OWNER, state="ready") == []
        with pytest.raises(NotFound):
            uploads.get(session, Model, "bob", ids[0])


def test_a_check_from_claim_to_ready(engine: Engine) -> None:
    model, _ = add(engine)
    with transaction(engine) as session:
        assert [message.topic for message in outbox.due(session, at(0))] == ["inspect_model"]
        check = uploads.claim_check(session, model.id, at(0))
        assert check is not None
        assert uploads.claim_check(session, model.id, at(1)) is None, "somebody is at it"
        assert outbox.due(session, at(20)) == [], "no need to ring meanwhile"
        assert uploads.extend_check(session, check, at(20))
        assert uploads.claim_check(session, model.id, at(45)) is None
        uploads.set_ready(session, check, {"params": 3, "odd": float("inf")}, at(46))
    with transaction(engine) as session:
        found = uploads.get(session, Model, OWNER, model.id)
        assert (found.state, found.summary) == ("ready", {"params": 3, "odd": {"$float": "inf"}})
        assert found.checked_at == at(46)
        assert outbox.due(session, at(1_000)) == []
        assert uploads.claim_check(session, model.id, at(1_000)) is None


def test_the_graph_of_a_model_is_recorded(engine: Engine) -> None:
    model, _ = add(engine)
    with transaction(engine) as session:
        check = uploads.claim_check(session, model.id, at(0))
        assert check is not None
        uploads.set_ready(session, check, {}, graph=("b" * 64, 5_000_000_000))
    with reading(engine) as session:
        found = uploads.get(session, Model, OWNER, model.id)
        assert (found.graph_sha256, found.graph_bytes) == ("b" * 64, 5_000_000_000)


def test_the_contact_sheet_of_a_dataset_is_recorded(engine: Engine) -> None:
    with transaction(engine) as session:
        dataset, _ = uploads.create_dataset(
            session, owner=OWNER, sha256="a" * 64, bytes=1, filename="d.npz", format="npz", options={}, now=at(0)
        )
    with transaction(engine) as session:
        check = uploads.claim_check(session, dataset.id, at(0))
        assert check is not None
        uploads.set_ready(session, check, {}, contact_sheet=("b" * 64, 5_000_000_000))
    with reading(engine) as session:
        found = uploads.get(session, Dataset, OWNER, dataset.id)
        assert (found.contact_sheet_sha256, found.contact_sheet_bytes) == ("b" * 64, 5_000_000_000)


def test_a_refusal_says_why(engine: Engine) -> None:
    model, _ = add(engine)
    error = {"code": "model_unreadable", "message": "not an ONNX file", "faults": []}
    with transaction(engine) as session:
        check = uploads.claim_check(session, model.id, at(0))
        assert check is not None
        uploads.set_refused(session, check, error)
        assert uploads.get(session, Model, OWNER, model.id).refusal == error


def test_a_refused_upload_is_checked_again_when_it_is_posted_again(engine: Engine) -> None:
    model, _ = add(engine)
    with transaction(engine) as session:
        check = uploads.claim_check(session, model.id, at(0))
        assert check is not None
        uploads.set_refused(session, check, {"code": "operator_unknown", "message": "Einsum", "faults": []})
    again, new = add(engine)
    assert (again.id, new) == (model.id, False)
    with transaction(engine) as session:
        found = uploads.get(session, Model, OWNER, model.id)
        assert (found.state, found.refusal) == ("checking", None)
        assert [message.subject_id for message in outbox.due(session, at(1_000))] == [model.id]
        second = uploads.claim_check(session, model.id, at(1_000))
        assert second is not None
        uploads.set_ready(session, second, {"params": 3})


def test_a_worker_that_was_given_up_decides_nothing(engine: Engine) -> None:
    model, _ = add(engine)
    with transaction(engine) as session:
        first = uploads.claim_check(session, model.id, at(0))
        second = uploads.claim_check(session, model.id, at(31))
        assert first is not None
        assert second is not None
        assert not uploads.extend_check(session, first, at(32))
        with pytest.raises(LeaseLost):
            uploads.set_ready(session, first, {})
        uploads.set_ready(session, second, {"by": 2})
        with pytest.raises(LeaseLost):
            uploads.set_refused(session, second, {})
        assert uploads.get(session, Model, OWNER, model.id).summary == {"by": 2}


def test_an_upload_that_kills_three_workers_is_refused(engine: Engine) -> None:
    model, _ = add(engine)
    with transaction(engine) as session:
        for number in range(3):
            assert uploads.claim_check(session, model.id, at(100 * number)) is not None
        assert uploads.claim_check(session, model.id, at(300)) is None
        found = uploads.get(session, Model, OWNER, model.id)
        assert (found.state, (found.refusal or {})["code"]) == ("refused", "poison")
        assert outbox.due(session, at(9_999)) == []


def test_a_check_that_is_given_back_counts_as_no_death(engine: Engine) -> None:
    model, _ = add(engine)
    with transaction(engine) as session:
        for number in range(5):
            check = uploads.claim_check(session, model.id, at(number))
            assert check is not None
            uploads.release_check(session, check, at(number))
            assert [message.subject_id for message in outbox.due(session, at(number))] == [model.id]


def test_delete(engine: Engine) -> None:
    model, _ = add(engine)
    with transaction(engine) as session:
        with pytest.raises(NotFound):
            uploads.delete(session, Model, "bob", model.id)
        check = uploads.claim_check(session, model.id, at(0))
        uploads.delete(session, Model, OWNER, model.id)
    with transaction(engine) as session:
        with pytest.raises(NotFound):
            uploads.get(session, Model, OWNER, model.id)
        assert check is not None
        assert not uploads.extend_check(session, check), "the worker hears of it"
        assert outbox.due(session, at(9_999)) == []
        assert uploads.claim_check(session, model.id, at(1)) is None


def test_the_weights_of_an_unfinished_job_are_not_deleted(engine: Engine, inputs: tuple[str, str]) -> None:
    model_id, dataset_id = inputs
    mine, theirs = add(engine, sha256="e" * 64)[0].id, add(engine, sha256="e" * 64, owner="bob")[0].id

    def submit(weights: str) -> str:
        with transaction(engine) as session:
            return jobs.create_job(
                session, owner=OWNER, model_id=model_id, dataset_ids=[dataset_id], recipe={"weights": weights}
            ).id

    for missing in (theirs, "mdl_none"):
        with pytest.raises(NotFound, match=missing):
            submit(missing)
    job_id = submit(mine)
    submit("random")
    with reading(engine) as session:
        assert jobs.weights_of(session, jobs.get_job(session, OWNER, job_id)).id == mine  # type: ignore[union-attr]
    with pytest.raises(InUse, match=job_id), transaction(engine) as session:
        uploads.delete(session, Model, OWNER, mine)
    with transaction(engine) as session:
        jobs.request_cancel(session, OWNER, job_id)
    with transaction(engine) as session:
        uploads.delete(session, Model, OWNER, mine)
    with reading(engine) as session, pytest.raises(NotFound):
        jobs.weights_of(session, jobs.get_job(session, OWNER, job_id))


def test_what_an_unfinished_job_needs_is_not_deleted(engine: Engine, inputs: tuple[str, str]) -> None:
    model_id, dataset_id = inputs
    with transaction(engine) as session:
        job = jobs.create_job(session, owner=OWNER, model_id=model_id, dataset_ids=[dataset_id], recipe={})
    with pytest.raises(InUse, match=job.id), transaction(engine) as session:
        uploads.delete(session, Model, OWNER, model_id)
    with pytest.raises(InUse, match=job.id), transaction(engine) as session:
        uploads.delete(session, Dataset, OWNER, dataset_id)
    with transaction(engine) as session:
        found, datasets = jobs.inputs_of(session, job)
        assert (found.id, [dataset.id for dataset in datasets]) == (model_id, [dataset_id])
        lease = leases.claim(session, job.id, "w", "cpu")
        assert lease is not None
        leases.finish(session, lease, "succeeded", {})
    with transaction(engine) as session:
        uploads.delete(session, Model, OWNER, model_id)
        uploads.delete(session, Dataset, OWNER, dataset_id)
    with transaction(engine) as session:
        kept = jobs.get_job(session, OWNER, job.id)
        assert (kept.model_id, kept.dataset_ids) == (model_id, [dataset_id]), "the record of the job stays"
        with pytest.raises(NotFound):
            jobs.inputs_of(session, kept)


def test_a_job_needs_inputs_of_its_owner(engine: Engine, inputs: tuple[str, str]) -> None:
    for owner, model_id, dataset_id in (("bob", *inputs), (OWNER, "mdl_x", inputs[1]), (OWNER, inputs[0], "ds_x")):
        with pytest.raises(NotFound), transaction(engine) as session:
            jobs.create_job(session, owner=owner, model_id=model_id, dataset_ids=[dataset_id], recipe={})


def test_jobs_are_listed_by_what_is_asked_for(engine: Engine, inputs: tuple[str, str]) -> None:
    def new(**given: Any) -> str:
        with transaction(engine) as session:
            return jobs.create_job(session, owner=OWNER, model_id=inputs[0], dataset_ids=[inputs[1]], recipe={},
                                   **given).id  # fmt: skip

    first = new(name="team/a_1", tags=["x", "y z"], kind="prune")
    second = new(name="team/ab1", tags=['quo"te'], kind="other")
    third = new(name="other")
    with transaction(engine) as session:
        jobs.request_cancel(session, OWNER, third)

    def ids(**given: Any) -> list[str]:
        with reading(engine) as session:
            return [job.id for job in jobs.list_jobs(session, OWNER, **given)]

    assert ids() == [third, second, first]
    assert ids(limit=2) == [third, second]
    assert ids(before=second) == [first]
    assert ids(name_prefix="team/") == [second, first]
    assert ids(name_prefix="team/a_") == [first], "an underscore is no wildcard"
    assert ids(kind="other") == [second]
    assert ids(states=["queued"]) == [second, first]
    assert ids(states=["cancelled", "queued"], kind="prune") == [third, first]
    assert ids(tag="x") == [first]
    assert ids(tag="y") == []
    assert ids(tag='quo"te') == [second]
