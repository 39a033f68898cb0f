import json

import pytest

from fl_lightning.data.inspection.checks import ClientSummary, TokenLengths, inspect_folder
from fl_lightning.errors import InputError
from fl_lightning.storage.record_digest import record_digest


def measure(record, where):
    """Words for tokens."""
    words = [len(turn.content.split()) for turn in record]
    return sum(words), sum(n for n, turn in zip(words, record, strict=True) if turn.supervised)


def pair(prompt, completion="yes"):
    return {"prompt": prompt, "completion": completion}


def test_good_folder_has_counts_and_lengths_and_nothing_wrong(tmp_path, write_jsonl):
    write_jsonl(tmp_path / "hr/ann/train.jsonl", [pair("a b c", "d"), pair("a b", "d e f g")])
    write_jsonl(tmp_path / "hr/ann/eval.jsonl", [pair("q", "r")])
    found = inspect_folder(tmp_path, measure, max_length=5)
    assert found.errors == []
    # lengths 4, 6 and 2; supervised 1 + 4 + 1 of 12; one longer than 5
    assert found.clients == [ClientSummary("hr/ann", 2, 1, TokenLengths(4.0, 4, 6, 0.5, 1), 0, 0, 0, 0)]
    assert found.warnings == ["records with more than 5 tokens, which are cut (data.max_length): 1"]


def test_duplicates_are_counted_inside_and_across_clients(tmp_path, write_jsonl):
    write_jsonl(tmp_path / "hr/ann/train.jsonl", [pair("One"), pair(" one "), pair("two"), pair("one")])
    write_jsonl(tmp_path / "hr/ann/eval.jsonl", [pair("new")])
    write_jsonl(tmp_path / "it/bob/train.jsonl", [pair("TWO"), pair("three")])
    write_jsonl(tmp_path / "it/bob/eval.jsonl", [pair("newer")])
    found = inspect_folder(tmp_path, measure)
    assert [(c.client_id, c.duplicates, c.elsewhere) for c in found.clients] == [("hr/ann", 2, 1), ("it/bob", 0, 1)]
    ann, bob = tmp_path / "hr/ann/train.jsonl", tmp_path / "it/bob/train.jsonl"
    assert found.duplicates == [[f"{ann}:1", f"{ann}:2", f"{ann}:4"], [f"{ann}:3", f"{bob}:1"]]
    assert found.leaks == []
    assert len(found.warnings) == 2


def test_leaks_are_found_at_any_client_and_prompts_apart(tmp_path, write_jsonl):
    write_jsonl(tmp_path / "hr/ann/train.jsonl", [pair("one"), pair("two")])
    write_jsonl(tmp_path / "hr/ann/eval.jsonl", [pair("ONE"), pair("three")])
    write_jsonl(tmp_path / "it/bob/train.jsonl", [pair("four")])
    write_jsonl(tmp_path / "it/bob/eval.jsonl", [pair("two"), pair("four", "no"), pair("five")])
    found = inspect_folder(tmp_path, measure)
    assert [(c.leaks, c.prompt_leaks) for c in found.clients] == [(1, 0), (1, 1)]
    ann, bob = tmp_path / "hr/ann", tmp_path / "it/bob"
    assert found.leaks == [
        {"eval": f"{ann}/eval.jsonl:1", "train": [f"{ann}/train.jsonl:1"], "what": "record"},
        {"eval": f"{bob}/eval.jsonl:1", "train": [f"{ann}/train.jsonl:2"], "what": "record"},
        {"eval": f"{bob}/eval.jsonl:2", "train": [f"{bob}/train.jsonl:1"], "what": "prompt"},
    ]


def test_texts_without_a_prompt_share_none(tmp_path, write_jsonl):
    write_jsonl(tmp_path / "hr/ann/train.jsonl", [{"text": "one"}])
    write_jsonl(tmp_path / "hr/ann/eval.jsonl", [{"text": "two"}])
    assert inspect_folder(tmp_path, measure).leaks == []


def test_single_file_is_split_as_fit_splits_it(tmp_path, write_jsonl):
    from fl_lightning.data.layout import find_clients
    from fl_lightning.data.splits import read_splits

    write_jsonl(tmp_path / "hr/ann.jsonl", [pair(f"q{i}") for i in range(9)] + [pair("q3")])
    files = find_clients(tmp_path)["hr"][0]
    for seed in range(6):
        train, held_out = read_splits(files, eval_fraction=0.3, seed=seed)
        (facts,) = inspect_folder(tmp_path, measure, eval_fraction=0.3, seed=seed).clients
        assert (facts.train, facts.eval) == (7, 3) == (len(train), len(held_out))
        trained = [record[0].content for record in train]
        assert facts.leaks == sum(record[0].content in trained for record in held_out)


