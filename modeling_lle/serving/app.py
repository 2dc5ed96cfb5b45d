"""The application: all routes, their errors, and an OpenAPI description that says what they really do."""

import logging
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from .. import __version__
from ..bank.manifest import BankError
from ..tasks import LANGUAGE
from . import chats, classifying, completions, history_routes, session_routes, translating
from .errors import ServingError, api_of, shaped
from .gate import Gate
from .keys import METRICS, Keys
from .limits import Limits
from .metrics import CONTENT_TYPE, Metrics
from .page import add_page
from .schemas import LibreError, OpenAIError, TEIError
from .served import Models
from .state import NO_KEY, Serving, Shared, bearer

logger = logging.getLogger(__name__)
LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_STATUSES = {
    "openai": (400, 401, 403, 404, 405, 408, 409, 413, 415, 429, 500, 503, 504),
    "tei": (401, 403, 404, 405, 408, 413, 415, 422, 424, 429, 504),
    "libretranslate": (400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 503, 504),
}
_MODELS: dict[str, type[BaseModel]] = {"openai": OpenAIError, "tei": TEIError, "libretranslate": LibreError}


class Health(BaseModel):
    """Whether the server is alive, or ready for requests."""

    status: Literal["ok", "shutting down"]


def create_app(
    models: Models,
    keys: Keys | None = None,
    limits: Limits | None = None,
    hosts: frozenset[str] | None = None,
    page: bool = False,
) -> FastAPI:
    """The application for some models.

    Args:
        models: The models.
        keys: The keys of the tenants; None: one tenant, without a key.
        limits: The limits; None: the usual ones.
        hosts: The names by which the server may be reached; None: any.
        page: Whether it shows its page at `/`.
    """
    serving = Serving(models, keys or Keys(), limits or Limits(), Metrics(models))
    app = FastAPI(
        title="modeling_lle",
        version=__version__,
        description="Recurrent models with a history for each tenant.",
        docs_url=None,
        redoc_url=None,
    )
    app.state.serving = serving
    app.add_exception_handler(ServingError, _refuse)  # type: ignore[arg-type]
    app.add_exception_handler(BankError, _refuse_bank)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _refuse_invalid)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _refuse_http)  # type: ignore[arg-type]
    _add_operations(app)
    for part in (completions, chats, session_routes, history_routes, classifying, translating):
        app.include_router(part.router)
    add_page(app, serving, page)
    app.add_middleware(Gate, serving=serving, hosts=hosts)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _add_operations(app: FastAPI) -> None:
    """The routes that say how the server is."""

    @app.get("/health", response_model=Health, tags=["operations"])
    async def health() -> Any:
        """Whether the server is alive."""
        return Health(status="ok")

    @app.get("/ready", response_model=Health, tags=["operations"])
    async def ready() -> Any:
        """Whether the server takes requests; 503 when it is shutting down."""
        return Health(status="ok")

    @app.get(
        "/metrics",
        response_class=Response,
        tags=["operations"],
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus."}},
    )
    async def metrics(
        serving: Shared, given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
    ) -> Response:
        """Metrics for Prometheus; with keys, for the key of `metrics` only."""
        keys = serving.keys
        if keys.required:
            owner = keys.owner(None if given is None else given.credentials)
            if owner is None:
                raise NO_KEY
            if owner != METRICS:
                raise ServingError(403, "not_allowed", f"metrics need the key of {METRICS!r}")
        return Response(serving.metrics.text(), media_type=CONTENT_TYPE)


def _response(request: Request, error: ServingError) -> JSONResponse:
    request.state.failed = error.code
    status, body, headers = shaped(error, request.url.path)
    return JSONResponse(body, status, headers)


async def _refuse(request: Request, error: ServingError) -> JSONResponse:
    return _response(request, error)


async def _refuse_bank(request: Request, error: BankError) -> JSONResponse:
    logger.error("request %s: %s", request.state.id, error)
    message = "the history cannot be read, and its files were not changed: see the log of the server"
    return _response(request, ServingError(500, "history_unavailable", message))


async def _refuse_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    """The first thing that is wrong, without the value that was sent."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))[:200]
    unknown = first["type"] == "extra_forbidden"
    message = f"unknown field {place}" if unknown else f"{place or 'the body'}: {first['msg']}"
    return _response(request, ServingError(400, "unknown_field" if unknown else "invalid_request", message))


async def _refuse_http(request: Request, error: HTTPException) -> JSONResponse:
    texts = {404: "there is no such route: see /openapi.json", 405: "this route has other methods: see /openapi.json"}
    code = {404: "unknown_route", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    message = texts.get(error.status_code, str(error.detail))
    answer = _response(request, ServingError(error.status_code, code, message))
    answer.headers.update(error.headers or {})
    return answer


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The description, with the errors as they are."""
    if app.openapi_schema is None:
        schema: dict[str, Any] = FastAPI.openapi(app)
        components = schema.setdefault("components", {}).setdefault("schemas", {})
        for model in _MODELS.values():
            own = model.model_json_schema(ref_template="#/components/schemas/{model}")
            components |= own.pop("$defs", {})
            components[model.__name__] = own
        for name in ("HTTPValidationError", "ValidationError"):
            components.pop(name, None)
        for path, methods in schema["paths"].items():
            api = api_of("/a/b/unit/c" if path.endswith("/unit/{text}") else path)
            content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{_MODELS[api].__name__}"}}}
            for operation in methods.values():
                operation["responses"].pop("422", None)
                for status in _STATUSES[api]:
                    operation["responses"][str(status)] = {"description": "An error.", "content": content}
        _name_values(schema, app.state.serving.models)
        app.openapi_schema = schema
    return app.openapi_schema


def _name_values(schema: dict[str, Any], models: Models) -> None:
    """Puts the names of the models and the languages of the translators into the description."""
    texts = [name for name, own in models.of.items() if own.task == LANGUAGE]
    pairs = [own.languages for own in models.of.values() if own.languages is not None]
    values = {
        "model": list(models.of),
        "source": list(dict.fromkeys(pair[0] for pair in pairs)),
        "target": list(dict.fromkeys(pair[1] for pair in pairs)),
    }
    for path, methods in schema["paths"].items():
        named = {**values, "model": texts} if path.startswith("/v1/sessions/") else dict(values)
        named |= {"name": list(models.of)} if path.startswith("/v1/models/") else {}
        for operation in methods.values():
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "path" and named.get(parameter["name"]):
                    parameter["schema"]["enum"] = named[parameter["name"]]
    for name in ("CompletionRequest", "ChatRequest"):
        if texts:
            schema["components"]["schemas"][name]["properties"]["model"]["enum"] = texts
