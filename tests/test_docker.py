"""The container files, and every command in them, run in a box in place of an engine. `make check` lints them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import make_url

from store.settings import Settings
from tests.image_box import (
    Box,
    Environment,
    Service,
    build,
    chain,
    environment_of,
    included,
    interpolated,
    is_possible,
    make_box,
    read_dockerfile,
)

ROOT = Path(__file__).parent.parent
STAGES = read_dockerfile(ROOT / "Dockerfile")
SECRETS = {"POSTGRES_PASSWORD": "pg" * 16, "REDIS_PASSWORD": "rd" * 16, "BILLHOOK_API_KEY": "k" * 64}
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OURS = ("api", "worker-inspect", "worker-cpu", "worker-fetch", "worker-gpu")
WORKERS = OURS[1:]


def services(**variables: str) -> dict[str, Any]:
    found: dict[str, Any] = interpolated(COMPOSE, {**SECRETS, **variables})["services"]
    return found


# --- the files -------------------------------------------------------------------------------------------------------


def test_both_targets_are_made_alike() -> None:
    """What is tested of the one here holds for the other."""

    def text(kind: str) -> str:
        steps = [*STAGES[f"build-{kind}"].steps, *STAGES[kind].steps]
        lines = [f"{word} {rest}" for word, rest in steps if word not in ("ARG", "ENV")]
        return "\n".join(lines).replace("[gpu]", "[cpu]").replace("build-cuda", "build-cpu")

    assert text("cpu") == text("cuda")
    assert STAGES["build-cpu"].base == STAGES["build-cuda"].base == "build"
    assert list(STAGES)[-1] == "cpu", "what is built without --target"


def test_an_image_has_neither_root_nor_build_tools_nor_secrets() -> None:
    for target in ("cpu", "cuda"):
        steps = list(chain(STAGES, target))
        assert ("USER", "10001:10001") in steps
        assert not [rest for word, rest in steps if word == "RUN" and re.search(r"\b(apt-get|pip)\b", rest)]
        assert {rest for word, rest in steps if word == "COPY"} == {
            f"--from=build-{target} /opt/billhook /opt/billhook"
        }
        assert not re.search(r"KEY|PASSWORD|SECRET|TOKEN", json.dumps(steps))
    text = (ROOT / "Dockerfile").read_text()
    bases = re.findall(r"(?m)^(?:FROM|ARG PYTHON_IMAGE=?) ?(\S+)", text)
    assert all(base == "${PYTHON_IMAGE}" or base in STAGES or ":" in base for base in bases), "pinned"
    assert ":latest" not in text


def test_what_is_built_from_holds_all_of_the_application() -> None:
    taken = included(ROOT)
    assert all((ROOT / name).exists() for name in taken)
    pyproject = (ROOT / "pyproject.toml").read_text()
    packages = re.search(r'include = \["(api.*?)"\]', pyproject)
    assert packages is not None
    assert {name.strip('"* ') for name in packages[1].split(",")} <= taken
    assert not {".git", ".env", "data", "tests"} & taken


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_container_is_confined(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["tmpfs"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert ("cap_add" in service) == (name == "postgres")
    limits = service["deploy"]["resources"]["limits"]
    assert limits["memory"]
    assert limits["pids"]
    assert not service.get("privileged")
    assert "/var/run/docker.sock" not in json.dumps(service)
    assert ("outside" in service["networks"]) == (name in ("api", "worker-fetch")), "no way out for strangers' files"
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), "published to this machine alone"
    image = service["image"]
    assert re.search(r":(cpu|cuda)$|:\d", image), f"{image} is not pinned"


def test_what_starts_waits_for_what_it_needs() -> None:
    found = services()
    for name, service in found.items():
        for needed, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            checked = found[needed].get("healthcheck") or needed == "api"  # the API's is the image's
            assert checked, f"{name} waits for {needed}"
    assert all(set(found[name]["depends_on"]) == {"api", "redis"} for name in WORKERS)
    assert all(found[name]["healthcheck"] == {"disable": True} for name in WORKERS)
    assert any(word == "HEALTHCHECK" for word, _ in chain(STAGES, "cpu"))
    assert COMPOSE["networks"]["inside"] == {"internal": True}


def test_every_secret_must_be_given_and_every_variable_is_told() -> None:
    for name in SECRETS:
        for value in ({}, {name: ""}):
            with pytest.raises(KeyError, match=name):
                interpolated(COMPOSE, {key: secret for key, secret in SECRETS.items() if key != name} | value)
    text = (ROOT / "docker-compose.yml").read_text()
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", text)) | set(re.findall(r"(?m)^  (AWS_\w+):$", text))
    example = (ROOT / ".env.example").read_text()
    told = set(re.findall(r"(?m)^#?([A-Z_]+)=", example))
    assert used == told
    assert set(re.findall(r"(?m)^([A-Z_]+)=$", example)) == set(SECRETS), "empty: nobody runs with a secret from here"
    for name, default in re.findall(r"\$\{(\w+):?-([^}]*)\}", text):
        said = re.search(rf"(?m)^#{name}=(.*)$", example)
        assert said is not None
        assert default in ("", said[1]), f"{name}: .env.example says {said[1]}"
    ignored = subprocess.run(["git", "check-ignore", ".env"], cwd=ROOT, capture_output=True, text=True)
    assert ignored.returncode in (0, 128), "128: no repository here"


@pytest.mark.parametrize("name", OURS)
def test_the_settings_are_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [known for known in os.environ if known.startswith("BILLHOOK_")]:
        monkeypatch.delenv(variable)
    service = services()[name]
    given = {key: value for key, value in service["environment"].items() if key.startswith("BILLHOOK_")}
    assert given.keys() <= {f"BILLHOOK_{field.upper()}" for field in Settings.model_fields}
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    settings = Settings()
    url = make_url(settings.database_url)
    assert (url.drivername, url.username, url.host, url.database) == (
        "postgresql+psycopg", "billhook", "postgres", "billhook",
    )  # fmt: skip
    assert url.password == SECRETS["POSTGRES_PASSWORD"]
    assert settings.broker_url == f"redis://:{SECRETS['REDIS_PASSWORD']}@redis:6379/0"
    assert (settings.api_key is not None) == (name == "api"), "a worker has no use for it"
    if name in WORKERS:
        gigabytes = int(service["deploy"]["resources"]["limits"]["memory"].removesuffix("g"))
        assert settings.memory_limit_bytes + 2**29 <= gigabytes * 2**30, "a job is stopped before the kernel does it"
    else:
        assert "BILLHOOK_MEMORY_LIMIT_BYTES" not in given


def test_every_variable_of_s3_reaches_the_service() -> None:
    told = set(re.findall(r"`(AWS_[A-Z_]+)`", (ROOT / "docs" / "storage.md").read_text()))
    assert len(told) > 5
    for name in ("api", "worker-cpu", "worker-inspect", "worker-fetch", "worker-gpu"):
        assert told <= set(services()[name]["environment"]), name


def test_every_queue_has_its_worker() -> None:
    commands = {name: services()[name]["command"] for name in WORKERS}
    queues = {name: command[command.index("--queue") + 1] for name, command in commands.items()}
    assert queues == {"worker-inspect": "inspect", "worker-cpu": "cpu", "worker-fetch": "fetch", "worker-gpu": "gpu"}
    assert services()["worker-gpu"]["profiles"] == ["gpu"]
    assert services()["worker-gpu"]["build"]["target"] == "cuda"
    assert services()["worker-cpu"]["build"]["target"] == "cpu"


def test_the_override_of_the_documentation_is_one() -> None:
    (text,) = re.findall(r"(?s)```yaml\n(.*?)```", (ROOT / "docs" / "docker.md").read_text())
    override = yaml.safe_load(text)
    assert override["services"].keys() <= COMPOSE["services"].keys()
    for service in override["services"].values():
        assert set(service) == {"networks"}
        assert set(service["networks"]) <= COMPOSE["networks"].keys()


# --- every command, run ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Box, Environment]]:
    """The image `cpu`, built in a box: every RUN and COPY of its stages."""
    if (reason := is_possible()) is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with make_box(tmp_path_factory.mktemp("image") / "box") as box:
        build(box, STAGES, "build-cpu", ROOT, {"TORCH_INDEX": ""})
        environment = build(box, STAGES, "cpu", ROOT, {})
        yield box, environment


def command_of(word: str) -> list[str]:
    """What CMD or HEALTHCHECK of the image runs."""
    (rest,) = (rest for step, rest in chain(STAGES, "cpu") if step == word)
    found: list[str] = json.loads(rest[rest.index("[") :])
    return found


def test_what_is_installed_is_all_of_the_application(image: tuple[Box, Environment]) -> None:
    box, environment = image
    script = """
