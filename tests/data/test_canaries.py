"""Canaries: whose they are, what they look like, and which of them are trained on."""

import json
from dataclasses import replace

import pytest
import torch

from fl_lightning.config import AuditConfig, DataConfig, RunConfig
from fl_lightning.data.canaries import add_canaries, draw_coins, from_json, make_canaries, to_json
from fl_lightning.data.client_data import ClientData
from fl_lightning.errors import InputError


@pytest.fixture
def data(make_examples):
    return {
        f"hr/{name}": ClientData("hr", name, make_examples(5, seed), make_examples(2, 9))
        for seed, name in enumerate("ab")
    }


def numbered(prompts, seed):
    """An answer that says which prompt it is to, and the seed."""
    return [torch.tensor([100 + i, seed % 1000]) for i in range(len(prompts))]


def made(data, count=7, max_length=100, **options):
    config = AuditConfig(canaries=count, answer_tokens=2, **options)
    return make_canaries(data, config, seed=1, max_length=max_length, answer=numbered, vocabulary=range(5, 4096))


def test_coins_are_fair_and_depend_on_seed_and_client():
    coins = draw_coins(4000, "hr/a", 1)
    assert sum(coins) == pytest.approx(2000, abs=4 * 1000**0.5)
    assert coins == draw_coins(4000, "hr/a", 1)
    assert coins[:64] != draw_coins(64, "hr/b", 1)
    assert coins[:64] != draw_coins(64, "hr/a", 2)


def test_a_canary_has_a_prompt_of_the_clients_and_a_generated_answer(data):
    own = made(data)["hr/a"]
    prompts = [e.ids[: int(e.supervised.nonzero()[0])].tolist() for e in data["hr/a"].train]
    got = [record.ids[~record.supervised].tolist() for record in own.records]
    assert sorted(got[:5]) == sorted(prompts)  # each once before any comes again
    assert all(prompt in prompts for prompt in got[5:])
    assert [record.ids[record.supervised][0] for record in own.records] == [100 + i for i in range(7)]
    assert all(record.supervised.tolist() == sorted(record.supervised.tolist()) for record in own.records)


def test_long_prompts_are_cut_at_their_beginning(data):
    for record, whole in zip(made(data, max_length=5)["hr/a"].records, made(data)["hr/a"].records, strict=True):
        assert len(record) <= 5
        assert record.ids.tolist() == whole.ids[-len(record) :].tolist()


def test_a_clients_canaries_depend_on_no_other_client(data):
    alone = made({"hr/b": data["hr/b"]})["hr/b"]
    both = made(data)["hr/b"]
    assert alone.coins == both.coins
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(alone.records, both.records, strict=True))


def test_included_ones_come_behind_the_other_training_records(data):
    canaries = made(data)
    client = add_canaries(data, canaries)["hr/a"]
    count = sum(canaries["hr/a"].coins)
    assert 0 < count < 7
    assert list(client.train[:5]) == list(data["hr/a"].train)
    expected = [r for r, coin in zip(canaries["hr/a"].records, canaries["hr/a"].coins, strict=True) if coin]
    assert [e.ids.tolist() for e in client.train[5:]] == [e.ids.tolist() for e in expected]
    assert client.eval == data["hr/a"].eval


def test_new_tokens_are_in_no_record_and_not_twice(data):
    own = made(data, kind="new_tokens")["hr/a"]
    answers = [record.ids[record.supervised].tolist() for record in own.records]
    assert all(len(answer) == 1 for answer in answers)
    used = {i for split in (data["hr/a"].train, data["hr/a"].eval) for e in split for i in e.ids.tolist()}
    tokens = [answer[0] for answer in answers]
    assert not used & set(tokens)
    assert len(set(tokens)) == 7


def test_more_new_tokens_than_there_are_is_refused(data):
    config = AuditConfig(canaries=3, kind="new_tokens")
    used = data["hr/a"].train[0].ids.tolist()
    with pytest.raises(InputError, match=r"audit.canaries: hr/a: expected at most 1 .*got 3; give fewer"):
        make_canaries(data, config, seed=1, max_length=9, answer=numbered, vocabulary=[*used, 4095])


def test_what_is_written_is_read_again(data):
    canaries = made(data)
    read = from_json(json.loads(json.dumps(to_json(canaries))), "canaries.json")
    assert list(read) == list(canaries)
    for client_id, own in canaries.items():
        assert read[client_id].coins == own.coins
        for one, other in zip(read[client_id].records, own.records, strict=True):
            assert torch.equal(one.ids, other.ids)
            assert torch.equal(one.supervised, other.supervised)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"clients": []},
        {"clients": {"hr/a": [{"in": 1, "prompt": [1], "answer": [2]}]}},
        {"clients": {"hr/a": [{"in": True, "prompt": [], "answer": [2]}]}},
        {"clients": {"hr/a": [{"in": True, "prompt": [1], "answer": [-2]}]}},
        {"clients": {"hr/a": [{"in": True, "prompt": [1], "answer": [True]}]}},
    ],
)
def test_another_file_is_refused(value):
    with pytest.raises(InputError, match="canaries.json: expected canaries"):
        from_json(value, "canaries.json")


def test_answers_as_long_as_a_record_are_refused():
    with pytest.raises(InputError, match="audit.answer_tokens: expected fewer than data.max_length"):
        RunConfig(audit=AuditConfig(canaries=1, answer_tokens=16), data=DataConfig(max_length=16))
    replace(RunConfig(audit=AuditConfig(answer_tokens=16), data=DataConfig(max_length=16)))
