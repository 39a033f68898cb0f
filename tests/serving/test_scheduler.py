"""Who is answered when, with the bundled base and two adapters on it."""

import queue

import pytest
import torch

from fl_lightning.modeling.generation.adapter_bank import AdapterBank, BankedAdapter
from fl_lightning.modeling.generation.adapter_mixture import AdapterMixture
from fl_lightning.modeling.generation.generate import generate
from fl_lightning.modeling.generation.token_sampling import Sampling
from fl_lightning.modeling.lora import collect_lora_state, create_lora_model
from fl_lightning.serving import scheduler as desks
from fl_lightning.serving.engine import Answering
from fl_lightning.serving.messages import Cancel, GenerateRequest
from fl_lightning.serving.scheduler import BatchScheduler

GREEDY = Sampling(temperature=0)


@pytest.fixture
def answering(micro_qwen, tokenizer):
    model = create_lora_model(micro_qwen)
    return Answering(model, tokenizer, AdapterBank(model), frozenset(), collect_lora_state(model))


@pytest.fixture
def models(answering, random_state):
    own = {name: random_state(answering.model, seed) for seed, name in enumerate(("hr", "finance"))}
    banked = {name: answering.bank.prepare(state, fingerprint=f"fp_{name}") for name, state in own.items()}
    return {"base": BankedAdapter({}, "fp_base"), **banked}


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(desks, "MIN_CHUNK_SECONDS", 0.0)


class Office:
    """A desk, with what it sends; `turn` lets it work once, as `work` does while others wait."""

    def __init__(self, answering, models, max_batch=8):
        self.sent, self.order = {}, []
        self.desk = BatchScheduler(answering, models, max_batch, self.send)
        self.inbox = queue.SimpleQueue()

    def send(self, consumer, uid, piece):
        self.order.append(uid)
        self.sent.setdefault((consumer, uid), []).append(piece)

    def ask(self, uid, model="hr", prompt=(5, 6, 7), length=4, stream=False, consumer=0):
        self.inbox.put((consumer, GenerateRequest(uid, model, tuple(prompt), length, GREEDY, stream)))

    def cancel(self, uid):
        self.inbox.put((0, Cancel(uid)))

    def turn(self, times=1):
        """Work so often, unless there is nothing left to do: the desk would wait for it."""
        left = iter(range(times))
        self.desk.work(self.inbox, lambda: self.busy() and next(left, None) is not None)

    def busy(self):
        return not self.inbox.empty() or bool(self.desk._running or self.desk._waiting)

    def pieces(self, uid, consumer=0):
        return self.sent.get((consumer, uid), [])

    def tokens(self, uid):
        return [token for piece in self.pieces(uid) for token in piece.tokens]


@pytest.fixture
def office(answering, models):
    return Office(answering, models)


def alone(answering, models, model, prompt, length=4):
    """What transformers' own generation answers, with the adapter's update folded into no cache of ours."""
    with answering.bank.attached():
        answering.bank.set_rows([models[model]])
        (got,) = generate(answering.model, [torch.tensor(prompt)], max_new_tokens=length, ends=[])
    return got.tolist()


def test_an_answer_is_the_adapters_own_and_is_sent_once(office, answering, models):
    office.ask("a", "hr", (5, 6, 7))
    office.ask("b", "finance", (9, 8), length=2)
    office.ask("c", "base", (5, 6, 7))
    office.turn(5)
    for uid, model, prompt, length in (
        ("a", "hr", (5, 6, 7), 4),
        ("b", "finance", (9, 8), 2),
        ("c", "base", (5, 6, 7), 4),
    ):
        (piece,) = office.pieces(uid)
        assert list(piece.tokens) == alone(answering, models, model, prompt, length)
        assert (piece.finish, piece.fingerprint, piece.error) == ("length", f"fp_{model}", None)
    assert office.tokens("a") != office.tokens("c")
    assert office.order == ["b", "a", "c"]  # the shorter one is there first


def test_streamed_pieces_are_the_answer(office, answering, models):
    office.ask("a", stream=True, length=5)
    office.turn(6)
    pieces = office.pieces("a")
    assert [len(piece.tokens) for piece in pieces] == [1] * 5
    assert [piece.finish for piece in pieces] == [None] * 4 + ["length"]
    assert office.tokens("a") == alone(answering, models, "hr", (5, 6, 7), 5)


