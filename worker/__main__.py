"""`python -m worker --queue cpu|gpu|inspect|fetch [--gpu N] [--name NAME]`: one worker process, one slot."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pydantic import ValidationError

from store.settings import Settings
from worker.context import default_name, make_context
from worker.logs import configure_worker_logs
from worker.service import serve


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker until it is told to stop; the exit status (2: bad usage or settings)."""
    parser = argparse.ArgumentParser(
        prog="python -m worker",
        description="Claim and run jobs (cpu, gpu), check uploads (inspect) or fetch datasets from their URIs "
        "(fetch), one at a time. SIGTERM gives a running job back. Settings are BILLHOOK_ environment variables.",
    )
    parser.add_argument("--queue", choices=("cpu", "gpu", "inspect", "fetch"), required=True, help="what to work on")
    parser.add_argument("--gpu", type=int, metavar="N", help="number of the GPU that is this worker's slot (queue gpu)")
    parser.add_argument("--name", help="how this worker is called in records and logs; default: host and process")
    options = parser.parse_args(arguments)
    if (options.queue == "gpu") != (options.gpu is not None):
        parser.error("--gpu N goes with --queue gpu, and --queue gpu needs it: one worker for each GPU")
    if options.gpu is not None and options.gpu < 0:
        parser.error("--gpu is the number of a GPU, from 0")
    try:
        settings = Settings()
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            name = "_".join(str(part) for part in fault["loc"]).upper()
            print(f"BILLHOOK_{name}: {fault['msg']}", file=sys.stderr)  # noqa: T201
        return 2
    name = options.name or default_name()
    configure_worker_logs(settings.log_level, name)
    return serve(make_context(settings, name=name, gpu=options.gpu), queues_for(options.queue, options.gpu))


def queues_for(queue: str, gpu: int | None) -> list[str]:
    """What a worker consumes: its queue, and for a GPU the jobs that ask for that one (`device: cuda:N`) too."""
    return [queue] if gpu is None else [queue, f"{queue}-{gpu}"]


if __name__ == "__main__":
    sys.exit(main())
