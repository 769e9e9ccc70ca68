"""`make demo`: the whole service, once. Starts it with the embedded default (SQLite, a folder, one worker), prunes a
really trained network on real data over HTTP with the command that a pipeline would use, prints the report, leaves
the files in `demo-output/`, stops the service. Exit code: that of `billhook prune` (3 when the result misses the
requirements).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
OUTPUT = ROOT / "demo-output"
BIN = Path(sys.executable).parent


def _wait_for(file: Path, server: subprocess.Popen[bytes], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not file.exists():
        if server.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"the server did not start; its log is {OUTPUT / 'server.log'}")
        time.sleep(0.1)


def main() -> int:
    shutil.rmtree(OUTPUT, ignore_errors=True)
    data = OUTPUT / "server"
    data.mkdir(parents=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the service is stopped then too
    print(f"Starting the service; its data and log are in {OUTPUT}")
    with (OUTPUT / "server.log").open("wb") as log:
        command = [str(BIN / "billhook-server"), "--data-dir", str(data), "--port", "0"]
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        _wait_for(data / "address", server)
        prune = [
            "billhook", "prune", "examples/digits_resnet20.onnx", "--data", "builtin:digits",
            "--recipe", "digits_demo", "--output", "demo-output/pruned.onnx", "--report", "demo-output/report.md",
        ]  # fmt: skip
        print("$", " ".join(prune), flush=True)
        environment = os.environ | {"BILLHOOK_DATA_DIR": str(data)}
        status = subprocess.run([str(BIN / "billhook"), *prune[1:]], cwd=ROOT, env=environment, check=False).returncode
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
    if status == 0:
        print("\nThe pruned network is demo-output/pruned.onnx, the report demo-output/report.md.")
    return status


if __name__ == "__main__":
    sys.exit(main())
