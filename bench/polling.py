"""`python -m bench.polling`: how often `GET /v1/jobs/{id}` can be asked while jobs run, on SQLite and PostgreSQL.

A server process, a process that writes what the workers of running jobs would write (events and progress), and clients
that ask again as soon as they are answered (`bench.polling_load`). Beside it, in the same rounds: `/healthz`, which
does nothing (the framework's limit), and an address that is not there, asked with a key (authentication and a refusal).
And the limit of the clients themselves, against a server that answers without looking. Prints the table, keeps the raw
numbers in `docs/results/polling.json`, writes `docs/results/polling.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from bench.polling_jobs import OWNER, add_jobs
from store.database import connect, reading, transaction
from store.jobs import get_with_attempts
from store.keys import add_key, new_secret
from store.migrate import upgrade

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
POSTGRES = os.environ.get("BILLHOOK_TEST_POSTGRES", "postgresql+psycopg://root@127.0.0.1/postgres")
NOTHING = "/v1/nothing"
START_SECONDS = 60
HEADING = """# Polling: how often a job can be asked for

Made by `{command}`; raw numbers in `polling.json`. {machine}.

One server process (one core); {jobs} jobs run meanwhile, each with an event and a progress every
{every:g} s. Clients keep their connection and ask again as soon as they are answered; {rounds} rounds, all addresses
and databases in turn in each: median (smallest–largest). *of /healthz*: the median of the rounds' ratios. *CPU*: of the
server's process, for one request. `/healthz` needs no key and does nothing; `{nothing}` is not there, and says so after
the key was found good.

