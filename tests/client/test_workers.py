"""The server's workers, by the client and by the command."""

from __future__ import annotations

from tests.client.command import Command
from tests.client.either import Either
from tests.client.fake_answers import WORKERS


def test_the_client_lists_them(client: Either) -> None:
    first, second, third = client.list_workers()
    assert (first.name, first.queues, first.device, first.works_on) == ("box:1", ("gpu", "gpu-0"), "cuda:0", "job_mine")
    assert (second.state, second.busy, second.works_on) == ("silent", True, None)
    assert (third.device, third.busy) == (None, False)
    assert [worker.name for worker in client.list_workers(limit=2)] == ["box:1", "box:2"]


def test_the_command_prints_them(run: Command) -> None:
    rows = [line.split() for line in run("workers").out.splitlines()]
    assert rows[0][:6] == ["name", "host", "serves", "device", "state", "works"]
    assert rows[1][:7] == ["box:1", "box", "gpu,", "gpu-0", "cuda:0", "alive", "job_mine"]
    assert rows[2][:6] == ["box:2", "box", "cpu", "cpu", "silent", "busy"]
    assert rows[3][:6] == ["box:3", "box", "inspect", "-", "alive", "-"]
    assert run("workers", "--json").document == WORKERS
    assert len(run("workers", "--limit", "1", "--json").document) == 1
    assert run("workers", "--limit", "0").code == 2
