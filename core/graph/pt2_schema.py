"""The parts of torch's serialized exported program that are read (`torch/_export/serde/schema.py`, major version 8).

Unknown fields are let pass: torch adds them in minor versions. A union is an object with one field, its kind.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

SCHEMA_MAJOR = 8
STRIDED = 7
FLOAT = 7

UNTAKEN_DTYPES = {6: torch.float16, 9: torch.complex32, 10: torch.complex64, 11: torch.complex128, 13: torch.bfloat16}

DTYPES: dict[int, tuple[torch.dtype | None, str]] = {
    1: (torch.uint8, "uint8"), 2: (torch.int8, "int8"), 3: (torch.int16, "int16"), 4: (torch.int32, "int32"),
    5: (torch.int64, "int64"), 6: (None, "float16"), 7: (torch.float32, "float32"), 8: (torch.float64, "float64"),
    9: (None, "complex32"), 10: (None, "complex64"), 11: (None, "complex128"), 12: (torch.bool, "bool"),
    13: (None, "bfloat16"), 28: (None, "uint16"), 29: (None, "float8"), 30: (None, "float8"), 31: (None, "float8"),
    32: (None, "float8"), 33: (None, "float8"), 34: (None, "uint32"), 35: (None, "uint64"),
}  # fmt: skip
"""By torch's number: the dtype where tensors of it are read, and its name."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Hint(_Record):
    as_int: int | None = None


class Expression(_Record):
    """`expr_str` is sympy's; it is compared, never evaluated."""

    expr_str: str
    hint: Hint | None = None


class SymInt(_Record):
    as_expr: Expression | None = None
    as_int: int | None = None


class TensorMeta(_Record):
    dtype: int
    sizes: tuple[SymInt, ...]
    strides: tuple[SymInt, ...]
    storage_offset: SymInt
    layout: int


class Named(_Record):
    """A tensor by its name."""

    name: str


class SymArgument(_Record):
    as_name: str | None = None
    as_int: int | None = None
    as_float: float | None = None
    as_bool: bool | None = None


class OptionalTensor(_Record):
    as_tensor: Named | None = None
    as_none: Any = None


class Argument(_Record):
    """One value that a node reads or makes. `model_fields_set` says which kind it is; other kinds have none set."""

    as_none: Any = None
    as_tensor: Named | None = None
    as_tensors: tuple[Named, ...] | None = None
    as_int: int | None = None
    as_ints: tuple[int, ...] | None = None
    as_float: float | str | None = None
    as_floats: tuple[float | str, ...] | None = None
    as_string: str | None = None
    as_sym_int: SymArgument | None = None
    as_sym_ints: tuple[SymArgument, ...] | None = None
    as_sym_float: SymArgument | None = None
    as_sym_bool: SymArgument | None = None
    as_scalar_type: int | None = None
    as_memory_format: int | None = None
    as_layout: int | None = None
    as_device: Any = None
    as_bool: bool | None = None
    as_bools: tuple[bool, ...] | None = None
    as_optional_tensor: OptionalTensor | None = None
    as_optional_tensors: tuple[OptionalTensor, ...] | None = None


class NamedArgument(_Record):
    name: str
    arg: Argument


class Node(_Record):
    target: str
    inputs: tuple[NamedArgument, ...]
    outputs: tuple[Argument, ...]
    metadata: dict[str, str] = {}
    name: str | None = None


class Graph(_Record):
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]
    nodes: tuple[Node, ...]
    tensor_values: dict[str, TensorMeta]


class ParameterSpec(_Record):
    arg: Named
    parameter_name: str


class BufferSpec(_Record):
    arg: Named
    buffer_name: str


class ConstantSpec(_Record):
    arg: Named
    tensor_constant_name: str


class ValueSpec(_Record):
    """What the caller gives or gets."""

    arg: Argument


class FixedSpec(_Record):
    """An argument of the exported call that was a Python value."""

    name: str
    value: dict[str, Any]


class InputSpec(_Record):
    """`{kind: {...}}`; other kinds (custom objects, tokens) leave all fields unset."""

    user_input: ValueSpec | None = None
    parameter: ParameterSpec | None = None
    buffer: BufferSpec | None = None
    tensor_constant: ConstantSpec | None = None
    constant_input: FixedSpec | None = None


class OutputSpec(_Record):
    """`{kind: {...}}`; other kinds are what training and mutated buffers leave behind, and leave the field unset."""

    user_output: ValueSpec | None = None


class Signature(_Record):
    input_specs: tuple[InputSpec, ...]
    output_specs: tuple[OutputSpec, ...]


class GraphModule(_Record):
    graph: Graph
    signature: Signature


class Range(_Record):
    min_val: int | None = None
    max_val: int | None = None


class Version(_Record):
    major: int
    minor: int


class Program(_Record):
    graph_module: GraphModule
    range_constraints: dict[str, Range] = {}
    schema_version: Version
    torch_version: str = "unknown"


class Payload(_Record):
    path_name: str
    use_pickle: bool
    tensor_meta: TensorMeta | None = None


class PayloadConfig(_Record):
    config: dict[str, Payload]
