"""The page `/docs`: Swagger UI on the OpenAPI document, with nothing loaded from elsewhere.

FastAPI's own page takes script and style from a public CDN: without internet it stays blank, and with it whoever serves
the script could read the key that is typed in.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

from api import openapi

PAGE = "/docs"
_ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
PATHS = frozenset({PAGE, *(f"{PAGE}/{name}" for name in _ASSETS)})


def install(app: FastAPI) -> None:
    """Add the page and what it loads, which the package fastapi-offline brings."""
    folder = Path(str(files("fastapi_offline") / "static"))

    def page() -> HTMLResponse:
        script, style, icon = (f"{PAGE}/{name}" for name in _ASSETS)
        return get_swagger_ui_html(
            openapi_url=openapi.PATH, title=app.title, swagger_js_url=script, swagger_css_url=style,
            swagger_favicon_url=icon, swagger_ui_parameters={"validatorUrl": None},  # a public service, else asked
        )  # fmt: skip

    app.add_api_route(PAGE, page, include_in_schema=False)
    for name in _ASSETS:
        app.add_api_route(f"{PAGE}/{name}", _sends(folder / name), include_in_schema=False)


def _sends(path: Path) -> Callable[[], FileResponse]:
    def send() -> FileResponse:
        return FileResponse(path)

    return send
