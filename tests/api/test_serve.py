"""`billhook-server`: the real command, its files, its processes, its refusals."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from pydantic import SecretStr
from sqlalchemy import text

from api.serve import CannotStart, _children, _keep, _lock, _prepare, _secret, main
from store.database import connect, reading, transaction
from store.keys import SCOPES, add_key, authenticate
from store.migrate import require_current, upgrade
from store.settings import Settings

ROOT = Path(__file__).parent.parent.parent
LIMIT = 200_000


def start(data: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "api.serve", "--data-dir", str(data), "--port", "0", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"BILLHOOK_MAX_UPLOAD_BYTES": str(LIMIT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def until(what: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def stop(server: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> tuple[str, str]:
    server.send_signal(number)
    try:
        return server.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        server.kill()
        raise


def _ready(server: subprocess.Popen[str], data: Path) -> None:
    until(lambda: (data / "address").exists() or server.poll() is not None)
    assert server.poll() is None, server.communicate()


Here = Callable[..., tuple[int, str]]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Here]:
    """The command in this process, for what it refuses: its exit status and what it says."""
    monkeypatch.setattr(os, "environ", os.environ.copy())

    def run(*arguments: str) -> tuple[int, str]:
        try:
            status = main([*arguments, "--no-worker"])
        except SystemExit as error:
            status = int(error.code or 0)
        return status, capsys.readouterr().err

    mask = os.umask(0o022)
    yield run
    os.umask(mask)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The data folder of a running server without workers."""
    folder = tmp_path_factory.mktemp("serve") / "new" / "data"
    server = start(folder, "--no-worker")
    try:
        _ready(server, folder)
        yield folder
    finally:
        output, errors = stop(server)
    assert server.returncode == 0, errors
    assert "Billhook is ready at http://127.0.0.1:" in output
    assert not (folder / "address").exists()


@pytest.fixture(scope="module")
def http(data: Path) -> Iterator[httpx.Client]:
    key = (data / "key").read_text().strip()
    with httpx.Client(
        base_url=(data / "address").read_text().strip(), headers={"Authorization": f"Bearer {key}"}, trust_env=False
    ) as client:
        yield client


def test_it_serves_and_keeps_its_folder_to_itself(data: Path, http: httpx.Client) -> None:
    assert http.get("/readyz").status_code == 200
    assert http.get("/v1/jobs").json() == {"items": [], "next_page_token": None}
    assert "server" not in http.get("/healthz").headers
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [data, *data.iterdir()]}
    assert modes["key"] == 0o600
    assert modes["data"] == 0o700
    assert {mode & 0o077 for mode in modes.values()} == {0}, modes


def test_a_second_server_on_the_same_folder_is_refused(data: Path, here: Here) -> None:
    status, errors = here("--data-dir", str(data))
    assert status == 1
    assert "a server is running at http://127.0.0.1:" in errors
    assert (data / "address").exists()


def test_an_api_that_dies_is_started_again_on_the_same_address(data: Path, http: httpx.Client) -> None:
    def api() -> psutil.Process | None:
        for process in psutil.process_iter(["cmdline"]):
            if "api.listen" in (process.info["cmdline"] or []) and process.environ().get("BILLHOOK_DATA_DIR") == str(
                data
            ):
                return process
        return None

    found = api()
    assert found is not None
    found.kill()
    until(lambda: (process := api()) is not None and process.pid != found.pid)
    until(lambda: _answers(http))


def _answers(http: httpx.Client) -> bool:
    try:
        return http.get("/healthz", timeout=1).status_code == 200
    except httpx.TransportError:
        return False


def test_a_large_body_is_refused_in_a_way_that_its_sender_sees(http: httpx.Client) -> None:
    """Refused before it is read; still the answer must arrive, though the sender is in the middle of sending."""
    for content in (b"x" * 20_000_000, iter([b"x" * 100_000] * 100)):
        answer = http.post("/v1/models", params={"filename": "m.onnx"}, content=content, timeout=30)
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    answer = httpx.post(
        f"{http.base_url}/v1/models", params={"filename": "m.onnx"}, content=b"x" * 5_000_000, trust_env=False
    )
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


