from __future__ import annotations

import pytest

from fl_lightning.data.client_data import ClientData, load_clients
from fl_lightning.data.teams import regroup_clients
from fl_lightning.errors import InputError


@pytest.fixture
def root(tmp_path, write_jsonl):
    for department, clients in {"sales": 2, "hr": 3}.items():
        for number in range(clients):
            records = [{"prompt": f"question {i}", "completion": f"answer {i} of {department}"} for i in range(10)]
            write_jsonl(tmp_path / department / f"client_{number}.jsonl", records)
    return tmp_path


def test_departments_are_sorted_and_clients_in_natural_order(root, tokenizer):
    ids = list(load_clients(root, tokenizer))
    assert ids == ["hr/client_0", "hr/client_1", "hr/client_2", "sales/client_0", "sales/client_1"]


def test_each_client_knows_its_department_and_id(root, tokenizer):
    data = load_clients(root, tokenizer)
    assert all(client.client_id == key == f"{client.department}/{client.client}" for key, client in data.items())


def test_records_are_split_and_tokenised(root, tokenizer):
    client = load_clients(root, tokenizer, eval_fraction=0.3)["hr/client_0"]
    assert (len(client.train), len(client.eval)) == (7, 3)
    assert "of hr" in tokenizer.decode(client.train[0].ids)


def test_limits_are_kept(root, tokenizer):
    data = load_clients(root, tokenizer, clients_per_dept=1, max_records=2, max_length=12)
    assert list(data) == ["hr/client_0", "sales/client_0"]
    assert all(len(client.train) == 2 for client in data.values())
    assert max(len(e) for client in data.values() for e in [*client.train, *client.eval]) <= 12


def test_split_follows_the_seed(root, tokenizer):
    held = [
        [e.ids.tolist() for e in load_clients(root, tokenizer, seed=s)["hr/client_0"].eval] for s in (1, 1, 2, 3, 4)
    ]
    assert held[0] == held[1]
    assert any(other != held[0] for other in held[2:])


def test_bad_line_is_named_with_its_file(root, tokenizer):
    path = root / "hr" / "client_1.jsonl"
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(InputError, match=r"client_1\.jsonl:11: "):
        load_clients(root, tokenizer)


def test_bundled_departments_load_with_train_and_eval(tokenizer):
    data = load_clients("bundled:departments", tokenizer, clients_per_dept=1, max_records=3)
    assert list(data) == ["customer_support/client_0", "engineering/client_0", "finance/client_0", "hr/client_0"]
    assert all(len(client.train) == 3 and client.eval for client in data.values())


def clients(*names):
    return {name: ClientData(*name.split("/"), train=[], eval=[]) for name in names}


def test_groups_take_their_clients_out_of_the_department():
    data = clients("hr/c0", "it/c0", "it/c1", "it/c2")
    dealt = regroup_clients(data, {"it/c2": "shell", "it/c0": "apps"})
    assert list(dealt) == ["apps/c0", "hr/c0", "it/c1", "shell/c2"]
    assert [client.department for client in dealt.values()] == ["apps", "hr", "it", "shell"]
    assert regroup_clients(data, {}) == data


BAD_GROUPS = {
    "nobody": ({"it/c9": "shell"}, "shell: expected a client of the data, got 'it/c9'"),
    "a department": ({"it/c0": "hr"}, "'hr' is also a department of the data"),
    "one name twice": ({"it/c0": "shell", "hr/c0": "shell"}, "shell: two clients are called 'c0'"),
}


@pytest.mark.parametrize(("groups", "message"), BAD_GROUPS.values(), ids=BAD_GROUPS)
def test_groups_that_do_not_fit_the_data_are_refused(groups, message):
    with pytest.raises(InputError, match=f"federation.hierarchy.groups.*{message}"):
        regroup_clients(clients("hr/c0", "it/c0"), groups)


def test_one_client_is_loaded_as_among_the_others(root, tokenizer):
    everybody = load_clients(root, tokenizer)
    for client_id, client in everybody.items():
        (own,) = load_clients(root, tokenizer, client_id=client_id).values()
        assert [e.ids.tolist() for e in own.train] == [e.ids.tolist() for e in client.train]
        assert [e.ids.tolist() for e in own.eval] == [e.ids.tolist() for e in client.eval]


def test_a_client_that_is_not_there_is_named(root, tokenizer):
    with pytest.raises(InputError, match=r"data\.root: expected a client of .*, got 'nobody/x'"):
        load_clients(root, tokenizer, client_id="nobody/x")


def test_clients_with_too_few_records_are_warned_of_and_the_others_load(tmp_path, write_jsonl, tokenizer, log_messages):
    for client, count in (("empty", 0), ("one", 1), ("three", 3)):
        write_jsonl(tmp_path / "hr" / f"{client}.jsonl", [{"text": f"record {i}", "id": i} for i in range(count)])
    data = load_clients(tmp_path, tokenizer)
    assert {name: (len(c.train), len(c.eval)) for name, c in data.items()} == {"hr/one": (1, 0), "hr/three": (2, 1)}
    assert log_messages == [
        f"WARNING 1 client without training records, left out: {tmp_path}/hr/empty.jsonl",
        f"WARNING 1 client without held-out records, trained on but not evaluated: {tmp_path}/hr/one.jsonl",
        "WARNING keys of records that are not read: 'id' (4 records)",
    ]


@pytest.mark.parametrize(("count", "message"), [(0, "c.jsonl: no records; "), (1, "c.jsonl: no records to hold out")])
def test_a_department_with_nothing_to_train_or_to_hold_out_is_refused(tmp_path, write_jsonl, tokenizer, count, message):
    write_jsonl(tmp_path / "hr" / "c.jsonl", [{"text": "a"}] * count)
    write_jsonl(tmp_path / "it" / "c.jsonl", [{"text": "a"}] * 3)
    with pytest.raises(InputError, match=message):
        load_clients(tmp_path, tokenizer)


def test_a_site_with_one_record_needs_none_to_hold_out(tmp_path, write_jsonl, tokenizer):
    write_jsonl(tmp_path / "hr" / "c.jsonl", [{"text": "a"}])
    (client,) = load_clients(tmp_path, tokenizer, client_id="hr/c").values()
    assert (len(client.train), len(client.eval)) == (1, 0)


def test_files_that_are_no_client_are_named_once(tmp_path, write_jsonl, tokenizer, log_messages):
    write_jsonl(tmp_path / "hr" / "ann.jsonl", [{"text": "a b"}] * 4)
    (tmp_path / "hr" / "bob.csv").write_text("text\na b\n")
    load_clients(tmp_path, tokenizer)
    assert log_messages == [f"WARNING 1 path in the folder of departments not read, no client: {tmp_path}/hr/bob.csv"]


def test_selection_records_neither_train_nor_evaluate(root, tokenizer):
    whole = load_clients(root, tokenizer)["hr/client_0"]
    client = load_clients(root, tokenizer, selection=0.25)["hr/client_0"]
    texts = {name: {tuple(e.ids.tolist()) for e in getattr(client, name)} for name in ("train", "selection", "eval")}
    assert len(client.selection) == round(0.25 * len(whole.train))
    assert texts["train"] | texts["selection"] == {tuple(e.ids.tolist()) for e in whole.train}
    assert not texts["selection"] & (texts["train"] | texts["eval"])
    assert [e.ids.tolist() for e in client.eval] == [e.ids.tolist() for e in whole.eval]
