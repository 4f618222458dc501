"""What every request passes before it is read: who may ask, how much, how long; and what is counted."""

import asyncio
import contextlib
import hmac
import json
import logging
import time
from collections.abc import Collection
from typing import Any

from lm.serving import errors
from lm.serving.errors import ApiError
from lm.serving.metrics import Metrics

log = logging.getLogger("lm.serve")
OPEN = ("/health", "/")  # without a token: they say nothing of the model
READING_SECONDS = 30.0  # in which the body of a request must have come
DRAINED, DRAINING_SECONDS = 1 << 26, 5.0  # bytes of a refused request that are read before it is answered, and seconds

Scope = dict[str, Any]


class Gate:
    """An ASGI application around another.

    token: what clients must send as `Authorization: Bearer TOKEN`; None: nothing
    hosts: names by which the server may be called, so that no web page reaches it under a name of its own; None: any
    body: bytes of a request, at most
    """

    def __init__(
        self,
        app: Any,
        metrics: Metrics,
        *,
        paths: Collection[str],
        token: str | None,
        hosts: Collection[str] | None,
        body: int,
    ) -> None:
        self.app, self.metrics, self.paths, self.body = app, metrics, frozenset(paths), body
        self.token, self.hosts = token, hosts
        self.stopping = False
        self.active = 0  # requests that are being answered
        self.served = 0  # requests to the API that were answered without an error

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, start, code = scope["path"] if scope["path"] in self.paths else "other", time.monotonic(), 499

        async def counted(message: Any) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        self.active += 1
        try:
            try:
                self._check(scope)
            except ApiError as error:
                await _drained(receive)
                await answer(error, counted)
                return
            await self.app(scope, self._limited(receive), counted)
        finally:
            self.active -= 1
            self.served += path.startswith("/v1/") and code < 400
            self.metrics.requests.labels(path, str(code)).inc()
            self.metrics.seconds.labels(path).observe(time.monotonic() - start)

    def _check(self, scope: Scope) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1")
        if self.hosts is not None and _name(host) not in self.hosts:
            raise ApiError(403, f"the host {host[:100]!r} is not one of this server's names: call it by its address")
        path = scope["path"]
        if self.token is not None and path not in OPEN:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            right = hmac.compare_digest(given.strip(), self.token.encode())
            if scheme.lower() != b"bearer" or not right:
                text = "the token is missing or wrong: send 'Authorization: Bearer TOKEN'"
                bearer = {"WWW-Authenticate": "Bearer"}
                raise ApiError(401, text, kind="authentication_error", code="invalid_api_key", headers=bearer)
        if self.stopping and path not in ("/health", "/metrics"):
            raise errors.stopping()
        length = headers.get(b"content-length", b"0")
        if len(length) > 18 or int(length if length.isdigit() else b"0") > self.body:
            raise self._large()
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if scope["method"] == "POST" and kind != b"application/json":
            raise ApiError(415, "the body must be JSON: send it with 'Content-Type: application/json'")

    def _large(self) -> ApiError:
        return ApiError(413, f"the body has more than {self.body:,} bytes: divide the request", code="too_large")

    def _limited(self, receive: Any) -> Any:
        """`receive`, which counts bytes and seconds until the body has come."""
        read, done, end = 0, False, time.monotonic() + READING_SECONDS

        async def limited() -> Any:
            nonlocal read, done
            if done:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), end - time.monotonic())
            except TimeoutError:
                raise ApiError(408, f"the body has not come within {READING_SECONDS:g} s: send it faster") from None
            read += len(message.get("body", b""))
            if read > self.body:
                if message.get("more_body"):
                    await _drained(receive)
                raise self._large()
            done = not message.get("more_body")
            return message

        return limited


async def _drained(receive: Any) -> None:
    """Reads the rest of a body, within limits: a client that is still sending when the connection closes sees no answer."""
    left, more = DRAINED, True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAINING_SECONDS):
            while more and left > 0:
                message = await receive()
                left, more = left - len(message.get("body", b"")), message.get("more_body", False)


def _name(host: str) -> str:
    """The name in a Host header, without the port."""
    return host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]


async def answer(error: ApiError, send: Any) -> None:
    """Sends an error as the answer."""
    data = json.dumps(error.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(data)), **error.headers}
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": data})
