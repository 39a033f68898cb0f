"""The endpoints, with a worker in their place that says what the test wants it to say."""

import asyncio
import contextlib
import json

import pytest

pytest.importorskip("prometheus_client", reason="prometheus_client is not installed: pip install 'fl_lightning[serve]'")
pytest.importorskip("litserve", reason="litserve is not installed: pip install 'fl_lightning[serve]'")

from fastapi import FastAPI
from litserve.utils import LitAPIStatus

from fl_lightning.data.records import Turn
from fl_lightning.data.tokenization import encode_prompt
from fl_lightning.errors import InputError
from fl_lightning.serving.endpoints import ChatSpec, Limits
from fl_lightning.serving.messages import Cancel, GenerateRequest, Load, TokenChunk
from fl_lightning.serving.metrics import ServingMetrics

USER = {"role": "user", "content": "Hello"}


class Models:
    """What is on offer: names and when they came."""

    def __init__(self):
        self.created = {"hr": 1000, "hr/client_0": 2000, "base": 500}
        self.looks = []

    def refresh(self, tell):
        found = self.looks.pop(0) if self.looks else {}
        if isinstance(found, Exception):
            raise found
        if found:
            tell(found)
        return found


class Worker:
    """Takes what is put into the queue and answers with the pieces set for each choice, in turn."""

    def __init__(self, spec):
        self.spec, self.posted, self.script, self.fail = spec, [], [], None
        spec.response_buffer, spec.request_queue, spec.response_queue_id = {}, self, 7

    def put(self, item):
        consumer, uid, _, message = item
        assert consumer == 7
        self.posted.append(message)
        if self.fail is not None:
            raise self.fail
        if isinstance(message, GenerateRequest):
            assert uid == message.uid
            pieces = self.script.pop(0) if self.script else []
            for piece in pieces:
                self.say(uid, piece)

    def say(self, uid, piece):
        item = self.spec.response_buffer.get(uid)
        if item is None:
            return
        item.response_queue.append((piece, LitAPIStatus.OK))
        if piece.finish is not None or piece.error is not None:
            item.response_queue.append((None, LitAPIStatus.FINISH_STREAMING))
        item.event.set()

    @property
    def asked(self):
        return [message for message in self.posted if isinstance(message, GenerateRequest)]

    @property
    def cancelled(self):
        return [message.uid for message in self.posted if isinstance(message, Cancel)]


class Served:
    def __init__(self, tokenizer, call, limits=None):
        self.metrics, self.models, self.tokenizer, self._call = ServingMetrics(), Models(), tokenizer, call
        self.spec = ChatSpec(tokenizer, self.models, limits or Limits(), self.metrics, 0.01)
        self.worker = Worker(self.spec)
        self.app = FastAPI()
        for path, endpoint, methods in self.spec.endpoints:
            self.app.add_api_route(path, endpoint, methods=methods)

    def answers(self, *texts, finish="stop"):
        """Have the next choices answered so, in pieces of one token."""
        for text in texts:
            tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            pieces = [TokenChunk((token,), None, "fp_1") for token in tokens]
            self.worker.script.append([*pieces, TokenChunk((), finish, "fp_1")])

    def tokens(self, text):
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    async def chat(self, messages=None, later=(), send=None, **keys):
        content = json.dumps({"model": "hr", "messages": messages or [USER], **keys}).encode()
        return await self._call(self.app, messages=[{"type": "http.request", "body": content}, *later], send=send)

    def ask(self, **keys):
        return asyncio.run(self.chat(**keys))

    def ask_path(self, path, **keys):
        content = json.dumps({"model": "hr", **keys}).encode()
        return asyncio.run(self._call(self.app, path, messages=[{"type": "http.request", "body": content}]))

    def get(self, path):
        return asyncio.run(self._call(self.app, path, "GET", messages=[{"type": "http.request", "body": b""}]))

    def figure(self, name, **labels):
        return self.metrics.registry.get_sample_value(name, labels) or 0

    def check_nothing_is_left(self):
        assert self.spec.response_buffer == {}


