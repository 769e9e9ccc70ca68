"""Networks with trained weights: exported with BatchNorm they come in, get it folded and unfolded, and go out again.

The weights are in packages of their own; where they are not installed the tests are skipped.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from bench.zoo import STATE_DICTS
from core.graph.architectures import from_weights
from core.graph.batch_norm_folding import fold, unfold
from core.graph.exactness import relative_error
from core.graph.export import check_parity, write_onnx
from core.graph.importers import read_onnx
from core.graph.network import Network

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning"),
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
]
SIDE = 96
NORMS = {"mobilenet_v2": 52, "efficientnet_lite0": 49}


def pretrained(name: str) -> nn.Module:
    try:
        return STATE_DICTS[name]().eval()
    except ImportError as error:
        pytest.skip(str(error))


def images(seed: int, count: int = 4) -> Tensor:
    """Smooth, as photographs are, of mean 0 and deviation 1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic", align_corners=False)
    return smooth / smooth.std()


def by_dynamo(module: nn.Module, path: Path) -> None:
    shapes = ({0: torch.export.Dim("batch")},)
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(module, (images(0),), path, dynamo=True, dynamic_shapes=shapes, optimize=False,
                          external_data=False, verbose=False)  # fmt: skip


def by_torchscript(module: nn.Module, path: Path) -> None:
    torch.onnx.export(module, (images(0),), path, dynamo=False, opset_version=17, dynamic_axes={"image": {0: "n"}},
                      input_names=["image"], training=torch.onnx.TrainingMode.PRESERVE,
                      do_constant_folding=False)  # fmt: skip


EXPORTERS = {"dynamo": by_dynamo, "torchscript": by_torchscript}


def norms(network: Network) -> set[str]:
    return {name for name, layer in network.layers().items() if isinstance(layer, nn.BatchNorm2d)}


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("exporter", ["torchscript", pytest.param("dynamo", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NORMS)
def test_batch_norm_goes_and_comes_back_within_the_parity_bound(name: str, exporter: str, tmp_path: Path) -> None:
    module = pretrained(name)
    upload = tmp_path / "upload.onnx"
    EXPORTERS[exporter](module, upload)
    assert operators(upload)["BatchNormalization"] == NORMS[name]
    network = read_onnx(upload)
    inputs = images(1)
    assert check_parity(network, upload, inputs).passed
    with torch.no_grad():
        assert relative_error(module(inputs), network(inputs)) < 1e-4
    assert len(norms(network)) == NORMS[name]

    folded, entry = fold(network)
    assert norms(folded) == set(), "every one of them"
    with torch.no_grad():
        wide = inputs.double()
        exact = network.clone().to(torch.float64)(wide)
        in_wide = fold(network.clone().to(torch.float64))[0]
        assert relative_error(exact, in_wide(wide)) < 1e-9
    unfolded, _ = unfold(folded, entry, [images(2), images(3)])
    assert norms(unfolded) == norms(network)
    again, _ = fold(unfolded)
    for index, each in enumerate((folded, unfolded, again)):
        path = tmp_path / f"{index}.onnx"
        write_onnx(each, path)
        assert check_parity(each, path, inputs).passed
        with torch.no_grad():
            # against the uploaded file's own function: what rounding of the weights to float32 makes of it, too
            assert relative_error(exact, each(inputs).double()) < 1e-4
    kept = operators(upload)
    assert operators(tmp_path / "1.onnx")["BatchNormalization"] == kept["BatchNormalization"]
    assert operators(tmp_path / "2.onnx") == operators(tmp_path / "0.onnx")
    assert operators(tmp_path / "0.onnx")["Conv"] == kept["Conv"]


def test_trained_weights_of_mobilenet_load_by_name() -> None:
    module = pretrained("mobilenet_v2")
    network = from_weights("mobilenet_v2", module.state_dict(), (SIDE, SIDE))
    with torch.no_grad():
        assert relative_error(module(images(1)), network(images(1))) < 1e-5
