"""docs/operations.md and its examples: backup and restore are run, alerts, units and settings are what there is."""

from __future__ import annotations

import asyncio
import configparser
import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import make_url, select
from sqlalchemy.engine import Engine

from api.metrics import Metrics
from api.serve import _parser
from store import events, jobs, leases, sweep, uploads
from store.artifacts import ArtifactStore
from store.database import connect, reading, transaction
from store.migrate import upgrade
from store.reaper import reap
from store.records import Artifact, Dataset, Model
from store.settings import Settings
from tests.store.conftest import postgres_url
from worker.__main__ import queues_for

__all__ = ["postgres_url"]  # a fixture
ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "operations.md").read_text()
RULES = yaml.safe_load((ROOT / "examples" / "prometheus" / "alerts.yaml").read_text())["groups"][0]["rules"]
UNITS = sorted((ROOT / "examples" / "systemd").iterdir())


def commands(name: str) -> list[str]:
    """The lines of a block of the page."""
    found = re.search(rf"```sh {name}\n(.*?)```", PAGE, re.DOTALL)
    assert found, name
    return found[1].strip().splitlines()


def run(lines: list[str], **variables: object) -> None:
    environment = {"PATH": os.environ["PATH"]} | {name: str(value) for name, value in variables.items()}
    for line in lines:
        done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr}"


def needs(*tools: str) -> None:
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")


# --- backup and restore ----------------------------------------------------------------------------------------------


class Service:
    """Records and files of a service, without its processes."""

    def __init__(self, database_url: str, folder: Path) -> None:
        self.engine: Engine = connect(database_url)
        self.storage = ArtifactStore(f"file://{folder}")
        self._upload = folder.parent / f"{folder.name}.upload"

    def put(self, content: bytes) -> tuple[str, int]:
        self._upload.parent.mkdir(parents=True, exist_ok=True)
        self._upload.write_bytes(content)
        return self.storage.put_file(self._upload)

    def submit(self, name: str) -> str:
        sha256, size = self.put(f"the model of {name}".encode())
        with transaction(self.engine) as session:
            model, _ = uploads.create_model(
                session, owner="me", sha256=sha256, bytes=size, filename="m.onnx", format="onnx", options={}
            )
            dataset, _ = uploads.create_dataset(
                session, owner="me", sha256=None, bytes=0, filename="d", format="digits", options={},
                uri="builtin:digits",
            )  # fmt: skip
            return jobs.create_job(
                session, owner="me", model_id=model.id, dataset_ids=[dataset.id], recipe={}, name=name
            ).id

    def work(self, job_id: str, *, finish: bool) -> None:
        """What a worker does: to the end, or to a checkpoint."""
        with transaction(self.engine) as session:
            lease = leases.claim(session, job_id, "w", "cpu")
            assert lease is not None
        sha256, size = self.put(f"what {job_id} left".encode())
        with transaction(self.engine) as session:
            kind = "output" if finish else "checkpoint"
            leases.add_artifact(session, lease, kind, kind, sha256, size, "application/octet-stream")
            if finish:
                leases.finish(session, lease, "succeeded")

    def check(self, finished: list[str], running: str) -> None:
        """It serves its jobs, and no record points at nothing."""
        with reading(self.engine) as session:
            for job_id in finished:
                assert jobs.get_job(session, "me", job_id).state == "succeeded"
                (left,) = jobs.artifacts(session, job_id)
                assert self.storage.read_bytes(left.sha256) == f"what {job_id} left".encode()
                assert len(events.page(session, job_id)) == 3
            named = [
                sha256
                for column in (Artifact.sha256, Model.sha256, Dataset.sha256)
                for sha256 in session.scalars(select(column))
                if sha256 is not None
            ]
        assert len(named) > len(finished)
        assert all(self.storage.exists(sha256) for sha256 in named)
        assert sweep.sweep(self.engine, self.storage) == 0, "nor is anything of it swept away"
        with reading(self.engine) as session:
            expires = session.scalars(select(leases.Attempt.expires_at).where(leases.Attempt.job_id == running)).one()
        assert reap(self.engine, expires.replace(year=expires.year + 1)) == [running]
        self.work(running, finish=False)  # another worker goes on


