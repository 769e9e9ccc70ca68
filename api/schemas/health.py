"""Health."""

from __future__ import annotations

from typing import Literal

from api.schemas.base import Out


class Health(Out):
    status: Literal["ok"] = "ok"


class CheckOut(Out):
    """`degraded`: the service works, and an operator should look. `failed`: it does not."""

    name: str
    state: Literal["ok", "degraded", "failed"]
    detail: str


class ReadinessOut(Out):
    """`degraded` if one of the checks is. Where one has failed, the answer is 503 and a problem document."""

    status: Literal["ready", "degraded"]
    checks: list[CheckOut]
