"""Caps on what an uploaded model may ask for, checked before anything is allocated or handed to a checker."""

from __future__ import annotations

MAX_FILE_BYTES = 2 * 1024**3
"""Protobuf's own limit on one message."""

MAX_WEIGHTS_BYTES = 16 * 1024**3
"""Of an upload whose weights lie outside any message: ONNX with external data, and .pt2."""

MAX_NODES = 20_000

MAX_RANK = 8

MAX_TENSOR_ELEMENTS = 2**29
"""Elements of one weight or constant (2 GiB as float32)."""

MAX_FOLDED_ELEMENTS = 2**26
"""Elements that folding constants may make, in all: folding must not grow a small file into a large network."""

MAX_ACTIVATION_ELEMENTS = 2**28
"""Elements of one activation at a batch of one (1 GiB as float32)."""

MAX_STATIC_BATCH = 4_096
