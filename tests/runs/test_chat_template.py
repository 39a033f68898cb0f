"""Chat templates from the command line to the run folder: what is kept, what ends an answer, what is refused."""

import json
from datetime import date

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fl_lightning.bundled import resolve
from fl_lightning.cli import main
from fl_lightning.data import chat_template
from fl_lightning.modeling.merging import merge_adapter
from fl_lightning.runs.build import build_components, load_run_config
from fl_lightning.serving.chat import Conversation
from fl_lightning.serving.engine import load_answering

SMALL = ["--rounds", "1", "--clients-per-dept", "2", "--device-map", "cpu", "--logging.samples=0"]
CLOCK = (
    "{{ '<|im_start|>system\nToday: ' + strftime_now('%Y-%m-%d') + '<|im_end|>\n' }}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' + ('' if talk | default(false) else '>') }}{% endif %}"
)


@pytest.fixture
def data(tmp_path, write_jsonl):
    """A folder of two departments with two clients each, who are always asked the same."""
    words = ["ship the parcel", "send the form", "call the office"]
    asked = [{"prompt": f"Question {i % 3}?", "completion": words[i % 3]} for i in range(12)]
    for client_id in ("hr/a", "hr/b", "it/a", "it/b"):
        write_jsonl(tmp_path / "data" / f"{client_id}.jsonl", asked)
    return tmp_path / "data"


@pytest.fixture
def run_fit(data, micro_base, tmp_path, capfd):
    """Function that runs ``fit``: (exit code, lines on standard error, run folder)."""

    def run(*options):
        small = [*SMALL, "--model.name_or_path", micro_base, "--data", str(data), "--output", str(tmp_path / "out")]
        code = main(["fit", *small, *options])
        lines = [line for line in capfd.readouterr().err.splitlines() if line.strip() and "Loading weights" not in line]
        return code, lines, tmp_path / "out/version_0"

    return run


@pytest.fixture
def make_base(tmp_path):
    """Function that saves a base with another end token or template."""

    def make(source, **changes):
        tokenizer = AutoTokenizer.from_pretrained(source)
        for name, value in changes.items():
            setattr(tokenizer, name, value)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
        model.save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        return str(tmp_path / "base")

    return make


@pytest.mark.slow
def test_answers_end_on_a_base_whose_template_has_another_end_token_than_its_tokenizer(make_base, run_fit):
    base = make_base(resolve("bundled:tiny_base"), eos_token="<|endoftext|>")
    once = ["--local-epochs", "12", "--learning-rate", "1e-2", "--lora-r", "16", "--federation.combiner", "fedavg"]
    code, _, folder = run_fit("--model.name_or_path", base, *once, "--rounds", "3")
    assert code == 0
    adapter = folder / "adapters/hr"
    conversation = Conversation(load_run_config(folder), {"hr": adapter}, "hr", max_new_tokens=40)
    assert "".join(conversation.say("Question 1?")) == "send the form"
    assert load_answering(load_run_config(folder)).ends == (2, 0)
    merged = merge_adapter(load_run_config(folder).model, adapter, folder / "merged", data=load_run_config(folder).data)
    assert json.loads((merged.folder / "generation_config.json").read_text())["eos_token_id"] == [2, 0]
    tokenizer = AutoTokenizer.from_pretrained(merged.folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Question 2?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    plain = AutoModelForCausalLM.from_pretrained(merged.folder)
    out = plain.generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(out) == "call the office<|im_end|>"


def test_a_base_without_an_end_token_is_warned_about(make_base, micro_base, run_fit):
    plain = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    base = make_base(micro_base, eos_token=None, pad_token=None)
    code, lines, _ = run_fit("--model.name_or_path", base, "--data.chat_template", plain)
    assert code == 0
    assert any("answers will not end" in line for line in lines)


def test_a_record_that_the_template_refuses_is_named_by_file_and_line_and_nothing_is_written(
    make_base, run_fit, data, write_jsonl
):
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CLOCK
    said = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    write_jsonl(data / "hr/a.jsonl", [*[{"prompt": "a", "completion": "b"}] * 3, {"messages": said}])
    code, lines, folder = run_fit("--data.chat_template", refusing)
    assert (code, folder.parent.exists()) == (2, False)
    assert f"{data}/hr/a.jsonl:4: the tokenizer's chat template refuses these turns (no system)" in lines[-1]
    assert "data.system_turns: merge" in lines[-1]
    assert run_fit("--data.chat_template", refusing, "--data.system_turns", "merge")[0] == 0


def test_a_run_keeps_template_variables_and_date_and_resumes_on_another_day(run_fit, tmp_path, monkeypatch, data):
    path = tmp_path / "mine.jinja"
    path.write_text(CLOCK)
    code, _, folder = run_fit("--data.chat_template", str(path), "--data.chat_template_kwargs.talk", "true")
    assert code == 0
    path.unlink()
    config = load_run_config(folder)
    assert config.data.chat_template == CLOCK
    assert config.data.chat_template_kwargs == {"talk": True}
    assert config.data.template_date == date.today().isoformat()

    class Tomorrow(date):
        @classmethod
        def today(cls):
            return cls(2099, 1, 1)

    monkeypatch.setattr(chat_template, "date", Tomorrow)
    resume = ["fit", "--resume", str(folder), "--rounds", "2", "--logging.samples=0"]
    assert main(resume) == 0
    components = build_components(load_run_config(folder))
    record = components.tokenizer.decode(components.data["hr/a"].train[0].ids)
    assert f"Today: {date.today().isoformat()}" in record
    conversation = Conversation(load_run_config(folder), {}, "base", max_new_tokens=1)
    list(conversation.say("Hi"))
    prompt = conversation._answering.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt.endswith("<|im_start|>assistant\n")
    assert date.today().isoformat() in prompt


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data.chat_template", "missing.jinja"], "data.chat_template"),
        (
            ["--data.chat_template_kwargs", '{"enable_thinkin": false}'],
            "data.chat_template_kwargs: expected a variable",
        ),
        (["--data.chat_template_kwargs", '{"messages": []}'], "data.chat_template_kwargs: expected names of variables"),
        (["--data.template_date", "today"], "data.template_date: expected a date such as 2026-11-28, got 'today'"),
        (["--data.system_turns", "drop"], "data.system_turns: expected one of template, merge, refuse"),
    ],
)
def test_choices_that_cannot_be_used_are_one_line(run_fit, options, said):
    code, lines, folder = run_fit(*options)
    assert (code, folder.parent.exists()) == (2, False)
    assert said in lines[-1]
    assert len(lines) == 1
