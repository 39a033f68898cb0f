"""What every request meets first: its path, its key, its size, and whether there is room for it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from fl_lightning.serving.metrics import Figures
from fl_lightning.serving.requests import ApiError, busy

CHAT = "/v1/chat/completions"
PATHS = {CHAT: "POST", "/v1/models": "GET", "/health": "GET", "/metrics": "GET"}
MODEL = "/v1/models/"
OWN_HOSTS = (b"localhost", b"127.0.0.1")
BODY_SECONDS = 30.0
"""A body that takes longer to arrive is not waited for."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Gate:
    """ASGI middleware that lets through what may pass, with its body read whole.

    Args:
        app: what lies behind.
        figures: where requests are counted.
        key: digest of the API key that must be shown, but for ``/health``; None for none, which is for this machine's
            own programs, and not for pages in its browsers.
        max_body: bytes of a body.
        max_requests: chat requests under way at once.
    """

    def __init__(self, app: Any, *, figures: Figures, key: bytes | None, max_body: int, max_requests: int) -> None:
        self._app, self._figures, self._max_body, self._max_requests = app, figures, max_body, max_requests
        self._key = key
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        path = scope["path"] if scope["path"] in PATHS else MODEL if scope["path"].startswith(MODEL) else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._figures.requests.labels(path, str(message["status"])).inc()
            await send(message)

        try:
            self._check(scope, path)
            if path == CHAT:
                await self._chat(scope, receive, counted)
            else:
                await self._app(scope, receive, counted)
        except ApiError as error:
            await _say(error, counted)
        except _Gone:
            return

    def _check(self, scope: Scope, path: str) -> None:
        headers = dict(scope["headers"])
        wanted = PATHS.get(path, "GET")
        if self._key is not None and path != "/health":
            kind, _, key = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(digest(key.strip()), self._key):
                raise ApiError(401, "no valid API key, wanted 'Authorization: Bearer KEY'", code="invalid_api_key")
        if self._key is None and path != "/health" and (_host(headers) not in OWN_HOSTS or b"origin" in headers):
            text = "asked by a web page, or under another name than localhost or 127.0.0.1; wanted an API key for that"
            raise ApiError(403, text, code="forbidden")
        if path == "other":
            raise ApiError(404, f"no such path, wanted one of {', '.join(PATHS)}", code="not_found")
        if scope["method"] != wanted:
            raise ApiError(405, f"{path}: got {scope['method']}, wanted {wanted}", code="method_not_allowed")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            raise ApiError(400, "Content-Length is no number", code="invalid_header")
        if len(length) > 20 or int(length) > self._max_body:
            raise self._too_much()

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._under_way >= self._max_requests:
            raise busy(self._under_way)
        self._under_way += 1
        self._figures.in_flight.set(self._under_way)
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
            self._under_way -= 1
            self._figures.in_flight.set(self._under_way)

    async def _body(self, receive: Receive) -> Message:
        """The body, whole, as one message."""
        parts, size, more = [], 0, True
        deadline = time.monotonic() + BODY_SECONDS
        try:
            while more:
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
                if message["type"] == "http.disconnect":
                    raise _Gone
                parts.append(message.get("body", b""))
                size, more = size + len(parts[-1]), message.get("more_body", False)
                if size > self._max_body:
                    raise self._too_much()
        except asyncio.TimeoutError as error:
            raise ApiError(408, f"the body did not arrive within {BODY_SECONDS:.0f} s", code="timeout") from error
        return {"type": "http.request", "body": b"".join(parts), "more_body": False}

    def _too_much(self) -> ApiError:
        return ApiError(413, f"the body is too large, wanted at most {self._max_body} bytes", code="request_too_large")


def digest(key: bytes) -> bytes:
    """What is kept of an API key, and compared."""
    return hashlib.sha256(key).digest()


def _host(headers: Mapping[bytes, bytes]) -> bytes:
    """The name by which the server was called, without the port."""
    name, _, port = headers.get(b"host", b"").rpartition(b":")
    return name if name and port.isdigit() else headers.get(b"host", b"")


class _Gone(Exception):
    """The client went away before it had asked."""


async def _say(error: ApiError, send: Send) -> None:
    body = json.dumps(error.body()).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **error.headers}
    if error.status in (400, 408, 413):
        headers["Connection"] = "close"  # what is still coming is not read
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