"""


@dataclass(frozen=True)
class Server:
    database: str
    url: str
    process: psutil.Process
    port: int
    key: str
    job: str


def client(port: int, path: str, status: int, clients: int, arguments: argparse.Namespace, key: str = "") -> Any:
    command = [sys.executable, "-m", "bench.polling_load", "--port", str(port), "--path", path, "--key", key,
               "--status", str(status), "--clients", str(clients), "--requests", str(arguments.requests),
               "--seconds", str(arguments.seconds)]  # fmt: skip
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def figures(found: dict[str, Any], cpu_seconds: float | None) -> dict[str, float]:
    seconds = sorted(found["seconds"])
    result = {
        "requests": len(seconds),
        "per_second": len(seconds) / found["wall_seconds"],
        "ms_p50": 1e3 * seconds[len(seconds) // 2],
        "ms_p99": 1e3 * seconds[min(len(seconds) - 1, int(0.99 * len(seconds)))],
    }
    return result if cpu_seconds is None else result | {"cpu_ms": 1e3 * cpu_seconds / len(seconds)}


def measure(server: Server, path: str, status: int, clients: int, arguments: argparse.Namespace) -> dict[str, float]:
    before = server.process.cpu_times()
    found = client(server.port, path, status, clients, arguments, server.key)
    after = server.process.cpu_times()
    return figures(found, after.user + after.system - before.user - before.system)


def query(server: Server, times: int = 1_000) -> dict[str, float]:
    """CPU of the query alone, in this process: again and again, without a server around it."""
    engine = connect(server.url)
    before = time.process_time()
    for _ in range(times):
        with reading(engine) as session:
            get_with_attempts(session, OWNER, server.job)
    spent = time.process_time() - before
    engine.dispose()
    return {"requests": times, "cpu_ms": 1e3 * spent / times}


# --- servers ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def stopped(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def postgres_url() -> Iterator[str]:
    """A database of its own, dropped afterwards."""
    admin = create_engine(POSTGRES, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 3})
    name = f"billhook_polling_{os.getpid()}"
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield make_url(POSTGRES).set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()


@contextlib.contextmanager
def serve(database: str, url: str, folder: Path, arguments: argparse.Namespace) -> Iterator[Server]:
    """A server on that database, with jobs that run until it is stopped."""
    folder.mkdir()
    engine = connect(url)
    upgrade(engine)
    key = new_secret()
    with transaction(engine) as session:
        add_key(session, key, owner=OWNER, name="bench")
    jobs = add_jobs(engine, arguments.jobs)
    engine.dispose()
    settings = {"DATA_DIR": str(folder), "DATABASE_URL": url, "LOG_LEVEL": "warning"}
    environment = os.environ | {f"BILLHOOK_{name}": value for name, value in settings.items()}
    writing = [sys.executable, "-m", "bench.polling_jobs", url, str(arguments.every), *jobs]
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener, contextlib.ExitStack() as stack:
        command = [sys.executable, "-m", "api.listen", "--fd", str(listener.fileno())]
        process = stack.enter_context(
            stopped(subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=(listener.fileno(),)))
        )
        port = listener.getsockname()[1]
        until = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1).close()
                break
            if time.monotonic() > until or process.poll() is not None:
                raise SystemExit("the server does not start")
            time.sleep(0.1)
        stack.enter_context(stopped(subprocess.Popen(writing, cwd=ROOT)))
        yield Server(database, url, psutil.Process(process.pid), port, key, jobs[0])


# --- telling ---------------------------------------------------------------------------------------------------------


def spread(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def table(rounds: list[dict[str, dict[str, float]]], databases: Sequence[str], clients: Sequence[int]) -> str:
    lines = [
        "| database | clients | address | requests/s | of /healthz | p50, ms | p99, ms | CPU, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for database in databases:
        for count in clients:
            for name in ("/healthz", NOTHING, "/v1/jobs/{id}"):
                rows = [each[f"{database} {count} {name}"] for each in rounds]
                idle = [each[f"{database} {count} /healthz"]["per_second"] for each in rounds]
                ratio = statistics.median(
                    row["per_second"] / other for row, other in zip(rows, idle, strict=True)
                )  # fmt: skip
                cells = [database, str(count), f"`{name}`", spread([row["per_second"] for row in rows], ",.0f"),
                         f"{ratio:.2f}", spread([row["ms_p50"] for row in rows], ".1f"),
                         spread([row["ms_p99"] for row in rows], ".1f"),
                         spread([row["cpu_ms"] for row in rows], ".2f")]  # fmt: skip
                lines.append(f"| {' | '.join(cells)} |")
    for count in clients:
        own = spread([each[f"clients {count}"]["per_second"] for each in rounds], ",.0f")
        lines.append(f"| – | {count} | the clients' own limit | {own} | | | | |")
    return "\n".join(lines) + "\n"


def limits(rounds: list[dict[str, dict[str, float]]], databases: Sequence[str], clients: Sequence[int]) -> str:
    """What the limit is, out of the CPU times."""
    lines = ["\n## What the limit is\n"]
    for database in databases:
        cpu = {
            name: statistics.median(
                each[f"{database} {count} {name}"]["cpu_ms"] for each in rounds for count in clients
            )
            for name in ("/healthz", NOTHING, "/v1/jobs/{id}")
        }
        job, idle = cpu["/v1/jobs/{id}"], cpu["/healthz"]
        alone = statistics.median(each[f"{database} query"]["cpu_ms"] for each in rounds)
        lines.append(
            f"- {database}: one process has one core, and a job takes {job:.2f} ms of it: {idle:.2f} are the "
            f"framework's for any request (parsing, routing, logging), {alone:.2f} the query through SQLAlchemy by "
            f"itself, {max(0.0, job - idle - alone):.2f} its way into a thread and back, the route and the document. "
            f"That is at most {1e3 / job:,.0f} requests a second a process."
        )
    lines.append(
        "- The database was asked three times for each request before this was measured: for the key, the job and its "
        "attempts. A key that was good is now known for `BILLHOOK_KEY_SECONDS` (5), a job comes with its attempts, and "
        "the framework's dependencies run without a thread each.\n"
        "- Who waits need not ask: a stream or a `?wait=` costs nothing until there is news. All of them share one "
        "look at the database every `BILLHOOK_WATCH_SECONDS`.\n"
        "- More processes on one database serve more: nothing is kept in one that another needs.\n"
    )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 50, 200])
    parser.add_argument("--requests", type=int, default=2_000, help="of each measurement at most")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement at most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=4, help="that run meanwhile")
    parser.add_argument("--every", type=float, default=0.5, help="seconds between two events of a job")
    parser.add_argument("--remark", default="", help="for the page, as that the machine was busy")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the page")
    arguments = parser.parse_args()
    rounds: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory(prefix="billhook-polling-") as folder, contextlib.ExitStack() as stack:
        place = Path(folder)
        servers = [stack.enter_context(serve("SQLite", f"sqlite:///{place}/b.db", place / "sqlite", arguments))]
        try:
            url = stack.enter_context(postgres_url())
            servers.append(stack.enter_context(serve("PostgreSQL", url, place / "postgresql", arguments)))
        except OperationalError as error:
            print(f"without PostgreSQL: {str(error.orig).splitlines()[0]}", file=sys.stderr)
        blind = subprocess.Popen(
            [sys.executable, "-m", "bench.polling_load", "--serve"], cwd=ROOT, stdout=subprocess.PIPE
        )
        stack.enter_context(stopped(blind))
        assert blind.stdout is not None
        blind_port = int(blind.stdout.readline())
        for number in range(arguments.rounds):
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
            found: dict[str, dict[str, float]] = {f"{server.database} query": query(server) for server in servers}
            for count in arguments.clients:
                found[f"clients {count}"] = figures(client(blind_port, "/", 200, count, arguments), None)
                for server in servers:
                    addresses = [("/healthz", "/healthz", 200), (NOTHING, NOTHING, 404),
                                 ("/v1/jobs/{id}", f"/v1/jobs/{server.job}", 200)]  # fmt: skip
                    for name, path, status in addresses if number % 2 else reversed(addresses):
                        found[f"{server.database} {count} {name}"] = measure(server, path, status, count, arguments)
            rounds.append(found)
        databases = [server.database for server in servers]
    page = table(rounds, databases, arguments.clients) + limits(rounds, databases, arguments.clients)
    chip = platform.processor() or platform.machine()
    machine = f"{chip}, {os.cpu_count()} cores, Python {platform.python_version()}"
    machine += f"; {arguments.remark}" if arguments.remark else ""
    options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
    (arguments.results / "polling.json").write_text(
        json.dumps({"machine": machine, "arguments": options, "rounds": rounds}, indent=1) + "\n"
    )
    command = " ".join(["python -m bench.polling", *map(shlex.quote, sys.argv[1:])])
    heading = HEADING.format(
        command=command, machine=machine, jobs=arguments.jobs, every=arguments.every, rounds=arguments.rounds,
        nothing=NOTHING,
    )  # fmt: skip
    (arguments.results / "polling.md").write_text(heading + page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
