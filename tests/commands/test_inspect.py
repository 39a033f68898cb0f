import json

import pytest


@pytest.fixture
def folder(tmp_path, write_jsonl):
    write_jsonl(tmp_path / "d/hr/ann/train.jsonl", [{"prompt": "a", "completion": "b"}, {"text": "c d e"}])
    write_jsonl(tmp_path / "d/hr/ann/eval.jsonl", [{"prompt": "a", "completion": "b"}])
    return tmp_path / "d"


def test_json_alone_is_on_stdout_with_lengths_of_the_bundled_tokenizer(command, folder, tokenizer):
    code, text, _ = command("inspect", "--data", folder, "--json")
    assert code == 0  # a leak is a warning
    (facts,) = json.loads(text)["clients"]
    assert (facts["train"], facts["eval"], facts["leaks"]) == (2, 1, 1)
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False)
    assert facts["lengths"]["longest"] == len(tokenizer(rendered.rstrip("\n"))["input_ids"])


def test_broken_data_is_exit_code_2_after_the_table(command, folder):
    (folder / "hr/ann/train.jsonl").write_text("no\n")
    code, text, errors = command("inspect", "--data", folder)
    assert code == 2
    assert "hr/ann/train.jsonl:1: not valid JSON" in text
    assert errors.splitlines()[-1] == f"error: {folder}: 1 error, see above; mend them before 'fit'"


def test_config_gives_data_and_lengths(command, folder, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(f"data:\n  root: {folder}\n  max_length: 8\n")
    code, text, _ = command("inspect", "--config", config)
    assert code == 0
    assert "records with more than 8 tokens, which are cut (data.max_length)" in text


@pytest.mark.slow
def test_bundled_departments_have_no_duplicates_and_no_leaks(command):
    code, text, _ = command("inspect", "--json")
    found = json.loads(text)
    assert code == 0
    assert len(found["clients"]) == 16
    assert [c for c in found["clients"] if c["leaks"] or c["duplicates"] or c["elsewhere"]] == []
