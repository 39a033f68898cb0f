from types import SimpleNamespace

from fl_lightning.data.inspection.scan import find_all, normalised, read_all


def test_clients_come_in_natural_order_and_what_is_wrong_is_kept(tmp_path, write_jsonl):
    for name in ("client_10", "client_2", "b b"):
        write_jsonl(tmp_path / "hr" / f"{name}.jsonl", [{"text": "a"}, {"text": "b"}])
    found = SimpleNamespace(errors=[], warnings=[])
    clients = find_all(tmp_path, found)
    assert [client.client_id for client in clients] == ["hr/client_2", "hr/client_10"]
    assert len(found.errors) == 1


def test_records_after_a_bad_one_are_read(tmp_path, write_jsonl):
    path = write_jsonl(tmp_path / "hr/ann/train.jsonl", [{"prompt": "A  b", "completion": "c"}, {"prompt": "x"}])
    path.write_text(path.read_text() + '{"text": "last"}\n')
    found = SimpleNamespace(errors=[], warnings=[])
    (client,) = find_all(tmp_path, found)
    items = list(read_all(client, lambda record, where: (5, 2), found, 0.5, 0))
    assert sorted(item.where for item in items) == [f"{path}:1", f"{path}:3"]
    first = next(item for item in items if item.where.endswith(":1"))
    assert (first.prompt, first.text, first.tokens, first.supervised) == ("a b", "user a b\nassistant c", 5, 2)
    assert found.errors == [f"{path}:2: no response: 'completion' is missing, wanted text"]


def test_case_and_white_space_make_no_difference():
    assert normalised(["STRASSE\u00a0 1"]) == normalised(["Straße\n1"])
    assert normalised(["a b"]) != normalised(["ab"])