def back_up(service: Service, lines: list[str], **variables: object) -> tuple[list[str], str]:
    """Run them while the service works: after each, a job ends. Returns those that are in the copy for sure, and one
    that was running."""
    before = service.submit("before")
    service.work(before, finish=True)
    running = service.submit("running")
    service.work(running, finish=False)
    dumping = next(number for number, line in enumerate(lines) if "sqlite3" in line or "pg_dump" in line)
    done = [before]
    for number, line in enumerate(lines):
        run([line], **variables)
        job_id = service.submit(f"after step {number}")
        service.work(job_id, finish=True)
        if number < dumping:
            done.append(job_id)
    assert len(done) > 2
    return done, running


def test_a_backup_of_sqlite_and_files_is_restored(tmp_path: Path) -> None:
    needs("rsync", "sqlite3")
    data, backup, restored = tmp_path / "data", tmp_path / "backup", tmp_path / "restored"
    service = Service(f"sqlite:///{data}/billhook.db", data / "artifacts")
    upgrade(service.engine)
    (data / "key").write_text("bh_secret\n")
    done, running = back_up(service, commands("backup-sqlite"), DATA=data, BACKUP=backup)
    service.engine.dispose()
    run(commands("restore-sqlite"), DATA=restored, BACKUP=backup)
    again = Service(f"sqlite:///{restored}/billhook.db", restored / "artifacts")
    again.check(done, running)
    again.engine.dispose()
    assert (restored / "key").read_text() == "bh_secret\n"


@pytest.fixture
def another_postgres_url(postgres_url: str) -> Iterator[str]:
    """An empty database beside it."""
    url = make_url(postgres_url)
    admin = connect(postgres_url).execution_options(isolation_level="AUTOCOMMIT")
    name = f"{url.database}_restored"
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield url.set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    admin.dispose()


def test_a_backup_of_postgresql_is_restored(tmp_path: Path, postgres_url: str, another_postgres_url: str) -> None:
    needs("rsync", "pg_dump", "pg_restore")
    storage, backup, restored = tmp_path / "storage", tmp_path / "backup", tmp_path / "restored"
    service = Service(postgres_url, storage)
    upgrade(service.engine)
    plain = [url.replace("+psycopg", "") for url in (postgres_url, another_postgres_url)]
    done, running = back_up(service, commands("backup-postgresql"), DATABASE=plain[0], STORAGE=storage, BACKUP=backup)
    service.engine.dispose()
    run(commands("restore-postgresql"), DATABASE=plain[1], STORAGE=restored, BACKUP=backup)
    again = Service(another_postgres_url, restored)
    again.check(done, running)
    again.engine.dispose()


# --- alerts ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Every series that the metrics have, with its labels."""
    settings = Settings(_env_file=None, data_dir=tmp_path_factory.mktemp("data"))
    engine = connect(settings.database_url)
    upgrade(engine)
    with transaction(engine) as session:
        for name in ("training_epochs", "training_images", "training_seconds"):
            leases.counters.count(session, name, device="cpu")
        leases.counters.count(session, "stages", stage="prune", device="cpu")
        leases.counters.count(session, "queue_wait", queue="cpu")
    metrics = Metrics(settings)
    metrics.began()
    metrics.ended("GET", "/healthz", 200, 0.1)
    text = asyncio.run(metrics.page(""))[0].decode()
    engine.dispose()
    found: dict[str, set[str]] = {"up": {"job", "instance"}}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {"instance", "job"}).update(sample.labels)
    return found


