from collections import Counter
from types import SimpleNamespace

from fl_lightning.data.inspection.scan import normalize_text, scan_client, scan_clients


def test_clients_come_in_natural_order_and_what_is_wrong_is_kept(tmp_path, write_jsonl):
    for name in ("client_10", "client_2", "b b"):
        write_jsonl(tmp_path / "hr" / f"{name}.jsonl", [{"text": "a"}, {"text": "b"}])
    found = SimpleNamespace(errors=[], warnings=[], unread_keys=Counter())
    clients = scan_clients(tmp_path, found)
    assert [client.client_id for client in clients] == ["hr/client_2", "hr/client_10"]
    assert len(found.errors) == 1


def test_records_after_a_bad_one_are_read(tmp_path, write_jsonl):
    path = write_jsonl(tmp_path / "hr/ann/train.jsonl", [{"prompt": "A  b", "completion": "c"}, {"prompt": "x"}])
    path.write_text(path.read_text() + '{"text": "last"}\n')
    found = SimpleNamespace(errors=[], warnings=[], unread_keys=Counter())
    (client,) = scan_clients(tmp_path, found)
    items = list(scan_client(client, lambda record, where: (5, 2), found, 0.5, 0))
    assert sorted(item.location for item in items) == [f"{path}:1", f"{path}:3"]
    first = next(item for item in items if item.location.endswith(":1"))
    assert (first.prompt, first.text, first.tokens, first.supervised) == ("a b", "user a b\nassistant c", 5, 2)
    assert found.errors == [f"{path}:2: no response: 'completion': expected text, got nothing"]


def test_case_and_white_space_make_no_difference():
    assert normalize_text(["STRASSE\u00a0 1"]) == normalize_text(["Straße\n1"])
    assert normalize_text(["a b"]) != normalize_text(["ab"])


def test_a_malformed_structure_is_an_error_and_records_are_read_all_the_same(tmp_path, write_jsonl):
    write_jsonl(tmp_path / "hr" / "ann.jsonl", [{"text": "a"}, {"text": "b"}])
    (tmp_path / "structure.json").write_text("{")
    findings = SimpleNamespace(errors=[], warnings=[], unread_keys=Counter())
    assert [client.client_id for client in scan_clients(tmp_path, findings)] == ["hr/ann"]
    assert len(findings.errors) == 1
    assert "structure.json: not valid JSON" in findings.errors[0]