def test_a_connection_cut_in_the_middle_of_an_upload_leaves_nothing(data: Path, http: httpx.Client) -> None:
    uploads = data / "uploads"
    with socket.create_connection((http.base_url.host, http.base_url.port or 80)) as connection:
        head = (
            f"POST /v1/models?filename=m.onnx HTTP/1.1\r\nHost: x\r\nAuthorization: {http.headers['authorization']}\r\n"
            f"Content-Length: {LIMIT}\r\n\r\n"
        )
        connection.sendall(head.encode() + b"x" * 1_000)
        until(lambda: uploads.exists() and bool(list(uploads.iterdir())))
    until(lambda: not list(uploads.iterdir()))
    assert http.get("/v1/models").json()["items"] == []


@pytest.mark.parametrize(
    ("arguments", "environment", "says", "status"),
    [
        (("--host", "0.0.0.0"), {}, "--allow-remote", 1),
        (("--host", "::"), {}, "--allow-remote", 1),
        (("--host", "not-a-host.invalid"), {}, "not an address to listen on", 1),
        (("--host", "192.0.2.1", "--allow-remote"), {}, "cannot listen on 192.0.2.1", 1),
        ((), {"BILLHOOK_DEVICES": "tpu"}, "BILLHOOK_DEVICES: names devices as cpu or cuda:N", 2),
        (("--gpu", "-1"), {}, "BILLHOOK_DEVICES: names devices as cpu or cuda:N", 2),
        ((), {"BILLHOOK_LEASE_SECONDS": "6"}, "billhook-server: heartbeat_seconds must be at most half", 2),
        ((), {"BILLHOOK_DATABASE_URL": "postgresql+psycopg://root@127.0.0.1:1/x"}, "database cannot be used", 1),
        ((), {"BILLHOOK_DATABASE_URL": "nonsense"}, "database cannot be used", 1),
        ((), {"BILLHOOK_DATABASE_URL": "sqlite://"}, "database cannot be used", 1),
        (("--nonsense",), {}, "--nonsense", 2),
        (("--gpu", "x"), {}, "--gpu", 2),
    ],
)
def test_what_cannot_be_served(
    tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...],
    environment: dict[str, str], says: str, status: int,
) -> None:  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found, errors = here("--data-dir", str(tmp_path / "data"), *arguments)
    assert found == status, errors
    assert says in errors
    assert not (tmp_path / "data" / "address").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path, here: Here) -> None:
    (tmp_path / "file").write_text("")
    status, errors = here("--data-dir", str(tmp_path / "file" / "data"))
    assert (status, "Not a directory" in errors) == (1, True), errors


def test_a_port_that_is_taken(tmp_path: Path, here: Here) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, errors = here("--data-dir", str(tmp_path), "--port", str(taken.getsockname()[1]))
    assert status == 1
    assert "cannot listen on 127.0.0.1" in errors


def test_the_key_of_the_settings_takes_the_place_of_the_one_that_is_there(tmp_path: Path) -> None:
    def chosen(**given: Any) -> str:
        settings = Settings(data_dir=tmp_path, **given)
        secret = _secret(settings)
        _keep(settings, secret)
        assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
        return secret

    made = chosen()
    assert made.startswith("bh_")
    (tmp_path / "key").chmod(0o644)
    assert chosen() == made
    assert chosen(api_key=SecretStr(" bh_given\n")) == "bh_given"
    assert (tmp_path / "key").read_text() == "bh_given\n"


