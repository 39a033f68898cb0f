"""Bases and data that do not fit each other, from the command line: one line, exit code 2, and no run folder."""

import json

import pytest
import torch
import transformers as hf

from fl_lightning.bundled import resolve
from fl_lightning.cli import main

RECORDS = [{"prompt": f"What is {i} plus {i}?", "completion": f"It is {2 * i}."} for i in range(6)]


@pytest.fixture
def run_fit(tmp_path, capfd):
    """Function that runs ``fit`` for one round: (exit code, lines on standard error, run folder)."""

    def run(data, *options):
        output = tmp_path / "out"
        arguments = [
            "fit",
            "--data",
            str(data),
            "--output",
            str(output),
            "--rounds",
            "1",
            "--logging.samples=0",
            *options,
        ]
        code = main(arguments)
        lines = [line for line in capfd.readouterr().err.splitlines() if line.strip() and "Loading weights" not in line]
        return code, lines, output / "version_0"

    return run


@pytest.fixture
def make_data(tmp_path, write_jsonl):
    """Function that writes {client_id: records} into a folder of departments."""

    def make(clients):
        for client_id, records in clients.items():
            write_jsonl(tmp_path / "data" / f"{client_id}.jsonl", records)
        return tmp_path / "data"

    return make


@pytest.fixture
def make_base(tmp_path):
    """Function that saves a random GPT-2 with the bundled tokenizer; its positions are learned."""

    def make(rows=4096, positions=64):
        sizes = {"vocab_size": rows, "n_positions": positions, "n_embd": 32, "n_layer": 1, "n_head": 2}
        torch.manual_seed(0)
        ends = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
        hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, **ends)).save_pretrained(tmp_path / "base")
        hf.AutoTokenizer.from_pretrained(resolve("bundled:tiny_base")).save_pretrained(tmp_path / "base")
        return [f"--model.name_or_path={tmp_path / 'base'}", "--target-modules", "c_attn"]

    return make


def test_records_longer_than_the_positions_are_cut_to_them_and_this_is_said_once(run_fit, make_data, make_base):
    long = {"prompt": "why " * 80, "completion": "because " * 80}
    data = make_data({"hr/a": [*RECORDS, long], "it/b": RECORDS})
    code, lines, folder = run_fit(data, "--clients-per-dept", "1", *make_base(positions=64))
    assert code == 0
    assert sum("data.max_length: 512 is more than the 64" in line for line in lines) == 1
    assert (folder / "federated_eval.json").exists()


def test_token_ids_beyond_the_embedding_are_refused_in_one_line(run_fit, make_data, make_base):
    data = make_data({"hr/a": RECORDS, "it/b": RECORDS})
    code, lines, folder = run_fit(data, "--clients-per-dept", "1", *make_base(rows=40))
    assert code == 2
    assert "error: model.name_or_path: expected token ids below 40" in lines[-1]
    assert sum("error" in line for line in lines) == 1
    assert not folder.parent.exists()


def test_a_department_called_base_is_refused_in_one_line(run_fit, make_data):
    code, lines, folder = run_fit(make_data({"base/a": RECORDS, "it/b": RECORDS}), "--clients-per-dept", "1")
    assert (code, len(lines)) == (2, 1)
    assert "data/base: expected another name than 'base'" in lines[0]
    assert not folder.parent.exists()


def test_a_group_called_base_is_refused_in_one_line(run_fit, make_data):
    data = make_data({"hr/a": RECORDS, "it/b": RECORDS})
    groups = '--federation.hierarchy.groups={"base": ["hr", "it"]}'
    code, lines, folder = run_fit(data, "--clients-per-dept", "1", groups)
    assert (code, len(lines)) == (2, 1)
    assert not folder.parent.exists()


def test_departments_of_any_size_with_empty_and_single_records_train(run_fit, make_data, log_messages):
    sizes = {"hr/a": RECORDS, "hr/b": RECORDS[:1], "hr/c": [], "it/d": RECORDS}
    code, _, folder = run_fit(make_data(sizes), "--clients-per-dept", "all")
    assert code == 0
    warnings = [message for message in log_messages if message.startswith("WARNING")]
    assert [message.split(":")[0] for message in warnings] == [
        "WARNING 1 client without training records, left out",
        "WARNING 1 client without held-out records, trained on but not evaluated",
    ]
    rounds = json.loads((folder / "client_eval_all_rounds.json").read_text())["rounds"]
    assert {name: sorted(clients) for name, clients in rounds["1"].items()} == {"hr": ["a"], "it": ["d"]}
    exported = json.loads((folder / "client_lora_federated.json").read_text())["rounds"]["1"]
    assert {name: sorted(clients) for name, clients in exported.items()} == {"hr": ["a", "b"], "it": ["d"]}
    before = (folder / "federated_eval.json").read_bytes()
    assert main(["evaluate", "--run", str(folder)]) == 0
    assert json.loads((folder / "federated_eval.json").read_bytes()).keys() == json.loads(before).keys()


def test_a_key_that_could_turn_a_record_round_is_refused_with_its_line(run_fit, make_data):
    data = make_data({"hr/a": [*RECORDS, {**RECORDS[0], "label": False}], "it/b": RECORDS})
    code, lines, folder = run_fit(data, "--clients-per-dept", "all")
    assert (code, len(lines)) == (2, 1)
    assert f"{data}/hr/a.jsonl:7: key 'label'" in lines[0]
    assert not folder.parent.exists()
