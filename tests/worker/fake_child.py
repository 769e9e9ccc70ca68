"""A child that does what the job's recipe says in its description (JSON), through the real child's way in.

Run as a script in place of `python -m worker.child`; nothing of core is imported.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from core.errors import Fault, ModelUnreadable
from core.events import Emit
from core.job import DatasetFormat
from tests.worker.reports import DATASET_SUMMARY, DRY_RUN, GRAPH, MODEL_SUMMARY, PNG, REPORT
from worker.child import main

CHECKPOINT = "state/checkpoint.safetensors"
KEPT = "checkpoint_step0_epoch{:04d}.onnx"


def plan_of(workdir: Path) -> dict[str, Any]:
    inputs = json.loads((workdir / "job.json").read_text())
    plan: dict[str, Any] = json.loads(inputs["recipe"]["description"])
    return plan


def train(workdir: Path, emit: Emit, plan: dict[str, Any]) -> dict[str, Any]:
    """`epochs` epochs, an event and a checkpoint each, from where an earlier attempt's checkpoint says."""
    saved = workdir / CHECKPOINT
    start = json.loads(saved.read_text())["epoch"] + 1 if saved.exists() else 0
    emit("fine_tune/0/start", pid=os.getpid(), start=start)
    for epoch in range(start, plan["epochs"]):
        time.sleep(plan.get("seconds", 0.05))
        emit(f"fine_tune/0/epoch/{epoch}", epoch=epoch, loss=1 / (epoch + 1), images=64, seconds=0.01)
        emit("progress", stage="fine_tune", fraction=(epoch + 1) / plan["epochs"], eta_seconds=1.0)
        if "keep" in plan:
            (workdir / "out" / KEPT.format(epoch)).write_text(f"network {epoch}")
            emit("artifact", file=f"out/{KEPT.format(epoch)}", epoch=epoch)
            if plan["keep"] == epoch:
                return refuse(workdir, emit, plan)
        if plan.get("checkpoints", True):
            temporary = workdir / "state" / ".writing"
            temporary.write_text(json.dumps({"epoch": epoch}))
            temporary.replace(saved)
            emit("checkpoint", file=CHECKPOINT, number=epoch)
        if epoch == plan.get("die_at"):
            os.kill(os.getpid(), signal.SIGKILL)
    model = next((workdir / "inputs").glob("model.*")).read_bytes()
    leave_files(workdir, b"pruned " + model)
    return {}


def leave_files(workdir: Path, network: bytes = b"network", report: object = REPORT) -> None:
    """What every job leaves."""
    out = workdir / "out"
    (out / "pruned.onnx").write_bytes(network)
    (out / "report.json").write_text(json.dumps(report))
    for name in ("report.md", "plan.json", "weights.safetensors"):
        (out / name).write_text("something")


def refuse(workdir: Path, emit: Emit, plan: dict[str, Any]) -> dict[str, Any]:
    raise ModelUnreadable("the file is cut short", faults=[Fault("/model", "ends after 3 bytes", "an ONNX file")])


def crash(workdir: Path, emit: Emit, plan: dict[str, Any]) -> dict[str, Any]:
    raise RuntimeError(f"a secret path: {workdir}")


def eat_memory(workdir: Path, emit: Emit, plan: dict[str, Any]) -> dict[str, Any]:
    hoard = []
    while True:
        hoard.append(b"x" * 2**24)
        time.sleep(0.005)


def fill_disk(workdir: Path, emit: Emit, plan: dict[str, Any]) -> dict[str, Any]:
    for number in range(1_000):
        (workdir / "out" / f"part{number}").write_bytes(os.urandom(2**20))
        time.sleep(0.02)
    return {}


def write_large_file(workdir: Path, emit: Emit, plan: dict[str, Any]) -> dict[str, Any]:
    with (workdir / "out" / "large").open("wb") as file:
        for _ in range(64):
            file.write(bytes(2**20))
    return {}


