"""Devices and torch's settings for a job."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import deterministic

from core.errors import DeviceUnavailable, Fault, RecipeInvalid
from core.precision import ON_CPU, precision_faults
from core.recipe import Recipe


def require_device(name: str) -> torch.device:
    """The device `cpu` or `cuda:N`, if it is there. Raises `DeviceUnavailable`."""
    device = torch.device(name)
    if device.type == "cuda":
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if device.index >= there:
            expected = f"cpu, or cuda:0 to cuda:{there - 1}" if there else "cpu"
            fault = Fault("/device", f"there is no {name} here", expected)
            raise DeviceUnavailable(f"{name} is not on this machine, which has {there} CUDA device(s)", faults=[fault])
    return device


def require_precision(recipe: Recipe, device: torch.device) -> None:
    """Raises `RecipeInvalid` where the recipe trains in a precision that `device` does not compute in."""
    if device.type == "cpu":
        faults = precision_faults(recipe, ON_CPU, "training on the CPU")
    elif not torch.cuda.is_bf16_supported(including_emulation=False):
        faults = precision_faults(recipe, ("float32", "float16"), f"training on {device}, which does not compute in it")
    else:
        return
    if faults:
        raise RecipeInvalid(f"the recipe has {len(faults)} fault(s) on {device}", faults=faults)


@contextmanager
def torch_settings(device: torch.device, threads: int | None) -> Iterator[None]:
    """`threads` threads (None: as they are), and deterministic algorithms where there are some; restored afterwards."""
    before = torch.get_num_threads()
    were = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # a property of the module's class
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    if threads is not None:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads what it has not written
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(were[0], warn_only=were[1])
        deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
