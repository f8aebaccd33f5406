"""The web application: routes, the key, and headers."""

from __future__ import annotations

import hashlib
import hmac
import mimetypes
import re
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h11
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.staticfiles import StaticFiles

from ..version import __version__
from . import openapi
from .intake import Intake, unless_gone
from .metrics import Metrics
from .pool import Pool
from .refusals import FAILED, HEADERS, LEFT, Refused

PAGE = Path(__file__).parent / "page"
OPEN = ("/health/", "/v2/health/", "/static/", "/docs", "/openapi.json")  # need no key; neither does the page
# some systems have other types for these endings, which browsers then refuse
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class Settings:
    """Settings of the web application.

    Attributes:
        model: name of the model.
        precision: precision of requests that name none.
        max_bytes: largest number of bytes of a body.
        timeout: seconds from the head of a request to its answer.
        allow_urls: whether images may be URLs.
        key: key that requests must have; None for no key.
        origins: origins of pages that may use the server from a browser.
    """

    model: str
    precision: str = "highest"
    max_bytes: int = 20_000_000
    timeout: float = 60.0
    allow_urls: bool = False
    key: str | None = None
    origins: Sequence[str] = ()


def create(pool: Pool, settings: Settings) -> FastAPI:
    """Create the web application.

    Args:
        pool: the workers, started by the caller.
        settings: the settings.

    Returns:
        An ASGI application.
    """
    app = FastAPI(title="minigdino", version=__version__, description=openapi.DESCRIPTION, docs_url=None,
                  redoc_url=None, redirect_slashes=False)
    metrics = Metrics(pool)
    _add_detect(app, pool, settings, metrics)
    _add_state(app, pool, settings, metrics)
    _add_pages(app)
    if settings.key is not None:
        openapi.add_key(app.openapi(), _is_open)  # FastAPI keeps the description
    app.add_exception_handler(Refused, _refused)  # type: ignore[arg-type]  # of handlers of a kind of exception
    app.add_exception_handler(HTTPException, _refused_by_router)  # type: ignore[arg-type]
    app.add_middleware(_Door, key=settings.key, origins=settings.origins, metrics=metrics)
    if settings.origins:  # outside the other one: a browser asks for permission without the key
        app.add_middleware(CORSMiddleware, allow_origins=list(settings.origins), allow_methods=["GET", "POST"],
                           allow_headers=["Authorization", "Content-Type", "X-API-Key"],
                           expose_headers=["Retry-After", "Server-Timing"])
    return app


def _add_detect(app, pool, settings, metrics):
    intake = Intake(settings.max_bytes, settings.timeout, settings.allow_urls, pool.wait_seconds)

    @app.post("/v1/detect", summary="Detect objects", **openapi.DETECT)
    async def detect(request: Request) -> Response:
        """Detect the objects that a prompt names, in one or several images."""
        pool.check_open()
        async with intake.read(request) as query:
            if query.model not in (None, settings.model):
                raise Refused(422, f"model must be {settings.model!r}, the one of this server; got another one. See "
                              "/v1/models")
            header = {"kind": "detect", "text": query.text, "options": query.options, "precision": query.precision,
                      "draw": query.draw}
            found, blocks = await unless_gone(request, pool.ask(header, query.images, query.digests))
        metrics.observe(found["seconds"])
        timing = ", ".join(f"{name};dur={1000 * value:.1f}" for name, value in found["seconds"].items())
        if "error" in found:
            raise Refused(found["status"], found["error"], {"Server-Timing": timing})
        return Response(blocks[0], found["status"], {"Server-Timing": timing}, found["type"])