def hang(workdir: Path, emit: Emit, plan: dict[str, Any]) -> dict[str, Any]:
    if plan.get("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if plan.get("descendant"):
        descendant = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        emit("import/descendant", pid=descendant.pid)
    emit("import/started", pid=os.getpid())
    while True:
        time.sleep(plan.get("every", 600))
        emit("import/tick")


def die(workdir: Path, emit: Emit, plan: dict[str, Any]) -> dict[str, Any]:
    print("the last words")
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def look_round(workdir: Path, emit: Emit, plan: dict[str, Any]) -> dict[str, Any]:
    """What this process has and may do."""
    descriptors = {}
    for path in Path("/proc/self/fd").iterdir():
        try:
            descriptors[path.name] = str(path.readlink())
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    inputs = {path.name: oct(path.stat().st_mode & 0o777) for path in (workdir / "inputs").iterdir()}
    leave_files(workdir)
    emit("import/seen", environment=dict(os.environ), descriptors=descriptors, inputs=inputs,
         session=os.getsid(0), pid=os.getpid(), limits=Path("/proc/self/limits").read_text(),
         torch="torch" in sys.modules)  # fmt: skip
    return {}


def babble(workdir: Path, emit: Emit, plan: dict[str, Any]) -> dict[str, Any]:
    descriptor = int(next(item for item in sys.argv if item.startswith("--events-fd=")).partition("=")[2])
    os.write(descriptor, plan["say"].encode() * plan.get("times", 1))
    time.sleep(plan.get("seconds", 5))
    return {}


def leave(workdir: Path, emit: Emit, plan: dict[str, Any]) -> dict[str, Any]:
    """All files, but `plan["file"]` is left out, or is what `plan["as"]` says."""
    leave_files(workdir, report=plan.get("report", REPORT))
    path = workdir / plan["file"]
    if plan["as"] != "a file":
        path.unlink()
    if plan["as"] == "an empty file":
        path.touch()
    elif plan["as"] == "a link":
        path.symlink_to(plan["to"])
    elif plan["as"] == "a pipe":
        os.mkfifo(path)
    return {}


def nest(workdir: Path, emit: Emit, plan: dict[str, Any]) -> dict[str, Any]:
    nest_folders(workdir / "state", plan["depth"])
    time.sleep(30)
    return {}


def nest_folders(folder: Path, depth: int, name: str = "folder") -> None:
    """Folders in each other, deeper than recursion and than the longest path."""
    inside = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=inside)
        outside, inside = inside, os.open(name, os.O_RDONLY, dir_fd=inside)
        os.close(outside)
    os.close(inside)


def litter(workdir: Path, emit: Emit, plan: dict[str, Any]) -> dict[str, Any]:
    for number in range(plan["files"]):
        (workdir / "state" / str(number)).touch()
    time.sleep(30)
    return {}


def flood(workdir: Path, emit: Emit, plan: dict[str, Any]) -> dict[str, Any]:
    """A descendant that no signal to the group reaches goes on talking, for eight seconds."""
    if os.fork() == 0:
        os.setsid()
        until = time.monotonic() + 8
        while time.monotonic() < until:
            emit("import/tick")
        os._exit(0)
    time.sleep(0.3)
    os._exit(0)


def announce_nothing(workdir: Path, emit: Emit, plan: dict[str, Any]) -> dict[str, Any]:
    emit(plan.get("as", "checkpoint"), file=plan["file"], number=1)
    time.sleep(5)
    return {}


PLANS = {
    function.__name__: function
    for function in (train, refuse, crash, eat_memory, fill_disk, write_large_file, hang, die, look_round, babble,
                     leave, announce_nothing, nest, litter, flood)
}  # fmt: skip


def run(workdir: Path, emit: Emit) -> Mapping[str, Any]:
    plan = plan_of(workdir)
    return PLANS[plan["do"]](workdir, emit, plan)


def inspect(workdir: Path, emit: Emit) -> Mapping[str, Any]:
    """Refuses a model whose bytes say so; dies, hangs or crashes likewise. A model's graph may be no plain
    file, nor a dataset's contact sheet (as its seed says)."""
    inputs = json.loads((workdir / "job.json").read_text())
    inputs = inputs.get("dataset", inputs)
    content = Path(inputs["path"]).read_text() if inputs["path"] else "fine"
    if content in PLANS:
        return PLANS[content](workdir, emit, {})
    summary = DATASET_SUMMARY if inputs["format"] in get_args(DatasetFormat) else MODEL_SUMMARY
    if summary is MODEL_SUMMARY and content != "no graph":
        left = {"empty graph": "", "odd graph": '{"version": 1, "totals": 3}', "not JSON": "{"}
        (workdir / "out" / "graph.json").write_text(left.get(content, json.dumps(GRAPH)))
    if summary is DATASET_SUMMARY:
        leave_contact_sheet(workdir / "out" / "contact_sheet.png", inputs["options"]["splits"]["seed"])
    if content == "linked graph":
        (workdir / "out" / "graph.json").unlink()
        (workdir / "out" / "graph.json").symlink_to("/etc/passwd")
    return summary | {"content": content, **({"sha256": 1} if content == "badly described" else {})}


def dry_run(workdir: Path, emit: Emit) -> Mapping[str, Any]:
    """As the recipe's description says, or what a dry run answers; with what it was given among the warnings."""
    inputs = json.loads((workdir / "job.json").read_text())
    plan = json.loads(inputs["job"]["recipe"]["description"] or "{}")
    if "do" in plan:
        return PLANS[plan["do"]](workdir, emit, plan)
    content = Path(inputs["job"]["model"]["path"]).read_text()
    return {**DRY_RUN, "warnings": [content, str(inputs["timed"])], **plan.get("more", {})}


def leave_contact_sheet(path: Path, how: int) -> None:
    if how == 0:
        path.write_bytes(PNG)
    elif how == 1:
        path.write_bytes(b"<svg/>")
    elif how == 2:
        path.symlink_to("/etc/passwd")


if __name__ == "__main__":
    status = main(operations={"run": run, "inspect_model": inspect, "inspect_dataset": inspect, "dry_run": dry_run})
    sys.stdout.flush()
    os._exit(status)
