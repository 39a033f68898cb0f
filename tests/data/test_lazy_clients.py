"""A federation of more clients than are read at the start, against the same one read whole."""

import pytest

from fl_lightning.data import client_data
from fl_lightning.data.client_data import load_clients, pool_clients
from fl_lightning.data.lazy_clients import LazyClients
from fl_lightning.data.teams import regroup_clients
from fl_lightning.errors import InputError


@pytest.fixture
def root(tmp_path, write_jsonl):
    for number in range(3):
        records = [{"prompt": f"question {i}", "completion": f"answer {i} of {number}"} for i in range(6)]
        write_jsonl(tmp_path / "data" / "hr" / f"c{number}.jsonl", records)
        write_jsonl(tmp_path / "data" / "it" / f"c{number}" / "train.jsonl", records[:4])
        write_jsonl(tmp_path / "data" / "it" / f"c{number}" / "eval.jsonl", records[4:])
    return tmp_path / "data"


@pytest.fixture
def lazy(monkeypatch, tokenizer, root, tmp_path):
    """Load lazily, with a store in the test's folder."""

    def load(**options):
        monkeypatch.setattr(client_data, "LAZY_ABOVE", 2)
        return load_clients(root, tokenizer, token_store=str(tmp_path / "store"), **options)

    return load


def tokens(client):
    return [[(e.ids.tolist(), e.supervised.tolist()) for e in s] for s in (client.train, client.eval, client.selection)]


OPTIONS = [{}, {"max_records": 2, "eval_records": 1}, {"selection": 0.5, "seed": 3, "eval_fraction": 0.4}]


@pytest.mark.parametrize("options", OPTIONS)
def test_clients_are_those_of_an_eager_read_cold_and_warm(lazy, root, tokenizer, options):
    whole = load_clients(root, tokenizer, **options)
    for data in (lazy(**options), lazy(**options)):  # the second one reads the store
        assert isinstance(data, LazyClients)
        assert list(data) == list(whole)
        assert {c: tokens(data[c]) for c in data} == {c: tokens(whole[c]) for c in whole}
        assert [data[c].client_id for c in data] == list(whole)


def test_nothing_is_read_before_it_is_needed_and_a_bad_line_is_then_named(lazy, root):
    path = root / "hr" / "c1.jsonl"
    path.write_text(path.read_text() + "{\n")
    data = lazy()
    assert data["hr/c0"].train
    with pytest.raises(InputError, match=r"c1\.jsonl:7: "):
        data["hr/c1"]
    path.write_text("\n")
    with pytest.raises(InputError, match=r"c1\.jsonl: no training records"):
        data["hr/c1"]


def test_the_store_spares_tokenizing_and_follows_the_records(lazy, root, monkeypatch):
    before = tokens(lazy()["it/c0"])
    with monkeypatch.context() as patch:
        patch.setattr(client_data, "encode", None)  # would fail
        assert tokens(lazy()["it/c0"]) == before
    path = root / "it" / "c0" / "train.jsonl"
    path.write_text(path.read_text().replace("answer 0", "reply 0"))
    assert tokens(lazy()["it/c0"]) != before


def test_another_template_length_or_tokenizer_has_a_store_of_its_own(lazy, tokenizer, tmp_path, monkeypatch):
    lazy()["it/c0"]
    lazy(max_length=16)["it/c0"]
    monkeypatch.setattr(tokenizer, "chat_template", "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}")
    lazy()["it/c0"]
    assert len(list((tmp_path / "store").iterdir())) == 3


def test_a_damaged_store_is_made_again(lazy, tmp_path):
    before = tokens(lazy()["it/c0"])
    (path,) = (tmp_path / "store").iterdir()
    path.write_bytes(b"?" * path.stat().st_size)
    assert tokens(lazy()["it/c0"]) == before
    assert b"?" * 100 not in path.read_bytes()


def test_a_store_that_cannot_be_written_is_left_out(lazy, root, tokenizer, monkeypatch, caplog, tmp_path):
    (tmp_path / "store").write_text("a file")
    assert tokens(lazy()["it/c0"]) == tokens(load_clients(root, tokenizer)["it/c0"])
    assert "tokens are not kept on disk" in caplog.text


def test_teams_and_the_pool_are_those_of_an_eager_read(lazy, root, tokenizer):
    whole, teams = load_clients(root, tokenizer), {"it/c1": "core", "hr/c2": "core"}
    regrouped, expected = regroup_clients(lazy(), teams), regroup_clients(whole, teams)
    assert list(regrouped) == list(expected)
    assert [regrouped[c].client_id for c in regrouped] == list(expected)
    assert {c: tokens(regrouped[c]) for c in regrouped} == {c: tokens(expected[c]) for c in expected}
    assert tokens(pool_clients(lazy())) == tokens(pool_clients(whole))
