"""One attempt, in this process: what it stores, how it closes the job, and what it never does without its lease."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from store import leases
from store.artifacts import ArtifactStore
from store.columns import now_utc
from store.database import transaction
from store.errors import StorageUnavailable
from store.reaper import reap
from tests.worker.fake_child import KEPT
from tests.worker.house import House, wait_for
from tests.worker.reports import RESULTS
from worker.answers import REQUIRED_OUTPUTS
from worker.attempt import run_job


@contextmanager
def running(house: House, job_id: str) -> Iterator[None]:
    """The job runs on a thread; the block begins once its child has said its first word, and ends with the attempt."""
    before = len(house.attempts(job_id))
    thread = threading.Thread(target=run_job, args=(house.context, job_id))
    thread.start()
    try:
        wait_for(lambda: len(house.attempts(job_id)) > before)
        number = before + 1
        wait_for(lambda: any(event.attempt == number and "/" in event.name for event in house.events(job_id)))
        yield
    finally:
        thread.join(30)
        assert not thread.is_alive()


def test_a_job_that_succeeds(house: House) -> None:
    job_id = house.job(do="train", epochs=3)
    run_job(house.context, job_id)

    job = house.read(job_id)
    assert (job.state, job.stage, job.progress, job.error) == ("succeeded", "fine_tune", 1.0, None)
    assert job.results == RESULTS
    artifacts = house.artifacts(job_id)
    assert set(artifacts) == set(REQUIRED_OUTPUTS), "checkpoints go when the job is over"
    assert artifacts["report.json"].media_type == "application/json"
    assert house.context.storage.read_bytes(artifacts["pruned.onnx"].sha256) == b"pruned weights"
    house.assert_no_gaps(job_id)
    names = [event.name for event in house.events(job_id)]
    assert names[-1] == "state"
    assert [name for name in names if "epoch" in name] == [f"fine_tune/0/epoch/{epoch}" for epoch in range(3)]
    assert names.count("checkpoint") == 3
    assert "progress" not in names, "progress is a column of the job, not history"
    (attempt,) = house.attempts(job_id)
    assert attempt.outcome == "succeeded"
    assert attempt.environment is not None
    assert {"python", "platform", "libraries", "cpu", "cores", "memory_bytes"} <= set(attempt.environment)
    assert attempt.environment["libraries"]["torch"]
    assert not list(house.context.work_root.iterdir()), "the work folder is gone"


def test_an_error_of_the_input_is_final(house: House) -> None:
    job_id = house.job(do="refuse")
    run_job(house.context, job_id)
    job = house.read(job_id)
    assert job.state == "failed"
    assert job.error == {
        "code": "model_unreadable",
        "message": "the file is cut short",
        "faults": [{"pointer": "/model", "message": "ends after 3 bytes", "expected": "an ONNX file"}],
    }
    assert house.attempts(job_id)[0].outcome == "failed"


def test_an_unexpected_error_tells_no_path(house: House) -> None:
    job_id = house.job(do="crash")
    run_job(house.context, job_id)
    job, (attempt,) = house.read(job_id), house.attempts(job_id)
    assert job.state == "failed"
    assert job.error is not None
    assert job.error["code"] == "internal_error"
    everything = json.dumps([job.error, [event.body for event in house.events(job_id)]])
    assert str(house.settings.data_dir) not in everything
    assert "Traceback" not in everything
    assert attempt.output_tail is not None
    assert "RuntimeError: a secret path" in attempt.output_tail
    assert str(house.settings.data_dir) not in attempt.output_tail


def test_what_the_child_has(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BILLHOOK_DATABASE_URL", "postgresql://user:secret@host/db")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://secret@proxy")
    job_id = house.job(do="look_round")
    run_job(house.context, job_id)
    (seen,) = [event.body for event in house.events(job_id) if event.name == "import/seen"]
    assert "secret" not in json.dumps(seen["environment"])
    assert not any(name.startswith(("BILLHOOK_", "AWS_")) for name in seen["environment"])
    opened = {int(number): target for number, target in seen["descriptors"].items()}
    assert opened.pop(0) == "/dev/null"
    assert opened.pop(1).endswith("stdout.log")
    assert opened.pop(2).endswith("stderr.log")
    assert len(opened) == 1, opened
    assert next(iter(opened.values())).startswith("pipe:")
    assert set(seen["inputs"].values()) == {"0o444"}
    assert seen["session"] == seen["pid"]
    limits = {" ".join(line.split("  ")[0].split()): line for line in seen["limits"].splitlines()}
    assert limits["Max file size"].split()[3] == str(2**24)
    assert limits["Max open files"].split()[3] == "1024"
    assert limits["Max address space"].split()[3] == "unlimited"
    assert seen["torch"] is False


def test_the_weights_of_another_model_come_along(house: House) -> None:
    job_id = house.job(do="look_round", weights=house.model("other weights", "pt2"))
    run_job(house.context, job_id)
    (seen,) = [event.body for event in house.events(job_id) if event.name == "import/seen"]
    assert seen["inputs"] == {"model.onnx": "0o444", "weights.pt2": "0o444"}
    assert house.read(job_id).state == "succeeded"


@pytest.mark.parametrize(
    ("plan", "code"),
    [
        ({"do": "eat_memory"}, "memory_limit"),
        ({"do": "fill_disk"}, "disk_limit"),
        ({"do": "write_large_file"}, "disk_limit"),
        ({"do": "nest", "depth": 1_500}, "disk_limit"),
        ({"do": "babble", "say": "no JSON\n"}, "output_limit"),
        ({"do": "leave", "file": "out/report.md", "as": "a link", "to": "/etc/hostname"}, "output_refused"),
        ({"do": "leave", "file": "out/report.md", "as": "a pipe"}, "output_refused"),
        ({"do": "leave", "file": "out/plan.json", "as": "nothing"}, "output_refused"),
        ({"do": "leave", "file": "out/pruned.onnx", "as": "an empty file"}, "output_refused"),
        ({"do": "leave", "file": "out/report.md", "as": "a file", "report": {}}, "output_refused"),
        ({"do": "leave", "file": "out/report.md", "as": "a file", "report": [[]]}, "output_refused"),
        ({"do": "announce_nothing", "file": "state/nothing"}, "checkpoint_unusable"),
        ({"do": "announce_nothing", "file": "../../billhook.db"}, "checkpoint_unusable"),
        ({"do": "announce_nothing", "as": "artifact", "file": "out/checkpoint_step0_epoch0001.onnx"}, "output_refused"),
        ({"do": "announce_nothing", "as": "artifact", "file": "out/../job.json"}, "output_refused"),
        ({"do": "announce_nothing", "as": "artifact", "file": "out/report.json"}, "output_refused"),
        ({"do": "announce_nothing", "as": "artifact", "file": None}, "output_refused"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values()))[:60],
)
def test_what_goes_too_far_is_ended_and_final(house: House, plan: dict[str, object], code: str) -> None:
    job_id = house.job(**plan)
    run_job(house.context, job_id)
    job = house.read(job_id)
    assert job.error is not None
    assert (job.state, job.error["code"]) == ("failed", code)
    if plan["do"] in ("eat_memory", "fill_disk"):
        assert f"MiB (BILLHOOK_{code.upper()}_BYTES)" in job.error["message"], "what to change"
    assert not house.artifacts(job_id)
    house.assert_no_gaps(job_id)


def test_what_a_job_did_not_leave_is_named(house: House) -> None:
    job_id = house.job(do="leave", file="out/plan.json", **{"as": "nothing"})
    run_job(house.context, job_id)
    error = house.read(job_id).error
    assert error is not None
    assert [(fault["pointer"], fault["message"]) for fault in error["faults"]] == [("/out/plan.json", "is missing")]


def test_a_number_that_no_float_holds_is_no_progress(house: House) -> None:
    say = '{"name":"progress","body":{"stage":"prune","fraction":1' + "0" * 400 + "}}\n"
    job_id = house.job(
        do="babble", seconds=1, say=say + '{"name":"error","body":{"code":"x","message":"y","faults":["z"]}}\n'
    )
    run_job(house.context, job_id)
    job = house.read(job_id)
    assert (job.state, job.stage, job.progress) == ("failed", "prune", 0.0)
    assert job.error == {"code": "x", "message": "y", "faults": []}


def test_a_defect_of_ours_fails_the_job(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a secret path")

    monkeypatch.setattr("worker.attempt.supervise", broken)
    job_id = house.job(do="train", epochs=0)
    run_job(house.context, job_id)
    job = house.read(job_id)
    assert job.error is not None
    assert (job.state, job.error["code"]) == ("failed", "internal_error")
    assert "secret" not in job.error["message"]


def test_the_time_limit_counts_running_only(house: House) -> None:
    job_id = house.job(do="hang", run_seconds_limit=1)
    time.sleep(1.2)  # in the queue
    began = time.monotonic()
    run_job(house.context, job_id)
    job = house.read(job_id)
    assert job.error is not None
    assert (job.state, job.error["code"]) == ("failed", "time_limit")
    assert job.error["message"].endswith("(BILLHOOK_RUN_SECONDS_LIMIT)")
    assert 0.9 < time.monotonic() - began < 5
    assert "import/started" in [event.name for event in house.events(job_id)]


@pytest.mark.parametrize("deaf", [False, True])
def test_cancel(house: House, deaf: bool) -> None:
    job_id = house.job(do="hang", deaf=deaf)
    with running(house, job_id):
        house.cancel(job_id)
    job, (attempt,) = house.read(job_id), house.attempts(job_id)
    assert (job.state, attempt.outcome) == ("cancelled", "cancelled")
    house.assert_no_gaps(job_id)


def test_a_child_killed_from_outside_is_tried_again_from_its_checkpoint(house: House) -> None:
    job_id = house.job(do="train", epochs=4, die_at=2)
    run_job(house.context, job_id)
    job, (attempt,) = house.read(job_id), house.attempts(job_id)
    assert (job.state, job.deaths, attempt.outcome) == ("queued", 1, "lost")
    assert attempt.error is not None
    assert attempt.error["code"] == "child_died"
    assert "SIGKILL" in attempt.error["message"]
    assert set(house.artifacts(job_id)) == {"state/checkpoint.safetensors"}

    run_job(house.context, job_id)
    assert house.read(job_id).state == "succeeded"
    assert len(house.attempts(job_id)) == 2
    epochs = [(event.attempt, event.body["epoch"]) for event in house.events(job_id) if "/epoch/" in event.name]
    assert epochs == [(1, 0), (1, 1), (1, 2), (2, 3)]
    assert "state/checkpoint.safetensors" not in house.artifacts(job_id)
    house.assert_no_gaps(job_id)


def test_files_that_are_kept_outlive_an_attempt(house: House) -> None:
    job_id = house.job(do="train", epochs=4, die_at=1, keep=-1)
    run_job(house.context, job_id)
    assert house.read(job_id).state == "queued"
    names = [KEPT.format(epoch) for epoch in range(4)]
    assert set(house.artifacts(job_id)) == {"state/checkpoint.safetensors", *names[:2]}
    run_job(house.context, job_id)
    assert house.read(job_id).state == "succeeded"
    artifacts = house.artifacts(job_id)
    assert set(artifacts) == {*REQUIRED_OUTPUTS, *names}
    assert {artifacts[name].kind for name in names} == {"output"}
    for epoch, name in enumerate(names):
        assert house.context.storage.read_bytes(artifacts[name].sha256) == f"network {epoch}".encode()
    told = [event.body for event in house.events(job_id) if event.name == "artifact"]
    assert [(body["file"], body["sha256"]) for body in told] == [
        (f"out/{name}", artifacts[name].sha256) for name in names
    ]


def test_files_that_are_kept_outlive_a_failed_job(house: House) -> None:
    job_id = house.job(do="train", epochs=4, keep=1)
    run_job(house.context, job_id)
    assert house.read(job_id).state == "failed"
    assert set(house.artifacts(job_id)) == {KEPT.format(0), KEPT.format(1)}


def test_three_deaths_without_a_new_checkpoint_are_poison(house: House) -> None:
    job_id = house.job(do="die")
    for deaths in (1, 2):
        run_job(house.context, job_id)
        job = house.read(job_id)
        assert (job.state, job.deaths) == ("queued", deaths)
    run_job(house.context, job_id)
    job = house.read(job_id)
    assert job.error is not None
    assert (job.state, job.error["code"]) == ("failed", "poison")
    assert house.attempts(job_id)[-1].output_tail == "the last words\n"
    run_job(house.context, job_id)  # a late message changes nothing
    assert len(house.attempts(job_id)) == 3
    house.assert_no_gaps(job_id)


def test_checkpoints_between_deaths_start_the_count_again(house: House) -> None:
    for _ in range(4):
        job_id = house.job(do="train", epochs=2, die_at=0)
    run_job(house.context, job_id)
    assert house.read(job_id).deaths == 1
    run_job(house.context, job_id)
    assert house.read(job_id).state == "succeeded"


def test_an_attempt_that_lost_its_lease_writes_nothing_more(house: House) -> None:
    job_id = house.job(do="hang", every=0.1)
    with running(house, job_id):
        with transaction(house.context.engine) as session:  # as a reaper and another worker would, after a long silence
            job = house.read(job_id)
            taken = session.get_one(type(house.attempts(job_id)[0]), job.current_attempt_id)
            taken.expires_at = taken.started_at
        with transaction(house.context.engine) as session:
            assert leases.reap(session) == [job_id]
        with transaction(house.context.engine) as session:
            second = leases.claim(session, job_id, "there:2", "cpu", lease_seconds=30)
        assert second is not None
        before = len(house.events(job_id))
    assert len(house.events(job_id)) == before
    job, attempts = house.read(job_id), house.attempts(job_id)
    assert (job.state, job.current_attempt_id) == ("running", second.attempt_id)
    assert [attempt.outcome for attempt in attempts] == ["lost", None]
    house.assert_no_gaps(job_id)


def test_a_worker_that_stops_gives_the_job_back_at_once(house: House) -> None:
    job_id = house.job(do="hang")
    with running(house, job_id):
        house.context.stopping.set()
    job, (attempt,) = house.read(job_id), house.attempts(job_id)
    assert (job.state, job.deaths, attempt.outcome) == ("queued", 0, "released")


def test_a_sigterm_to_all_processes_at_once_is_no_death(house: House) -> None:
    job_id = house.job(do="hang")
    with running(house, job_id):  # as systemd stops a service: the child may be quicker than the worker
        (pid,) = [event.body["pid"] for event in house.events(job_id) if "pid" in event.body]
        os.kill(pid, signal.SIGTERM)
        time.sleep(0.15)
        house.context.stopping.set()
    job, (attempt,) = house.read(job_id), house.attempts(job_id)
    assert (job.state, job.deaths, attempt.outcome) == ("queued", 0, "released")


def test_a_sigterm_to_the_child_alone_is_a_death(house: House) -> None:
    job_id = house.job(do="hang")
    with running(house, job_id):
        (pid,) = [event.body["pid"] for event in house.events(job_id) if "pid" in event.body]
        os.kill(pid, signal.SIGTERM)
    assert (house.read(job_id).state, house.read(job_id).deaths) == ("queued", 1)


@pytest.mark.parametrize(
    "error", [StorageUnavailable("away"), OSError(errno.ENOSPC, "the disk is full")], ids=["storage", "disk"]
)
def test_a_job_is_not_to_blame_for_storage_or_disk(
    house: House, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def away(*_: object) -> None:
        raise error

    monkeypatch.setattr("worker.attempt.PATIENCE_SECONDS", -1.0)
    monkeypatch.setattr(ArtifactStore, "get_file", away)
    job_id = house.job(do="train", epochs=0)
    for _ in range(4):
        run_job(house.context, job_id)
    job = house.read(job_id)
    assert (job.state, job.deaths, job.error) == ("queued", 0, None)
    assert {attempt.outcome for attempt in house.attempts(job_id)} == {"released"}
    assert 30 < (house.next_ring(job_id) - now_utc()).total_seconds() <= 60
    monkeypatch.undo()
    run_job(house.context, job_id)
    assert house.read(job_id).state == "succeeded"


@pytest.mark.parametrize("state", ["missing", "claimed", "terminal"])
def test_a_late_message_does_nothing(house: House, state: str) -> None:
    job_id = "job_unknown"
    if state != "missing":
        job_id = house.job(do="train", epochs=0)
        with transaction(house.context.engine) as session:
            lease = leases.claim(session, job_id, "there:2", "cpu")
            assert lease is not None
            if state == "terminal":
                leases.finish(session, lease, "failed", error={"code": "x", "message": "y", "faults": []})
        before = len(house.events(job_id))
    run_job(house.context, job_id)
    if state != "missing":
        assert len(house.events(job_id)) == before


def test_an_input_whose_bytes_are_damaged_fails_the_job(house: House) -> None:
    job_id = house.job(do="train", epochs=0)
    for path in (house.settings.data_dir / "artifacts" / "sha256").rglob("*"):
        if path.is_file():
            path.write_text("other bytes")
    run_job(house.context, job_id)
    job = house.read(job_id)
    assert job.error is not None
    assert (job.state, job.error["code"]) == ("failed", "artifact_corrupt")


def test_the_reaper_forgets_checkpoints_of_jobs_that_are_over(house: House) -> None:
    job_id = house.job(do="train", epochs=4, die_at=2)
    run_job(house.context, job_id)
    reap(house.context.engine)
    assert house.artifacts(job_id), "still queued: the checkpoint is needed"
    house.cancel(job_id)
    reap(house.context.engine)
    assert not house.artifacts(job_id)