@pytest.fixture
def make(tokenizer, asgi):
    made = []

    def make(**limits):
        made.append(Served(tokenizer, asgi, Limits(**limits)))
        return made[-1]

    yield make
    for served in made:
        served.check_nothing_is_left()


@pytest.fixture
def served(make):
    return make()


def events(reply):
    """What the events of a stream hold; every one is a line of its own."""
    assert reply.headers["content-type"].startswith("text/event-stream")
    blocks = reply.body.decode().split("\n\n")
    assert blocks[-1] == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks[:-1])
    return [block if block.endswith("[DONE]") else json.loads(block[6:]) for block in blocks[:-1]]


def test_a_whole_answer(served):
    served.answers("Good morning, Zoë 😀")
    reply = served.ask(seed=3)
    assert reply.status == 200
    prompt = encode_prompt([Turn("user", "Hello")], served.tokenizer)
    tokens = served.tokens("Good morning, Zoë 😀")
    body = reply.json
    assert body.pop("id").startswith("chatcmpl-")
    assert body.pop("created") > 1.7e9
    assert body == {
        "object": "chat.completion",
        "model": "hr",
        "system_fingerprint": "fp_1",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Good morning, Zoë 😀", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": len(prompt),
            "completion_tokens": tokens,
            "total_tokens": len(prompt) + tokens,
        },
    }
    (ask,) = served.worker.asked
    assert (ask.model, list(ask.prompt), ask.max_new_tokens, ask.sampling.seed, ask.stream) == (
        "hr", prompt, 256, 3, False,
    )  # fmt: skip
    assert served.worker.cancelled == []
    assert served.figure("fl_prompt_tokens_total", model="hr") == len(prompt)
    assert served.figure("fl_generated_tokens_total", model="hr") == tokens
    assert served.figure("fl_chat_seconds_count", model="hr") == 1
    assert served.figure("fl_abandoned_total") == 0


def test_a_streamed_answer(served):
    text = "Good morning, Zoë 😀"
    served.answers(text, finish="length")
    got = events(served.ask(stream=True))
    assert got.pop() == "data: [DONE]"
    assert len({(chunk["id"], chunk["created"], chunk["object"], chunk["model"]) for chunk in got}) == 1
    assert got[0]["object"] == "chat.completion.chunk"
    deltas = [chunk["choices"][0]["delta"] for chunk in got]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta["content"] for delta in deltas[1:-1]) == text
    assert all(delta["content"] and "\ufffd" not in delta["content"] for delta in deltas[1:-1])
    assert deltas[-1] == {}
    assert [chunk["choices"][0]["finish_reason"] for chunk in got] == [None] * (len(got) - 1) + ["length"]
    assert all("usage" not in chunk for chunk in got)
    assert served.worker.asked[0].stream
    assert served.figure("fl_first_token_seconds_count", model="hr") == 1
    assert served.worker.cancelled == []


def test_a_stream_says_how_many_tokens_there_were_where_asked(served):
    served.answers("one two")
    got = events(served.ask(stream=True, stream_options={"include_usage": True}))
    assert got[-2]["choices"] == []
    prompt = len(encode_prompt([Turn("user", "Hello")], served.tokenizer))
    tokens = served.tokens("one two")
    assert got[-2]["usage"] == {
        "prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens,
    }  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices_each_have_their_own(served, stream):
    served.answers("one", "two three", "four")
    reply = served.ask(n=3, stream=stream, seed=5)
    if stream:
        texts, ends = ["", "", ""], []
        for chunk in events(reply)[:-1]:
            (choice,) = chunk["choices"]
            texts[choice["index"]] += choice["delta"].get("content", "")
            ends += [choice["index"]] if choice["finish_reason"] else []
        assert sorted(ends) == [0, 1, 2]
    else:
        texts = [choice["message"]["content"] for choice in reply.json["choices"]]
        assert [choice["index"] for choice in reply.json["choices"]] == [0, 1, 2]
        assert reply.json["usage"]["completion_tokens"] == sum(map(served.tokens, ("one", "two three", "four")))
    assert texts == ["one", "two three", "four"]
    assert [ask.sampling.seed for ask in served.worker.asked] == [5, 6, 7]
    assert len({ask.uid for ask in served.worker.asked}) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_ends_the_answer_and_the_work_on_it(served, stream):
    served.answers("one two. three four")
    reply = served.ask(stop=". t", stream=stream)
    if stream:
        chunks = events(reply)[:-1]
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        finish = chunks[-1]["choices"][0]["finish_reason"]
    else:
        text, finish = reply.json["choices"][0]["message"]["content"], reply.json["choices"][0]["finish_reason"]
    assert (text, finish) == ("one two", "stop")
    assert served.worker.asked[0].stream  # so that it comes in time to be stopped
    assert served.worker.cancelled == [served.worker.asked[0].uid]