def test_every_error_is_listed_at_once(tmp_path, write_jsonl):
    train = write_jsonl(tmp_path / "hr/ann/train.jsonl", [pair("a")])
    train.write_text(train.read_text() + 'no\n\n{"prompt": "a"}\n')
    write_jsonl(tmp_path / "hr/ann/eval.jsonl", [])
    write_jsonl(tmp_path / "hr/b b.jsonl", [pair("a"), pair("b")])
    write_jsonl(tmp_path / "hr/one.jsonl", [pair("z")])
    write_jsonl(tmp_path / "hr/lost/eval.jsonl", [pair("a")])
    write_jsonl(tmp_path / "it/ann.json", [])
    write_jsonl(tmp_path / "it_personal_clients/bob.jsonl", [pair("c"), pair("d")])
    (tmp_path / "it_personal_clients/ann.jsonl").write_bytes(b"\xff\n")
    (tmp_path / "it/notes.txt").write_text("")
    (tmp_path / "loose.jsonl").write_text("")
    found = inspect_folder(tmp_path, measure)
    errors = "\n".join(found.errors).replace(f"{tmp_path}/", "")
    for words in (
        "hr/ann/train.jsonl:2: not valid JSON",
        "hr/ann/train.jsonl:4: no response",
        "hr/b b.jsonl: client 'b b'",
        "hr/lost/eval.jsonl: held-out records without train.jsonl",
        "it/ann.json:1: not valid JSON",
        "it_personal_clients: department 'it' has two folders",
        "it_personal_clients/ann.jsonl: client 'ann' is there twice",
    ):
        assert words in errors
    assert len(found.errors) == 7
    assert [warning.replace(f"{tmp_path}/", "") for warning in found.warnings] == [
        "loose.jsonl: ignored, because it is not in a department's folder",
        "it/notes.txt: ignored; a client is a file of records, or a folder with train.jsonl",
        "hr/ann/eval.jsonl: no held-out records; fit trains the client unevaluated",
        "hr/one.jsonl: no held-out records; fit trains the client unevaluated",
        "it/ann.json: no valid training records; fit leaves the client out",
    ]


@pytest.mark.parametrize("records", [[], [pair("a")]])
def test_a_department_with_nothing_to_train_or_to_hold_out_is_an_error(tmp_path, write_jsonl, records):
    write_jsonl(tmp_path / "hr/ann.jsonl", records)
    errors = inspect_folder(tmp_path, measure).errors
    assert f"{tmp_path}/hr: expected held-out records in some client of the department, got none" in errors


def test_keys_and_files_that_are_not_read_are_named(tmp_path, write_jsonl):
    write_jsonl(tmp_path / "hr/ann/train.jsonl", [{**pair("a"), "id": 1}, {**pair("b"), "id": 2, "source": "x"}])
    write_jsonl(tmp_path / "hr/ann/validation.jsonl", [pair("c")])
    write_jsonl(tmp_path / "hr/ann/test.jsonl", [pair("d")])
    found = inspect_folder(tmp_path, measure)
    assert (found.errors, found.clients[0].eval) == ([], 1)
    assert found.warnings == [
        f"{tmp_path}/hr/ann/test.jsonl: not read, beside train.jsonl and its held-out file; call it eval.jsonl to "
        "evaluate on it",
        "keys of records that are not read: 'id' (2 records), 'source' (1 record)",
    ]


def test_what_cannot_be_tokenised_is_an_error(tmp_path, write_jsonl):
    def fail(record, where):
        raise InputError(f"{where}: no response tokens")

    write_jsonl(tmp_path / "hr/ann.jsonl", [pair("a"), pair("b")])
    found = inspect_folder(tmp_path, fail)
    assert sorted(found.errors) == [f"{tmp_path}/hr/ann.jsonl:{n}: no response tokens" for n in (1, 2)]
    assert found.clients == [ClientSummary("hr/ann", 0, 0, None, 0, 0, 0, 0)]


def test_empty_folder_is_an_error_and_a_missing_one_raises(tmp_path):
    assert "no department" in inspect_folder(tmp_path, measure).errors[0]
    with pytest.raises(InputError, match="--data: .* is not a folder"):
        inspect_folder(tmp_path / "no", measure)


def test_json_has_everything(tmp_path, write_jsonl):
    write_jsonl(tmp_path / "hr/ann.jsonl", [pair("a"), pair("b")])
    value = json.loads(json.dumps(inspect_folder(tmp_path, measure).as_json()))
    assert value["clients"][0]["lengths"]["longest"] == 2
    found = {"errors", "warnings", "unread_keys", "leaks", "duplicates", "excluded", "excluded_records", "canaries"}
    assert set(value) == {"root", "folder", "clients", *found}


def test_what_is_excluded_is_named_and_not_counted(tmp_path, write_jsonl):
    write_jsonl(tmp_path / "hr/ann/train.jsonl", [pair("one"), pair("two"), pair("three")])
    write_jsonl(tmp_path / "hr/ann/eval.jsonl", [pair("four"), pair("five")])
    write_jsonl(tmp_path / "hr/bob/train.jsonl", [pair("four")])
    digests = [record_digest(pair("two")), record_digest(pair("five"))]
    found = inspect_folder(tmp_path, measure, exclude=["hr/bob"], exclude_records=digests)
    assert (found.errors, found.excluded, found.excluded_records) == ([], ["hr/bob"], 2)
    assert [(c.client_id, c.train, c.eval, c.leaks) for c in found.clients] == [("hr/ann", 2, 1, 0)]
    (error,) = inspect_folder(tmp_path, measure, exclude=["hr/bop"]).errors
    assert "did you mean 'hr/bob'" in error
