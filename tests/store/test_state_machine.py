"""Any order of claims, beats, deaths, ends and cancellations, against a model in plain Python."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import Engine, select

from store import events, jobs, leases, outbox
from store.database import reading, transaction
from store.errors import JobTerminal, LeaseLost
from store.leases import Lease
from store.records import HELD, TERMINAL, Attempt, Job
from tests.store.conftest import NOW, OWNER, add_inputs, empty

MAX_JOBS = 3


@dataclass
class Expected:
    """What a job should be."""

    state: str = "queued"
    holder: Lease | None = None
    expires: datetime = NOW
    deaths: int = 0
    checkpoint: str | None = None
    events: dict[int | None, int] = field(default_factory=lambda: {None: 1})  # by attempt

    def wrote(self, attempt: int | None, count: int = 1) -> None:
        self.events[attempt] = self.events.get(attempt, 0) + count


class Leases(RuleBasedStateMachine):
    engine: Engine

    def __init__(self) -> None:
        super().__init__()
        empty(self.engine)
        self.inputs = add_inputs(self.engine)
        self.now = NOW
        self.jobs: dict[str, Expected] = {}
        self.granted: list[Lease] = []
        self.ended: dict[str, tuple[Any, ...]] = {}

    # --- what can happen ---------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.jobs) < MAX_JOBS)
    @rule()
    def submit(self) -> None:
        with transaction(self.engine) as session:
            job = jobs.create_job(session, owner=OWNER, model_id=self.inputs[0], dataset_ids=[self.inputs[1]],
                                  recipe={}, now=self.now)  # fmt: skip
        self.jobs[job.id] = Expected()

    @rule(seconds=st.sampled_from([1, 10, 31]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        expected = self.jobs[job_id]
        with transaction(self.engine) as session:
            lease = leases.claim(session, job_id, "host:1", "cpu", self.now)
        assert (lease is not None) == (expected.state == "queued")
        if lease is not None:
            expected.state, expected.holder = "running", lease
            expected.expires = self.now + timedelta(seconds=lease.seconds)
            expected.wrote(lease.number)
            self.granted.append(lease)

    def _any_lease(self, data: st.DataObject) -> tuple[Lease, Expected, bool]:
        """One that was ever granted, and whether it is still good."""
        lease = data.draw(st.sampled_from(self.granted))
        expected = self.jobs[lease.job_id]
        return lease, expected, expected.holder == lease

    @precondition(lambda self: self.granted)
    @rule(data=st.data())
    def beat(self, data: st.DataObject) -> None:
        lease, expected, good = self._any_lease(data)
        with transaction(self.engine) as session:
            answer = leases.heartbeat(session, lease, self.now)
        assert answer == ("lost" if not good else "cancelling" if expected.state == "cancelling" else "held")
        if good:
            expected.expires = self.now + timedelta(seconds=lease.seconds)

    @precondition(lambda self: self.granted)
    @rule(data=st.data(), count=st.integers(0, 3))
    def report(self, data: st.DataObject, count: int) -> None:
        lease, expected, good = self._any_lease(data)
        if self._write(good, lambda session: leases.append_events(session, lease, [("e", {})] * count, self.now)):
            expected.wrote(lease.number, count)

    @precondition(lambda self: self.granted)
    @rule(data=st.data(), content=st.sampled_from("ab"))
    def checkpoint(self, data: st.DataObject, content: str) -> None:
        lease, expected, good = self._any_lease(data)
        sha256 = content * 64
        if self._write(
            good, lambda session: leases.add_artifact(session, lease, "c", "checkpoint", sha256, 1, "a/b", self.now)
        ):
            if expected.checkpoint != sha256:
                expected.deaths = 0
            expected.checkpoint = sha256

    @precondition(lambda self: self.granted)
    @rule(data=st.data(), state=st.sampled_from(["succeeded", "failed", "cancelled"]))
    def finish(self, data: st.DataObject, state: Any) -> None:
        lease, expected, good = self._any_lease(data)
        if good and state == "cancelled" and expected.state != "cancelling":
            state = "failed"  # nobody asked for it
        error = {"code": "x"} if state == "failed" else None
        if self._write(good, lambda session: leases.finish(session, lease, state, {}, error, self.now)):
            expected.state, expected.holder = state, None
            expected.wrote(lease.number)

    @precondition(lambda self: self.granted)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease, expected, good = self._any_lease(data)
        if self._write(good, lambda session: leases.release(session, lease, self.now)):
            expected.state = "cancelled" if expected.state == "cancelling" else "queued"
            expected.holder = None
            expected.wrote(lease.number)

    def _write(self, good: bool, write: Any) -> bool:
        if good:
            with transaction(self.engine) as session:
                write(session)
        else:
            with pytest.raises(LeaseLost), transaction(self.engine) as session:
                write(session)
        return good

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        expected = self.jobs[job_id]
        if expected.state in TERMINAL:
            with pytest.raises(JobTerminal), transaction(self.engine) as session:
                jobs.request_cancel(session, OWNER, job_id, self.now)
            return
        with transaction(self.engine) as session:
            jobs.request_cancel(session, OWNER, job_id, self.now)
        if expected.state != "cancelling":
            expected.state = "cancelled" if expected.state == "queued" else "cancelling"
            expected.wrote(None)

    @rule()
    def reap(self) -> None:
        with transaction(self.engine) as session:
            reaped = leases.reap(session, self.now)
        due = {job_id for job_id, expected in self.jobs.items() if expected.holder and expected.expires < self.now}
        assert set(reaped) == due
        for job_id in due:
            expected = self.jobs[job_id]
            assert expected.holder is not None
            expected.wrote(expected.holder.number)
            expected.deaths += 1
            expected.holder = None
            if expected.state == "cancelling":
                expected.state = "cancelled"
            else:
                expected.state = "failed" if expected.deaths >= leases.MAX_DEATHS else "queued"

    # --- what must always hold ---------------------------------------------------------------------------------------

    @invariant()
    def all_is_as_expected(self) -> None:
        with reading(self.engine) as session:
            for job in session.scalars(select(Job)):
                expected = self.jobs[job.id]
                assert (job.state, job.deaths) == (expected.state, expected.deaths)
                open_attempts = session.scalars(
                    select(Attempt.id).where(Attempt.job_id == job.id, Attempt.ended_at.is_(None))
                ).all()
                assert list(open_attempts) == ([expected.holder.attempt_id] if expected.holder else [])
                assert (job.state in HELD) == (expected.holder is not None)
                self._check_log(session, job, expected)
                self._check_end(job)
            ringing = {message.subject_id for message in outbox.due(session, self.now) if message.topic == "run"}
            assert ringing == {job_id for job_id, expected in self.jobs.items() if expected.state == "queued"}

    def _check_log(self, session: Any, job: Job, expected: Expected) -> None:
        log = events.page(session, job.id, 0, 10_000)
        assert [event.seq for event in log] == list(range(1, job.next_event_seq))
        written: dict[int | None, int] = {}
        for event in log:
            written[event.attempt] = written.get(event.attempt, 0) + 1
        assert written == {attempt: count for attempt, count in expected.events.items() if count}

    def _check_end(self, job: Job) -> None:
        """Once over, nothing of it changes."""
        if job.state in TERMINAL:
            end = (job.state, job.finished_at, job.next_event_seq, job.results, job.error, job.progress)
            assert self.ended.setdefault(job.id, end) == end
            assert job.finished_at is not None
        else:
            assert job.id not in self.ended


def test_leases(engine: Engine) -> None:
    machine = type("LeasesOn", (Leases,), {"engine": engine})
    examples = 25 if engine.dialect.name == "sqlite" else 10
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=checks,
            database=None,
            derandomize=True,
        ),
    )
