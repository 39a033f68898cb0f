"""The reverse proxy in front of the SuperLink: passes on what sites need unchanged, refuses all else."""

import asyncio
import json

import pytest

pytest.importorskip("flwr", reason="Flower is not installed: pip install 'fl_lightning[flower]'")

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from fl_lightning.network.flower import reverse_proxy
from fl_lightning.network.tls import make_certificates

LIMIT = 1000


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys") / "certs"
    make_certificates(folder, ["hr/client_0"])
    return str(folder / "ca.pem")


@pytest.fixture
def asked():
    return []


@pytest.fixture
def ask(ca, asked, monkeypatch):
    """Ask the proxy, whose SuperLink echoes what it was asked."""

    async def echo(request: Request):
        body = await request.body()
        asked.append(request.url.path)
        answer = {
            "path": request.url.path,
            "query": request.url.query,
            "body": body.decode(),
            "key": request.headers.get("x-key"),
        }
        return JSONResponse(answer, 418, {"x-answer": "yes"})

    behind = Starlette(routes=[Route("/{path:path}", echo, methods=["GET", "POST"])])
    real = httpx.AsyncClient

    def client(**given):
        given.pop("verify")
        return real(**given, transport=httpx.ASGITransport(behind))

    monkeypatch.setattr(reverse_proxy.httpx, "AsyncClient", client)
    settings = reverse_proxy.Settings("127.0.0.1", 1, "", "", "https://superlink", ca, LIMIT)
    app = reverse_proxy.make_app(settings)

    def question(path, method="POST", **more):
        async def run():
            async with real(transport=httpx.ASGITransport(app), base_url="https://gate") as own:
                return await own.request(method, path, **more)

        return asyncio.run(run())

    return question


def test_what_sites_ask_and_are_told_goes_through_unchanged(ask):
    got = ask("/v1/fleet/pull-messages?x=1", content=b"hello", headers={"x-key": "k"})
    assert got.status_code == 418
    assert got.headers["x-answer"] == "yes"
    assert got.json() == {"path": "/v1/fleet/pull-messages", "query": "x=1", "body": "hello", "key": "k"}


REFUSED = [
    "/",
    "/v1/control/start-run",
    "/v1/runtime/x",
    "/docs",
    "/v1/fleet",
    "/v1/fleet/",
    "/v1/fleet/../control/start-run",
    "/v1/fleet/%2e%2e/control/start-run",
    "/v1/fleet/..%2fcontrol/start-run",
    "/v1/fleet//control",
    "/v1/%66leet/x",
    "//v1/fleet/x",
    "/V1/fleet/x",
]


@pytest.mark.parametrize("path", REFUSED)
def test_everything_else_is_refused_and_never_reaches_the_superlink(ask, asked, path):
    assert ask(httpx.URL("https://gate", raw_path=path.encode())).status_code == 403
    assert asked == []


def test_a_body_over_the_limit_is_refused_told_or_not(ask, asked):
    assert ask("/v1/fleet/push", content=b"x" * LIMIT).status_code == 418

    async def pieces():
        for _ in range(11):
            yield b"x" * 100

    assert ask("/v1/fleet/push", content=b"x" * (LIMIT + 1)).status_code == 413
    assert ask("/v1/fleet/push", content=pieces()).status_code == 413
    assert asked == ["/v1/fleet/push"]


def test_a_lost_superlink_is_502(ca):
    app = reverse_proxy.make_app(reverse_proxy.Settings("127.0.0.1", 1, "", "", "https://127.0.0.1:9", ca, LIMIT))

    async def run():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://gate") as own:
            return await own.post("/v1/fleet/x")

    assert asyncio.run(run()).status_code == 502


def test_settings_come_back_from_their_file(tmp_path):
    settings = reverse_proxy.Settings("h", 1, "c", "k", "s", "a", 5)
    assert reverse_proxy.Settings(**json.loads(settings.write(tmp_path / "x.json").read_text())) == settings
