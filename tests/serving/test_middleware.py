"""What is let through to the endpoints, and what is answered instead of them."""

import asyncio
import hmac
import logging

import pytest

pytest.importorskip("prometheus_client", reason="prometheus_client is not installed: pip install 'fl_lightning[serve]'")

from fl_lightning.serving import middleware as gates
from fl_lightning.serving.metrics import ServingMetrics
from fl_lightning.serving.middleware import CHAT, COMPLETIONS, AccessMiddleware

KEY = "correct-horse-battery"
BEARER = [("Authorization", f"Bearer {KEY}")]


class Behind:
    """What lies behind the gate: it reads the body, remembers it, and answers 200 unless told to do otherwise."""

    def __init__(self):
        self.bodies, self.paths, self.then = [], [], None

    async def __call__(self, scope, receive, send):
        self.paths.append(scope["path"])
        if scope["type"] == "http" and scope["method"] == "POST":
            message = await receive()
            assert not message["more_body"]
            self.bodies.append(message["body"])
        if self.then is not None:
            await self.then(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"fine"})


@pytest.fixture
def behind():
    return Behind()


@pytest.fixture
def make(behind):
    def make(api_key="", max_body=100, max_requests=2):
        metrics = ServingMetrics()
        key = gates.digest(api_key.encode()) if api_key else None
        gate = AccessMiddleware(behind, metrics=metrics, key=key, max_body=max_body, max_requests=max_requests)
        gate.metrics = metrics
        return gate

    return make


def parts(*bodies, more=False):
    last = len(bodies) - 1
    return [{"type": "http.request", "body": body, "more_body": more or i < last} for i, body in enumerate(bodies)]


def counted(gate, path, status):
    return gate.metrics.registry.get_sample_value("fl_requests_total", {"path": path, "status": str(status)}) or 0


def under_way(gate):
    return gate.metrics.registry.get_sample_value("fl_requests_in_flight")


def test_without_a_key_all_pass(make, behind, asgi):
    gate = make()
    reply = asyncio.run(asgi(gate))
    assert (reply.status, reply.body, behind.bodies) == (200, b"fine", [b"{}"])
    assert counted(gate, CHAT, 200) == 1


@pytest.mark.parametrize("value", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER {KEY}", f"Bearer  {KEY} "])
def test_the_right_key_passes(make, behind, asgi, value):
    assert asyncio.run(asgi(make(KEY), headers=[("authorization", value)])).status == 200
    assert behind.bodies == [b"{}"]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", "")],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer ")],
        [("Authorization", KEY)],
        [("Authorization", f"Basic {KEY}")],
        [("Authorization", f"Bearer {KEY}x")],
        [("Authorization", f"Bearer {KEY[:-1]}")],
        [("Authorization", f"Bearer {KEY.upper()}")],
        [("Authorization", f"Bearer\t{KEY}")],
        [("X-API-Key", KEY)],
    ],
)
@pytest.mark.parametrize(
    ("path", "method"),
    [(CHAT, "POST"), (COMPLETIONS, "POST"), ("/v1/models", "GET"), ("/metrics", "GET"), ("/x", "GET")],
)
def test_without_the_right_key_nothing_passes(make, behind, asgi, headers, path, method):
    gate = make(KEY)
    reply = asyncio.run(asgi(gate, path, method, headers))
    assert (reply.status, behind.paths) == (401, [])
    assert reply.json["error"]["code"] == "invalid_api_key"
    assert KEY not in reply.body.decode()


def test_health_needs_no_key(make, behind, asgi):
    assert asyncio.run(asgi(make(KEY), "/health", "GET")).status == 200
    assert behind.paths == ["/health"]
    assert asyncio.run(asgi(make(KEY), "/health/", "GET")).status == 401


def test_keys_are_compared_in_constant_time_and_at_constant_length(make, asgi, monkeypatch):
    seen = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: seen.append((len(a), len(b))) or compare(a, b))
    gate = make(KEY)
    for key in (KEY, "x", "x" * 1000):
        asyncio.run(asgi(gate, headers=[("Authorization", f"Bearer {key}")]))
    assert seen == [(32, 32)] * 3


