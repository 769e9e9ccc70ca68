"""What an attempt ran on: host, processor, memory, versions. Read without importing any of the libraries."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

APPLICATION = "billhook-server"
LIBRARIES = ("torch", "onnxruntime", "onnxruntime-gpu", "onnx", "numpy", "safetensors")


@functools.cache
def environment() -> dict[str, Any]:
    """The record that each attempt carries. The device is a column of its own."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "application": {"version": application_version(), "commit": _commit()},
        "libraries": {name: found for name in LIBRARIES if (found := _version(name)) is not None},
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
    }


def application_version() -> str | None:
    """None where it is not installed but runs from a folder."""
    return _version(APPLICATION)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit that runs, where it runs from a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