def test_the_client_of_openai_reads_both(make, tokenizer):
    openai = pytest.importorskip("openai", reason="openai is not installed: pip install openai")
    transports = pytest.importorskip(openai.DefaultAsyncHttpxClient.__mro__[1].__module__.partition(".")[0])
    served = make()
    served.answers("Good day 😀", "Good day 😀")

    async def scenario():
        http = transports.AsyncClient(transport=transports.ASGITransport(served.app))
        client = openai.AsyncOpenAI(api_key="none", base_url="http://test/v1", http_client=http, max_retries=0)
        whole = await client.chat.completions.create(model="hr", messages=[USER])
        assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("Good day 😀", "stop")
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + served.tokens("Good day 😀")
        stream = await client.chat.completions.create(
            model="hr", messages=[USER], stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Good day 😀"
        assert chunks[-1].usage == whole.usage
        assert [model.id async for model in client.models.list()] == ["hr", "hr/client_0", "base"]
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="legal", messages=[USER])
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
        served.worker.script.append([TokenChunk(error="OutOfMemoryError while decoding")])
        stream = await client.chat.completions.create(model="hr", messages=[USER], stream=True)
        with pytest.raises(openai.APIError, match="OutOfMemoryError"):
            _ = [chunk async for chunk in stream]

    asyncio.run(scenario())


def test_models_are_listed_and_shown(served):
    about = {"id": "hr/client_0", "object": "model", "created": 2000, "owned_by": "fl_lightning"}
    listed = served.get("/v1/models").json
    assert (listed["object"], [model["id"] for model in listed["data"]]) == ("list", ["hr", "hr/client_0", "base"])
    assert listed["data"][1] == about
    assert served.get("/v1/models/hr/client_0").json == about
    for name in ("legal", "hr/", ""):
        reply = served.get(f"/v1/models/{name}")
        assert (reply.status, reply.json["error"]["code"]) == (404, "model_not_found")


def test_figures_are_shown_to_prometheus(served):
    served.answers("one two")
    served.ask()
    reply = served.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert f'fl_generated_tokens_total{{model="hr"}} {served.tokens("one two")}.0\n' in reply.body.decode()