def test_the_key_is_nowhere_to_be_read(make):
    gate = make(KEY)
    assert KEY not in repr(gate) + repr(vars(gate))


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/chat/completions/",
        "/v1/completions/",
        "/docs",
        "/openapi.json",
        "/info",
        "/shutdown",
        "/predict",
    ],
)
def test_other_paths_are_not_there(make, behind, asgi, path):
    gate = make()
    for method in ("GET", "POST", "DELETE"):
        reply = asyncio.run(asgi(gate, path, method))
        assert (reply.status, reply.json["error"]["code"]) == (404, "not_found")
    assert behind.paths == []
    assert counted(gate, "other", 404) == 3  # whatever is asked for, one series


@pytest.mark.parametrize(
    ("path", "wanted"),
    [(CHAT, "POST"), (COMPLETIONS, "POST"), ("/v1/models", "GET"), ("/v1/models/hr/client_0", "GET")],
)
def test_other_methods_are_refused(make, behind, asgi, path, wanted):
    gate = make()
    for method in {"GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"} - {wanted}:
        reply = asyncio.run(asgi(gate, path, method))
        assert (reply.status, reply.json["error"]["code"]) == (405, "method_not_allowed")
        assert wanted in reply.json["error"]["message"]
    assert behind.paths == []
    assert asyncio.run(asgi(gate, path, wanted)).status == 200


@pytest.mark.parametrize(
    ("length", "status"), [("101", 413), ("9" * 5000, 413), ("-1", 400), ("many", 400), ("1e2", 400), ("", 400)]
)
def test_a_length_that_is_too_much_or_none_is_refused_unread(make, behind, asgi, length, status):
    read = []

    async def watched():
        read.append(1)
        return parts(b"{}")[0]

    reply = asyncio.run(asgi(make(), headers=[("Content-Length", length)], messages=[watched]))
    assert (reply.status, read, behind.bodies) == (status, [], [])
    text = {413: "the body is too large, expected at most 100 bytes", 400: "Content-Length: expected a number"}
    assert reply.json["error"]["message"] == text[status]
    assert reply.headers["connection"] == "close"


def test_the_largest_body_passes_and_one_byte_more_does_not(make, behind, asgi):
    gate = make(max_body=10)
    assert asyncio.run(asgi(gate, headers=[("Content-Length", "10")], messages=parts(b"x" * 10))).status == 200
    for headers in ([], [("Content-Length", "2")]):  # in chunks of no said length; or a lie
        assert asyncio.run(asgi(gate, headers=headers, messages=parts(b"x" * 6, b"x" * 5))).status == 413
    assert behind.bodies == [b"x" * 10]
    assert under_way(gate) == 0


def test_a_body_without_end_is_not_read_to_it(make, asgi):
    read = []

    async def another():
        read.append(1)
        return parts(b"x" * 40, more=True)[0]

    assert asyncio.run(asgi(make(), messages=[another] * 50)).status == 413
    assert len(read) == 3  # 120 bytes are more than 100


def test_a_body_in_many_parts_is_passed_on_whole(make, behind, asgi):
    messages = [*parts(b"{", b"", b'"a": ', more=True), {"type": "http.request"}]
    messages[1].pop("body")
    messages[3:] = parts(b"1}")
    assert asyncio.run(asgi(make(), messages=messages)).status == 200
    assert behind.bodies == [b'{"a": 1}']


def test_what_comes_after_the_body_is_passed_on(make, behind, asgi):
    later = []

    async def listen(receive):
        later.append(await receive())

    behind.then = listen
    asyncio.run(asgi(make(), messages=[*parts(b"{}"), {"type": "http.disconnect"}]))
    assert later == [{"type": "http.disconnect"}]


def test_a_client_that_goes_away_before_it_has_asked_gets_nothing(make, behind, asgi):
    gate = make()
    reply = asyncio.run(asgi(gate, messages=[*parts(b"{", more=True), {"type": "http.disconnect"}]))
    assert (reply.sent, behind.bodies, under_way(gate)) == ([], [], 0)


@pytest.mark.parametrize("trickle", [False, True])
def test_a_slow_body_is_not_waited_for(make, behind, asgi, monkeypatch, trickle):
    monkeypatch.setattr(gates, "BODY_SECONDS", 0.2)
    read = []

    async def slow():
        read.append(1)
        await asyncio.sleep(0.05)  # each is quick enough, all of them are not
        return parts(b"x", more=True)[0]

    gate = make()
    reply = asyncio.run(asgi(gate, messages=[slow] * 40 if trickle else []))
    assert (reply.status, behind.bodies) == (408, [])
    assert len(read) <= 5
    assert reply.headers["connection"] == "close"
    assert under_way(gate) == 0


