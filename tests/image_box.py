"""An image without an engine: the steps of the Dockerfile, run on a throw-away copy of this machine's root.

An overlay takes the place of the image, namespaces that of the container: nothing of it is left, nothing of this
machine is changed, and no network but the box's own loopback is there. The packages that the image would install are
those of the tests (pip finds that they are there already), and Python is this one. Linux only, and for root.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Environment = dict[str, str]
PYTHON = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
CONFINED = ("setpriv", "--reuid=10001", "--regid=10001", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all",
            "--no-new-privs")  # fmt: skip
"""As with `cap_drop: [ALL]` and `no-new-privileges`."""


# --- the Dockerfile --------------------------------------------------------------------------------------------------


@dataclass
class Stage:
    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def read_dockerfile(path: Path) -> dict[str, Stage]:
    """The stages of a Dockerfile by name, each with its instructions and what follows them, joined to one line."""
    text = re.sub(r"(?m)^\s*#.*\n", "", path.read_text()).replace("\\\n", " ")
    stages: dict[str, Stage] = {}
    stage = None
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = stages[name] = Stage(name, base)
        elif stage is not None:
            stage.steps.append((word, " ".join(rest.split())))
    return stages


def chain(stages: Mapping[str, Stage], name: str) -> Iterator[tuple[str, str]]:
    """The steps of a stage, those of the stages that it is built on first."""
    stage = stages[name]
    if stage.base in stages:
        yield from chain(stages, stage.base)
    yield from stage.steps


def environment_of(steps: Iterator[tuple[str, str]], before: Mapping[str, str]) -> Environment:
    """What ENV says, in the environment that was there before."""
    found = dict(before)
    for word, rest in steps:
        if word == "ENV":
            for pair in shlex.split(rest):
                name, _, value = pair.partition("=")
                found[name] = re.sub(r"\$(\w+)", lambda used: found[used[1]], value)
    return found


# --- the box ---------------------------------------------------------------------------------------------------------


class Box:
    """Runs commands in the overlay `root`, which is seen in the namespaces of the process `keeper` only."""

    def __init__(self, root: Path, keeper: int) -> None:
        self.root, self.keeper = root, keeper

    def _command(self, command: Sequence[str], *, container: bool, folder: str) -> list[str]:
        enter = ["nsenter", f"--target={self.keeper}", "--mount", "--net"]
        inside = ["chroot", str(self.root), "env", "-C", folder]
        if not container:
            return [*enter, *inside, *command]
        # a container: /tmp and /data of its own, everything else read-only
        set_up = (
            f"mount -t tmpfs -o noexec,nosuid,nodev none {self.root}/tmp "
            f"&& mount -t tmpfs -o uid=10001,gid=10001,mode=700 none {self.root}/data "
            f'&& mount -o remount,ro,bind {self.root} && exec "$@"'
        )
        return [*enter, "unshare", "--mount", "sh", "-c", set_up, "sh", *inside, *CONFINED, *command]

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], *, container: bool = False, folder: str = "/",
        seconds: float = 120,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run a command to its end: as root where the image is built, else as in a container."""
        return subprocess.run(
            self._command(command, container=container, folder=folder), env=dict(environment), capture_output=True,
            text=True, timeout=seconds, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    @contextmanager
    def running(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[Service]:
        """A container that runs meanwhile, with its output in `log`."""
        with log.open("wb") as output:
            process = subprocess.Popen(
                self._command(command, container=True, folder="/data"), env=dict(environment), stdout=output,
                stderr=output, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        service = Service(self, process, environment, log)
        try:
            yield service
        finally:
            service.stop(signal.SIGKILL)

    def write(self, path: str, text: str) -> None:
        self.enter(["tee", f"{self.root}{path}"], text)

    def copy(self, source: Path, target: str) -> None:
        """As COPY does: a file, or what is in a folder."""
        self.enter(["cp", "-a", "--no-preserve=ownership", "-T", str(source), f"{self.root}{target}"])

    def enter(self, command: Sequence[str], given: str = "") -> None:
        """Run a command that sees this machine and the box."""
        done = subprocess.run(
            ["nsenter", f"--target={self.keeper}", "--mount", *command], input=given, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


class Service:
    """A container that runs."""

    def __init__(self, box: Box, process: subprocess.Popen[bytes], environment: Mapping[str, str], log: Path) -> None:
        self.process, self.log = process, log
        self._box, self._environment = box, environment

    def logs(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.logs():
            assert self.process.poll() is None, self.logs()
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.1)

    def execute(self, command: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
        """A command in this container, as its health check is."""
        enter = ["nsenter", f"--target={self.process.pid}", "--mount", "--net"]
        inside = ["chroot", str(self._box.root), "env", "-C", "/data", *CONFINED]
        return subprocess.run(
            [*enter, *inside, *command], env={**self._environment, **environment}, capture_output=True, text=True,
            timeout=120, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it as the engine does; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)


KEEPER = """
set -e
mount -t tmpfs -o mode=755 none "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay none -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount --rbind /proc "$1/root/proc"
mount --rbind /dev "$1/root/dev"
mount -t tmpfs none "$1/root/tmp"
ip link set lo up || true
echo ready
exec sleep infinity
"""


@contextmanager
def make_box(folder: Path) -> Iterator[Box]:
    """A box on this machine's root, as it is before the first step of a Dockerfile. Raises `CalledProcessError`."""
    folder.mkdir()
    keeper = subprocess.Popen(
        ["unshare", "--mount", "--net", "sh", "-c", KEEPER, "sh", str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert keeper.stdout is not None
        if keeper.stdout.readline() != "ready\n":
            _, errors = keeper.communicate(timeout=10)
            raise subprocess.CalledProcessError(keeper.returncode, "unshare", stderr=errors)
        box = Box(folder / "root", keeper.pid)
        _stand_in_for_the_base(box)
        yield box
    finally:
        keeper.kill()
        keeper.wait()


def _stand_in_for_the_base(box: Box) -> None:
    """`python` is this interpreter, which others than root may run too."""
    packages, prefix = Path(sysconfig.get_path("purelib")), Path(sys.base_prefix).resolve()
    for folder in (packages, prefix):  # the overlay holds the root's own file system, not what is mounted in it
        if _mount_of(folder) != "/":
            box.run(["mkdir", "-p", str(folder)], base_environment())
            box.enter(["mount", "--bind", "-o", "ro", str(folder), f"{box.root}{folder}"])
    closed = [path for path in sorted({*packages.parents, *PYTHON.parents}) if not path.stat().st_mode & 0o001]
    lines = ["echo '127.0.0.1 localhost redis postgres api' > /etc/hosts"]
    lines += [f"chmod a+x {shlex.quote(str(path))}" for path in closed]
    if not (python := PYTHON.with_name("python")).exists():
        lines.append(f"ln -s {PYTHON.name} {shlex.quote(str(python))}")
    done = box.run(["sh", "-ec", "\n".join(lines)], base_environment())
    assert done.returncode == 0, done.stderr


def _mount_of(path: Path) -> str:
    done = subprocess.run(["findmnt", "-no", "TARGET", "--target", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def base_environment() -> Environment:
    usual = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {"PATH": f"{PYTHON.parent}:{usual}", "LANG": "C.UTF-8"}


def build(box: Box, stages: Mapping[str, Stage], name: str, context: Path, arguments: Mapping[str, str]) -> Environment:
    """Carry out the steps of a stage in the box, COPY and RUN as they stand. The environment that containers have.

    What .dockerignore leaves out is not there to be copied. `arguments` are the values of ARG.
    """
    known = environment_of(iter(()), base_environment())
    folder = "/"
    for word, rest in chain(stages, name):
        if word == "ENV":
            known = environment_of(iter([(word, rest)]), known)
        elif word == "ARG":
            argument, _, default = rest.partition("=")
            known[argument] = arguments.get(argument, default)
        elif word == "WORKDIR":
            folder = rest
            box.run(["mkdir", "-p", folder], known)
        elif word == "RUN":
            script = re.sub(r"^(--mount=\S+ )+", "", rest)
            done = box.run(["sh", "-ec", script], known | OFFLINE, folder=folder)
            assert done.returncode == 0, f"RUN {script}\n{done.stdout}{done.stderr}"
            if "-m venv" in script:
                _show_packages(box, known)
        elif word == "COPY" and not rest.startswith("--from="):
            *sources, target = rest.split()
            for source in sources:
                _copy(box, context, source, f"{folder}/{target}")
    return {key: value for key, value in known.items() if key not in arguments}


OFFLINE = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}
"""pip asks nobody, and builds with the setuptools that is there (for this switch, 0 says yes)."""


def _show_packages(box: Box, environment: Mapping[str, str]) -> None:
    """Let the new virtual environment see the tests' packages, so that nothing but Billhook is to be installed."""
    (folder,) = box.run(["sh", "-c", "echo /opt/billhook/lib/python3*/site-packages"], environment).stdout.split()
    box.write(f"{folder}/packages_of_the_tests.pth", sysconfig.get_path("purelib") + "\n")


def _copy(box: Box, context: Path, source: str, target: str) -> None:
    for name in sorted(included(context) if source == "." else {source}):
        assert name in included(context), f"{name} is in .dockerignore"
        if (context / name).is_dir():
            clean = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
            copy = Path(shutil.copytree(context / name, box.root.parent.parent / "context" / name, ignore=clean,
                                        dirs_exist_ok=True))  # fmt: skip
            box.copy(copy, f"{target}/{name}")
        else:
            box.copy(context / name, f"{target}/{name}")


def included(context: Path) -> set[str]:
    """What .dockerignore, which leaves everything out at first, takes in again."""
    lines = (context / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    return {line.removeprefix("!") for line in lines if line.startswith("!")}


def interpolated(value: Any, variables: Mapping[str, str]) -> Any:
    """A compose document with its `${…}` replaced, as the engine does it. Raises `KeyError` for what must be given."""
    if isinstance(value, dict):
        return {key: interpolated(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolated(item, variables) for item in value]
    if not isinstance(value, str):
        return value

    def replace(found: re.Match[str]) -> str:
        if found["dollar"]:
            return "$"
        given = variables.get(found["name"])
        if found["rule"] in (":-", ":?") and given == "":
            given = None
        if given is None and found["rule"] in (":?", "?"):
            raise KeyError(found["name"])
        return found["rest"] or "" if given is None else given

    return re.sub(r"(?P<dollar>\$\$)|\$\{(?P<name>\w+)(?:(?P<rule>:?[-?])(?P<rest>[^}]*))?\}", replace, value)


def is_possible() -> str | None:
    """Why there can be no box here, None if there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a box takes Linux and root"
    missing = [
        name for name in ("unshare", "nsenter", "setpriv", "chroot", "findmnt", "ip") if shutil.which(name) is None
    ]
    return f"a box takes {', '.join(missing)}" if missing else None