def test_a_token_that_the_model_does_not_know_is_refused(make):
    served = make(vocabulary=40)
    reply = served.ask(messages=[{"role": "user", "content": "word"}])
    assert (reply.status, reply.json["error"]["param"]) == (400, "messages")
    assert "from 0 to 39" in reply.json["error"]["message"]
    reply = served.ask(logit_bias={"40": 1})  # of the tokenizer, which has more tokens than the model has logits
    assert (reply.status, reply.json["error"]["param"]) == (400, "logit_bias")
    assert "from 0 to 39" in reply.json["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused_is_never_posted(make, stream):
    served = make(prompt_tokens=20, new_tokens=10)
    for keys, status, code, where in (
        ({"model": "legal"}, 404, "model_not_found", "model"),
        ({"max_tokens": -1}, 400, "invalid_value", "max_tokens"),
        ({"logit_bias": {str(len(served.tokenizer)): 1}}, 400, "invalid_value", "logit_bias"),
        ({"top_k": 5}, 400, "unsupported_parameter", "top_k"),
        ({"n": 9}, 400, "invalid_value", "n"),
        ({"messages": [{"role": "user", "content": "word " * 50}]}, 413, "context_length_exceeded", "messages"),
    ):
        reply = served.ask(stream=stream, **keys)
        error = reply.json["error"]
        assert (reply.status, error["code"], error["param"]) == (status, code, where)
    assert served.worker.posted == []
    assert served.figure("fl_prompt_tokens_total", model="hr") == 0
    assert "legal" not in served.get("/metrics").body.decode()


@pytest.mark.parametrize(
    "keys", [{"max_tokens": 11}, {"max_completion_tokens": 12, "max_tokens": 1}, {"max_tokens": 10**300}, {}]
)
def test_a_longer_answer_than_the_limit_is_cut_to_it(make, keys):
    served = make(new_tokens=10)
    served.answers("x", finish="length")
    assert served.ask(**keys).json["choices"][0]["finish_reason"] == "length"
    assert served.worker.asked[0].max_new_tokens == 10


def test_a_text_is_continued_without_the_chat_template(served):
    served.answers(" morning", " evening", "b", "c")
    reply = served.ask_path("/v1/completions", prompt=["Good", "A"], n=2, seed=5, max_tokens=7)
    body = reply.json
    assert body.pop("id").startswith("cmpl-")
    assert (body["object"], body["model"]) == ("text_completion", "hr")
    assert [(c["index"], c["text"], c["finish_reason"]) for c in body["choices"]] == [
        (0, " morning", "stop"), (1, " evening", "stop"), (2, "b", "stop"), (3, "c", "stop"),
    ]  # fmt: skip
    good, a = (tuple(served.tokenizer(text)["input_ids"]) for text in ("Good", "A"))
    assert [ask.prompt for ask in served.worker.asked] == [good, good, a, a]
    assert {ask.max_new_tokens for ask in served.worker.asked} == {7}
    assert len({ask.sampling.seed for ask in served.worker.asked}) == 4
    assert body["usage"]["prompt_tokens"] == len(good) + len(a)


def test_a_continued_text_is_streamed(served):
    served.answers(" morning, all")
    got = events(served.ask_path("/v1/completions", prompt=[9, 8], stream=True))
    assert got.pop() == "data: [DONE]"
    assert {chunk["object"] for chunk in got} == {"text_completion"}
    assert "".join(chunk["choices"][0]["text"] for chunk in got) == " morning, all"
    assert [chunk["choices"][0]["finish_reason"] for chunk in got] == [None] * (len(got) - 1) + ["stop"]
    assert served.worker.asked[0].prompt == (9, 8)


def test_a_prompt_of_unknown_tokens_or_with_too_many_answers_is_refused(make):
    served = make(answers=4)
    for keys, where in (({"prompt": [len(served.tokenizer)]}, "prompt"), ({"prompt": ["a", "b", "c"], "n": 2}, "n")):
        reply = served.ask_path("/v1/completions", **keys)
        assert (reply.status, reply.json["error"]["param"]) == (400, where)
    assert served.worker.posted == []


def test_the_longest_prompt_is_taken_and_one_token_more_is_not(make, tokenizer):
    length = len(encode_prompt([Turn("user", "Hello")], tokenizer))
    short = make(prompt_tokens=length - 1)
    assert short.ask().json["error"]["message"] == f"messages: expected at most {length - 1} tokens, got {length}"
    served = make(prompt_tokens=length)
    served.answers("x")
    assert served.ask().status == 200


def test_prompt_and_answer_share_the_positions_of_the_model(make, tokenizer):
    length = len(encode_prompt([Turn("user", "Hello")], tokenizer))
    served = make(context=length + 3, new_tokens=10)
    served.answers("x", "x")
    served.ask()
    served.ask(max_tokens=2)
    assert [ask.max_new_tokens for ask in served.worker.asked] == [3, 2]
    full = make(context=length)
    assert full.ask().status == 413


def test_a_chat_template_that_refuses_is_the_askers_error(make, tokenizer, asgi):
    import copy

    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{{ raise_exception('no such turns') }}"
    served = Served(strict, asgi)
    reply = served.ask()
    assert (reply.status, reply.json["error"]["param"]) == (400, "messages")
    assert "no such turns" in reply.json["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("before", [0, 2])
def test_an_error_of_the_worker_is_one_of_the_server(served, stream, before):
    pieces = [TokenChunk((5,), None, "fp_1")] * before
    served.worker.script.append([*pieces, TokenChunk(error="OutOfMemoryError while decoding")])
    reply = served.ask(stream=stream)
    error = events(reply)[-1]["error"] if stream else reply.json["error"]
    assert reply.status == (200 if stream else 500)
    assert error == {
        "message": "no answer: OutOfMemoryError while decoding", "type": "server_error", "param": None,
        "code": "internal_error",
    }  # fmt: skip


def test_an_error_in_one_choice_ends_the_others(served):
    served.worker.script += [[TokenChunk((5,))], [TokenChunk(error="x")], [TokenChunk((5,))]]
    assert served.ask(n=3).status == 500
    uids = [ask.uid for ask in served.worker.asked]
    assert {uids[0], uids[2]} <= set(served.worker.cancelled)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("pieces", [[], [TokenChunk((5,), None, "fp_1")]])
def test_an_answer_that_is_not_there_in_time_is_given_up(make, stream, pieces):
    served = make(seconds=0.05)
    served.worker.script.append(pieces)
    reply = served.ask(stream=stream)
    error = events(reply)[-1]["error"] if stream else reply.json["error"]
    assert error["code"] == "timeout"
    assert stream or (reply.status, reply.headers["retry-after"]) == (504, "1")
    assert served.worker.cancelled == [served.worker.asked[0].uid]
    assert served.figure("fl_abandoned_total") == 0  # who asked is still there


@pytest.mark.parametrize("stream", [False, True])
def test_the_time_is_that_of_the_whole_answer(make, stream):
    served = make(seconds=0.2)

    async def scenario():
        request = asyncio.ensure_future(served.chat(stream=stream))
        said = 0
        while not request.done():
            await asyncio.sleep(0.02)
            for uid in list(served.spec.response_buffer):
                served.worker.say(uid, TokenChunk((5,)))
                said += 1
        return await request, said

    reply, said = asyncio.run(scenario())
    error = events(reply)[-1]["error"] if stream else reply.json["error"]
    assert error["code"] == "timeout"
    assert said <= 12


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_of_a_client_that_goes_away_nothing_is_left(served, stream, n):
    async def scenario():
        gone = asyncio.Event()

        async def leave():
            await gone.wait()
            return {"type": "http.disconnect"}

        request = asyncio.ensure_future(served.chat(n=n, stream=stream, later=[leave]))
        while len(served.spec.response_buffer) < n:
            await asyncio.sleep(0.001)
        for uid in list(served.spec.response_buffer):
            served.worker.say(uid, TokenChunk((5,)))
        await asyncio.sleep(0.01)
        assert served.worker.cancelled == []
        gone.set()
        await asyncio.wait_for(request, 5)
        served.check_nothing_is_left()
        assert sorted(served.worker.cancelled) == sorted(ask.uid for ask in served.worker.asked)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())
    assert served.figure("fl_abandoned_total") == n


@pytest.mark.parametrize("stream", [False, True])
def test_of_a_request_that_is_cancelled_nothing_is_left(served, stream):
    async def scenario():
        request = asyncio.ensure_future(served.chat(stream=stream))
        while not served.spec.response_buffer:
            await asyncio.sleep(0.001)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await asyncio.sleep(0.01)
        assert served.worker.cancelled == [served.worker.asked[0].uid]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())