def test_more_requests_than_the_limit_are_sent_away_until_there_is_room(make, behind, asgi):
    async def scenario():
        gate, go = make(max_requests=2), asyncio.Event()

        async def wait(_):
            await go.wait()

        behind.then = wait
        first = [asyncio.ensure_future(asgi(gate)) for _ in range(2)]
        await asyncio.sleep(0.01)
        assert under_way(gate) == 2
        away = await asgi(gate)
        assert (away.status, away.headers["retry-after"]) == (429, "1")
        assert away.json["error"]["code"] == "rate_limit_exceeded"
        behind.then = None
        assert (await asgi(gate, "/v1/models", "GET")).status == 200  # only conversations are counted
        go.set()
        assert [reply.status for reply in await asyncio.gather(*first)] == [200, 200]
        assert (await asgi(gate)).status == 200
        assert under_way(gate) == 0

    asyncio.run(scenario())


def test_a_slot_comes_back_after_an_error_and_after_a_cancelled_request(make, behind, asgi):
    async def scenario():
        gate = make(max_requests=1)

        async def fail(_):
            raise RuntimeError("behind the gate")

        behind.then = fail
        with pytest.raises(RuntimeError):
            await asgi(gate)
        assert under_way(gate) == 0

        async def forever(_):
            await asyncio.Event().wait()

        behind.then = forever
        request = asyncio.ensure_future(asgi(gate))
        await asyncio.sleep(0.01)
        assert (await asgi(gate)).status == 429
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        behind.then = None
        assert (await asgi(gate)).status == 200

    asyncio.run(scenario())


@pytest.mark.parametrize("messages", [[{"type": "http.request", "body": b"x" * 101}], [{"type": "http.disconnect"}]])
def test_a_slot_comes_back_after_a_body_that_is_none(make, asgi, messages):
    async def scenario():
        gate = make(max_requests=1)
        for _ in range(3):
            assert (await asgi(gate, messages=messages)).status in (413, None)
        assert (await asgi(gate)).status == 200

    asyncio.run(scenario())


def test_websockets_are_turned_away(make, behind, asgi):
    reply = asyncio.run(asgi(make(), kind="websocket", messages=[{"type": "websocket.connect"}]))
    assert [message["type"] for message in reply.sent] == ["websocket.close"]
    assert behind.paths == []


def test_start_and_end_of_the_server_are_passed_on(make, behind):
    async def scenario():
        await make(KEY)({"type": "lifespan", "path": "lifespan"}, None, lambda message: asyncio.sleep(0))

    asyncio.run(scenario())
    assert behind.paths == ["lifespan"]


def test_nothing_of_a_request_is_logged(make, asgi, caplog):
    with caplog.at_level(logging.DEBUG):
        asyncio.run(asgi(make(KEY), headers=BEARER))
        asyncio.run(asgi(make(KEY), headers=[("Authorization", "Bearer not-this-one")]))
    assert KEY not in caplog.text
    assert "not-this-one" not in caplog.text


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1", "127.0.0.1:8123"])
def test_without_a_key_this_machine_is_answered(make, asgi, host):
    assert asyncio.run(asgi(make(), headers=[("Host", host)])).status == 200


@pytest.mark.parametrize(
    "headers", [[("Host", "evil.example:8000")], [("Host", "")], [("Host", "localhost.evil.example")]]
)
def test_without_a_key_another_name_is_refused(make, behind, asgi, headers):
    reply = asyncio.run(asgi(make(), headers=headers))
    assert (reply.status, reply.json["error"]["code"], behind.paths) == (403, "forbidden", [])


def test_without_a_key_a_web_page_is_refused_and_with_one_it_is_not(make, asgi):
    page = [("Origin", "https://evil.example")]
    assert asyncio.run(asgi(make(), headers=page)).status == 403
    assert asyncio.run(asgi(make(KEY), headers=[*page, *BEARER])).status == 200
    assert asyncio.run(asgi(make(KEY), headers=[("Host", "llm.example"), *BEARER])).status == 200
