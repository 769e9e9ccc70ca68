"""Between torch tensors and numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor


def to_numpy(tensor: Tensor) -> npt.NDArray[Any]:
    """A contiguous copy on the CPU."""
    return np.ascontiguousarray(tensor.detach().cpu().numpy())
