"""Optional: any network of timm (PyTorch Image Models) by its name, "timm:NAME", where timm is installed beside us.

The names are those of `timm.list_models()`, exactly: nothing is fetched, and no name leads to code or files elsewhere.
The network is made by timm, gets the uploaded weights, is exported in memory, and is read as any other `.pt2`.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import Fault, ModelRefused
from core.graph.architectures import weight_faults
from core.graph.limits import MAX_STATIC_BATCH
from core.graph.network import Network
from core.graph.pt2_reading import read_pt2
from core.job import TIMM

INSTALL = (
    "both, in the service's environment, beside the torch that it has: pip install -c constraints.txt timm torchvision"
)


def from_timm_weights(name: str, weights: Mapping[str, Tensor], image_size: tuple[int, int]) -> Network:
    """The network `name` ("timm:resnet18") with `weights`, in eval mode, for images of height and width `image_size`.

    Classes are read off the weights of its classifier, input channels off those of its first convolution.

    Raises `ModelRefused` where timm is not installed or has no such network, with one fault per weight that is missing,
    unexpected, of another shape or type or not finite, and for images that it cannot take.
    """
    timm = import_timm()
    plain = name.removeprefix(TIMM)
    known = timm.list_models()
    if plain not in known:
        close = [TIMM + item for item in difflib.get_close_matches(plain, known, n=5)]
        expected = f"one of {', '.join(close)}" if close else "a name that timm.list_models() has"
        fault = Fault("/architecture", f"timm {timm.__version__} has no network {plain!r}", expected)
        raise ModelRefused(f"unknown architecture {name!r}", faults=[fault])
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            options = _options(_made(timm, name, {}), weights)
            wanted = _made(timm, name, options).state_dict()
        counters = {key for key in wanted if key.endswith("num_batches_tracked")}
        faults = weight_faults(name, wanted, counters, weights)
        if faults:
            raise ModelRefused(
                f"the weights are not those of {name}: {len(faults)} fault(s)",
                faults=sorted(faults, key=lambda fault: fault.pointer),
            )
        module = _made(timm, name, options)  # only now, with buffers that no file has: it takes no more than the file
    absent = {key: torch.zeros((), dtype=torch.int64) for key in counters - weights.keys()}
    module.load_state_dict({**weights, **absent})
    network = _exported(module.eval(), name, (options["in_chans"], *image_size))
    network.origin = replace(network.origin, format="safetensors")
    return network


def import_timm() -> Any:
    """The package. Raises `ModelRefused` that says what to install."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here asks for it; nothing could
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, about each other
        try:
            _import_torchvision()
            return importlib.import_module("timm")
        except ImportError as error:
            what = f"the module {error.name or 'torchvision'} is missing, or does not fit what is beside it"
            fault = Fault("/architecture", f"timm cannot be imported: {what}", INSTALL)
            raise ModelRefused("timm is not installed beside this service", faults=[fault]) from None


def _import_torchvision() -> None:
    """timm imports torchvision, for datasets that are not read here. Its build for CUDA, which is the one that pip
    brings, does not load its operators beside torch for the CPU, and then misses them; no classifier calls any."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for operator in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, operator):
                schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                torch.library.define(f"torchvision::{operator}", schema)
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            raise ImportError(f"torchvision: {error}") from None


def _made(timm: Any, name: str, options: Mapping[str, int]) -> nn.Module:
    try:
        module: nn.Module = timm.create_model(name.removeprefix(TIMM), pretrained=False, **options)
    except Exception as error:  # whatever each of a thousand constructors says
        reason = _reason(error)
        given = ", ".join(f"{key} {value}" for key, value in options.items())
        fault = Fault("/architecture", f"timm cannot make {name} with {given or 'its own options'}: {reason}")
        raise ModelRefused(f"timm cannot make {name}: {reason}", faults=[fault]) from None
    return module


def _options(module: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, int]:
    """`in_chans` and `num_classes`, by the weights of the layers that timm says they are. What is not in the file, or
    is of another rank, is a fault that is found with the others."""
    settings: Mapping[str, Any] = getattr(module, "pretrained_cfg", None) or {}
    state = module.state_dict()
    options = {"in_chans": 3}
    for option, entry, dim in (("in_chans", "first_conv", 1), ("num_classes", "classifier", 0)):
        named = settings.get(entry)
        key = f"{named if isinstance(named, str) else next(iter(named or ()), '')}.weight"
        usual = 3 if option == "in_chans" else int(getattr(module, "num_classes", 0))
        if not usual and key in weights and weights[key].dim():  # it has no classifier unless asked for one
            options[option] = weights[key].shape[0]
        if key not in state or key not in weights or weights[key].dim() != state[key].dim():
            continue
        size = weights[key].shape[dim] * usual  # of a stem that first makes channels of places, a multiple
        if size and size % state[key].shape[dim] == 0:
            options[option] = size // state[key].shape[dim]
    return options


def _exported(module: nn.Module, name: str, shape: tuple[int, int, int]) -> Network:
    example = torch.zeros(2, *shape)
    dynamic = ({0: torch.export.Dim("batch", min=1, max=MAX_STATIC_BATCH)},)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.pt2"
        try:
            torch.export.save(torch.export.export(module, (example,), dynamic_shapes=dynamic), path)
        except Exception as error:  # whatever each of a thousand networks says
            size = ",".join(map(str, shape))
            fault = Fault("/input_shape", f"{name} cannot be exported for it: {_reason(error)}", "a size that it takes")
            raise ModelRefused(f"{name} does not take images of {size}", faults=[fault]) from None
        return read_pt2(path)


def _reason(error: Exception) -> str:
    """The first line of what it says, without paths of this machine."""
    lines = re.sub(r"(/[\w.+-]+){2,}", "…", str(error)).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
