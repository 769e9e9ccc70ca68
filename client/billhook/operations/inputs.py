"""What a job is given: a model and a dataset, which the server must have checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from billhook.errors import InputInvalid
from billhook.operations import uploads
from billhook.results import Dataset, Model
from billhook.retries import Core
from billhook.steps import Operation

OnUpload = Callable[[str, float | None], None]
"""Called with "model" or "dataset", and how much of it has been sent, 0-1 (None: not known)."""


@dataclass(frozen=True)
class Inputs:
    """As `prune` takes them: files or ids; the rest is about the files."""

    model: str | Path
    data: str | Path
    architecture: str | None = None
    input_shape: Sequence[int] | None = None
    preprocess: Mapping[str, Any] | None = None
    splits: Mapping[str, Any] | None = None
    columns: Mapping[str, str] | None = None
    data_format: str | None = None
    data_sha256: str | None = None

    def require_data(self) -> None:
        """Raises `InputInvalid` where there is no such file, before anything is sent."""
        data = self.data
        if _id("ds", data) is None and not uploads.is_reference(data) and not Path(data).exists():
            raise InputInvalid(f"there is no file or folder {data}")


def uploaded(
    core: Core, inputs: Inputs, left: Callable[[], float | None], on_upload: OnUpload
) -> Operation[tuple[Model, Dataset]]:
    """Model and dataset once the server has checked them; what it has not seen is uploaded.

    left: gives the seconds that there are. Raises `UploadRefused`, `InputInvalid`, `ApiError`, `Timeout`.
    """
    on_upload("model", None)
    if (model_id := _id("mdl", inputs.model)) is not None:
        model = yield from uploads.wait_for_model(core, model_id, timeout=left())
    else:
        model = yield from uploads.upload_model(
            core, inputs.model, architecture=inputs.architecture, input_shape=inputs.input_shape, timeout=left(),
            on_bytes=lambda sent, total: on_upload("model", sent / max(total, 1)),
        )  # fmt: skip
    on_upload("dataset", None)
    if (dataset_id := _id("ds", inputs.data)) is not None:
        dataset = yield from uploads.wait_for_dataset(core, dataset_id, timeout=left())
    else:
        dataset = yield from uploads.add_dataset(
            core, inputs.data, preprocess=inputs.preprocess, splits=inputs.splits, columns=inputs.columns,
            format=inputs.data_format, sha256=inputs.data_sha256, timeout=left(),
            on_bytes=lambda sent, total: on_upload("dataset", sent / max(total, 1)),
        )  # fmt: skip
    return model, dataset


def _id(prefix: str, given: str | Path) -> str | None:
    """`given` as an id with this prefix, None where it is something else."""
    return given if isinstance(given, str) and re.fullmatch(rf"{prefix}_[0-9a-z]+", given) else None