import importlib.metadata, json, pathlib, sys
import api, billhook
print(json.dumps({
    "files": [str(p) for name in ("billhook-server", "billhook") for p in importlib.metadata.files(name)],
    "where": [api.__file__, billhook.__file__], "pip": "pip" in {d.name for d in pathlib.Path("/opt/billhook/bin").iterdir()},
}))
"""  # noqa: E501
    done = box.run(["python", "-c", script], environment, container=True, folder="/data")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert all(path.startswith("/opt/billhook/lib/") for path in found["where"])
    assert not found["pip"]
    taken = {str(path.relative_to(ROOT)) for name in ("api", "core", "migrations", "recipes", "store", "worker")
             for path in (ROOT / name).rglob("*")
             if path.suffix in (".py", ".yaml", ".npz", ".mako") and "__pycache__" not in path.parts}  # fmt: skip
    assert taken <= set(found["files"]), sorted(taken - set(found["files"]))
    for name in ("billhook", "billhook-server"):
        helped = box.run([name, "--help"], environment, container=True, folder="/data")
        assert helped.returncode == 0, helped.stderr


def test_a_container_is_confined_here_too(image: tuple[Box, Environment]) -> None:
    """That the box holds what it says: else the tests below say nothing about a read-only root."""
    box, environment = image
    script = """
