"""The OpenAPI document: what FastAPI finds, and the bodies and errors that the routes handle themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from api.schemas import DatasetRequest, JobRequest, ModelRequest, ProblemOut, RecipeRequest
from core.job import ARCHITECTURE, ARCHITECTURES_TOLD

_REF = "#/components/schemas/{model}"
_BODIES: tuple[type[BaseModel], ...] = (JobRequest, ModelRequest, DatasetRequest, RecipeRequest, ProblemOut)
_BINARY = {"type": "string", "format": "binary"}
_NAME = {
    "name": "filename", "in": "query", "required": False, "schema": {"type": "string", "maxLength": 255},
    "description": "of a raw body: the file's name, whose extension says the format",
}  # fmt: skip


def _body(content: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": content}


def _multipart(properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "required": ["file"], "properties": {"file": _BINARY, **properties}}
    return {"schema": schema | {"additionalProperties": False}}


def _query(properties: dict[str, Any]) -> list[dict[str, Any]]:
    return [_NAME] + [
        {"name": name, "in": "query", "required": False, "schema": schema, "description": "of a raw body"}
        for name, schema in properties.items()
    ]


_MODEL_FIELDS = {
    "architecture": {
        "type": "string", "pattern": f"^{ARCHITECTURE}$", "examples": ["resnet20", "timm:resnet18"],
        "description": f"safetensors only: {ARCHITECTURES_TOLD}",
    },
    "input_shape": {
        "type": "string", "pattern": r"^\d+,\d+,\d+$", "examples": ["3,32,32"],
        "description": "safetensors only: channels,height,width",
    },
}  # fmt: skip
_DATASET_FIELDS = {
    "format": {"type": "string", "enum": ["image_folder", "npz", "parquet"]},
    "preprocess": {"type": "string", "contentMediaType": "application/json", "description": "as in DatasetRequest"},
    "splits": {"type": "string", "contentMediaType": "application/json", "description": "as in DatasetRequest"},
    "columns": {"type": "string", "contentMediaType": "application/json", "description": "as in DatasetRequest"},
}
MODEL_UPLOAD = {
    "parameters": _query(_MODEL_FIELDS),
    "requestBody": _body(
        {
            "multipart/form-data": _multipart(_MODEL_FIELDS),
            "application/json": {"schema": {"$ref": _REF.format(model="ModelRequest")}},
            "application/octet-stream": {"schema": _BINARY},
        }
    ),
}
DATASET_UPLOAD = {
    "parameters": _query(_DATASET_FIELDS),
    "requestBody": _body(
        {
            "multipart/form-data": _multipart(_DATASET_FIELDS),
            "application/json": {"schema": {"$ref": _REF.format(model="DatasetRequest")}},
            "application/octet-stream": {"schema": _BINARY},
        }
    ),
}
JOB_SUBMISSION = {
    "parameters": [
        {
            "name": "Idempotency-Key", "in": "header", "required": False,
            "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
            "description": "the same key and body again give the first answer again, and no second job",
        }
    ],
    "requestBody": _body({"application/json": {"schema": {"$ref": _REF.format(model="JobRequest")}}}),
}  # fmt: skip

GRAPH_EXAMPLE: dict[str, Any] = {
    "version": 1,
    "totals": {
        "params": 5064, "macs": 4740416, "filters": 48, "layers": 3, "groups": 2, "cuttable_groups": 1,
        "residual_blocks": 1, "branch_blocks": 0, "plain_layers": 2, "bypassable": 3, "frozen": 1, "free_params": 5064,
        "free_params_share": 1.0, "conv_params": 5040, "free_conv_params_share": 1.0,
    },
    "layers": [
        {
            "name": "layer1.0.conv1", "kind": "Conv2d", "input_shape": [16, 32, 32], "output_shape": [16, 32, 32],
            "channels": 16, "params": 2304, "macs": 2359296, "groups": ["layer1.0.conv1"], "frozen": False,
        }
    ],
    "groups": [
        {
            "name": "layer1.0.conv1", "width": 16, "unit_channels": 1, "cuttable": True, "always_kept": 0,
            "producers": ["layer1.0.conv1"], "carriers": ["layer1.0.bn1"], "consumers": ["layer1.0.conv2"],
        }
    ],
    "blocks": [
        {
            "name": "layer1.0", "kind": "residual", "position": 0,
            "layers": ["layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2", "layer1.0.bn2"],
            "removed": ["layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2", "layer1.0.bn2"], "params": 4672,
            "macs": 4718592, "input_shape": [16, 32, 32], "output_shape": [16, 32, 32], "shortcut": "identity",
            "projection": False, "alike": "layer1.0", "inside": None, "bypassable": True, "reason": None,
            "branches": [],
        }
    ],
    "frozen": [
        {
            "operator": "output", "node": "fc", "layers": ["fc"], "reason": "the channels of a model output stay",
        }
    ],
}  # fmt: skip
"""Of a ResNet, cut down to one entry each."""
GRAPH_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {"example": GRAPH_EXAMPLE}}},
}
CONTACT_SHEET_ANSWERS: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {"schema": _BINARY}}}}

RECIPE_CHECK = {"requestBody": _body({"application/json": {"schema": {"$ref": _REF.format(model="RecipeRequest")}}})}


def install(app: FastAPI, open_paths: frozenset[str]) -> None:
    """Complete the app's document with bodies, problem documents and the key."""
    find: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(find(), open_paths)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _complete(document: dict[str, Any], open_paths: frozenset[str]) -> dict[str, Any]:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for model in _BODIES:
        schema = model.model_json_schema(ref_template=_REF)
        for name, part in schema.pop("$defs", {}).items():
            schemas.setdefault(name, part)
        schemas[model.__name__] = schema
    for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, in place of which problems are sent
        schemas.pop(unused, None)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    problem = {"application/problem+json": {"schema": {"$ref": _REF.format(model="ProblemOut")}}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"]["4XX"] = {"description": "a problem with the request", "content": problem}
            operation["responses"]["5XX"] = {"description": "a problem here", "content": problem}
            if path not in open_paths:
                operation["security"] = [{"key": []}]
    return document