def test_between_two_pieces_tokens_are_gathered(office, monkeypatch, answering, models):
    monkeypatch.setattr(desks, "MIN_CHUNK_SECONDS", 1e9)
    clock = iter([1e10, 1e10 + 1, 1e10 + 2, 1e10 + 3, 1e10 + 4, 1e10 + 5])
    monkeypatch.setattr(desks.time, "monotonic", lambda: next(clock))
    office.ask("a", stream=True, length=5)
    office.turn(5)
    assert [len(piece.tokens) for piece in office.pieces("a")] == [1, 4]  # the first at once, the rest at the end
    monkeypatch.undo()
    assert office.tokens("a") == alone(answering, models, "hr", (5, 6, 7), 5)


def test_as_many_are_answered_as_there_is_room_for_and_the_others_wait_in_order(answering, models):
    office = Office(answering, models, max_batch=2)
    for uid in "abcde":
        office.ask(uid, stream=True, length=3)
    under_way = []
    for _ in range(9):
        office.turn()
        under_way.append(len(office.desk._decoder.answers))
    assert max(under_way) == 2
    assert [uid for uid in office.order if office.pieces(uid)[0].finish is None][:2] == ["a", "b"]
    assert list(dict.fromkeys(office.order)) == list("abcde")
    wanted = alone(answering, models, "hr", (5, 6, 7), 3)
    assert [office.tokens(uid) for uid in "abcde"] == [wanted] * 5


def test_a_mixture_takes_a_row_for_each_of_its_adapters(answering, models):
    models["hr+"] = AdapterMixture((models["hr"], models["finance"], models["base"]), (0.5, 0.3, 0.2), "fp_mixture")
    office = Office(answering, models, max_batch=4)
    for uid, model in (("a", "hr"), ("b", "hr+"), ("c", "hr+"), ("d", "hr")):
        office.ask(uid, model, stream=True, length=3)
    rows = []
    for _ in range(9):
        office.turn()
        rows.append(sum(len(answer.rows) for answer in office.desk._decoder.answers))
    assert max(rows) == 4
    assert list(dict.fromkeys(office.order)) == list("abcd")  # c waits for room, and d does not pass it by
    assert office.tokens("b") == office.tokens("c")
    assert office.pieces("b")[-1].fingerprint == "fp_mixture"
    assert office.tokens("a") == alone(answering, models, "hr", (5, 6, 7), 3)


def test_a_mixture_of_more_rows_than_there_is_room_for_is_answered_alone(answering, models):
    models["hr+"] = AdapterMixture((models["hr"], models["finance"], models["base"]), (0.5, 0.3, 0.2))
    office = Office(answering, models, max_batch=2)
    for uid, model in (("a", "hr"), ("b", "hr+"), ("c", "hr")):
        office.ask(uid, model, length=3)
    under_way = []
    for _ in range(12):
        office.turn()
        under_way.append([len(answer.rows) for answer in office.desk._decoder.answers])
    assert [rows for rows in under_way if 3 in rows] == [[3]] * 2
    assert office.order == ["a", "b", "c"]


def test_a_new_one_joins_those_under_way_without_changing_them(office, answering, models):
    office.ask("a", "hr", (5, 6, 7), length=6)
    office.turn(2)
    office.ask("b", "finance", tuple(range(10, 30)), length=6)
    office.turn(8)
    assert office.tokens("a") == alone(answering, models, "hr", (5, 6, 7), 6)
    assert office.tokens("b") == alone(answering, models, "finance", tuple(range(10, 30)), 6)


def test_a_cancelled_one_that_waits_is_never_begun(answering, models):
    office = Office(answering, models, max_batch=1)
    for uid in "abc":
        office.ask(uid)
    office.turn()
    office.cancel("b")
    office.turn(9)
    assert (office.pieces("b"), office.order) == ([], ["a", "c"])


def test_a_cancelled_one_under_way_leaves_and_the_others_go_on(office, answering, models):
    office.ask("a", length=6)
    office.ask("b", "finance", length=6)
    office.turn(2)
    office.cancel("a")
    office.cancel("unknown")
    office.turn()
    assert len(office.desk._decoder.answers) == 1
    office.turn(8)
    assert office.pieces("a") == []
    assert office.tokens("b") == alone(answering, models, "finance", (5, 6, 7), 6)


