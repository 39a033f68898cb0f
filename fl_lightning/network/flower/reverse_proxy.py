"""The only port of a server that other machines reach: passes sites' requests to Flower's SuperLink, and nothing else.

The SuperLink serves sites, and those who submit and stop runs, on one port, and runs code from whoever reaches it. So
it listens only on the loopback interface, and this process on the server's address. It ends TLS, passes on paths under
``/v1/fleet/``, for which the SuperLink asks for a registered key, and refuses all others.

Run as ``python -m fl_lightning.network.flower.reverse_proxy SETTINGS``, a JSON file with `Settings`.
"""

from __future__ import annotations

import json
import logging
import ssl
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

log = logging.getLogger(__name__)

OPEN_PREFIX = "/v1/fleet/"
HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "host"}
"""Headers that are valid for one connection only (RFC 9110, 7.6.1), and the one that names the next server."""


@dataclass(frozen=True)
class Settings:
    """The settings of the reverse proxy.

    Attributes:
        host: to listen on.
        port: to listen on.
        certificate: of the server, for sites.
        key: of the certificate.
        superlink: ``https://127.0.0.1:PORT``.
        superlink_ca: authority of the SuperLink's certificate.
        max_bytes: of the body of a request.
    """

    host: str
    port: int
    certificate: str
    key: str
    superlink: str
    superlink_ca: str
    max_bytes: int

    def write(self, path: Path) -> Path:
        """Write the settings for the process, and return the path."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path


def make_app(settings: Settings) -> Starlette:
    """The application.

    Its own responses are 403 for a path that sites do not need, 413 for a body over the limit, 502 for a SuperLink that
    does not respond.
    """
    context = ssl.create_default_context(cafile=settings.superlink_ca)
    client = httpx.AsyncClient(base_url=settings.superlink, verify=context, timeout=None, trust_env=False)
    too_large = f"expected at most {settings.max_bytes} bytes, got more\n"

    async def forward(request: Request) -> Response:
        if not _is_open(request.scope):
            return PlainTextResponse("only sites are served here\n", 403)
        if int(request.headers.get("content-length") or 0) > settings.max_bytes:
            return PlainTextResponse(too_large, 413)

        async def limited_body() -> AsyncIterator[bytes]:
            num_bytes = 0
            async for chunk in request.stream():
                num_bytes += len(chunk)
                if num_bytes > settings.max_bytes:
                    raise _BodyTooLarge
                yield chunk

        headers = [(name, value) for name, value in request.headers.items() if name not in HOP_HEADERS]
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        onward = client.build_request(request.method, target, headers=headers, content=limited_body())
        try:
            response = await client.send(onward, stream=True)
        except _BodyTooLarge:
            return PlainTextResponse(too_large, 413)
        except httpx.TransportError as error:
            log.warning("the SuperLink does not respond: %s", error)
            return PlainTextResponse("the server does not respond\n", 502)
        return StreamingResponse(
            response.aiter_raw(),
            response.status_code,
            {name: value for name, value in response.headers.items() if name not in HOP_HEADERS},
            background=BackgroundTask(response.aclose),
        )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await client.aclose()

    methods = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]
    return Starlette(routes=[Route("/{path:path}", forward, methods=methods)], lifespan=lifespan)


class _BodyTooLarge(Exception):
    """A body exceeded the limit while it was received."""


def _is_open(scope: Mapping[str, Any]) -> bool:
    """Whether sites need this path; one that could be read in two ways (with dots or escapes) is closed."""
    path, raw_path = str(scope["path"]), bytes(scope.get("raw_path") or b"").partition(b"?")[0]
    unescaped = raw_path in (b"", path.encode("ascii", "replace"))
    return unescaped and path.startswith(OPEN_PREFIX) and not {"", ".", ".."} & set(path[1:].split("/"))


def main(argv: list[str]) -> None:
    """Serve until the process is ended."""
    settings = Settings(**json.loads(Path(argv[0]).read_text(encoding="utf-8")))
    uvicorn.run(
        make_app(settings),
        host=settings.host,
        port=settings.port,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.key,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
