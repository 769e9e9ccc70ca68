"""Query parameters that no route knows are refused: a filter with a typing error must not list everything."""

from __future__ import annotations

from fastapi import Request
from fastapi.routing import APIRoute

from api.errors import Refused
from core.errors import Fault

UPLOADS = frozenset({"/v1/models", "/v1/datasets"})


async def refuse_unknown(request: Request) -> None:
    """Raises `Refused` (`parameter_invalid`), naming what the address does know.

    Uploads check theirs themselves, together with the fields of their forms.
    """
    given = set(request.query_params)
    if not given:
        return
    route: APIRoute = request.scope["route"]
    if route.path in UPLOADS and request.method == "POST":
        return
    known = {parameter.alias for parameter in route.dependant.query_params}
    expected = f"one of {', '.join(sorted(known))}" if known else "no parameters"
    faults = [Fault(f"/{name}", "there is no such parameter", expected) for name in sorted(given - known)]
    if faults:
        raise Refused("parameter_invalid", f"{len(faults)} parameter(s) cannot be used", faults=faults)
