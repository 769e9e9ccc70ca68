"""The networks by name: as their papers and torchvision count them, trainable, cut exactly, written and read again."""

from __future__ import annotations

import copy
import re
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.zoo import import_zoo
from core.errors import ModelRefused
from core.graph.architectures import ARCHITECTURES, Architecture, build, from_weights
from core.graph.architectures.cifar_resnet import CifarResNet, PreActivationBlock, PreActivationResNet
from core.graph.architectures.vgg import ImageNetVGG16
from core.graph.counts import count
from core.graph.cuts import cut
from core.graph.exactness import check_cut, relative_error
from core.graph.export import check_parity, write_onnx
from core.graph.importers import read_onnx
from core.graph.lowering import trace
from core.graph.network import Network
from core.graph.plans import channel_map
from core.job import ARCHITECTURES as NAMES
from tests.core.graph.topologies import random_removal

PARAMETERS = {  # with 10 classes; Zhang et al. 2017 count the small Inception's without the scales of its BatchNorms
    "resnet20": 272_474,
    "resnet32": 466_906,
    "resnet44": 661_338,
    "resnet56": 855_770,
    "resnet110": 1_730_714,
    "resnet164": 1_703_258,
    "preresnet20": 272_282,
    "preresnet56": 855_578,
    "preresnet110": 1_730_522,
    "vgg16": 14_724_042,
    "vgg16_plain": 14_719_818,
    "vgg16_fc": 14_987_210,
    "small_inception": 1_649_402 + 1_712,
    "small_cnn": 24_458,
}
TORCHVISION = {  # our name -> torchvision's, parameters with 1000 classes; GoogLeNet's without its auxiliary heads
    "vgg16_imagenet": ("vgg16", 138_357_544),
    "vgg16_bn_imagenet": ("vgg16_bn", 138_365_992),
    "resnet18": ("resnet18", 11_689_512),
    "resnet34": ("resnet34", 21_797_672),
    "resnet50": ("resnet50", 25_557_032),
    "mobilenet_v2": ("mobilenet_v2", 3_504_872),
    "densenet121": ("densenet121", 7_978_856),
    "efficientnet_b0": ("efficientnet_b0", 5_288_548),
    "convnext_tiny": ("convnext_tiny", 28_589_128),
    "googlenet": ("googlenet", 6_624_904),
}


def small(name: str) -> Network:
    """The architecture for tiny images; of VGG-16 for ImageNet with fewer units in its linear layers, which are most
    of it."""
    if name in ("vgg16_imagenet", "vgg16_bn_imagenet"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = ImageNetVGG16(10, hidden=64, batch_norm=name == "vgg16_bn_imagenet")
        return trace(module, (3, 32, 32), format="safetensors")
    return build(name)


@cache
def trained_a_little(name: str) -> tuple[Network, list[float]]:
    """After ten steps of SGD on one batch, with the loss of each. Used by all tests below, which do not change it."""
    network = small(name).train()
    images = network.example_input(4, seed=1)
    labels = torch.arange(4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.005)
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # dropout
        for _ in range(10):
            optimizer.zero_grad()
            outputs = network(images)
            reconstructs = ARCHITECTURES[name].last is None
            loss = F.mse_loss(outputs, images.clamp(0, 1)) if reconstructs else F.cross_entropy(outputs, labels)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return network.eval(), losses


def test_the_list_is_the_one_that_the_api_names() -> None:
    assert tuple(ARCHITECTURES) == NAMES


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_networks_for_small_images(name: str) -> None:
    assert count(build(name)).params == PARAMETERS[name]


@pytest.mark.parametrize("name", TORCHVISION)
def test_parameters_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        module = ARCHITECTURES[name](num_classes=1000, in_channels=3)
    assert sum(parameter.numel() for parameter in module.parameters()) == TORCHVISION[name][1]


def test_the_autoencoder_is_the_papers_table() -> None:
    """Its rows in order; of conv11 and conv13 the table has the input's channels in front."""
    network = build("rgb_autoencoder", image_size=(128, 128))
    shapes = [tuple(layer.weight.shape) for name, layer in network.layers().items() if not name.endswith("_bn")]
    three, two = (3, 3), (2, 2)
    assert shapes == [
        (64, 3, *three), (64, 64, *three), (128, 64, *three), *[(128, 128, *three)] * 4,
        (128, 128, *two), *[(128, 128, *three)] * 3, (128, 128, *two), (128, 128, *three), (64, 128, *three),
        (64, 64, *two), (64, 64, *three), (3, 64, *three),
    ]  # fmt: skip
    norms = [layer for layer in network.layers().values() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == len(shapes) == 17
    assert network.outputs[0].shape == ("batch", 3, 128, 128)
    pools = network.module.graph.find_nodes(op="call_function", target=torch.ops.aten.max_pool2d.default)
    assert pools[-1].meta["shape"] == (1, 128, 16, 16), "the bottleneck"


def test_the_autoencoder_has_no_classes() -> None:
    with pytest.raises(ModelRefused, match="has no classes"):
        build("rgb_autoencoder", num_classes=10)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ten_steps_on_one_batch_lower_the_loss(name: str) -> None:
    _, losses = trained_a_little(name)
    assert losses[-1] < losses[0]
    assert all(loss == loss for loss in losses), "none is NaN"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_they_lose_40_percent_exactly(name: str, tmp_path: Path) -> None:
    network, _ = trained_a_little(name)
    removal = random_removal(network, 0.4)
    smaller, entry = cut(network, removal)
    inputs = network.example_input(2, seed=1)
    assert check_cut(network, removal, smaller, inputs).passed
    assert count(smaller).params < 0.5 * count(network).params
    left = channel_map(network, [entry])
    assert all(len(channels) == count(smaller).layers[layer].channels for layer, channels in left.items())
    assert smaller.layers().keys() == network.layers().keys()

    write_onnx(smaller, tmp_path / "cut.onnx")
    again = read_onnx(tmp_path / "cut.onnx")
    assert check_parity(again, tmp_path / "cut.onnx", inputs).passed
    with torch.no_grad():
        assert relative_error(smaller(inputs), again(inputs)) < 1e-5
    assert count(again).macs == count(smaller).macs


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if not name.endswith("_imagenet")])
def test_weights_come_back_with_their_classes_and_channels(name: str) -> None:
    options: dict[str, Any] = {} if ARCHITECTURES[name].last is None else {"num_classes": 4}
    network = build(name, in_channels=1, **options).eval()
    state = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    again = from_weights(name, state, (32, 32))
    assert again.inputs[0].shape == ("batch", 1, 32, 32)
    assert again.outputs[0].shape == network.outputs[0].shape
    assert ARCHITECTURES[name].last is None or again.outputs[0].shape == ("batch", 4)
    inputs = network.example_input()
    with torch.no_grad():
        assert torch.equal(again(inputs), network(inputs))


