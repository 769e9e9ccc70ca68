"""What the models of reports are made of. Torch-free."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, WithJsonSchema

_NOT_FINITE = {
    "type": "object", "properties": {"$float": {"enum": ["nan", "inf", "-inf"]}}, "required": ["$float"],
    "additionalProperties": False,
}  # fmt: skip
Number = Annotated[float, WithJsonSchema({"anyOf": [{"type": "number"}, _NOT_FINITE]})]
"""As the report is stored, JSON has no NaN (`core.events.jsonable`)."""


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid")
