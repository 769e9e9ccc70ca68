"""Sixty networks that others wrote come in, are cut exactly and go out again: a fixed part of `bench.coverage`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.coverage_row import measure
from bench.coverage_table import defects, passed
from bench.zoo import Format, Row, missing

BY_FAMILY: dict[tuple[str, Format], str] = {
    ("light", "onnx"): ("bvlc_alexnet densenet121 inception_v1 inception_v2 resnet50 shufflenet squeezenet"),
    ("pretrained", "onnx"): ("rapidocr_det rapidocr_rec rapidocr_cls opennsfw efficientnet_lite0"),
    ("pretrained", "pt2"): ("mobilenet_v2"),
    ("torchvision", "pt2"): (
        "shufflenet_v2_x1_0 densenet201 regnet_x_400mf convnext_tiny mobilenet_v3_small googlenet "
        "inception_v3 resnext50_32x4d efficientnet_b0 mnasnet0_5"
    ),
    ("torchvision", "onnx"): ("shufflenet_v2_x0_5 regnet_y_400mf mobilenet_v3_large resnet18 squeezenet1_1"),
    ("timm", "pt2"): (
        "mobileone_s0 test_byobnet convnextv2_atto convnext_atto_rms cs3darknet_focus_s dla46x_c "
        "efficientnet_b0_g8_gn mixnet_s tinynet_e fastvit_t8 ghostnet_050 hgnetv2_b0 inception_next_atto "
        "lcnet_050 test_nfnet repghostnet_050 repvit_m0_9 starnet_s050 ese_vovnet19b_slim_dw"
    ),
    ("pytorchcv", "pt2"): (
        "nin_cifar10 resnet20_cifar10 preresnet20_cifar10 resnext20_16x4d_cifar10 seresnet20_cifar10 "
        "sepreresnet20_cifar10 pyramidnet110_a48_cifar10 densenet40_k12_bc_cifar10 "
        "xdensenet40_2_k24_bc_cifar10 ror3_56_cifar10 rir_cifar10 shakeshakeresnet20_2x16d_cifar10 "
        "diaresnet20_cifar10"
    ),
}
SUBSET = [Row(family, network, kind) for (family, kind), names in BY_FAMILY.items() for network in names.split()]


def test_the_subset_is_of_sixty() -> None:
    assert len(set(SUBSET)) == len(SUBSET) == 60


@pytest.fixture
def quiet() -> Iterator[None]:
    """torch's exporter says so much that keeping it for pytest takes longer than exporting."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("row", SUBSET, ids=lambda row: row.name)
def test_a_network_is_cut_exactly_and_goes_out_again(row: Row, tmp_path: Path) -> None:
    if missing():
        assert not os.environ.get("CI"), f"{', '.join(missing())} not installed"
        pytest.skip(f"{', '.join(missing())} not installed: make zoo")
    result = measure(row, tmp_path, tmp_path)
    assert result["stage"] == "passed", result["error"]
    assert not defects(result)
    assert passed(result)
