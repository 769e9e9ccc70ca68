"""What a network is as a file: the predicted bytes are those of the file that is written, whatever was cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from core.batchnorm import with_batch_norm, without_batch_norm
from core.exports import Exports, as_exported
from core.graph.architectures import CifarResNet, build
from core.graph.batch_norm_folding import fold
from core.graph.cuts import cut
from core.graph.export import write_onnx
from core.graph.external_data import parts
from core.graph.groups import channel_groups
from core.graph.importers import load
from core.graph.lowering import trace
from core.graph.network import Network
from core.job import ModelInput
from core.recipe import Export


def exports(original: Network, folder: Path, **export: object) -> Exports:
    return Exports(
        original, export=Export.model_validate(export), folder=folder / "exports",
        inputs=lambda: np.zeros((1, *original.input_shapes[0]), np.float32),
    )  # fmt: skip


def written(network: Network, folder: Path, **options: int | None) -> int:
    write_onnx(network.to("cpu").eval(), folder / "pruned.onnx", **options)
    return sum(part.stat().st_size for part in parts(folder / "pruned.onnx"))


def small_cnn() -> Network:
    return build("small_cnn", num_classes=10, in_channels=1, image_size=(8, 8)).eval()


def resnet() -> Network:
    return trace(CifarResNet(8, num_classes=4, in_channels=1), (1, 8, 8), format="safetensors").eval()


class Modern(nn.Module):
    """Depthwise, GroupNorm, PReLU and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(1, 16), nn.PReLU(16), nn.Conv2d(16, 16, 3, groups=16),
            nn.ConvTranspose2d(16, 24, 2, stride=2), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def modern() -> Network:
    return trace(Modern(), (1, 8, 8), format="safetensors").eval()


def narrowed(network: Network, units: int) -> Network:
    """Without the first `units` units of each group that may be cut and has more."""
    removal = {
        group.name: list(range(units))
        for group in channel_groups(network).groups
        if group.cuttable and group.width > units
    }
    return cut(network, removal)[0] if units else network


@pytest.mark.parametrize("make", [small_cnn, resnet, modern])
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    units=st.integers(0, 12), limit=st.sampled_from([None, 1024, 4096, 20_000, 10**6]), opset=st.sampled_from([15, 20])
)
def test_the_bytes_are_those_of_the_file(make, units: int, limit: int | None, opset: int, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    original = make()
    network = narrowed(original, units)
    found = exports(original, tmp_path, opset=opset, external_data_bytes=limit)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert found.bytes(network) == written(network.clone(), tmp_path, opset=opset, external_data_bytes=limit)
    assert found.original_bytes == written(original, tmp_path, opset=opset, external_data_bytes=limit)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_training_does_not_change_the_bytes(tmp_path: Path) -> None:
    """A round decides before the fine-tuning that comes after it."""
    network = modern()
    before = exports(network, tmp_path).bytes(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    network.train()
    assert exports(network, tmp_path).bytes(network) == before == written(network.clone(), tmp_path)
    assert network.module.training


@pytest.mark.parametrize("units", [0, 5])
def test_inserted_batch_norms_are_counted_as_folded(units: int, tmp_path: Path) -> None:
    plain = fold(small_cnn())[0]
    images = plain.example_input(8)
    larger, entry, _ = with_batch_norm(plain, [images], images)
    network = narrowed(larger, units)
    folded, _, _, warnings = without_batch_norm(network, entry, images)
    assert warnings == []
    found = exports(plain, tmp_path)
    assert found.bytes(network) == written(folded, tmp_path)
    if not units:
        assert found.bytes(larger) == found.original_bytes
    assert {type(layer) for layer in as_exported(network).layers().values()} == {nn.Conv2d, nn.Linear}


def test_an_upload_s_own_names_and_comments_do_not_count(tmp_path: Path) -> None:
    write_onnx(small_cnn(), tmp_path / "up.onnx", opset=17)
    network = load(ModelInput(path=tmp_path / "up.onnx", sha256="0" * 64, format="onnx"))
    assert exports(network, tmp_path).original_bytes == written(network.clone(), tmp_path)


def test_a_latency_is_measured_and_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.measure.latency_ratio.MOST_WINDOWS", 6)
    ticks: list[None] = []
    network = small_cnn()
    given_file = tmp_path / "given.onnx"
    write_onnx(network, given_file)
    for original_file in (None, lambda: given_file):
        found = Exports(
            network, export=Export(), folder=tmp_path / "exports", original_file=original_file,
            inputs=lambda: np.zeros((1, 1, 8, 8), np.float32), measured=lambda: ticks.append(None),
        ).latency(narrowed(network, 8))  # fmt: skip
        assert 0 < found.low <= found.ratio <= found.high
        assert found.windows == 6
    assert len(ticks) == 2
    assert [path.name for path in (tmp_path / "exports").iterdir()] == ["original.onnx"]
