"""ONNX Runtime sessions as all measurements open them. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from core.errors import DeviceUnavailable, Fault

Floats = NDArray[np.float32]
Given = ParamSpec("Given")
Result = TypeVar("Result")
# its names are not exported explicitly, so that mypy would see none of them
_runtime: Any = onnxruntime


class Port(Protocol):
    """An input or output of a session. `shape`: an int per static dimension, a name or None per dynamic one."""

    name: str
    shape: list[int | str | None]


class Session(Protocol):
    """What the measurements use of `onnxruntime.InferenceSession`."""

    def get_inputs(self) -> list[Port]: ...
    def get_outputs(self) -> list[Port]: ...
    def get_providers(self) -> list[str]: ...
    def run(self, outputs: Sequence[str] | None, inputs: Mapping[str, Floats]) -> list[Floats]: ...
    def io_binding(self) -> Any: ...
    def run_with_iobinding(self, binding: Any) -> None: ...
    def end_profiling(self) -> str: ...


def execution_providers() -> list[str]:
    """What this build of ONNX Runtime can run on."""
    providers: list[str] = _runtime.get_available_providers()
    return providers


def provider_of(device: str) -> tuple[str, dict[str, str]]:
    """The execution provider of `cpu` or `cuda:N`, and its options. Raises `DeviceUnavailable`."""
    kind, _, number = device.partition(":")
    providers = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
    provider = providers.get(kind)
    if provider is None or provider not in execution_providers():
        fault = Fault("/device", f"ONNX Runtime has no provider for {device} here", "cpu, or the extra gpu installed")
        raise DeviceUnavailable(f"ONNX Runtime cannot run on {device}", faults=[fault])
    return provider, ({"device_id": number or "0"} if kind == "cuda" else {})


def in_own_thread(measure: Callable[Given, Result]) -> Callable[Given, Result]:
    """`measure`, run with denormals flushed, in a thread that ends with it: training in the same thread would go on
    with other numbers than a job that is resumed. ONNX Runtime's own setting is that of the first session of a
    process, in the thread that opened it; torch, where it is there, sets it for any thread."""

    def flushed(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.set_flush_denormal(True)
        return measure(*args, **kwargs)

    @wraps(measure)
    def apart(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        with ThreadPoolExecutor(1, thread_name_prefix="measure") as pool:
            return pool.submit(flushed, *args, **kwargs).result()

    return apart


def open_session(path: Path, *, threads: int = 1, device: str = "cpu", profile_prefix: Path | None = None) -> Session:
    """A session on one device, one operator at a time, with `threads` threads inside an operator.

    Denormals are flushed: what training leaves of them would time the weights' last digits, not the network's shape.
    They may stay so in this thread, which is why every measurement runs `in_own_thread`.
    Threads stop spinning when a run ends, so that one session does not take the cores of the next one in line.
    """
    provider, options = provider_of(device)
    settings = _runtime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = _runtime.ExecutionMode.ORT_SEQUENTIAL
    settings.log_severity_level = 3  # errors only
    settings.add_session_config_entry("session.set_denormal_as_zero", "1")
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    if profile_prefix is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile_prefix)
    session: Session = _runtime.InferenceSession(str(path), settings, providers=[(provider, options)])
    if session.get_providers()[0] != provider:  # ONNX Runtime falls back to the CPU by itself
        fault = Fault("/device", f"{provider} did not start", "a driver and libraries that fit onnxruntime-gpu")
        raise DeviceUnavailable(f"ONNX Runtime cannot run on {device}", faults=[fault])
    return session


def static_batch(session: Session) -> int | None:
    """The batch size that the file fixes, None where it is dynamic."""
    batch = session.get_inputs()[0].shape[0]
    return batch if isinstance(batch, int) else None


def require_batch(session: Session, batch_size: int) -> None:
    """Raises `ValueError` where the file fixes another batch size."""
    fixed = static_batch(session)
    if fixed is not None and fixed != batch_size:
        raise ValueError(f"the file takes batches of {fixed} only, not {batch_size}")


def input_shape(session: Session, batch_size: int, example: Sequence[int]) -> tuple[int, ...]:
    """Shape of an input of `batch_size`: static dimensions from the file, dynamic ones from `example` (no batch).

    Raises `ValueError` where the two contradict each other.
    """
    require_batch(session, batch_size)
    declared = session.get_inputs()[0].shape[1:]
    fits = len(declared) == len(example) and all(
        not isinstance(size, int) or size == given for size, given in zip(declared, example, strict=True)
    )
    if not fits:
        raise ValueError(f"the file's input is {declared} without the batch, not {list(example)}")
    return (batch_size, *example)


def bound_run(session: Session, inputs: Floats, device: str) -> Callable[[], None]:
    """One inference, its input already on the device and its outputs left there: no copies are timed.

    inputs: float32 (B, ...). The call returns when the outputs are complete.
    """
    kind, _, number = device.partition(":")
    where = (kind, int(number or 0))
    binding: Any = session.io_binding()
    value = _runtime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(inputs), *where)
    binding.bind_ortvalue_input(session.get_inputs()[0].name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name, *where)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run
