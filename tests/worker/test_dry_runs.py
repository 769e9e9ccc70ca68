"""Dry runs, in this process: what is answered, what ends one early, and that nothing is left."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from store import dry_runs, uploads
from store.artifacts import ArtifactStore
from store.columns import now_utc
from store.database import reading, transaction
from store.errors import StorageUnavailable
from store.records import DryRun, Event, Job, Model, OutboxMessage
from store.settings import Settings
from tests.worker.house import FAKE_CHILD, House, wait_for
from tests.worker.reports import DRY_RUN
from tests.worker.test_supervisor import children_of
from worker.context import make_context
from worker.dry_runs import answer_dry_run, heart_of

ROOT = Path(__file__).parent.parent.parent


def ask(house: House, *, elsewhere: bool = False, wait: float = 60, model: str | None = None, **plan: Any) -> str:
    """The id of a dry run whose child does `plan`."""
    recipe = {"steps": [{"method": "filter_norm", "target": {"macs": 0.5}}], "description": json.dumps(plan)}
    model, dataset = model or house.model(), house.dataset()
    with transaction(house.context.engine) as session:
        return dry_runs.create(
            session, owner="me", model_id=model, dataset_ids=[dataset], recipe=recipe, requirements={},
            elsewhere=elsewhere, wait=wait,
        ).id  # fmt: skip


def read(house: House, dry_run_id: str) -> DryRun:
    with reading(house.context.engine) as session:
        return dry_runs.get(session, "me", dry_run_id)


def refusal(house: House, dry_run_id: str) -> dict[str, Any]:
    found = read(house, dry_run_id)
    assert (found.state, found.result) == ("refused", None)
    assert found.refusal is not None
    return found.refusal


def begun(house: House, dry_run_id: str) -> tuple[threading.Thread, int]:
    """Somebody is at it: the thread, and the child."""
    before = set(children_of(os.getpid()))
    thread = threading.Thread(target=answer_dry_run, args=(house.context, dry_run_id))
    thread.start()
    wait_for(lambda: bool(set(children_of(os.getpid())) - before))
    (pid,) = set(children_of(os.getpid())) - before
    return thread, pid


def nothing_is_left(house: House) -> bool:
    with reading(house.context.engine) as session:
        rows = [*session.scalars(select(Job)), *session.scalars(select(Event))]
    return not rows and not list(house.context.work_root.glob("*"))


@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_the_child_finds_is_the_answer(house: House, elsewhere: bool) -> None:
    dry_run_id = ask(house, elsewhere=elsewhere)
    answer_dry_run(house.context, dry_run_id)
    found = read(house, dry_run_id)
    assert (found.state, found.refusal) == ("done", None)
    assert found.result == {**DRY_RUN, "warnings": ["weights", str(not elsewhere)]}
    assert nothing_is_left(house)
    answer_dry_run(house.context, dry_run_id)  # rung for once more
    assert read(house, dry_run_id).claims == 1


def test_what_the_job_would_be_refused_for_is_told(house: House) -> None:
    dry_run_id = ask(house, do="refuse")
    answer_dry_run(house.context, dry_run_id)
    fault = {"pointer": "/model", "message": "ends after 3 bytes", "expected": "an ONNX file"}
    assert refusal(house, dry_run_id) == {
        "code": "model_unreadable", "message": "the file is cut short", "faults": [fault],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("plan", "pointer"), [({"do": "leave", "file": "out/report.md", "as": "a file"}, "/original"),
                          ({"more": {"target_met": "perhaps"}}, "/target_met"),
                          ({"more": {"ratios": {"params_ratio": {"$float": "nan"}}}}, "/ratios/params_ratio")]
)  # fmt: skip
def test_an_answer_that_is_none_is_not_stored(house: House, plan: dict[str, Any], pointer: str) -> None:
    dry_run_id = ask(house, **plan)
    answer_dry_run(house.context, dry_run_id)
    found = refusal(house, dry_run_id)
    assert found["code"] == "output_refused"
    assert pointer in {fault["pointer"] for fault in found["faults"]}


def test_a_crash_says_nothing_of_this_machine(house: House) -> None:
    dry_run_id = ask(house, do="crash")
    answer_dry_run(house.context, dry_run_id)
    found = refusal(house, dry_run_id)
    assert found["code"] == "internal_error"
    assert "secret" not in json.dumps(found)


def test_a_child_that_dies_is_tried_again_and_given_up_in_the_end(house: House) -> None:
    dry_run_id = ask(house, do="die")
    for deaths in range(1, 4):
        answer_dry_run(house.context, dry_run_id)
        assert (read(house, dry_run_id).state, read(house, dry_run_id).claims) == ("queued", deaths)
    answer_dry_run(house.context, dry_run_id)
    assert refusal(house, dry_run_id)["code"] == "poison"
    assert nothing_is_left(house)


def test_one_that_takes_too_long_names_its_own_setting(settings: Settings) -> None:
    context = make_context(settings.model_copy(update={"dry_run_seconds_limit": 1}), name="here:1", command=FAKE_CHILD)
    house = House(context)
    dry_run_id = ask(house, do="hang")
    answer_dry_run(context, dry_run_id)
    found = refusal(house, dry_run_id)
    context.engine.dispose()
    assert found["code"] == "time_limit"
    assert found["message"] == "its time is over: 1 s were left to it (BILLHOOK_DRY_RUN_SECONDS_LIMIT)"


def unwanted(house: House, dry_run_id: str) -> None:
    with transaction(house.context.engine) as session:
        session.get_one(DryRun, dry_run_id).wanted_until = now_utc() - timedelta(seconds=1)


def deleted(house: House, dry_run_id: str) -> None:
    with transaction(house.context.engine) as session:
        dry_runs.delete(session, "me", dry_run_id)


@pytest.mark.parametrize("end", [unwanted, deleted])
def test_a_child_that_nobody_waits_for_is_ended(house: House, end: Callable[[House, str], None]) -> None:
    dry_run_id = ask(house, do="hang", deaf=True)
    thread, pid = begun(house, dry_run_id)
    end(house, dry_run_id)
    began = time.monotonic()
    thread.join(20)
    assert not thread.is_alive()
    assert time.monotonic() - began < 15
    assert not psutil.pid_exists(pid)
    assert nothing_is_left(house)
    answer_dry_run(house.context, dry_run_id)  # a late bell
    with reading(house.context.engine) as session:
        bells = session.scalars(select(OutboxMessage).where(OutboxMessage.topic == "dry_run")).all()
        assert (session.get(DryRun, dry_run_id), bells) == (None, []) or end is unwanted


def test_a_worker_that_stops_gives_it_back(house: House) -> None:
    dry_run_id = ask(house, do="hang")
    thread, _ = begun(house, dry_run_id)
    house.context.stopping.set()
    thread.join(20)
    found = read(house, dry_run_id)
    assert (found.state, found.claims, found.token) == ("queued", 0, None)


def test_an_input_that_was_deleted_meanwhile(house: House) -> None:
    model = house.model("gone soon")
    dry_run_id = ask(house, model=model)
    with transaction(house.context.engine) as session:
        uploads.delete(session, Model, "me", model)
    answer_dry_run(house.context, dry_run_id)
    found = refusal(house, dry_run_id)
    assert found["code"] == "input_refused"
    assert model in found["message"]


def test_a_storage_that_is_away_refuses_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise StorageUnavailable("away")

    dry_run_id = ask(house)
    monkeypatch.setattr(ArtifactStore, "get_file", away)
    answer_dry_run(house.context, dry_run_id)
    assert (read(house, dry_run_id).state, read(house, dry_run_id).claims) == ("queued", 0)
    monkeypatch.undo()
    answer_dry_run(house.context, dry_run_id)
    assert read(house, dry_run_id).state == "done"


def test_a_database_that_is_away_decides_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise OperationalError("", {}, Exception("no connection"))

    dry_run_id = ask(house)
    monkeypatch.setattr(ArtifactStore, "get_file", away)
    answer_dry_run(house.context, dry_run_id)
    assert (read(house, dry_run_id).state, read(house, dry_run_id).claims) == ("running", 1)


def test_a_defect_of_ours_is_told_at_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("secret words")

    dry_run_id = ask(house)
    monkeypatch.setattr(ArtifactStore, "get_file", broken)
    answer_dry_run(house.context, dry_run_id)
    assert refusal(house, dry_run_id) == {
        "code": "internal_error", "faults": [],
        "message": "an unexpected ValueError in the worker ended the dry run; its log has the details",
    }  # fmt: skip


def test_a_heartbeat_keeps_the_lease(house: House) -> None:
    dry_run_id = ask(house)
    with transaction(house.context.engine) as session:
        lease = dry_runs.claim(session, dry_run_id, seconds=2)
    assert lease is not None
    first = read(house, dry_run_id).expires_at
    heart = heart_of(house.context, lease)
    time.sleep(0.01)
    assert (heart._beat(), heart._look()) == ("held", "held")
    assert first is not None
    assert (read(house, dry_run_id).expires_at or first) > first
    deleted(house, dry_run_id)
    assert (heart._beat(), heart._look()) == ("lost", "lost")


# --- the real child --------------------------------------------------------------------------------------------------


@pytest.fixture
def real(settings: Settings) -> Iterator[House]:
    roomy = settings.model_copy(
        update={"memory_limit_bytes": 2**33, "disk_limit_bytes": 2**30, "lease_seconds": 60, "heartbeat_seconds": 1}
    )
    context = make_context(roomy, name="here:1")
    yield House(context)
    context.engine.dispose()


def test_the_real_child_answers(real: House) -> None:
    model = real.model((ROOT / "examples" / "digits_resnet20.onnx").read_bytes())
    dry_run_id = ask(real, model=model)
    answer_dry_run(real.context, dry_run_id)
    found = read(real, dry_run_id)
    assert (found.state, found.refusal) == ("done", None)
    assert found.result is not None
    assert found.result["ratios"]["macs_ratio"] <= 0.5
    assert found.result["estimate"]["estimated_seconds"] > 0
    assert nothing_is_left(real)