def test_a_reader_who_stops_reading_and_goes_away_leaves_nothing(served):
    """The stream is stuck in sending then, not in waiting for the next token."""

    async def scenario():
        full, gone = asyncio.Event(), asyncio.Event()

        async def stuck(message):
            if message.get("body"):
                full.set()
                await asyncio.Event().wait()

        async def leave():
            await gone.wait()
            return {"type": "http.disconnect"}

        request = asyncio.ensure_future(served.chat(stream=True, later=[leave], send=stuck))
        await asyncio.wait_for(full.wait(), 5)
        while not served.spec.response_buffer:
            await asyncio.sleep(0.001)
        gone.set()
        await asyncio.wait_for(request, 5)
        del request
        await asyncio.sleep(0.05)
        served.check_nothing_is_left()
        assert served.worker.cancelled == [served.worker.asked[0].uid]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())


def test_a_queue_that_has_gone_ends_a_request_rather_than_hang_it(served):
    served.worker.fail = BrokenPipeError("the queue has gone")

    async def scenario():
        with pytest.raises(BrokenPipeError):
            await asyncio.wait_for(served.chat(), 2)
        return await asyncio.wait_for(served.chat(stream=True), 2)

    (_, error) = events(asyncio.run(scenario()))
    assert error["error"]["message"] == "no answer: BrokenPipeError"


