"""The machine and the versions that figures were measured with. Imports no torch; reads it where it is loaded."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from core.measure.sessions import execution_providers

_PACKAGES = ("billhook-server", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy", "pillow", "safetensors")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def environment(device: str = "cpu", threads: int | None = None) -> dict[str, Any]:
    """JSON: versions, processor, cores, memory in bytes, clock governor (None where it cannot be read), device."""
    return {
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_model": _cpu_model(),
        "cpu_cores_physical": psutil.cpu_count(logical=False),
        "cpu_cores_logical": psutil.cpu_count(),
        "cpu_cores_usable": _usable_cores(),
        "cpu_governor": _read(_GOVERNOR),
        "load_average_1m": os.getloadavg()[0],
        "memory_bytes": psutil.virtual_memory().total,
        "execution_providers": execution_providers(),
        "device": device,
        "device_name": _device_name(device),
        "threads": threads,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Processor"):
            return value.strip()
    return platform.processor() or "unknown"


def _usable_cores() -> int:
    """Cores that this process may run on, which a container may narrow."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _device_name(device: str) -> str | None:
    """Of a GPU, from torch, which runs on it where `device` names one."""
    if not device.startswith("cuda") or "torch" not in sys.modules:
        return None
    name: str = sys.modules["torch"].cuda.get_device_name(device)
    return name


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
