"""Errors in the shape of OpenAI's API: `{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}`."""

from collections.abc import Mapping
from typing import Any

from lm.errors import UserError


class ApiError(Exception):
    """What a client is told. `param` is the field of its request that is wrong, `code` a word that programs can read."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param, self.code, self.headers = status, kind, param, code, dict(headers or {})

    def body(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


def busy(seconds: int = 1) -> ApiError:
    """429: the queue is full. The client may try again after so many seconds."""
    text = f"the queue is full: try again in {seconds} s, or send fewer requests at a time"
    return ApiError(429, text, kind="rate_limit_error", code="queue_full", headers={"Retry-After": str(seconds)})


def stopping() -> ApiError:
    """503: the server finishes what it has begun, and takes nothing new."""
    text = "the server is stopping: try another, or the same one later"
    return ApiError(503, text, kind="server_error", code="stopping", headers={"Retry-After": "10", "Connection": "close"})


def late(seconds: float) -> ApiError:
    """504: a request took longer than a request may."""
    return ApiError(504, f"not done after {seconds:g} s: ask for fewer tokens", kind="server_error", code="timeout")


def of(error: BaseException) -> ApiError:
    """What a client is told of any exception: nothing of those that are faults of the server."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UserError):
        return ApiError(400, str(error))
    return ApiError(500, "the server failed at this request; its log says why", kind="server_error", code="internal_error")
