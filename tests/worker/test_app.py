"""The settings of the queue, and the worker's command line."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading

import pytest

from store.settings import Settings
from worker.__main__ import main, queues_for
from worker.app import TASKS, make_app, queue_named, ringer
from worker.attempt import error_body, split_progress
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
    ringer(app, settings)("run", "job_1", "some-queue")
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
    assert not list((settings.data_dir / "queue" / "messages").iterdir())


def test_what_a_worker_consumes() -> None:
    assert queues_for("cpu", None) == ["cpu"]
    assert queues_for("inspect", None) == ["inspect"]
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
