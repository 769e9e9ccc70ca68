"""Names of blocks are readable, and each is another."""

from __future__ import annotations

from core.graph.block_names import below, block_names, common_path


def test_common_paths() -> None:
    assert common_path(["layer1.0.conv1", "layer1.0.bn1", "layer1.0.se.fc"]) == "layer1.0"
    assert common_path(["layer1.0.conv1", "layer10.0.conv1"]) == ""
    assert common_path(["a.b", "a.b.c"]) == "a.b"
    assert common_path(["a.b"]) == "a.b"
    assert common_path([]) == ""


def test_what_lies_below_a_path() -> None:
    assert below("inception3a.branch4.1", "inception3a") == "branch4"
    assert below("inception3a", "inception3a") == ""
    assert below("inception3a.b", "inception3") == "inception3a.b"
    assert below("", "inception3a") == ""


def test_names() -> None:
    layers = [
        ["layer1.0.conv1", "layer1.0.conv2"], ["features.0", "features.2"], ["features.4", "features.6"], ["proj"],
        ["b", "c"], ["b", "c"], ["proj"], ["conv1", "bn1"],
    ]  # fmt: skip
    kinds = ["residual"] * 6 + ["layer"] * 2
    assert block_names(kinds, layers) == [
        "layer1.0", "features.0..features.2", "features.4..features.6", "proj", "b..c", "b..c#2", "proj#2", "conv1",
    ]  # fmt: skip
