"""The server as its users meet it: real processes, the real openai client, the tiny base."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time

import httpx
import pytest

pytest.importorskip("litserve", reason="litserve is not installed: pip install 'fl_lightning[serve]'")
openai = pytest.importorskip("openai", reason="openai is not installed: pip install openai")

from served import CLIENTS, MIXTURE, SHARED, MadeRun, Server, command_of, processes_of, serving, until  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("serving")]

QUESTIONS = ("What is due?", "Who takes leave?", "List three colours, please", "Why", "Was kostet das? Ünïcödé 🙂")
ATTACK = float(os.environ.get("FL_ATTACK_SECONDS", "4"))
"""Seconds of the attack; the figures of docs/serving.md are of 60."""
KEY = "0123456789abcdef-test"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return MadeRun(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(made):
    options = ("--watch", "1", "--max-requests", "64", "--max-new-tokens", "200", "--max-body-kib", "64")
    with serving(made.folder, *options) as found:
        yield found


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0, timeout=60)


def pairs(count):
    names = (*SHARED, *CLIENTS)
    return [(names[i % len(names)], f"{QUESTIONS[i % len(QUESTIONS)]} {i}") for i in range(count)]


def ask_all(address, asked, tokens, stream=False):
    """Everything at once; answers in order."""

    async def one(client, model, text):
        given = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0}
        answer = await client.chat.completions.create(**given, max_tokens=tokens, stream=stream)
        if stream:
            return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])
        return answer.choices[0].message.content

    async def everything():
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120) as client:
            return await asyncio.gather(*(one(client, *pair) for pair in asked))

    return asyncio.run(everything())


def metric(address, name):
    lines = httpx.get(f"{address}/metrics", timeout=60).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def test_every_adapter_has_a_name_and_the_base_too(client):
    assert [model.id for model in client.models.list()] == [*SHARED, *CLIENTS, MIXTURE, "base"]
    assert client.models.retrieve("hr/client_1").id == "hr/client_1"
    assert client.models.retrieve(MIXTURE).id == MIXTURE
    with pytest.raises(openai.NotFoundError, match="finance"):
        client.models.retrieve("finnance")
    with pytest.raises(openai.NotFoundError, match=r"'hr/client_7\+' is not served; did you mean"):
        client.models.retrieve("hr/client_7+")


@pytest.mark.parametrize("stream", [False, True])
def test_answers_at_once_are_those_of_each_adapter_alone(made, server, stream):
    asked = pairs(40)
    got = ask_all(server[0], asked, 12, stream)
    assert got == [made.says(made.states[model], text, 12) for model, text in asked]
    assert len(set(got)) > 20  # or there were little to tell apart


@pytest.mark.parametrize("stream", [False, True])
def test_a_mixture_answers_beside_single_adapters(made, server, stream):
    asked = [*pairs(10), *((MIXTURE, question) for question in QUESTIONS)]
    got = ask_all(server[0], asked, 8, stream)
    assert got[:10] == [made.says(made.states[model], text, 8) for model, text in asked[:10]]
    assert got[10:] == [made.mixture_says(text, 8) for text in QUESTIONS]


def test_draws_of_a_mixture_are_those_of_the_seed(client):
    asked = {"model": MIXTURE, "messages": [{"role": "user", "content": "List three"}], "max_tokens": 12}
    texts = [
        [c.message.content for c in client.chat.completions.create(**asked, seed=seed, n=2).choices]
        for seed in (7, 7, 11)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_stream_says_who_why_and_how_much(client, made):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(
        client.chat.completions.create(
            model="hr", messages=[{"role": "user", "content": "Why"}], temperature=0, max_tokens=2, **options
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == 2
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.model for chunk in chunks} == {"hr"}


def test_a_conversation_is_read_as_the_training_read_it(client, made):
    from fl_lightning.data.records import Turn
    from fl_lightning.data.tokenization import encode_prompt

    said = [("system", "Be brief."), ("user", "Why"), ("assistant", "Because."), ("user", "And then?")]
    answer = client.chat.completions.create(
        model="hr", messages=[{"role": role, "content": text} for role, text in said], temperature=0, max_tokens=2
    )
    assert answer.usage.prompt_tokens == len(encode_prompt([Turn(*turn) for turn in said], made.tokenizer))


def test_seeds_and_stops_are_kept(client):
    asked = {"model": "sales", "messages": [{"role": "user", "content": "List three"}], "max_tokens": 20}
    drawn = [client.chat.completions.create(**asked, seed=7, temperature=1.0, n=2).choices for _ in range(2)]
    texts = [[choice.message.content for choice in choices] for choices in drawn]
    assert texts[0] == texts[1]
    assert texts[0][0] != texts[0][1]
    whole = client.chat.completions.create(**asked, temperature=0).choices[0].message.content
    stop = whole[5:8]
    answer = client.chat.completions.create(**asked, temperature=0, stop=stop)
    assert answer.choices[0].message.content == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_a_new_round_is_taken_up_and_no_request_is_lost(made, server):
    address, stop, failed, seen = server[0], threading.Event(), [], []
    before = dict(made.states)

    def keep_asking(seed):
        draw = random.Random(seed)
        while not stop.is_set():
            model = draw.choice(["finance", "hr/client_0"])
            try:
                seen.append((model, ask_all(address, [(model, "What is due?")], 8, draw.random() < 0.5)[0]))
            except Exception as error:
                failed.append(error)

    threads = [threading.Thread(target=keep_asking, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(seen) > 8, 60)
        after = {name: made.put(name, 100 + i) for i, name in enumerate(("finance", "hr/client_0"))}
        wanted = {name: made.says(state, "What is due?", 8) for name, state in after.items()}
        until(lambda: all((name, text) in seen[-8:] for name, text in wanted.items()), 60)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed
    old = {name: made.says(before[name], "What is due?", 8) for name in wanted}
    assert set(seen) == set(wanted.items()) | set(old.items())
    assert all(old[name] != wanted[name] for name in old)


def test_a_broken_adapter_leaves_the_one_before(made, server):
    place = made.folder / "adapters" / "sales" / "adapter_model.safetensors"
    whole = place.read_bytes()
    wanted = made.says(made.states["sales"], "Why", 6)
    place.write_bytes(whole[:100])
    try:
        until(lambda: "sales keeps its previous adapter" in server[1].output(), 30)
        assert ask_all(server[0], [("sales", "Why")], 6) == [wanted]
    finally:
        place.write_bytes(whole)


def test_what_is_too_much_is_refused(server):
    address = server[0]
    chat, message = f"{address}/v1/chat/completions", [{"role": "user", "content": "Hi"}]
    long = [{"role": "user", "content": "word " * 2500}]
    asked = {
        "too many tokens": ({"model": "hr", "messages": long}, 413),
        "an unknown key": ({"model": "hr", "messages": message, "top_k": 3}, 400),
        "no such model": ({"model": "hrr", "messages": message}, 404),
        "a path": ({"model": "../../etc/passwd", "messages": message}, 404),
        "too large": ({"model": "hr", "messages": [{"role": "user", "content": "x" * 70_000}]}, 413),
    }
    for what, (body, status) in asked.items():
        answer = httpx.post(chat, json=body)
        assert answer.status_code == status, what
        assert answer.json()["error"]["message"], what
    assert httpx.post(chat, content=b"{nothing").status_code == 400
    assert httpx.get(f"{address}/docs").status_code == 404
    assert httpx.get(chat).status_code == 405


def test_more_than_there_is_room_for_is_told_to_wait(server):
    async def flood():
        body = {"model": "hr", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "max_tokens": 100}
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:
            asked = [client.post(f"{server[0]}/v1/chat/completions", json=body) for _ in range(120)]
            return await asyncio.gather(*asked)

    answers = asyncio.run(flood())
    codes = [answer.status_code for answer in answers]
    assert set(codes) == {200, 429}
    assert codes.count(200) >= 64
    assert {a.headers["retry-after"] for a in answers if a.status_code == 429} == {"1"}


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def connected(address):
    """A connection to the server, on which nothing has been sent."""
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def test_who_goes_away_is_not_worked_for(server):
    address = server[0]
    before = metric(address, "fl_abandoned_total")
    body = {"model": "hr", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "max_tokens": 200}
    chat = f"{address}/v1/chat/completions"
    assert httpx.post(chat, json=body, timeout=60).json()["choices"][0]["finish_reason"] == "length"
    with httpx.stream("POST", chat, json={**body, "stream": True}, timeout=60) as answer:
        next(answer.iter_raw())
    until(lambda: metric(address, "fl_abandoned_total") >= before + 1, 60)
    prompts, answers = metric(address, "fl_prompt_tokens_total"), 8
    with connected(address) as connection:
        sent = json.dumps({**body, "n": answers}).encode()
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(sent) + sent)
        until(lambda: metric(address, "fl_prompt_tokens_total") > prompts, 60)  # the answers have begun
    until(lambda: metric(address, "fl_abandoned_total") >= before + 1 + answers, 60)
    until(lambda: metric(address, "fl_requests_in_flight") == 0, 60)


def hostile(address, seconds, draw):
    """Malformed and broken-off requests, one after another."""
    end = time.monotonic() + seconds
    good = b'{"model":"hr","stream":true,"messages":[{"role":"user","content":"Hi"}],"max_tokens":60}'
    while time.monotonic() < end:
        kind = draw.randrange(5)
        with connected(address) as connection:
            if kind == 0:
                connection.sendall(draw.randbytes(draw.randrange(1, 300)) + b"\r\n\r\n")
            elif kind == 1:
                body = draw.randbytes(draw.randrange(1, 300))
                connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                connection.recv(500)
            elif kind == 2:  # half a body
                connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(good) + good[:20])
            elif kind == 3:  # goes away in the middle of an answer
                connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(good) + good)
                connection.recv(200)
            else:
                connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n")


def memory_of(session):
    """Resident MiB of all processes of a session."""
    found = subprocess.run(["ps", "-o", "rss=", "-s", str(session)], capture_output=True, text=True, check=True)
    return sum(map(int, found.stdout.split())) / 1024


def test_hostile_clients_take_nothing_from_the_others_and_memory_does_not_grow(made, server):
    address, process = server
    asked = pairs(12)
    wanted = [made.says(made.states[model], text, 10) for model, text in asked]

    def attacked(seconds):
        threads = [threading.Thread(target=hostile, args=(address, seconds, random.Random(i))) for i in range(3)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            assert ask_all(address, asked, 10) == wanted
        for thread in threads:
            thread.join()
        until(lambda: metric(address, "fl_requests_in_flight") == 0, 40)
        return memory_of(process.pid)

    before = attacked(ATTACK)  # until threads and buffers are there
    grown = attacked(ATTACK) - before
    print(f"{grown:+.1f} MiB after {ATTACK} s, {metric(address, 'fl_requests_total'):.0f} requests")
    assert grown < 24
    assert "Traceback" not in process.output()


def test_a_key_is_asked_for_and_told_nobody(made):
    with serving(made.folder, "--no-clients", fork=True, FL_LIGHTNING_API_KEY=KEY) as (address, process):
        assert httpx.get(f"{address}/health").status_code == 200
        for key in (None, "wrong-wrong-wrong-wrong", KEY[:-1]):
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            assert httpx.get(f"{address}/v1/models", headers=headers).status_code == 401
        client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY)
        assert [model.id for model in client.models.list()] == [*SHARED, "base"]
        asked = client.chat.completions.create(model="hr", messages=[{"role": "user", "content": "Hi"}], max_tokens=3)
        assert asked.usage.completion_tokens <= 3
        for pid in processes_of(process.pid):
            assert KEY not in command_of(pid)
        process.send_signal(signal.SIGTERM)
        code, output = process.finish(30)
        assert code == 143
        assert KEY not in output
        assert "Traceback" not in output
        until(lambda: not processes_of(process.pid), 10)


def test_a_killed_server_leaves_no_process(made):
    with serving(made.folder, "--no-clients") as (_, process):
        assert len(processes_of(process.pid)) >= 3
        process.send_signal(signal.SIGKILL)
        process.finish()
        until(lambda: not processes_of(process.pid), 20)


def test_an_adapter_that_does_not_fit_is_said_in_one_line(made):
    place = made.folder / "adapters" / "hr" / "adapter_config.json"
    whole = place.read_text()
    place.write_text(whole.replace('"r": 8', '"r": 4'))
    try:
        code, output = Server(made.folder, "--port", 18437, fork=True).finish()
    finally:
        place.write_text(whole)
    assert code == 2
    *_, last = output.splitlines()
    assert last.startswith(f"error: {place}: r: expected the rank of the tensors, 8, got 4")
    assert len(output.splitlines()) == 3, output  # what is served, and where


def test_a_server_whose_worker_dies_ends_and_says_so(server):  # the last test of the shared server
    _, process = server
    workers = [p for p in processes_of(process.pid) if "spawn_main" in command_of(p)]
    for worker in workers:
        os.kill(int(worker), signal.SIGKILL)
    code, output = process.finish(60)
    assert code == 1
    assert output.rstrip().endswith("failed: the worker process ended")
    until(lambda: not processes_of(process.pid), 20)
