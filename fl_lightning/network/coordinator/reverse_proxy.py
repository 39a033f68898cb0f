"""The only door of a server to the network: passes what sites need on to Flower's SuperLink, and nothing else.

The SuperLink answers sites and those who submit and stop runs on one port, and takes code from whoever reaches it. So
it listens on the loopback interface alone, and this process on the server's address: it ends TLS, lets paths under
``/v1/fleet/`` through, which ask for a registered key, and refuses all others.

Run as ``python -m fl_lightning.network.coordinator.reverse_proxy SETTINGS``, a JSON file, see `Settings`.
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

OPEN = "/v1/fleet/"
OWN = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "host"}
"""Headers that hold between two neighbours only (RFC 9110, 7.6.1), and the one that names the neighbour."""


@dataclass(frozen=True)
class Settings:
    """What the gate needs to know.

    Attributes:
        host: where it listens.
        port: there.
        certificate: of the server, shown to sites.
        key: of that.
        superlink: ``https://127.0.0.1:PORT``.
        superlink_ca: whose certificates the SuperLink shows.
        limit: bytes of a request's body.
    """

    host: str
    port: int
    certificate: str
    key: str
    superlink: str
    superlink_ca: str
    limit: int

    def write(self, path: Path) -> Path:
        """Write the settings for the process."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path


def make_app(settings: Settings) -> Starlette:
    """The application: every path but those of sites is 403, a body over the limit 413, a lost SuperLink 502."""
    trusted = ssl.create_default_context(cafile=settings.superlink_ca)
    client = httpx.AsyncClient(base_url=settings.superlink, verify=trusted, timeout=None, trust_env=False)

    async def passed(request: Request) -> Response:
        if not _is_open(request.scope):
            return PlainTextResponse("only sites are served here\n", 403)
        if int(request.headers.get("content-length") or 0) > settings.limit:
            return PlainTextResponse(f"wanted at most {settings.limit} bytes\n", 413)

        async def body() -> AsyncIterator[bytes]:
            so_far = 0
            async for chunk in request.stream():
                so_far += len(chunk)
                if so_far > settings.limit:
                    raise _TooMuch
                yield chunk

        headers = [(name, value) for name, value in request.headers.items() if name not in OWN]
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        onward = client.build_request(request.method, target, headers=headers, content=body())
        try:
            answer = await client.send(onward, stream=True)
        except _TooMuch:
            return PlainTextResponse(f"wanted at most {settings.limit} bytes\n", 413)
        except httpx.TransportError as error:
            log.warning("the SuperLink does not answer: %s", error)
            return PlainTextResponse("the server does not answer\n", 502)
        kept = {name: value for name, value in answer.headers.items() if name not in OWN}
        return StreamingResponse(answer.aiter_raw(), answer.status_code, kept, background=BackgroundTask(answer.aclose))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await client.aclose()

    methods = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]
    return Starlette(routes=[Route("/{path:path}", passed, methods=methods)], lifespan=lifespan)


class _TooMuch(Exception):
    """A body went over the limit while it came in."""


def _is_open(scope: Mapping[str, Any]) -> bool:
    """Whether a path is one of the sites', read in one way only: no dots, no escapes."""
    path, raw = str(scope["path"]), bytes(scope.get("raw_path") or b"").partition(b"?")[0]
    plain = raw in (b"", path.encode("ascii", "replace"))
    return plain and path.startswith(OPEN) and not {"", ".", ".."} & set(path[1:].split("/"))


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
