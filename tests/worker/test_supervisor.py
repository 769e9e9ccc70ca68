"""The child as a process: what it may use, how it is ended, and what becomes of what it says."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.worker.fake_child import nest_folders
from tests.worker.house import FAKE_CHILD, wait_for
from worker.guard import Limits, Order, folder_use, session_memory_bytes
from worker.lines import EventLine, Lines
from worker.supervisor import Ended, clean_environment, death, supervise

LIMITS = Limits(run_seconds=30, memory_bytes=2**30, disk_bytes=2**26, grace_seconds=0.5)


class Run:
    """One supervised run of the fake child."""

    def __init__(self, workdir: Path, **plan: object) -> None:
        self.workdir = workdir
        self.events: list[EventLine] = []
        self.asked: Order | None = None
        for part in ("inputs", "state", "out"):
            (workdir / part).mkdir()
        (workdir / "job.json").write_text(json.dumps({"recipe": {"description": json.dumps(plan)}}))

    def store(self, events: Sequence[EventLine]) -> None:
        self.events += events

    def end_when_started(self, order: Order) -> Order | None:
        return order if any("pid" in body for _, body in self.events) else None

    def __call__(self, limits: Limits = LIMITS, end: Order | None = None) -> Ended:
        return supervise(
            "run", self.workdir, limits, order=lambda: self.end_when_started(end) if end else None, store=self.store,
            command=FAKE_CHILD,
        )  # fmt: skip


@pytest.mark.parametrize("order", ["cancelled", "stopped", "lost"])
def test_an_order_ends_the_whole_group(tmp_path: Path, order: Order) -> None:
    run = Run(tmp_path, do="hang", descendant=True)
    ended = run(end=order)
    assert ended.verdict == order
    (descendant,) = [body["pid"] for name, body in run.events if name == "import/descendant"]
    wait_for(lambda: not Path(f"/proc/{descendant}").exists(), 5)


def test_a_child_that_will_not_listen_is_killed_after_the_grace(tmp_path: Path) -> None:
    began = time.monotonic()
    assert Run(tmp_path, do="hang", deaf=True)(end="cancelled").verdict == "cancelled"
    assert time.monotonic() - began > LIMITS.grace_seconds


def test_more_files_than_allowed(tmp_path: Path) -> None:
    ended = Run(tmp_path, do="litter", files=60)(dataclasses.replace(LIMITS, files=50))
    assert (ended.body["code"], ended.body["message"]) == ("disk_limit", "the job has more than 50 files")


def test_a_guard_that_fails_ends_the_child(tmp_path: Path) -> None:
    Run(tmp_path, do="hang")

    def broken() -> Order | None:
        raise RuntimeError("broken")

    ended = supervise("run", tmp_path, LIMITS, order=broken, store=lambda _: None, command=FAKE_CHILD)
    assert (ended.verdict, ended.body["code"]) == ("error", "internal_error")


def test_a_slow_store_holds_up_neither_limit_nor_order(tmp_path: Path) -> None:
    run = Run(tmp_path, do="hang", every=0.01)
    others = set(children_of(os.getpid()))

    def slow(events: Sequence[EventLine]) -> None:
        run.events += events
        wait_for(lambda: set(children_of(os.getpid())) <= others, 10)  # blocks until the guard has killed the child

    limits = Limits(run_seconds=1, memory_bytes=2**30, disk_bytes=2**26)
    ended = supervise("run", tmp_path, limits, order=lambda: None, store=slow, command=FAKE_CHILD)
    assert ended.body["code"] == "time_limit"


def children_of(pid: int) -> list[int]:
    """Live (not zombie) children."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def test_a_store_that_raises_leaves_no_child_behind(tmp_path: Path) -> None:
    run = Run(tmp_path, do="hang")

    def broken(events: Sequence[EventLine]) -> None:
        run.events += events
        raise RuntimeError("the store is broken")

    with pytest.raises(RuntimeError, match="the store is broken"):
        supervise("run", tmp_path, LIMITS, order=lambda: None, store=broken, command=FAKE_CHILD)
    pid = next(body["pid"] for _, body in run.events if "pid" in body)
    assert not Path(f"/proc/{pid}").exists()


def test_events_come_in_order_and_the_result_last(tmp_path: Path) -> None:
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / "model.onnx").write_text("weights")
    (tmp_path / "inputs").rename(tmp_path / "kept")
    run = Run(tmp_path, do="train", epochs=5, seconds=0)
    (tmp_path / "kept" / "model.onnx").rename(tmp_path / "inputs" / "model.onnx")
    ended = run()
    assert (ended.verdict, ended.body) == ("result", {})
    events = [*run.events, *ended.rest]
    assert [body["epoch"] for name, body in events if "/epoch/" in name] == list(range(5))
    assert ended.peak_memory_bytes >= 0