def test_weights_of_training_only_heads_are_left_out() -> None:
    state = build("googlenet", image_size=(64, 64)).state_dict()
    head = {"aux1.conv.conv.weight": torch.zeros(128, 512, 1, 1), "aux2.fc2.weight": torch.zeros(10, 1024)}
    assert (
        from_weights("googlenet", {**state, **head}, (64, 64)).layers().keys()
        == build("googlenet", image_size=(64, 64)).layers().keys()
    )
    with pytest.raises(ModelRefused, match="1 fault"):
        from_weights("googlenet", {**state, "aux3.weight": torch.zeros(1)}, (64, 64))


def test_names_of_densenets_older_file_are_known() -> None:
    state = build("densenet121").state_dict()
    older = {re.sub(r"(norm|conv)([12]\.)", r"\1.\2", key): value for key, value in state.items()}
    assert "features.denseblock4.denselayer16.norm.1.weight" in older
    assert from_weights("densenet121", older, (32, 32)).state_dict().keys() == state.keys()


@pytest.mark.parametrize(
    ("make", "depth"),
    [(CifarResNet, 21), (CifarResNet, 2), (partial(PreActivationResNet, block=PreActivationBlock), 9)],
)
def test_a_depth_that_no_such_network_has_is_refused(make: Any, depth: int) -> None:
    with pytest.raises(ValueError, match="depth must be 6n"):
        make(depth=depth)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_weights_load_and_compute_the_same(name: str) -> None:
    try:
        models = import_zoo("torchvision.models")
    except ImportError:
        pytest.skip("torchvision is not installed")
    if name.startswith("vgg16"):  # 0.5 GB each: by name and shape alone
        with torch.device("meta"):
            theirs = getattr(models, TORCHVISION[name][0])()
            ours = ARCHITECTURES[name](num_classes=1000, in_channels=3)
        assert _shapes(theirs) == _shapes(ours)
        return
    options = {"init_weights": False} if name == "googlenet" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = getattr(models, TORCHVISION[name][0])(num_classes=10, **options).eval()
        for layer in theirs.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.uniform_(layer.running_mean, -0.1, 0.1)
    network = from_weights(name, theirs.state_dict(), (64, 64)).to(torch.float64)
    images = network.example_input(2, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(theirs.double()(images), network(images)) < 1e-12


@pytest.mark.parametrize("batch_norm", [False, True])
def test_vgg_computes_what_torchvisions_layers_do(batch_norm: bool) -> None:
    """With fewer units: the parts that have weights are the same sequence, over averages of 7 x 7."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = ImageNetVGG16(10, batch_norm=batch_norm, hidden=32).eval()
    plain = copy.deepcopy(module).double()
    for side in (32, 96):
        network = trace(module, (3, side, side)).clone().to(torch.float64)
        images = network.example_input(1, dtype=torch.float64)
        with torch.no_grad():
            averaged = F.adaptive_avg_pool2d(plain.features(images), 7)
            expected = plain.classifier(averaged.flatten(1))
            assert relative_error(expected, network(images)) < 1e-12


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}


def test_every_architecture_is_made_by_classes_and_channels() -> None:
    assert all(isinstance(item, Architecture) for item in ARCHITECTURES.values())
    assert set(PARAMETERS) | set(TORCHVISION) | {"rgb_autoencoder"} == set(ARCHITECTURES)


def test_the_page_names_them_all_with_their_counts() -> None:
    page = (Path(__file__).parents[3] / "docs" / "architectures.md").read_text()
    rows = {row.split("`")[1]: row.split("|") for row in page.splitlines() if row.startswith("| `")}
    assert tuple(rows) == NAMES
    known = {**PARAMETERS, **{name: params for name, (_, params) in TORCHVISION.items()}, "rgb_autoencoder": 1_555_206}
    assert {name: int(cells[4].replace(",", "")) for name, cells in rows.items()} == known
    least = {name: int(cells[3]) for name, cells in rows.items()}
    for name in ("small_cnn", "vgg16", "rgb_autoencoder", "densenet121", "googlenet"):
        build(name, image_size=(least[name], least[name]))
        with pytest.raises(ModelRefused):
            build(name, image_size=(least[name] // 2, least[name] // 2))
