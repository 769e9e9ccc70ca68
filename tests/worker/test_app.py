"""The settings of the queue, and the worker's command line."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import Empty

import pytest

from store.settings import Settings
from worker.__main__ import main, queues_for
from worker.answers import error_body, split_progress
from worker.app import EXPIRES_SECONDS, TASKS, Ringer, make_app, queue_named
from worker.context import Context, make_context


def test_the_queue_is_a_doorbell(settings: Settings) -> None:
    conf = make_app(settings).conf
    assert conf.task_acks_late is True
    assert conf.task_reject_on_worker_lost is False
    assert conf.worker_prefetch_multiplier == 1
    assert conf.accept_content == ["json"]
    assert conf.result_backend is None
    options = conf.broker_transport_options
    assert options["data_folder_in"] == options["data_folder_out"]
    assert options["polling_interval"] < 0.5


def test_a_message_holds_an_id_and_nothing_else(settings: Settings) -> None:
    app = make_app(settings)
    Ringer(app, settings)("run", "job_1", "some-queue")
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue(queue_named(settings, "some-queue"))
        message = queue.get(timeout=2)
        message.ack()
        queue.close()
    assert message.headers["task"] == TASKS["run"]
    arguments, keywords, _ = message.payload
    assert (arguments, keywords) == (["job_1"], {})


def test_a_folder_of_messages_read_and_written_by_many_at_once(settings: Settings) -> None:
    """Each arrives once and whole. kombu's own transport gives half of a message to a consumer that is quick."""
    app = make_app(settings)
    got: list[str] = []

    def receive() -> None:
        with app.connection_for_read() as connection:
            queue = connection.SimpleQueue(queue_named(settings, "many"))
            with contextlib.suppress(queue.Empty):
                while True:
                    message = queue.get(timeout=0.6)
                    got.append(message.payload["id"])
                    message.ack()
            queue.close()

    def send(part: int) -> None:
        with app.connection_for_write() as connection:
            queue = connection.SimpleQueue(queue_named(settings, "many"))
            for number in range(100):
                queue.put({"id": f"{part}-{number}"})
            queue.close()

    threads = [threading.Thread(target=receive) for _ in range(3)]
    threads += [threading.Thread(target=send, args=(part,)) for part in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 300
    assert len(set(got)) == 300
    assert not messages_of(settings, "many")


def messages_of(settings: Settings, queue: str) -> list[Path]:
    return sorted(folder_of(settings, queue).iterdir())


def folder_of(settings: Settings, queue: str) -> Path:
    return settings.data_dir / "queue" / "messages" / f"billhook.{queue}"


def receive_all(settings: Settings, queue: str) -> list[str]:
    """The ids that the messages hold which are waiting now."""
    found = []
    with make_app(settings).connection_for_read() as connection:
        channel = connection.channel()
        with contextlib.suppress(Empty):
            while True:
                found.append(json.loads(base64.b64decode(channel._get(f"billhook.{queue}")["body"]))[0][0])
    return found


def test_ringing_again_leaves_one_message(settings: Settings) -> None:
    ring = Ringer(make_app(settings), settings)
    for _ in range(20):
        for number in (2, 1, 3):
            ring("run", f"job_{number}", "cpu")
    ring("run", "job_1", "gpu")
    ring("inspect_model", "mdl_1", "inspect")
    assert len(messages_of(settings, "cpu")) == 3
    assert receive_all(settings, "cpu") == ["job_1", "job_2", "job_3"], "the oldest job first"
    ring("run", "job_2", "cpu")
    assert receive_all(settings, "cpu") == ["job_2"], "a job that was rung for may be rung for again"
    assert receive_all(settings, "gpu") == ["job_1"]
    assert receive_all(settings, "inspect") == ["mdl_1"]


def test_a_backlog_that_nobody_wants_any_more_costs_little(settings: Settings) -> None:
    """And so do the files of processes that died while they wrote or read one."""
    ring = Ringer(make_app(settings), settings)
    ring("run", "job_2", "cpu")
    folder, old = folder_of(settings, "cpu"), time.time() - EXPIRES_SECONDS - 1
    for number in range(5_000):
        path = folder / f"job_1-{number}{('.msg', '.taken', '.unfinished')[number % 3]}"
        path.touch()
        os.utime(path, (old, old))
    began = time.monotonic()
    assert receive_all(settings, "cpu") == ["job_2"]
    assert time.monotonic() - began < 2
    assert not messages_of(settings, "cpu")


def test_a_queue_without_a_worker_does_not_grow(settings: Settings) -> None:
    app = make_app(settings)
    Ringer(app, settings)("run", "job_1", "gpu")
    folder, old = folder_of(settings, "gpu"), time.time() - EXPIRES_SECONDS - 1
    for path in folder.iterdir():
        os.utime(path, (old, old))
    with app.connection_for_write() as connection:  # as another process would
        connection.channel()._put("billhook.gpu", {"headers": {"doorbell": "job_2-run"}})
    assert [path.name for path in messages_of(settings, "gpu")] == ["job_2-run.msg"]


def test_many_waiting_messages_are_taken_quickly(settings: Settings) -> None:
    ring = Ringer(make_app(settings), settings)
    ring("run", "job_0", "cpu")
    (one,) = messages_of(settings, "cpu")
    content = one.read_bytes()
    for number in range(3_000):
        (one.parent / f"job_{number}-run.msg").write_bytes(content)
    began = time.monotonic()
    assert len(receive_all(settings, "cpu")) == 3_000
    assert time.monotonic() - began < 4


def test_what_a_worker_consumes() -> None:
    assert queues_for("cpu", None) == ["cpu"]
    assert queues_for("inspect", None) == ["inspect"]
    assert queues_for("fetch", None) == ["fetch"]
    assert queues_for("gpu", 2) == ["gpu", "gpu-2"]


@pytest.mark.parametrize(
    "arguments", [[], ["--queue", "gpu"], ["--queue", "cpu", "--gpu", "0"], ["--queue", "gpu", "--gpu", "-1"]]
)
def test_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "--" in capsys.readouterr().err


def test_a_bad_setting_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("BILLHOOK_LEASE_SECONDS", "soon")
    assert main(["--queue", "cpu"]) == 2
    assert "BILLHOOK_LEASE_SECONDS" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wanted", "gpu", "device"),
    [
        ("auto", None, ("cpu", None)),
        ("cpu", 1, ("cpu", None)),
        ("auto", 1, ("cuda:1", 1)),
        ("cuda:1", 1, ("cuda:1", 1)),
    ],
)
def test_the_device_of_a_job(settings: Settings, wanted: str, gpu: int | None, device: tuple[str, int | None]) -> None:
    context: Context = make_context(settings, gpu=gpu)
    assert context.device_for(wanted) == device
    context.engine.dispose()


def test_the_parent_never_loads_torch() -> None:
    code = "import worker.service, worker.__main__, sys; assert not {'torch', 'onnx', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_a_child_says_of_its_progress_is_not_trusted() -> None:
    events = [
        ("progress", {"stage": "nonsense", "fraction": "much", "eta_seconds": {"$float": "nan"}}),
        ("prune/a", {}),
    ]
    assert split_progress(events) == (
        [("prune/a", {})], {"stage": None, "progress": None, "eta_seconds": None},
    )  # fmt: skip
    assert error_body({"path": "/etc"}) == {
        "code": "internal_error", "message": "the job failed and did not say why", "faults": [],
    }  # fmt: skip
    fault = {"pointer": "/model", "message": "m" * 5_000, "expected": None, "path": "/etc"}
    faults = error_body(
        {"code": 1, "message": "wrong", "faults": [1, {}, {"pointer": 1, "message": ""}, *[fault] * 200]}
    )
    assert (faults["code"], len(faults["faults"])) == ("internal_error", 100)
    assert faults["faults"][0] == {"pointer": "/model", "message": "m" * 2_000, "expected": None}
