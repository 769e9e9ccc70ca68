"""`billhook-server`: the whole service in one command, on this machine alone unless told otherwise."""

from __future__ import annotations

import argparse
import difflib
import fcntl
import ipaddress
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from api.probe import answers
from api.supervisor import Child, Supervisor
from store import keys
from store.database import connect, transaction
from store.errors import StoreError
from store.logs import configure_logs, without_secrets
from store.migrate import upgrade
from store.settings import Settings

START_SECONDS = 60.0
LOCK_SECONDS = 0.5  # a client that looks whether a server runs holds the lock for a moment
OWNER = "local"
KEY_NAME = "billhook-server"
SHORTEST_KEY = 32
CLIENT_VARIABLES = frozenset({"BILLHOOK_SERVER", "BILLHOOK_KEY", "BILLHOOK_INSECURE_HTTP", "BILLHOOK_DEBUG"})


class CannotStart(Exception):
    """The message says why, to a person."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the service until SIGINT or SIGTERM. Exit status: 0 stopped, 1 it cannot run, 2 bad usage or settings."""
    options = _parser().parse_args(arguments)
    os.umask(0o077)  # models, data and the key are nobody else's business
    for variable, value in (
        ("BILLHOOK_DATA_DIR", options.data_dir and Path(options.data_dir).expanduser().absolute()),
        ("BILLHOOK_HOST", options.host),
        ("BILLHOOK_PORT", options.port),
        ("BILLHOOK_DEVICES", ",".join(["cpu", *(f"cuda:{number}" for number in options.gpu)]) if options.gpu else None),
    ):
        if value is not None:
            os.environ[variable] = str(value)  # for the processes started here too
    try:
        settings = Settings()
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            names = "".join(f"BILLHOOK_{str(part).upper()}: " for part in fault["loc"][:1])
            sys.stderr.write(f"billhook-server: {names}{fault['msg'].removeprefix('Value error, ')}\n")
        return 2
    for warning in unknown_variables(os.environ):
        sys.stderr.write(f"billhook-server: warning: {warning}\n")
    if settings.api_key is not None and len(settings.api_key.get_secret_value().strip()) < SHORTEST_KEY:
        sys.stderr.write(
            f"billhook-server: warning: BILLHOOK_API_KEY has less than {SHORTEST_KEY} characters and might be guessed; "
            "`openssl rand -hex 32` makes a better one\n"
        )
    configure_logs(settings.log_level)
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not options.log_stderr:
            (settings.data_dir / "logs").mkdir(exist_ok=True)
        with _lock(settings.data_dir), _listen(settings, allow_remote=options.allow_remote) as listener:
            _prepare(settings)
            return _serve(settings, listener, options)
    except CannotStart as error:
        sys.stderr.write(f"billhook-server: {error}\n")
    except OSError as error:
        sys.stderr.write(f"billhook-server: {error.filename or settings.data_dir}: {error.strerror or error}\n")
    return 1


def unknown_variables(environment: Iterable[str]) -> list[str]:
    """A warning for each variable that looks like a setting and is none: a typing error would change nothing, silently.

    Those of the command line are none of the server's, and may be there all the same.
    """
    known = {f"BILLHOOK_{name.upper()}" for name in Settings.model_fields}
    warnings = []
    for name in sorted(environment):
        if name.startswith("BILLHOOK_") and name not in known | CLIENT_VARIABLES:
            close = difflib.get_close_matches(name, sorted(known), n=2, cutoff=0.8)
            warnings.append(f"{name} is no setting" + (f"; is {' or '.join(close)} meant?" if close else ""))
    return warnings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="billhook-server",
        description="Run the API and its workers. Everything else is set by BILLHOOK_ environment variables.",
    )
    parser.add_argument("--data-dir", metavar="FOLDER", help="database, files, key and logs (BILLHOOK_DATA_DIR)")
    parser.add_argument("--host", help="address to listen on, default 127.0.0.1 (BILLHOOK_HOST)")
    parser.add_argument("--port", type=int, help="port, default 8470; 0 = any free one (BILLHOOK_PORT)")
    parser.add_argument("--allow-remote", action="store_true", help="listen on an address that others can reach")
    parser.add_argument(
        "--log-stderr", action="store_true", help="log to standard error, not to files in the data folder"
    )
    parser.add_argument("--no-worker", action="store_true", help="start the API alone; workers run elsewhere")
    parser.add_argument(
        "--gpu",
        type=int,
        action="append",
        default=[],
        metavar="N",
        help="start a worker for GPU N beside that for the CPU; may be repeated (BILLHOOK_DEVICES)",
    )
    return parser