import os, pathlib
assert os.getuid() == os.getgid() == 10001 and not os.getgroups()
for path in ("/opt/billhook/x", "/x", "/home/x"):
    try:
        pathlib.Path(path).write_text("")
    except OSError:
        continue
    raise SystemExit(f"{path} can be written")
pathlib.Path("/tmp/x").write_text("")
pathlib.Path("/data/x").write_text("")
status = pathlib.Path("/proc/self/status").read_text()
assert "CapEff:\\t0000000000000000" in status and "CapBnd:\\t0000000000000000" in status and "NoNewPrivs:\\t1" in status
"""
    done = box.run(["python", "-c", script], environment, container=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_image_alone_is_the_whole_service(image: tuple[Box, Environment], tmp_path: Path) -> None:
    """CMD and HEALTHCHECK, from the first start to SIGTERM."""
    box, environment = image
    with box.running(command_of("CMD"), environment, tmp_path / "log") as service:
        service.wait_for("Billhook is ready at http://127.0.0.1:8470")
        assert service.execute(command_of("HEALTHCHECK")).returncode == 0
        keys = service.execute(["billhook", "keys", "add", "ci"])
        assert keys.stdout.startswith("bh_"), keys.stderr
        assert service.stop() == 0, service.logs()
    assert "Traceback" not in service.logs()


def _shared(service: Mapping[str, Any], environment: Environment) -> Environment:
    """The environment of a container of docker-compose.yml, with SQLite in place of PostgreSQL."""
    given = {key: value for key, value in service["environment"].items() if value is not None}
    return environment | given | {"BILLHOOK_DATABASE_URL": "sqlite:////artifacts/billhook.db"}


@pytest.mark.slow
def test_every_command_of_docker_compose_runs(image: tuple[Box, Environment], tmp_path: Path) -> None:
    """Redis, the API, and the workers that need no GPU, each a container with a data folder of its own; a dataset is
    checked by a child in another's work folder; then each is stopped."""
    if shutil.which("redis-server") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("there is no redis-server here")
        pytest.skip("there is no redis-server here")
    box, environment = image
    mounted = box.run(["mount", "-t", "tmpfs", "-o", "uid=10001,gid=10001,mode=700", "none", "/artifacts"], environment)
    assert mounted.returncode == 0, mounted.stderr
    found = services()
    redis = environment | found["redis"]["environment"]
    with ExitStack() as stack:
        broker = stack.enter_context(box.running(found["redis"]["command"], redis, tmp_path / "redis"))
        broker.wait_for("Ready to accept connections")
        kind, check = found["redis"]["healthcheck"]["test"]
        assert kind == "CMD-SHELL"
        assert broker.execute(["sh", "-c", check]).returncode == 0
        assert broker.execute(["sh", "-c", check], REDIS_PASSWORD="wrong").returncode != 0
        started: dict[str, Service] = {}
        for names in (("api",), ("worker-inspect", "worker-cpu", "worker-fetch")):
            for name in names:
                shared = _shared(found[name], environment)
                started[name] = stack.enter_context(box.running(found[name]["command"], shared, tmp_path / name))
            for name in names:
                started[name].wait_for("Billhook is ready" if name == "api" else "worker started")
        api = started["api"]
        assert api.execute(command_of("HEALTHCHECK")).returncode == 0
        assert started["worker-cpu"].execute(command_of("HEALTHCHECK")).returncode == 1, "none runs there"
        key = {"BILLHOOK_SERVER": "http://127.0.0.1:8470", "BILLHOOK_KEY": SECRETS["BILLHOOK_API_KEY"]}
        done = api.execute(["billhook", "datasets", "add", "builtin:digits", "--json"], **key)
        assert done.returncode == 0, done.stdout + done.stderr + started["worker-inspect"].logs()
        assert json.loads(done.stdout)["state"] == "ready"
        for service in started.values():
            service.process.terminate()
        for service in started.values():
            assert service.process.wait(60) == 0, service.logs()  # told once: a second signal may come too late
    for name, service in started.items():
        assert "Traceback" not in service.logs(), name
        assert not any(secret in service.logs() for secret in SECRETS.values()), name


