"""Names of layers in a graph in the making: each once, none inside another."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from core.graph.building import Building


def made(*names: str) -> tuple[Building, list[str]]:
    building = Building()
    return building, [building.add_layer(name, nn.Identity()) for name in names]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("conv", "conv", "conv"), ["conv", "conv_2", "conv_3"]),
        (("conv", "conv.bias"), ["conv", "conv_bias"]),  # inside a layer: no number behind it leads out
        (("conv", "conv_bias", "conv.bias", "conv.bias"), ["conv", "conv_bias", "conv_bias_2", "conv_bias_3"]),
        (("a.b", "a.b.c.d", "a.b.c"), ["a.b", "a_b_c_d", "a_b_c"]),
        (("a.b.c", "a.b", "a"), ["a.b.c", "a.b_2", "a_2"]),  # around another one
        (("a.b", "a.c"), ["a.b", "a.c"]),
        (("a_b_c", "a", "a.b.c"), ["a_b_c", "a", "a_b_c_2"]),
    ],
)
def test_every_name_is_one_of_its_own(names: tuple[str, ...], wanted: list[str]) -> None:
    building, found = made(*names)
    assert found == wanted
    assert {name for name, layer in building.root.named_modules() if isinstance(layer, nn.Identity)} == set(wanted)


def test_a_constant_inside_a_layer() -> None:
    building, _ = made("stem.conv")
    nodes = [building.add_constant("stem.conv.scale", torch.ones(1)) for _ in range(2)]
    assert [node.target for node in nodes] == ["stem_conv_scale", "stem_conv_scale_2"]
    building.graph.output(tuple(nodes))
    one, other = fx.GraphModule(building.root, building.graph)()
    assert torch.equal(one, other)


def test_a_name_is_free_again_when_its_layer_goes() -> None:
    building, _ = made("a.b", "a.c")
    building.remove("a.b")
    assert building.add_layer("a.b.c", nn.Identity()) == "a.b.c"
    assert building.add_layer("a.b", nn.Identity()) == "a.b_2", "it is around another one"