@contextmanager
def _lock(data_dir: Path) -> Iterator[None]:
    """Two servers must not share a data folder. The lock goes with the process, however it ends."""
    with (data_dir / "server.lock").open("a") as file:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    address = data_dir / "address"
                    where = f" at {address.read_text().strip()}" if address.exists() else ""
                    message = f"a server is running{where} on the data folder {data_dir} already"
                    raise CannotStart(message) from None
                time.sleep(LOCK_SECONDS / 10)
        (data_dir / "address").unlink(missing_ok=True)  # of a server that was killed
        yield


@contextmanager
def _listen(settings: Settings, *, allow_remote: bool) -> Iterator[socket.socket]:
    """The listening socket. Raises `CannotStart`: not an address of this machine, taken, or reachable by others."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise CannotStart(f"{settings.host} is not an address to listen on: {error.strerror}") from None
    if not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback and not allow_remote:
        raise CannotStart(
            f"{settings.host} can be reached by other machines, and the keys would travel unencrypted. Use 127.0.0.1 "
            "behind a proxy that speaks HTTPS, or say --allow-remote if the network is yours"
        )
    try:
        listener = socket.create_server(address[:2], family=family, backlog=512)
    except OSError as error:
        raise CannotStart(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None
    with listener:
        yield listener


def _prepare(settings: Settings) -> None:
    """The schema and the key; one that was replaced, or whose file was deleted, opens nothing any more."""
    try:
        engine = connect(settings.database_url)
    except (ValueError, ImportError, SQLAlchemyError) as error:
        raise CannotStart(f"the database cannot be used: {without_secrets(str(error))}") from None
    try:
        upgrade(engine)
        secret = _secret(settings)
        with transaction(engine) as session:
            try:
                keys.replace_key(session, secret, owner=OWNER, name=KEY_NAME)
            except ValueError as error:
                raise CannotStart(f"the key of BILLHOOK_API_KEY cannot be the server's: {error}") from None
        _keep(settings, secret)
    except StoreError as error:
        raise CannotStart(error.message) from None
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise CannotStart(f"the database cannot be used: {without_secrets(reason)}") from None
    finally:
        engine.dispose()


def _secret(settings: Settings) -> str:
    """The key of the settings, else the one in the data folder, else a new one."""
    path = settings.data_dir / "key"
    given = settings.api_key.get_secret_value().strip() if settings.api_key else ""
    return given or (path.read_text().strip() if path.exists() else "") or keys.new_secret()


def _keep(settings: Settings, secret: str) -> None:
    """Have the key in the data folder, for this user alone."""
    path = settings.data_dir / "key"
    if not path.exists() or path.read_text().strip() != secret:
        _write(path, secret)
    path.chmod(0o600)


def _write(path: Path, text: str) -> None:
    """Write a private file as a whole: a reader sees the old text or the new."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
    temporary.replace(path)


def _serve(settings: Settings, listener: socket.socket, options: argparse.Namespace) -> int:
    children = _children(listener, () if options.no_worker else settings.devices)
    logs = None if options.log_stderr else settings.data_dir / "logs"
    supervisor = Supervisor(children, _environment(), logs)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: supervisor.stop())
    url = _url(listener)
    address = settings.data_dir / "address"
    deadline = time.monotonic() + START_SECONDS
    failed = False

    def announce() -> None:
        nonlocal failed
        if address.exists() or failed:
            return
        if answers(url):
            _write(address, url)
            kept = "key is" if logs is None else "key and logs are"
            sys.stdout.write(f"Billhook is ready at {url}\n{kept} in {settings.data_dir}\n")
            sys.stdout.flush()
        elif time.monotonic() > deadline:
            failed = True
            supervisor.stop()

    try:
        supervisor.run(announce)
    finally:
        address.unlink(missing_ok=True)
    if failed:
        raise CannotStart(f"the API does not start; see {'above' if logs is None else logs / 'api.log'}")
    return 0


def _children(listener: socket.socket, devices: Sequence[str]) -> list[Child]:
    """The API and, if there are devices, a worker for each, one that checks uploads and one that fetches datasets: what
    the API says there is."""
    socket_number = listener.fileno()
    children = [Child("api", ("api.listen", "--fd", str(socket_number)), pass_fds=(socket_number,))]
    if devices:
        children += [Child(f"worker-{queue}", ("worker", "--queue", queue)) for queue in ("inspect", "fetch")]
    for device in devices:
        _, _, number = device.partition(":")
        queue = ("gpu", "--gpu", number) if number else ("cpu",)
        name = f"worker-gpu-{number}" if number else "worker-cpu"
        children.append(Child(name, ("worker", "--queue", *queue)))
    return children


def _environment() -> dict[str, str]:
    """That of this process, with the application importable from wherever this was started."""
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _url(listener: socket.socket) -> str:
    """Where this machine finds the server: a wildcard address is not one to connect to."""
    name: Any = listener.getsockname()
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name[0], name[0])  # noqa: S104
    return f"http://[{host}]:{name[1]}" if ":" in host else f"http://{host}:{name[1]}"


if __name__ == "__main__":
    sys.exit(main())
