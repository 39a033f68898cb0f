import json

import pytest

from fl_lightning.data.records import Turn
from fl_lightning.errors import InputError
from fl_lightning.report import samples as module
from fl_lightning.report.elements import PromptAnswers
from fl_lightning.report.samples import adapter_digests, generate_answers, samples

TWO = {"finance": ["a", "b"], "hr": ["c"]}


@pytest.fixture
def asked(monkeypatch):
    """How many prompts were asked for at each generation, which answers at once."""
    counts = []

    def answer(folder, count):
        counts.append(count)
        return {"hr": [PromptAnswers("c", f"prompt {i}", "right", "base", "adapted") for i in range(count)]}

    monkeypatch.setattr(module, "generate_answers", answer)
    return counts


def test_second_report_does_not_generate_again(make_run, asked):
    folder = make_run(TWO)
    first = samples(folder, folder / "report", 3)
    assert samples(folder, folder / "report", 3) == first
    assert samples(folder, folder / "report", 2).answers["hr"] == first.answers["hr"][:2]
    assert asked == [3]


def test_more_samples_or_another_adapter_ask_again(make_run, asked):
    folder = make_run(TWO)
    samples(folder, folder / "report", 1)
    samples(folder, folder / "report", 2)
    path = folder / "adapters" / "hr" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes() + b" ")
    samples(folder, folder / "report", 2)
    assert asked == [1, 2, 2]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"samples": 9}', '{"samples": 9, "departments": {"hr": [{"client": 1}]}}']
)
def test_broken_samples_are_made_again(make_run, asked, text):
    folder = make_run(TWO)
    (folder / "report").mkdir()
    value = text if "9" not in text else json.dumps({**json.loads(text), "adapters": adapter_digests(folder)})
    (folder / "report" / "samples.json").write_text(value)
    samples(folder, folder / "report", 1)
    assert asked == [1]


def test_none_wanted_loads_nothing(make_run, asked):
    folder = make_run(TWO)
    section = samples(folder, folder / "report", 0)
    assert section.answers == {}
    assert "--samples 0" in section.missing[0]
    assert asked == []


def test_run_without_adapters_has_no_samples(tmp_path, asked):
    assert "no adapter" in samples(tmp_path, tmp_path / "report", 3).missing[0]
    assert asked == []


def test_base_that_is_not_there_is_said(make_run, monkeypatch):
    def fail(folder, count):
        raise InputError("model.name_or_path: nowhere not found")

    monkeypatch.setattr(module, "generate_answers", fail)
    folder = make_run(TWO)
    section = samples(folder, folder / "report", 3)
    assert section.missing == ["No samples: model.name_or_path: nowhere not found"]
    assert not (folder / "report" / "samples.json").exists()


def test_words_are_those_of_the_record():
    assert module._plain_texts([Turn("user", "Q"), Turn("assistant", "A")]) == ("Q", "A")
    talk = [Turn("user", "Q"), Turn("assistant", "A"), Turn("user", "R"), Turn("assistant", "B")]
    assert module._plain_texts(talk) == ("user: Q\n\nassistant: A\n\nuser: R", "B")
    assert module._plain_texts([Turn("text", "all of it")]) is None


@pytest.mark.slow
def test_base_and_adapter_answer_held_out_prompts(tmp_path, cut_departments, micro_base):
    from fl_lightning.config.parsing import parse_config
    from fl_lightning.runs.fit import fit

    data = cut_departments(tmp_path / "data", 2, 4, 2)
    teams = "{one: [hr/client_0], two: [hr/client_1]}"
    options = ["--data", str(data), "--output", str(tmp_path), "--rounds", "1", "--clients-per-dept", "2"]
    options += ["--logging.samples", "0", "--model.name_or_path", micro_base]
    config = parse_config([*options, "--federation.hierarchy.groups", teams, "--learning-rate", "0.05"])
    folder = fit(config)
    found = generate_answers(folder, 3)
    assert sorted(found) == ["customer_support", "engineering", "finance", "one", "two"]
    assert [a.client for a in found["finance"]] == ["client_0", "client_1", "client_0"]
    assert [a.client for a in found["one"]] == ["client_0", "client_0"]  # it has no third record
    record = json.loads((data / "finance" / "client_1" / "eval.jsonl").read_text().splitlines()[0])
    assert found["finance"][1].reference == record["output"]
    assert record["instruction"] in found["finance"][1].prompt
    assert found == generate_answers(folder, 3)