@pytest.mark.parametrize(
    ("devices", "workers"),
    [
        ((), []),
        (("cpu",), ["inspect", "fetch", "cpu"]),
        (("cpu", "cuda:0", "cuda:3"), ["inspect", "fetch", "cpu", "gpu --gpu 0", "gpu --gpu 3"]),
        (("cuda:1",), ["inspect", "fetch", "gpu --gpu 1"]),
    ],
)
def test_each_device_of_the_settings_has_a_worker(devices: tuple[str, ...], workers: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        _, *found = _children(listener, devices)
    assert [" ".join(child.command) for child in found] == [f"worker --queue {queue}" for queue in workers]
    assert len({child.name for child in found}) == len(found)


def test_a_client_that_looks_whether_a_server_runs_does_not_keep_one_from_starting(tmp_path: Path) -> None:
    (tmp_path / "address").write_text("http://127.0.0.1:1\n")
    looking = (tmp_path / "server.lock").open("a")
    fcntl.flock(looking, fcntl.LOCK_SH)
    threading.Timer(0.2, looking.close).start()
    with _lock(tmp_path):
        assert not (tmp_path / "address").exists(), "that of a server that was killed"
        with pytest.raises(CannotStart, match="a server is running"), _lock(tmp_path):
            pass


def test_a_key_that_was_replaced_opens_nothing(tmp_path: Path) -> None:
    def opens(secret: str) -> bool:
        engine = connect(settings.database_url)
        with reading(engine) as session:
            found = authenticate(session, secret) is not None
        engine.dispose()
        return found

    settings = Settings(data_dir=tmp_path)
    _prepare(settings)
    first = (tmp_path / "key").read_text().strip()
    assert opens(first)
    given = settings.model_copy(update={"api_key": SecretStr("bh_given")})
    _prepare(given)
    assert (opens(first), opens("bh_given")) == (False, True)
    (tmp_path / "key").unlink()
    _prepare(settings)
    third = (tmp_path / "key").read_text().strip()
    assert (opens("bh_given"), opens(third)) == (False, True)
    _prepare(given)
    assert (opens("bh_given"), opens(third)) == (True, False), "wanted again"


def test_nothing_outlives_a_server_and_the_key_stays(tmp_path: Path) -> None:
    """Killed, then started again, then told to stop by Ctrl-C."""
    keys = []
    for number in (signal.SIGKILL, signal.SIGINT):
        server = start(tmp_path, "--no-worker")
        _ready(server, tmp_path)
        key, address = (tmp_path / "key").read_text().strip(), (tmp_path / "address").read_text().strip()
        answer = httpx.get(f"{address}/v1/jobs", headers={"Authorization": f"Bearer {key}"}, trust_env=False)
        assert answer.status_code == 200
        keys.append(key)
        children = psutil.Process(server.pid).children(recursive=True)
        assert children
        stop(server, number)
        assert server.returncode == (0 if number == signal.SIGINT else -9)
        until(lambda: not _alive(children))  # noqa: B023  # called in this turn of the loop only
        if number == signal.SIGKILL:
            (tmp_path / "address").unlink()  # to see the new one come
    assert keys[0] == keys[1]


def test_in_a_container_it_logs_to_standard_error_and_is_probed(tmp_path: Path) -> None:
    def probe() -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"BILLHOOK_DATA_DIR": str(tmp_path)}
        return subprocess.run(
            [sys.executable, "-m", "api.probe"], cwd=ROOT, env=environment, capture_output=True, text=True
        )

    early = probe()
    assert (early.returncode, early.stderr) == (1, "no server answers here\n")
    server = start(tmp_path, "--no-worker", "--log-stderr")
    _ready(server, tmp_path)
    address = (tmp_path / "address").read_text()
    assert probe().returncode == 0
    output, errors = stop(server)
    assert f"key is in {tmp_path}" in output
    assert '"path": "/healthz"' in errors, "the lines of the API"
    assert not (tmp_path / "logs").exists()
    (tmp_path / "address").write_text(address)  # of a server that was killed
    late = probe()
    assert (late.returncode, late.stderr) == (1, f"the server at {address.strip()} does not answer\n")


def test_a_key_that_might_be_guessed_is_told(tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, told in (("bh_given", True), ("b" * 32, False)):
        monkeypatch.setenv("BILLHOOK_API_KEY", key)
        status, errors = here("--data-dir", str(tmp_path), "--host", "0.0.0.0")
        assert (status, "might be guessed" in errors) == (1, told), errors
        assert key not in errors


def test_a_key_that_is_anothers_does_not_become_the_servers(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    _prepare(settings)
    engine = connect(settings.database_url)
    with transaction(engine) as session:
        add_key(session, "bh_anns", owner="ann", name="laptop", scopes=["read"])
    with pytest.raises(CannotStart, match="'laptop' of the owner 'ann'"):
        _prepare(settings.model_copy(update={"api_key": SecretStr("bh_anns")}))
    with reading(engine) as session:
        found = authenticate(session, "bh_anns")
        assert found is not None
        assert (found.owner, found.scopes) == ("ann", {"read"})
        server = authenticate(session, (tmp_path / "key").read_text().strip())
        assert server is not None, "the one from before goes on"
        assert server.scopes == set(SCOPES)
    engine.dispose()


def _alive(processes: list[psutil.Process]) -> bool:
    return any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def test_a_database_of_a_newer_version_is_said_to_be_one(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    engine = connect(settings.database_url)
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(CannotStart, match=r"revision 9999\) is newer than this version"):
        _prepare(settings)
    assert not (tmp_path / "key").exists()


def test_a_database_of_an_older_version_is_migrated(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    engine = connect(settings.database_url)
    upgrade(engine, "0001")
    _prepare(settings)
    require_current(engine)
    engine.dispose()
