"""The checkpoint file: reversible, atomic, refused where it is damaged or somebody else's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from core.errors import CheckpointUnusable
from core.state import FILE, State

FINGERPRINT = {"model": "a" * 64, "recipe": "b" * 64}


class Events(list[tuple[str, dict[str, Any]]]):
    def __call__(self, name: str, /, **body: Any) -> None:
        self.append((name, body))


def opened(workdir: Path, **changes: str) -> State:
    return State.open(workdir, fingerprint=FINGERPRINT | changes, emit=Events())


def same(left: Any, right: Any) -> bool:
    """Equal in value and type, tensors bit for bit, NaN equal to itself."""
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return left == right or (math.isnan(left) and math.isnan(right))
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
tensors = st.lists(st.integers(-3, 3), max_size=4).map(lambda values: torch.tensor(values, dtype=torch.float64))
values = st.recursive(
    scalars | tensors,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.just("$tensor"), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(value=values)
def test_what_is_saved_is_what_is_read(value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    workdir = tmp_path_factory.mktemp("state")
    opened(workdir).save(value=value)
    assert same(opened(workdir)["value"], value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_tensors_of_every_kind(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    tensor = torch.ones(shape, dtype=dtype)
    opened(tmp_path).save(tensor=tensor, turned=tensor.T if tensor.ndim == 2 else tensor)
    read = opened(tmp_path)
    assert read["tensor"].dtype == dtype
    assert torch.equal(read["tensor"], tensor)


def test_an_optimizer_survives(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    opened(tmp_path).save(optimizer=optimizer.state_dict())
    again = torch.optim.SGD(layer.parameters(), lr=0.5, momentum=0.9)
    again.load_state_dict(opened(tmp_path)["optimizer"])
    assert again.param_groups[0]["lr"] == 0.1
    left, right = optimizer.state_dict()["state"], again.state_dict()["state"]
    assert all(torch.equal(left[key]["momentum_buffer"], right[key]["momentum_buffer"]) for key in left)


def test_scopes_share_one_file_and_one_moment(tmp_path: Path) -> None:
    state = opened(tmp_path)
    fit = state.scope("method").scope("fit")
    weight = torch.zeros(2)
    fit.put(weight=weight)
    weight += 1  # training goes on; what was put stays as it was
    state.put(round=3)
    assert not (tmp_path / FILE).exists()
    fit.save(epoch=1)
    read = opened(tmp_path)
    assert read["round"] == 3
    assert read.scope("method").scope("fit")["epoch"] == 1
    assert torch.equal(read["method"]["fit"]["weight"], torch.zeros(2))
    read.drop("method", "not there")
    read.save()
    assert dict(opened(tmp_path)) == {"round": 3}


def test_a_checkpoint_is_told_with_a_number_that_goes_on(tmp_path: Path) -> None:
    events = Events()
    state = State.open(tmp_path, fingerprint=FINGERPRINT, emit=events)
    assert len(state) == 0
    state.save(epoch=1)
    state.save(epoch=2)
    State.open(tmp_path, fingerprint=FINGERPRINT, emit=events).save(epoch=3)
    assert events == [("checkpoint", {"file": FILE, "number": number}) for number in (1, 2, 3)]
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["checkpoint.safetensors"]


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    state = opened(tmp_path)
    state.save(epoch=1)
    with pytest.raises(TypeError, match="object cannot be put into a checkpoint"):
        state.save(epoch=2, what=object())
    assert opened(tmp_path)["epoch"] == 1


@pytest.mark.parametrize("position", [0, 3, 20, -40, -1])
def test_a_flipped_byte_is_noticed(position: int, tmp_path: Path) -> None:
    opened(tmp_path).save(weight=torch.arange(100.0), epoch=1)
    content = bytearray((tmp_path / FILE).read_bytes())
    content[position] ^= 1
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(CheckpointUnusable, match="damaged"):
        opened(tmp_path)


@pytest.mark.parametrize("length", [0, 5, 50, -1])
def test_a_truncated_file_is_noticed(length: int, tmp_path: Path) -> None:
    opened(tmp_path).save(weight=torch.arange(100.0))
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[:length])
    with pytest.raises(CheckpointUnusable, match="damaged"):
        opened(tmp_path)


def test_a_plain_safetensors_file_is_no_checkpoint(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"billhook": "[]"}}).encode()
    (tmp_path / "state").mkdir()
    (tmp_path / FILE).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointUnusable, match="damaged"):
        opened(tmp_path)


def test_another_jobs_checkpoint_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).save(epoch=1)
    with pytest.raises(CheckpointUnusable, match="another model, recipe"):
        opened(tmp_path, model="c" * 64, recipe="d" * 64)
    with pytest.raises(CheckpointUnusable, match="another dataset"):
        opened(tmp_path, dataset="c" * 64)