def _add_state(app, pool, settings, metrics):
    """Routes for the model and the health of the server, with those of the Open Inference Protocol."""
    def readiness():
        found = {"ready": pool.ready > 0 and not pool.draining, "queue": pool.waiting, "workers": pool.ready,
                 "busy": pool.busy}
        return JSONResponse(found, 200 if found["ready"] else 503)

    def known(name):
        if name != settings.model:
            raise Refused(404, "expected the name of the model of this server; got another one. See /v1/models")

    @app.get("/v1/models", summary="The model of this server", responses=openapi.MODELS)
    async def models() -> Any:
        """Name, version and precision of the model."""
        return {"models": [{"name": settings.model, "version": __version__, "precision": settings.precision}]}

    @app.get("/v2/health/live", include_in_schema=False)
    @app.get("/health/live", summary="Whether the web process answers", responses=openapi.LIVE)
    async def is_live() -> Any:
        """Answer 200."""
        return {"live": True}

    @app.get("/v2/health/ready", include_in_schema=False)
    @app.get("/health/ready", summary="Whether requests would be processed", responses=openapi.READY)
    async def is_ready() -> Response:
        """Answer 200 if a worker has made progress lately, else 503. `queue` is the number of waiting requests."""
        return readiness()

    @app.get("/metrics", summary="Figures for Prometheus", response_class=Response, responses=openapi.METRICS)
    async def figures() -> Response:
        """Requests, seconds, queue, memory and restarts, in the text format of Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v2", include_in_schema=False)
    async def server() -> Any:
        return {"name": "minigdino", "version": __version__, "extensions": []}

    @app.get("/v2/models/{name:path}/ready", include_in_schema=False)
    async def model_is_ready(name: str) -> Response:
        known(name)
        return readiness()

    @app.get("/v2/models/{name:path}", include_in_schema=False)
    async def model(name: str) -> Any:
        known(name)
        return {"name": name, "versions": [__version__], "platform": "minigdino",
                "inputs": [{"name": "images", "datatype": "BYTES", "shape": [-1]},
                           {"name": "phrases", "datatype": "BYTES", "shape": [-1]}],
                "outputs": [{"name": "results", "datatype": "BYTES", "shape": [-1]}]}


def _add_pages(app):
    for ending, kind in TYPES.items():
        mimetypes.add_type(kind, ending)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(openapi.page(app.openapi()), media_type="text/html")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response((PAGE / "index.html").read_bytes(), media_type="text/html")

    app.mount("/static", StaticFiles(directory=PAGE, check_dir=False))


async def _refused(_: Request, error: Refused) -> Response:
    return JSONResponse({"error": str(error)}, error.status, error.headers)


async def _refused_by_router(_: Request, error: HTTPException) -> Response:
    texts = {404: "expected a path of this server; got another one. See /docs",
             405: "expected another method for this path. See /docs"}
    return JSONResponse({"error": texts.get(error.status_code, str(error.detail))}, error.status_code, error.headers)


class _Door:
    """Middleware: checks origin and key, adds headers, counts requests, and answers HEAD as GET.

    Args:
        app: the ASGI application.
        key: the key; None for none.
        origins: origins of pages that may send requests from a browser, besides the server's own; "*" for all.
        metrics: where requests are counted.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], key: str | None, origins: Sequence[str], metrics: Metrics):
        self._app, self._origins, self._metrics = app, origins, metrics
        self._key = None if key is None else _digest(key.encode())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Process a request, as ASGI calls it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = {**scope, "method": "GET" if scope["method"] == "HEAD" else scope["method"]}
        added = HEADERS if scope["path"].startswith("/static/") else {**HEADERS, "Cache-Control": "no-store"}
        status = 0

        async def send_with_headers(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": _with(message["headers"], added)}
            await send(message)

        try:
            app = OTHER_ORIGIN if self._is_foreign(scope) else self._app if self._is_allowed(scope) else KEY_NEEDED
            await app(scope, receive, send_with_headers)
        except h11.LocalProtocolError:  # the client broke the protocol, and its connection takes no answer any more
            raise
        except Exception:
            traceback.print_exc()
            if status:  # a part of the answer is sent
                raise
            await BROKEN(scope, receive, send_with_headers)
        finally:
            self._metrics.count(getattr(scope.get("route"), "path", "other"), status or LEFT)

    def _is_foreign(self, scope):
        """Whether a page of another origin made a browser send a request that costs computing time.

        CORS keeps such a page from reading the answer, but a form is sent without asking the server first. Browsers
        omit Sec-Fetch-Site where the connection is neither encrypted nor local; Origin has the host of the page then.
        """
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]
                   if name in (b"host", b"origin", b"sec-fetch-site")}
        origin = headers.get("origin")
        if scope["method"] != "POST" or {origin, "*"}.intersection(self._origins):
            return False
        if site := headers.get("sec-fetch-site"):
            return site not in ("same-origin", "none")
        return origin is not None and _host(origin.partition("//")[2]) != _host(headers.get("host", ""))

    def _is_allowed(self, scope):
        if self._key is None or _is_open(scope["path"]):
            return True
        headers = {name: value for name, value in scope["headers"] if name in (b"authorization", b"x-api-key")}
        kind, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        given = bearer.strip() if kind.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        return hmac.compare_digest(_digest(given), self._key)


OTHER_ORIGIN = JSONResponse({"error": "expected a request of this server's own page, or of a program; got one of a web "
                             "page of another origin. Start the server with --cors ORIGIN to accept it"}, 403)
KEY_NEEDED = JSONResponse({"error": "expected the key of this server, in the header Authorization: Bearer KEY or "
                           "X-API-Key: KEY; got none or another one"}, 401, {"WWW-Authenticate": "Bearer"})
BROKEN = JSONResponse({"error": FAILED}, 500)


def _is_open(path):
    """Whether a path needs no key."""
    return path == "/" or path.startswith(OPEN)


def _with(headers, added):
    """Headers with further ones, unless they are present."""
    present = {name.lower() for name, _ in headers}
    pairs = ((name.lower().encode(), value.encode()) for name, value in added.items())
    return [*headers, *(pair for pair in pairs if pair[0] not in present)]


def _host(authority):
    """The host of "host:port", without the port, which a proxy may leave out."""
    return re.sub(r":\d*$", "", authority).lower()


def _digest(key):
    """A digest of a key: comparing those does not reveal its length either."""
    return hashlib.sha256(key).digest()
