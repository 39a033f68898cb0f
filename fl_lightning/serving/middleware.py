"""Checks before every request: path, API key, size, and the number of running requests."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from fl_lightning.serving.metrics import ServingMetrics
from fl_lightning.serving.requests import ApiError, busy

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PATHS = {CHAT: "POST", COMPLETIONS: "POST", "/v1/models": "GET", "/health": "GET", "/metrics": "GET"}
MODEL = "/v1/models/"
OWN_HOSTS = (b"localhost", b"127.0.0.1")
BODY_SECONDS = 30.0
"""Limit for the arrival of a body."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class AccessMiddleware:
    """ASGI middleware that passes on valid requests, with their whole body.

    Args:
        app: the application behind it.
        metrics: counts the requests.
        key: digest of the API key that every path but ``/health`` requires. None disables the key; then only programs
            on this machine may connect, and requests from web pages are rejected.
        max_body: limit of a body, bytes.
        max_requests: limit of concurrent requests for answers.
    """

    def __init__(
        self, app: Any, *, metrics: ServingMetrics, key: bytes | None, max_body: int, max_requests: int
    ) -> None:
        self._app, self._metrics, self._max_body, self._max_requests = app, metrics, max_body, max_requests
        self._key = key
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer with an error."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        path = scope["path"] if scope["path"] in PATHS else MODEL if scope["path"].startswith(MODEL) else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        try:
            self._check(scope, path)
            if path in (CHAT, COMPLETIONS):
                await self._generate(scope, receive, counted)
            else:
                await self._app(scope, receive, counted)
        except ApiError as error:
            await _send_error(error, counted)
        except _Disconnected:
            return

    def _check(self, scope: Scope, path: str) -> None:
        headers = dict(scope["headers"])
        method = PATHS.get(path, "GET")
        if self._key is not None and path != "/health":
            kind, _, key = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(digest(key.strip()), self._key):
                raise ApiError(401, "no valid API key, expected 'Authorization: Bearer KEY'", code="invalid_api_key")
        if self._key is None and path != "/health" and (_host(headers) not in OWN_HOSTS or b"origin" in headers):
            text = "request from a web page or to another host than localhost or 127.0.0.1; that needs an API key"
            raise ApiError(403, text, code="forbidden")
        if path == "other":
            raise ApiError(404, f"no such path, expected one of {', '.join(PATHS)}", code="not_found")
        if scope["method"] != method:
            raise ApiError(405, f"{path}: expected {method}, got {scope['method']}", code="method_not_allowed")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            raise ApiError(400, "Content-Length: expected a number", code="invalid_header")
        if len(length) > 20 or int(length) > self._max_body:
            raise self._too_large()

    async def _generate(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._running >= self._max_requests:
            raise busy(self._running)
        self._running += 1
        self._metrics.in_flight.set(self._running)
        try:
            body: Message | None = await self._body(receive)

            async def replayed() -> Message:
                nonlocal body
                if body is not None:
                    message, body = body, None
                    return message
                return await receive()

            await self._app(scope, replayed, send)
        finally:
            self._running -= 1
            self._metrics.in_flight.set(self._running)

    async def _body(self, receive: Receive) -> Message:
        """The whole body as one message."""
        parts, size, more = [], 0, True
        deadline = time.monotonic() + BODY_SECONDS
        try:
            while more:
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
                if message["type"] == "http.disconnect":
                    raise _Disconnected
                parts.append(message.get("body", b""))
                size, more = size + len(parts[-1]), message.get("more_body", False)
                if size > self._max_body:
                    raise self._too_large()
        except asyncio.TimeoutError as error:
            raise ApiError(408, f"the body did not arrive within {BODY_SECONDS:.0f} s", code="timeout") from error
        return {"type": "http.request", "body": b"".join(parts), "more_body": False}

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the body is too large, expected at most {self._max_body} bytes", code="request_too_large"
        )


def digest(key: bytes) -> bytes:
    """Digest of an API key; only digests are kept and compared."""
    return hashlib.sha256(key).digest()


def _host(headers: Mapping[bytes, bytes]) -> bytes:
    """The host name in the request, without the port."""
    name, _, port = headers.get(b"host", b"").rpartition(b":")
    return name if name and port.isdigit() else headers.get(b"host", b"")


class _Disconnected(Exception):
    """The client disconnected before its request was complete."""


async def _send_error(error: ApiError, send: Send) -> None:
    body = json.dumps(error.body()).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **error.headers}
    if error.status in (400, 408, 413):
        headers["Connection"] = "close"  # the rest of the body is not read
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
