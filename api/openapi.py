"""The OpenAPI document: what FastAPI finds, and the bodies and errors that the routes handle themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from api.conditional import send_document
from api.schemas.jobs import JobRequest
from api.schemas.keys import KeyRequest
from api.schemas.problems import ProblemOut
from api.schemas.recipes import RecipeRequest
from api.schemas.uploads import DatasetOut, DatasetRequest, ModelOut, ModelRequest
from core.job import ARCHITECTURE, ARCHITECTURES_TOLD

PATH = "/openapi.json"
_REF = "#/components/schemas/{model}"
_BODIES: tuple[type[BaseModel], ...] = (JobRequest, ModelRequest, DatasetRequest, RecipeRequest, KeyRequest, ProblemOut)
_BINARY = {"type": "string", "format": "binary"}
_REPLAYED = "Idempotent-Replayed"
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


def _known(name: str) -> dict[str, Any]:
    """What stands beside the 201 of an upload."""
    content = {"application/json": {"schema": {"$ref": _REF.format(model=name)}}}
    return {"200": {"description": "it is known already", "content": content}}


MODEL_UPLOAD = {
    "responses": _known("ModelOut"),
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
    "responses": _known("DatasetOut"),
    "parameters": _query(_DATASET_FIELDS),
    "requestBody": _body(
        {
            "multipart/form-data": _multipart(_DATASET_FIELDS),
            "application/json": {"schema": {"$ref": _REF.format(model="DatasetRequest")}},
            "application/octet-stream": {"schema": _BINARY},
        }
    ),
}
JOB_SUBMISSION = {"requestBody": _body({"application/json": {"schema": {"$ref": _REF.format(model="JobRequest")}}})}
JOB_CLONE = {
    "requestBody": {
        "required": False,
        "content": {"application/json": {"schema": {"$ref": _REF.format(model="CloneRequest")}}},
    }
}
KEY_CREATION = {"requestBody": _body({"application/json": {"schema": {"$ref": _REF.format(model="KeyRequest")}}})}
KNOWN_MODEL: dict[int | str, dict[str, Any]] = {200: {"model": ModelOut, "description": "known already"}}
KNOWN_DATASET: dict[int | str, dict[str, Any]] = {200: {"model": DatasetOut, "description": "known already"}}

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

METRICS_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Prometheus' text format, or OpenMetrics where `Accept` asks for it",
        "content": {
            "text/plain": {"schema": {"type": "string"}},
            "application/openmetrics-text": {"schema": {"type": "string"}},
        },
    }
}
EVENT_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": (
                    'retry: 2000\n\ndata: {"seq":1,"attempt":null,"name":"state","body":{"state":"queued"},'
                    '"created_at":"2026-11-22T06:00:00Z"}\nid: 1\n\nevent: progress\ndata: {"state":"running",'
                    '"stage":"prune","progress":0.5,"eta_seconds":60.0}\n\nevent: end\ndata: {"state":"succeeded"}\n\n'
                ),
            }
        }
    },
    204: {"description": "a stream of a job that is over, all of whose events the caller has"},
}

RECIPE_CHECK = {"requestBody": _body({"application/json": {"schema": {"$ref": _REF.format(model="RecipeRequest")}}})}


def _clone_request() -> dict[str, Any]:
    """A `JobRequest` without what a clone keeps; whatever is left out is as in the job."""
    schema = JobRequest.model_json_schema(ref_template=_REF)
    properties = {
        name: {key: value for key, value in field.items() if key != "default"}
        for name, field in schema["properties"].items()
        if name not in ("model", "datasets")
    }
    about = "What is to be different; everything else is as in the job. `requirements` take the place of the job's own."
    return {"title": "CloneRequest", "type": "object", "description": about, "additionalProperties": False,
            "properties": properties}  # fmt: skip


def install(app: FastAPI, open_paths: frozenset[str]) -> None:
    """Complete the app's document with bodies, problem documents and the key, and add its address."""
    find: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(find(), open_paths)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way

    def document(request: Request) -> Response:
        return send_document(request, app.openapi())

    app.add_api_route(PATH, document, include_in_schema=False)


def _complete(document: dict[str, Any], open_paths: frozenset[str]) -> dict[str, Any]:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for model in _BODIES:
        schema = model.model_json_schema(ref_template=_REF)
        for name, part in schema.pop("$defs", {}).items():
            schemas.setdefault(name, part)
        schemas[model.__name__] = schema
    schemas["CloneRequest"] = _clone_request()
    for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, in place of which problems are sent
        schemas.pop(unused, None)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    problem = {"application/problem+json": {"schema": {"$ref": _REF.format(model="ProblemOut")}}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"]["4XX"] = {"description": "a problem with the request", "content": problem}
            operation["responses"]["5XX"] = {"description": "a problem here", "content": problem}
            if any(_REPLAYED in parameter.get("description", "") for parameter in operation.get("parameters", [])):
                _tell_of_replays(operation)
            if path not in open_paths:
                operation["security"] = [{"key": []}]
    return document


def _tell_of_replays(operation: dict[str, Any]) -> None:
    replayed = {
        "description": "the answer is that of an earlier request",
        "schema": {"type": "string", "enum": ["true"]},
    }
    for status, response in operation["responses"].items():
        if status.startswith("2"):
            response.setdefault("headers", {})[_REPLAYED] = replayed