def selectors(node: Any) -> Iterator[Any]:
    """Every vector selector below a node of a parsed expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "vs"):
        if (inner := getattr(node, name, None)) is not None:
            yield from selectors(inner)
    for inner in getattr(node, "args", None) or []:
        yield from selectors(inner)


def expressions() -> list[str]:
    return [rule["expr"] for rule in RULES] + re.findall(r"```promql\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_is_promql_about_what_there_is(expression: str, exposed: dict[str, set[str]]) -> None:
    named = list(selectors(promql_parser.parse(expression)))
    assert len(named) == len(re.findall(r"\b(?:billhook_\w+|up\b)", expression))
    for selector in named:
        assert selector.name in exposed or f"{selector.name}_total" in exposed, selector.name
        labels = {matcher.name for matcher in selector.matchers.matchers}
        assert labels <= exposed.get(selector.name, set()), selector


def test_what_a_label_may_be_is_known(exposed: dict[str, set[str]]) -> None:
    """A code, state or outcome that no job can ever have would be an alert that never fires."""
    from store.counters import FAILURES

    codes = set(itertools.chain(*(found.split("|") for found in re.findall(r'code=~?"([\w|]+)"', str(expressions())))))
    assert codes
    assert codes <= FAILURES


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_what_it_is_and_the_page_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"].endswith(".")
    assert f"`{rule['alert']}`" in PAGE.partition("## What to do when")[2]


def test_the_scrape_reads_the_rules() -> None:
    scrape = yaml.safe_load((ROOT / "examples" / "prometheus" / "prometheus.yaml").read_text())
    assert scrape["rule_files"] == ["alerts.yaml"]
    (job,) = scrape["scrape_configs"]
    assert job["job_name"] == "billhook"
    assert any('up{job="billhook"}' in rule["expr"] for rule in RULES)


# --- units, proxies, settings ----------------------------------------------------------------------------------------


def unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(path.read_text())
    return parser


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_starts_what_there_is(path: Path) -> None:
    service = unit(path)["Service"]
    command = service["ExecStart"].removeprefix("/opt/billhook/.venv/bin/")
    if command.startswith("billhook-server "):
        _parser().parse_args(command.split()[1:])
    else:
        queue = re.fullmatch(r"python -m worker --queue (gpu --gpu %i|%i)", command)
        assert queue, command
        assert queues_for("gpu", 0) == ["gpu", "gpu-0"]
    assert service["KillMode"] == "mixed", "a worker ends its child itself"
    assert service["NoNewPrivileges"] == "yes"
    assert service["User"] == "billhook"
    assert "MemoryDenyWriteExecute" not in service, "torch writes code"


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_takes_a_unit(path: Path, tmp_path: Path) -> None:
    needs("systemd-analyze")
    copy = tmp_path / path.name
    copy.write_text(re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", path.read_text()))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_setting_that_the_page_names_is_one() -> None:
    names = {f"BILLHOOK_{name.upper()}" for name in Settings.model_fields}
    texts = [
        PAGE,
        *(path.read_text() for folder in ("systemd", "proxy") for path in (ROOT / "examples" / folder).iterdir()),
    ]
    found = set(re.findall(r"BILLHOOK_[A-Z_]+", "".join(texts)))
    assert len(found) > 8
    assert found <= names


def test_a_proxy_waits_longer_than_the_server_and_takes_what_it_takes() -> None:
    nginx = (ROOT / "examples" / "proxy" / "nginx.conf").read_text()
    fields = Settings.model_fields
    waits = re.search(r"proxy_read_timeout (\d+)s", nginx)
    assert waits
    assert int(waits[1]) > fields["long_poll_seconds"].default
    size = re.search(r"client_max_body_size (\d+)g", nginx)
    assert size
    assert int(size[1]) * 2**30 == fields["max_upload_bytes"].default
    assert "proxy_buffering off" in nginx
    assert "proxy_request_buffering off" in nginx


def test_every_check_of_readiness_is_in_the_page() -> None:
    from api.readiness import FRESH_SECONDS

    assert all(f"| `{name}` |" in PAGE for name in (*FRESH_SECONDS, "loops"))