def test_requests_side_by_side_do_not_get_each_others_answers(served):
    async def scenario():
        texts = [f"answer number {i}" for i in range(8)]
        served.answers(*texts)
        replies = await asyncio.gather(*(served.chat([{"role": "user", "content": f"{i}"}]) for i in range(8)))
        wanted = {ask.prompt: text for ask, text in zip(served.worker.asked, texts, strict=True)}
        for i, reply in enumerate(replies):
            prompt = tuple(encode_prompt([Turn("user", f"{i}")], served.tokenizer))
            assert reply.json["choices"][0]["message"]["content"] == wanted[prompt]

    asyncio.run(scenario())


def test_pieces_for_nobody_are_let_go(served):
    served.worker.say("unknown", TokenChunk((5,)))
    served.answers("one")
    assert served.ask().status == 200


def test_what_a_new_round_brings_is_loaded(served, tmp_path, log_messages):
    served.models.looks = [InputError("half"), OSError("gone"), {"hr": tmp_path}, {}]

    async def scenario():
        watch = asyncio.ensure_future(served.spec.watch())
        while served.models.looks:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        assert not watch.done()
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)

    asyncio.run(scenario())
    assert served.worker.posted == [Load({"hr": tmp_path})]
    assert served.figure("fl_adapter_loads_total") == 1
    assert "WARNING the run cannot be read at the moment: half" in log_messages


def test_the_process_that_computes_gets_nothing_of_it_but_the_path(served):
    import pickle

    again = pickle.loads(pickle.dumps(served.spec))
    assert set(vars(again)) == {"api_path", "_endpoints", "_max_batch_size"}
    assert again.stream


def test_requests_that_arrive_together_do_not_pass_the_limit(make):
    served = make(answers=2, seconds=5)
    served.answers("one", "two")

    async def together():
        return await asyncio.gather(*(served.chat() for _ in range(6)))

    codes = sorted(reply.status for reply in asyncio.run(together()))
    assert codes == [200, 200, 429, 429, 429, 429]
    served.answers("again")
    assert served.ask().status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_every_ending_releases_the_slots_of_a_request(make, stream):
    served = make(answers=1, seconds=5, prompt_tokens=200)
    too_long = [{"role": "user", "content": "word " * 400}]
    assert served.ask(messages=too_long).status == 413
    served.worker.fail = OSError("the queue is closed")
    with contextlib.suppress(OSError):
        served.ask(stream=stream)
    served.worker.fail = None
    served.answers("Good morning")
    assert served.ask(stream=stream).status == 200
    assert served.spec._slots.taken == 0


def test_answers_are_counted_and_not_requests_alone(make):
    served = make(answers=3, seconds=5)
    served.worker.script += [[TokenChunk((5,), "length", "fp_1")]] * 3
    assert served.ask(n=4).status == 400  # waiting would not help
    assert served.ask(n=3).status == 200