@pytest.mark.parametrize(
    ("plan", "match"),
    [
        ({"say": "[1]\n"}, "not an event"),
        ({"say": '{"name": 1, "body": {}}\n'}, "not an event"),
        ({"say": '{"name": "a"}\n'}, "not an event"),
        ({"say": "x" * 1_000, "times": 3}, "longer than 2000 bytes"),
        ({"say": '{"name": "prune/a", "body": {}}\n', "times": 60}, "more than 50 events"),
        ({"say": '{"name": "state", "body": {"state": "succeeded"}}\n'}, "begins with a stage"),
        ({"say": '{"name": "attempt/died", "body": {}}\n'}, "begins with a stage"),
        ({"say": '{"name": "prune/a", "body": {"a": ' + "[" * 70 + "]" * 70 + "}}\n"}, "more than 64 deep"),
        ({"say": '{"name": "prune/a", "body": {"a": ' + "[" * 250 + "]" * 250 + "}}\n"}, "more than 64 deep"),
        ({"say": '{"name": "prune/a", "body": {"a": [' + "{}," * 200 + "{}]}}\n"}, "more than 300 values"),
    ],
)
def test_what_is_not_an_event_ends_the_child(tmp_path: Path, plan: dict[str, object], match: str) -> None:
    limits = Limits(run_seconds=30, memory_bytes=2**30, disk_bytes=2**26, line_bytes=2_000, lines=50, line_values=300)
    began = time.monotonic()
    ended = Run(tmp_path, do="babble", **plan)(limits)
    assert ended.body["code"] == "output_limit"
    assert match in ended.body["message"]
    assert time.monotonic() - began < 4


def test_lines_arrive_in_any_pieces() -> None:
    lines = Lines(LIMITS)
    text = (
        b"".join(b'{"name":"prune/%d","body":{"n":%d}}\n' % (n, n) for n in range(50))
        + b'{"name":"result","body":{}}\n'
    )
    events = [event for byte in text for event in lines.feed(bytes([byte]))]
    assert events == [(f"prune/{n}", {"n": n}) for n in range(50)]
    assert lines.last == ("result", {})
    assert lines.feed(b'{"name":"prune/after","body":{}}\n') == []


@pytest.mark.parametrize("what", ["a link", "a pipe", "nothing"])
def test_what_lies_in_place_of_a_log_is_not_read(tmp_path: Path, what: str) -> None:
    (tmp_path / "secret").write_text("the secret")
    plan = {"do": "leave", "file": "stderr.log", "as": what, "to": str(tmp_path / "secret")}
    (tmp_path / "work").mkdir()
    ended = Run(tmp_path / "work", **plan)()
    assert (ended.verdict, ended.output_tail) == ("result", "")


def test_scores_of_a_very_wide_network_are_one_event() -> None:
    line = json.dumps({"name": "prune/step/0/select", "body": {"scores": {"conv": [0.12345678901234567] * 200_000}}})
    lines = Lines(LIMITS)
    assert len(lines.feed(line.encode() + b"\n")) == 1
    assert lines.fault is None


def test_a_descendant_that_left_the_session_cannot_hold_the_pipe(tmp_path: Path) -> None:
    began = time.monotonic()
    ended = Run(tmp_path, do="flood")()
    assert ended.verdict == "died"
    assert time.monotonic() - began < 4


def test_how_a_child_died() -> None:
    assert "SIGSEGV" in death(-signal.SIGSEGV)["message"]
    assert "status 3" in death(3)["message"]


def test_a_child_whose_parent_is_gone_already_ends_at_once(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    arguments = [f"--workdir={tmp_path}", f"--events-fd={writing}", "--parent=1", "--open-files=100",
                 "--file-bytes=1000000", "--cpu-seconds=60"]  # fmt: skip
    done = subprocess.run(
        [*FAKE_CHILD, "run", *arguments], pass_fds=(writing,), env=clean_environment(tmp_path, None), timeout=20
    )
    os.close(writing)
    assert done.returncode == 1
    assert os.read(reading, 100) == b"", "it said nothing"
    os.close(reading)


def test_a_broken_pipe_ends_the_child(tmp_path: Path) -> None:
    run = Run(tmp_path, do="hang", every=0.05)
    assert run is not None
    reading, writing = os.pipe()
    arguments = [f"--workdir={tmp_path}", f"--events-fd={writing}", f"--parent={os.getpid()}", "--open-files=100",
                 "--file-bytes=1000000", "--cpu-seconds=60"]  # fmt: skip
    child = subprocess.Popen(
        [*FAKE_CHILD, "run", *arguments], pass_fds=(writing,), env=clean_environment(tmp_path, None)
    )
    os.close(writing)
    assert os.read(reading, 10)
    os.close(reading)
    assert child.wait(10) == 1


def test_memory_of_a_session_and_bytes_of_a_folder(tmp_path: Path) -> None:
    hungry = subprocess.Popen(
        [sys.executable, "-c", "x = b'x' * 2**26; print('fed', flush=True); import time; time.sleep(60)"],
        start_new_session=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert hungry.stdout is not None
    hungry.stdout.readline()
    assert 2**26 < session_memory_bytes(hungry.pid) < 2**28
    hungry.kill()
    hungry.communicate()
    assert session_memory_bytes(hungry.pid) == 0

    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"x" * 100_000)
    (tmp_path / "link").symlink_to("/usr")
    use = folder_use(tmp_path, files=100, depth=10)
    assert 100_000 <= use.bytes < 200_000
    assert (use.files, use.depth) == (3, 2)
    assert folder_use(tmp_path, files=1, depth=10).files == 2, "counting ends there"
    nest_folders(tmp_path, 50, name="x" * 200)
    assert folder_use(tmp_path, files=100, depth=64).depth == 65, "below the longest path nothing can be counted"
