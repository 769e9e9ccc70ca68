"""What the schemas have in common."""

from __future__ import annotations

from typing import Annotated, Any

import structlog
from pydantic import (
    BaseModel,
    ConfigDict,
    JsonValue,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

Text = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$")]
log = structlog.get_logger()


class In(BaseModel):
    """What comes in: every fault is told."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class NoFields(In):
    """Of a request that says all by its address."""


class Out(BaseModel):
    """What goes out: nothing that the schema does not say."""

    model_config = ConfigDict(extra="forbid")


Json = dict[str, JsonValue]  # as it was stored: rules that were tightened since do not hide what there is


def unreadable_is(fallback: Any) -> WrapValidator:
    """Show `fallback` for a stored value that is not what it should be: one odd record must not hide a whole list."""

    def show(value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        try:
            return validate(value)
        except ValidationError as error:
            log.error("a stored value cannot be shown", field=info.field_name, faults=error.error_count())
            return fallback

    return WrapValidator(show)