def test_the_worker_for_a_gpu_and_the_check_of_postgresql(image: tuple[Box, Environment]) -> None:
    """As far as they go without a GPU and in no container: the options are known, the command is there."""
    box, environment = image
    command = services()["worker-gpu"]["command"]
    settings = _shared(services()["worker-gpu"], environment) | {"BILLHOOK_LEASE_SECONDS": "nonsense"}
    done = box.run(command, settings, container=True)
    assert done.returncode == 2, "2: read as far as its settings"
    assert done.stderr.startswith("BILLHOOK_LEASE_SECONDS: ")
    kind, *check = services()["postgres"]["healthcheck"]["test"]
    assert kind == "CMD"
    program = shutil.which(check[0])
    if program is None:
        pytest.skip("there is no pg_isready here")
    nobody = subprocess.run([program, *check[1:], "--port=1"], capture_output=True, text=True)
    assert nobody.returncode == 2, f"2: no answer; 3: bad usage: {nobody.stderr}"


def test_the_environment_of_the_image() -> None:
    environment = environment_of(chain(STAGES, "cpu"), {"PATH": "/bin"})
    assert environment["PATH"] == "/opt/billhook/bin:/bin"
    assert environment["BILLHOOK_DATA_DIR"] == environment["HOME"] == "/data"
    assert ("VOLUME", '["/data"]') in list(chain(STAGES, "cpu"))
