"""Requests without a server: one ASGI call after another, with what comes and goes as plain messages."""

import asyncio
import json
from types import SimpleNamespace

import pytest


def with_host(headers):
    """Headers of a request to this machine, unless they name another host."""
    named = any(name.lower() == "host" for name, _ in headers)
    return [*([] if named else [("Host", "127.0.0.1:8000")]), *headers]


@pytest.fixture
def asgi():
    """Factory of calls: ``await call(app, path, ...)`` gives status, headers, body and the messages sent."""

    async def call(app, path="/v1/chat/completions", method="POST", headers=(), messages=None, send=None, kind="http"):
        received = list([{"type": "http.request", "body": b"{}"}] if messages is None else messages)
        sent = []

        async def receive():
            if not received:
                await asyncio.Event().wait()  # nothing more comes, and the client stays
            message = received.pop(0)
            if callable(message):
                message = await message()
            return message

        async def keep(message):
            sent.append(message)

        scope = {
            "type": kind, "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method,
            "path": path, "raw_path": path.encode(), "root_path": "", "scheme": "http", "query_string": b"",
            "headers": [(name.lower().encode(), value.encode()) for name, value in with_host(headers)],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
        }  # fmt: skip
        await app(scope, receive, send or keep)
        starts = [message for message in sent if message["type"] == "http.response.start"]
        body = b"".join(message.get("body", b"") for message in sent if message["type"] == "http.response.body")
        start = starts[0] if starts else {"status": None, "headers": []}
        pairs = {name.decode(): value.decode() for name, value in start["headers"]}
        is_json = pairs.get("content-type") == "application/json"
        return SimpleNamespace(
            status=start["status"], headers=pairs, body=body, json=json.loads(body) if is_json else None, sent=sent
        )

    return call
