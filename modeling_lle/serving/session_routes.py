"""`/v1/sessions`: the sessions of a tenant, exported and imported as safetensors."""

from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel

from ..tasks import LANGUAGE
from .errors import invalid
from .schemas import SessionInfo
from .session_files import read_session, write_session
from .state import Shared, Tenant, called, threaded

router = APIRouter(tags=["sessions"])
MEDIA = "application/octet-stream"
_FILE: dict[str, Any] = {"content": {MEDIA: {"schema": {"type": "string", "format": "binary"}}}}


class SessionList(BaseModel):
    """The sessions of a tenant with a model."""

    object: Literal["list"] = "list"
    data: list[SessionInfo]


class Removed(BaseModel):
    """A session that is gone."""

    id: str
    deleted: bool = True


@router.get("/v1/sessions/{model}", response_model=SessionList)
async def sessions(model: str, serving: Shared, tenant: Tenant) -> Any:
    """The sessions of the tenant."""
    names = serving.models.get(model, LANGUAGE).sessions.names(tenant)
    return SessionList(data=[SessionInfo(id=name, tokens=tokens) for name, tokens in names.items()])


@router.get(
    "/v1/sessions/{model}/{name}", response_class=Response, responses={200: {**_FILE, "description": "safetensors"}}
)
async def export(model: str, name: str, request: Request, serving: Shared, tenant: Tenant) -> Response:
    """A session as safetensors: state, stream and matches, which hold what was read."""
    served = serving.models.get(model, LANGUAGE)
    cache, tokens = served.sessions.get(tenant, name)
    data = await threaded(request, lambda: write_session(cache, tokens, served.fingerprint))
    headers = {"Content-Disposition": f'attachment; filename="{name}.safetensors"'}
    return Response(data, media_type=MEDIA, headers=headers)


@router.put(
    "/v1/sessions/{model}/{name}",
    response_model=SessionInfo,
    openapi_extra={"requestBody": {**_FILE, "required": True}},
)
async def put(model: str, name: str, request: Request, serving: Shared, tenant: Tenant) -> Any:
    """Begins a session with what was exported, from this model."""
    served = serving.models.get(model, LANGUAGE)
    if served.model.config.wrapped is not None:
        raise invalid("sessions of this backbone cannot be imported: send the text again", "invalid_session")
    data = await request.body()
    cache, tokens = await called(
        request, served.worker, lambda: read_session(data, served.language_model, served.fingerprint)
    )
    served.sessions.put(tenant, name, cache, tokens)
    return SessionInfo(id=name, tokens=tokens)


@router.delete("/v1/sessions/{model}/{name}", response_model=Removed)
async def remove(model: str, name: str, serving: Shared, tenant: Tenant) -> Any:
    """Removes a session."""
    serving.models.get(model, LANGUAGE).sessions.remove(tenant, name)
    return Removed(id=name)
