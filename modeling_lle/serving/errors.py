"""Errors of the server, each in the shape of the API that the client speaks.

Notable: which API that is, is told by the path. Text Embeddings Inference has status codes of its own.
"""

from typing import Any, Literal, TypeAlias

Api: TypeAlias = Literal["openai", "tei", "libretranslate"]
_TEI = ("/predict", "/info")
_LIBRETRANSLATE = ("/languages", "/translate", "/suggest")
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_TEI_STATUS = {400: 422, 503: 429, 500: 424}  # as its router maps validation, overload and backend errors


class ServingError(Exception):
    """What a request gets instead of an answer.

    Args:
        status: HTTP status.
        code: Short name of the reason, for programs.
        message: What is wrong, and the remedy.
        retry: Whether the same request may succeed later.
    """

    def __init__(self, status: int, code: str, message: str, retry: bool = False) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry = status, code, message, retry


def invalid(message: str, code: str = "invalid_request") -> ServingError:
    """The error of a request that can never succeed."""
    return ServingError(400, code, message)


def unknown(message: str, code: str = "not_found") -> ServingError:
    """The error of something that does not exist for this tenant."""
    return ServingError(404, code, message)


def api_of(path: str) -> Api:
    """The API that a path belongs to."""
    if path in _TEI:
        return "tei"
    is_unit = path.count("/") >= 4 and path.split("/")[3] == "unit" and not path.startswith("/v1/")
    return "libretranslate" if path.rstrip("/") in _LIBRETRANSLATE or is_unit else "openai"


def shaped(error: ServingError, path: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers of an error for a path."""
    api, status = api_of(path), error.status
    headers = {"Retry-After": "1"} if error.retry else {}
    headers |= {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    if api == "libretranslate":
        return status, {"error": error.message}, headers
    if api == "tei":
        kind = "Overloaded" if status in (429, 503) else "Backend" if status in (500, 504) else "Validation"
        return _TEI_STATUS.get(status, status), {"error": error.message, "error_type": kind}, headers
    kind = _TYPES.get(status, "invalid_request_error")
    return status, {"error": {"message": error.message, "type": kind, "code": error.code, "param": None}}, headers
