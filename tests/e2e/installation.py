"""An installation of several machines on this one: processes with data folders of their own that share a database, a
broker and a storage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from safetensors.torch import save_file

from core.graph.architectures import build
from tests.worker.house import wait_for

ROOT = Path(__file__).parent.parent.parent
STOP_SECONDS = 30


class Installation:
    """Use as a context manager: an API is running then. `settings` are BILLHOOK_ variables without that prefix."""

    def __init__(self, folder: Path, settings: Mapping[str, object]) -> None:
        self.folder = folder
        self.variables = {f"BILLHOOK_{name}": str(value) for name, value in settings.items()}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.http: httpx.Client

    def __enter__(self) -> Installation:
        api = self.start("api", "api.serve", "--no-worker", "--port", "0")
        address = self.folder / "api" / "address"
        wait_for(lambda: address.exists() or api.poll() is not None, 60)
        assert api.poll() is None, self.log("api")
        key = (self.folder / "api" / "key").read_text().strip()
        self.http = httpx.Client(
            base_url=address.read_text().strip(), headers={"Authorization": f"Bearer {key}"}, timeout=60
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for name in self.processes:
            print(f"--- {name}\n{self.log(name)}")

    def start(self, name: str, *module: str) -> subprocess.Popen[bytes]:
        """`python -m module …` with the data folder `name`, which nobody else has."""
        data = self.folder / name
        data.mkdir()
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *module], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=os.environ | self.variables | {"BILLHOOK_DATA_DIR": str(data)}, start_new_session=True,
            )  # fmt: skip
        self.processes[name] = process
        return process

    def worker(self, name: str, queue: str = "cpu") -> subprocess.Popen[bytes]:
        return self.start(name, "worker", "--queue", queue, "--name", name)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    # --- over HTTP ----------------------------------------------------------------------------------------------------

    def get(self, path: str, **params: Any) -> Any:
        answer = self.http.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def uploads(self) -> tuple[str, str]:
        """Ids of a small network with random weights and of the digits, once they are ready."""
        weights = self.folder / "small_cnn.safetensors"
        network = build("small_cnn", num_classes=10, in_channels=1, image_size=(8, 8), seed=7)
        save_file(network.state_dict(), weights)
        params = {"filename": weights.name, "architecture": "small_cnn", "input_shape": "1,8,8"}
        model = self.http.post("/v1/models", params=params, content=weights.read_bytes())
        assert model.status_code == 201, model.text
        dataset = self.http.post("/v1/datasets", json={"uri": "builtin:digits"})
        assert dataset.status_code == 201, dataset.text
        ids = model.json()["id"], dataset.json()["id"]
        for path in (f"/v1/models/{ids[0]}", f"/v1/datasets/{ids[1]}"):
            wait_for(lambda path=path: self.get(path)["state"] == "ready", 60, every=0.3)  # type: ignore[misc]
        return ids

    def job(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"/v1/jobs/{job_id}")
        return found

    def events(self, job_id: str) -> list[dict[str, Any]]:
        """All of them, page by page."""
        found: list[dict[str, Any]] = []
        after: int | None = 0
        while after is not None:
            page = self.get(f"/v1/jobs/{job_id}/events", after=after, limit=200)
            found += page["items"]
            after = page["next_after"]
        return found

    def workers(self) -> dict[str, dict[str, Any]]:
        return {worker["name"]: worker for worker in self.get("/v1/workers")["items"]}

    def wait_for_epoch(self, job_id: str, epoch: int, seconds: float = 90) -> None:
        """Until the job has stored a checkpoint behind `epoch` epochs of fine-tuning."""

        def reached() -> bool:
            events = self.events(job_id)
            numbers = [event["body"]["epoch"] for event in events if "/epoch/" in event["name"]]
            return any(number >= epoch for number in numbers) and any(event["name"] == "checkpoint" for event in events)

        wait_for(reached, seconds, every=0.3)
