"""What a worker's settings make of a child's limits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tests.worker.house import House


def test_the_room_of_a_dataset(house: House, tmp_path: Path) -> None:
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / "model.onnx").write_bytes(bytes(1000))
    (tmp_path / "inputs" / "ds.npz").write_bytes(bytes(3000))
    limits = {"memory_limit_bytes": 2**30, "disk_limit_bytes": 2**22}
    for own, memory in ((None, 2**29), (0, 0), (12345, 12345)):
        settings = house.settings.model_copy(update={**limits, "dataset_memory_bytes": own})
        room = dataclasses.replace(house.context, settings=settings).room(tmp_path)
        assert (room.memory_bytes, room.disk_bytes) == (memory, (2**22 - 4000) * 3 // 4)
