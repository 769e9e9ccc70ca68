"""The OpenAPI document: what FastAPI finds, and the bodies and errors that the routes handle themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from api.schemas import DatasetRequest, JobRequest, ProblemOut, RecipeRequest
from core.job import ARCHITECTURES

_REF = "#/components/schemas/{model}"
_BODIES: tuple[type[BaseModel], ...] = (JobRequest, DatasetRequest, RecipeRequest, ProblemOut)
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
    "architecture": {"type": "string", "enum": list(ARCHITECTURES), "description": "safetensors only"},
    "input_shape": {
        "type": "string", "pattern": r"^\d+,\d+,\d+$", "examples": ["3,32,32"],
        "description": "safetensors only: channels,height,width",
    },
}  # fmt: skip
_DATASET_FIELDS = {
    "format": {"type": "string", "enum": ["image_folder", "npz"]},
    "preprocess": {"type": "string", "contentMediaType": "application/json", "description": "as in DatasetRequest"},
    "splits": {"type": "string", "contentMediaType": "application/json", "description": "as in DatasetRequest"},
}
MODEL_UPLOAD = {
    "parameters": _query(_MODEL_FIELDS),
    "requestBody": _body(
        {"multipart/form-data": _multipart(_MODEL_FIELDS), "application/octet-stream": {"schema": _BINARY}}
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
