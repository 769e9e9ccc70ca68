"""Jobs that run for the benchmark: what the worker's parent of a child that trains would write, without the child.

`python -m bench.polling_jobs DATABASE_URL SECONDS JOB…` writes an event and a progress for each job, every so many
seconds, until it is stopped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from sqlalchemy import Engine

from store import jobs, leases, uploads
from store.database import connect, transaction
from store.leases import Lease

OWNER = "bench"
RECIPE = {"version": 1, "steps": [{"method": "filter_norm", "target": {"params": 0.5}, "fine_tune": {"epochs": 50}}]}


def add_jobs(engine: Engine, count: int) -> list[str]:
    """The ids of `count` queued jobs."""
    with transaction(engine) as session:
        model, _ = uploads.create_model(
            session, owner=OWNER, sha256="0" * 64, bytes=1, filename="m.onnx", format="onnx", options={}
        )
        dataset, _ = uploads.create_dataset(
            session, owner=OWNER, sha256=None, bytes=0, filename="digits", format="digits", options={},
            uri="builtin:digits",
        )  # fmt: skip
        return [
            jobs.create_job(session, owner=OWNER, model_id=model.id, dataset_ids=[dataset.id], recipe=RECIPE).id
            for _ in range(count)
        ]


def work(engine: Engine, every: float, job_ids: Sequence[str]) -> None:
    held: list[Lease] = []
    for job_id in job_ids:
        with transaction(engine) as session:
            lease = leases.claim(session, job_id, "bench:1", "cpu", lease_seconds=86_400)
            assert lease is not None
            held.append(lease)
    epoch = 0
    while True:
        epoch += 1
        for lease in held:
            body = {"epoch": epoch, "loss": 1 / epoch, "validation_accuracy": 1 - 1 / epoch, "seconds": every}
            with transaction(engine) as session:
                leases.append_events(session, lease, [(f"fine_tune/0/epoch/{epoch}", body)])
                leases.set_progress(session, lease, "fine_tune", epoch % 1_000 / 1_000, 60.0)
            time.sleep(every / len(held))


if __name__ == "__main__":
    work(connect(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
