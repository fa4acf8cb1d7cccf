"""What goes wrong while a request is answered, as HTTP: one status, code and message for each exception."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from searchkit.errors import BusyError, FilterError, InputError, RemoteError, SearchkitError, StoreError

logger = logging.getLogger(__name__)

_FIELD = re.compile(r"[\w-]+")  # of a path such as "documents.3.text", not a type that pydantic names
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


LONGEST_PAUSE = 1.0
"""Seconds for which a refusal is held back, if the client is told to wait that long anyway."""


class ServerError(HTTPException):
    """An error whose answer is known where it is raised.

    Args:
        status: HTTP status.
        code: A stable name for programs.
        message: What came, what was expected and what to do.
        param: The field of the request that is wrong.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.code, self.param = code, param


def not_found(code: str, message: str) -> ServerError:
    """An index, a document or a model that does not exist."""
    return ServerError(404, code, message)


def overloaded(seconds: float, message: str) -> ServerError:
    """A request that was not admitted; says when to come back."""
    return ServerError(429, "overloaded", message, headers=retry_headers(seconds))


def retry_headers(seconds: float) -> dict[str, str]:
    """When to come back: in whole seconds for all clients, in milliseconds for those that read it."""
    seconds = min(max(seconds, 0.05), 60.0)
    return {"Retry-After": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(1000 * seconds))}


def as_server_error(error: Exception) -> ServerError:
    """The answer to any exception. What nobody foresaw is logged, and the client learns only that it happened."""
    match error:
        case ServerError():
            return error
        case HTTPException():
            code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
            return ServerError(error.status_code, code, str(error.detail), headers=error.headers)
        case RequestValidationError():
            return _invalid(error.errors())
        case BusyError():
            return ServerError(503, "index_busy", str(error), headers=retry_headers(1.0))
        case FilterError():
            return ServerError(400, "invalid_request", str(error), param="where")
        case InputError():
            return ServerError(400, "invalid_request", str(error))
        case StoreError():
            logger.error("the index cannot be used: %s", error)
            return ServerError(503, "index_unavailable", str(error))
        case RemoteError():
            logger.error("the model's server failed: %s", error)  # its address is not for everybody
            message = "the server of the model does not answer, or not as it should; the service's log says more"
            return ServerError(503, "model_unavailable", message, headers=retry_headers(5.0))
        case SearchkitError():
            return ServerError(400, "invalid_request", str(error))
        case TimeoutError():
            return ServerError(504, "deadline_exceeded", "the request was not answered in time; try a smaller one")
        case MemoryError():
            logger.error("out of memory")
            return ServerError(503, "out_of_memory", "the service is out of memory; send less at once")
    logger.error("a request failed", exc_info=error)
    return ServerError(500, "internal_error", "the service failed; its log says why")


def _invalid(faults: Sequence[Any]) -> ServerError:
    """The first fault that pydantic found, without repeating what came: it may be anything."""
    fault = faults[0]
    place = [str(part) for part in fault["loc"] if part not in ("body", "query", "path")]
    # Of several forms that a field may have, pydantic names each; the field itself is what the client knows.
    param = ".".join(part for part in place if _FIELD.fullmatch(part))
    param = param.encode("utf-8", "replace").decode()[:200]
    if fault["type"] == "json_invalid":
        return ServerError(400, "invalid_json", "the body is not JSON")
    if not place and isinstance(fault["input"], bytes):  # FastAPI reads a body only if it is said to be JSON
        return ServerError(415, "not_json", "the body is not said to be JSON; send Content-Type: application/json")
    if fault["type"] == "extra_forbidden":
        return ServerError(
            400, "unknown_field", f"{param or 'a field'} is unknown here; /openapi.json has those there are",
            param=param or None,
        )  # fmt: skip
    message = str(fault["msg"]).encode("utf-8", "replace").decode()[:500]
    return ServerError(400, "invalid_request", f"{param}: {message}" if param else message, param=param or None)


def error_response(error: ServerError, path: str, request_id: str) -> Response:
    """The answer to an error: in OpenAI's form for the routes that their clients call, else in one form."""
    body: dict[str, Any]
    if path.startswith(("/v1/", "/v2/")):
        kind = _TYPES.get(error.status_code, "invalid_request_error" if error.status_code < 500 else "server_error")
        body = {"message": str(error.detail), "type": kind, "param": error.param, "code": error.code}
        answer = {"error": body, "message": str(error.detail)}  # Cohere's clients show the latter
    else:
        body = {"code": error.code, "message": str(error.detail), "param": error.param, "request_id": request_id}
        answer = {"error": {name: value for name, value in body.items() if value is not None}}
    return json_response(answer, status=error.status_code, headers=error.headers)


def json_response(content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer as JSON; metadata may nest deeper than FastAPI's own encoder goes."""
    return Response(encoded(content), status, dict(headers or {}), "application/json")


def encoded(content: Any) -> bytes:
    """JSON, with what UTF-8 cannot carry replaced."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


async def handle(request: Request, error: Exception) -> Response:
    """FastAPI's handler for every exception."""
    failure = as_server_error(error)
    if failure.status_code == 429:  # a client that ignores Retry-After would keep the service busy with refusals
        await asyncio.sleep(min(float((failure.headers or {}).get("retry-after-ms", 0)) / 1000, LONGEST_PAUSE))
    return error_response(failure, request.url.path, request.scope.get("request_id", ""))