def test_a_cancelled_one_makes_room(answering, models):
    office = Office(answering, models, max_batch=1)
    office.ask("a", length=1000)
    office.ask("b", length=1)
    office.turn(3)
    office.cancel("a")
    office.turn(2)
    assert office.order == ["b"]


def test_a_cancel_that_comes_with_its_prompt_leaves_nothing(office):
    office.ask("a")
    office.cancel("a")
    office.ask("b", length=1)
    office.turn(2)
    assert office.order == ["b"]
    assert not office.desk._waiting
    assert not office.desk._running


def test_a_model_that_is_not_loaded_is_said_to_the_one_who_asked(office):
    office.ask("a", "legal", consumer=3)
    office.ask("b", length=1)
    office.turn(2)
    (piece,) = office.pieces("a", consumer=3)
    assert (piece.error, piece.tokens, piece.finish) == ("model legal could not be loaded", (), None)
    assert office.pieces("b")[0].error is None


def test_an_error_fails_those_under_way_and_nobody_else(answering, models, monkeypatch):
    office = Office(answering, models, max_batch=2)
    for uid in "abc":
        office.ask(uid, stream=True, length=4)
    office.turn(2)
    monkeypatch.setattr(office.desk._decoder, "step", lambda: 1 / 0)
    office.turn()
    assert [office.pieces(uid)[-1].error for uid in "ab"] == ["ZeroDivisionError while decoding"] * 2
    office.turn(6)
    assert office.tokens("c") == alone(answering, models, "hr", (5, 6, 7), 4)
    office.ask("d")
    office.turn(6)
    assert office.tokens("d") == office.tokens("c")
    assert not office.desk._running


def test_a_prompt_that_cannot_be_read_fails_and_the_next_is_answered(office):
    office.ask("a", prompt=(10**6,))  # no such token
    office.turn()
    assert office.pieces("a")[0].error == "IndexError while decoding"
    office.ask("b", length=1)
    office.turn(2)
    assert office.pieces("b")[0].finish == "length"


def test_after_an_error_nobody_gets_the_adapter_of_another(office, answering, models, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("no memory left")

    def turns():
        office.ask("a", "finance", length=1)
        yield True
        with monkeypatch.context() as patched:
            patched.setattr(torch, "cat", full)  # while the adapters of the next answer are put in place
            office.ask("b", "hr")
            yield True
        office.ask("c", "hr")
        while office.busy():
            yield True

    script = turns()
    office.desk.work(office.inbox, lambda: next(script, False))
    assert office.pieces("b")[0].error == "OutOfMemoryError while decoding"
    assert office.tokens("c") == alone(answering, models, "hr", (5, 6, 7))
    assert office.tokens("c") != alone(answering, models, "finance", (5, 6, 7))


def test_a_newer_adapter_answers_new_prompts_only(office, answering, models, random_state):
    before, wanted = models["hr"], alone(answering, models, "hr", (5, 6, 7), 6)
    office.ask("a", length=6)
    office.turn(2)
    models["hr"] = answering.bank.prepare(random_state(answering.model, 9), fingerprint="fp_newer")
    office.ask("b", length=6)
    office.turn(9)
    assert office.tokens("a") == wanted
    assert office.tokens("b") == alone(answering, models, "hr", (5, 6, 7), 6) != wanted
    assert [office.pieces(uid)[0].fingerprint for uid in "ab"] == [before.fingerprint, "fp_newer"]


def test_an_answer_may_be_empty(micro_qwen, tokenizer):
    model = create_lora_model(micro_qwen)
    everything = frozenset(range(4096))
    answering = Answering(model, tokenizer, AdapterBank(model), everything, collect_lora_state(model))
    office = Office(answering, {"base": BankedAdapter({})})
    office.ask("a", "base", stream=True)
    office.turn()
    (piece,) = office.pieces("a")
    assert (piece.tokens, piece.finish) == ((), "stop")


def test_the_model_is_its_own_again_after_work(office, answering):
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        before = answering.model(ids).logits
        office.ask("a", "finance")
        office.turn(5)
        assert torch.equal(answering.model(ids).logits, before)
