"""`evaluate` with any adapters on any data, on a small run."""

import csv
import json
import shutil
import subprocess

import pytest

from fl_lightning.bundled import resolve
from fl_lightning.cli import main
from fl_lightning.config.parsing import parse_config
from fl_lightning.errors import InputError
from fl_lightning.runs.fit import fit
from fl_lightning.runs.scoring import parse_adapter_options

pytestmark = pytest.mark.xdist_group("run_scoring")


@pytest.fixture(scope="module")
def finished(cut_departments, micro_base, tmp_path_factory):
    """A run of two rounds on little data, with a group."""
    data = cut_departments(tmp_path_factory.mktemp("departments"), 2, 4, 2)
    output = tmp_path_factory.mktemp("runs")
    groups = json.dumps({"trade": ["finance", "customer_support"]})
    options = ["--rounds", "1", "--clients-per-dept", "2", "--max-records", "4", "--logging.samples", "0"]
    options += [f"--federation.hierarchy.groups={groups}", "--model.name_or_path", micro_base]
    config = parse_config([*options, "--data", str(data), "--output", str(output), "--learning-rate", "5e-3"])
    return fit(config)


def judged(tmp_path, *arguments):
    places = ["--json", str(tmp_path / "x.json"), "--csv", str(tmp_path / "x.csv")]
    assert main(["evaluate", *arguments, *places]) == 0
    with (tmp_path / "x.csv").open() as file:
        return json.loads((tmp_path / "x.json").read_text()), list(csv.DictReader(file))


def test_own_departments_agree_with_the_runs_own_figures(finished, tmp_path, capsys):
    before = sorted((p.name, p.stat().st_mtime_ns) for p in finished.rglob("*"))
    result, rows = judged(tmp_path, "--run", str(finished), "--resamples", "20")
    assert sorted((p.name, p.stat().st_mtime_ns) for p in finished.rglob("*")) == before  # nothing is written there
    wanted = json.loads((finished / "federated_eval.json").read_text())["departments"]
    for department, figures in wanted.items():
        for who, name in ((department, "final"), ("base", "base")):
            got = result["figures"][who][department]
            assert got["loss"]["mean"] == pytest.approx(figures[name]["loss"], rel=1e-4)
            assert got["token_accuracy"]["mean"] == pytest.approx(figures[name]["token_accuracy"], rel=1e-4)
            assert got["loss"]["low"] <= got["loss"]["mean"] <= got["loss"]["high"]
    assert "trade" not in result["figures"]  # no department is called so
    assert len(rows) == 4 * 2 * 3
    out = capsys.readouterr().out
    assert "customer_support" in out
    assert "every adapter (row)" not in out


def test_the_matrix_has_every_adapter_on_every_department_and_answers(finished, tmp_path, capsys):
    options = ["--matrix", "--generate", "--max-new-tokens", "2", "--records", "1", "--resamples", "0"]
    extra = finished / "client_exports" / "hr" / "round_1_client_0"
    result, rows = judged(tmp_path, "--run", str(finished), "--adapter", f"mine={extra}", *options)
    names = {"base", "customer_support", "engineering", "finance", "hr", "trade", "mine"}
    assert set(result["figures"]) == names
    for own in result["figures"].values():
        assert set(own) == {"customer_support", "engineering", "finance", "hr"}
        assert all(0 <= figures["rouge_l"]["mean"] <= 1 for figures in own.values())
    assert {row["low"] for row in rows} == {""}
    assert "every adapter (row) on every department" in capsys.readouterr().out


def test_adapters_without_a_run_need_a_config(finished, tmp_path):
    config, place = str(finished / "config.yaml"), finished / "adapters" / "hr"
    result, _ = judged(tmp_path, "--config", config, "--adapter", str(place), "--resamples", "0", "--records", "1")
    assert set(result["figures"]) == {"base", "hr"}
    assert set(result["figures"]["hr"]) == {"customer_support", "engineering", "finance", "hr"}


def test_a_run_of_several_processes_is_scored_by_one(finished, tmp_path, capsys, monkeypatch):
    copy = shutil.copytree(finished, tmp_path / "run")
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("  devices: 1\n", "  devices: 2\n"))
    assert "devices: 2" in (copy / "config.yaml").read_text()
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("another process was started"))
    assert main(["evaluate", "--run", str(copy), "--records", "1", "--resamples", "0"]) == 0
    assert capsys.readouterr().out.count("held-out records of") == 1


BAD = {
    "nothing to judge": (["--matrix", "--config", "c.yaml"], "expected adapters by --run or --adapter, got none"),
    "no config": (["--matrix", "--adapter", "x=."], "expected --run or --config"),
    "a misspelt option": (["--matrx", "--run", "RUN"], r"unknown argument --matrx; did you mean '--matrix'"),
    "no number": (["--records", "0", "--run", "RUN"], "--records: expected an integer of at least 1, got '0'"),
    "no folder": (["--adapter", "x=/nowhere", "--run", "RUN"], "no folder /nowhere"),
    "a taken name": (["--adapter", "base=.", "--run", "RUN"], "got 'base', which is taken"),
    "no adapter": (["--adapter", "x=RUN", "--run", "RUN"], "adapter_model.safetensors"),
    "no data": (["--data", "/nowhere", "--run", "RUN"], "/nowhere"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_one_line_and_exit_code_2(finished, capsys, arguments, message):
    import re

    assert main(["evaluate", *(a.replace("RUN", str(finished)) for a in arguments)]) == 2
    err = capsys.readouterr().err
    assert re.search(message, err), err
    assert "Traceback" not in err
    assert [line.startswith("error: ") for line in err.strip().splitlines()][-1:] == [True]


def test_an_index_cannot_lead_out_of_the_run(finished, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    (copy / "dept_lora_federated.json").write_text(json.dumps({"../../x": "y"}))
    assert main(["evaluate", "--run", str(copy), "--matrix"]) == 2


def test_an_adapter_is_named_by_its_folder_unless_a_name_is_given(tmp_path):
    (tmp_path / "hr").mkdir()
    assert parse_adapter_options([str(tmp_path / "hr"), f"b={tmp_path}"]) == {"hr": tmp_path / "hr", "b": tmp_path}
    with pytest.raises(InputError, match="taken"):
        parse_adapter_options([f"b={tmp_path}", f"b={tmp_path}"])


@pytest.fixture
def peft_adapter(tmp_path):
    """Factory of adapters of the bundled base that PEFT alone has made; no tensor is zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    def make(**lora):
        base = AutoModelForCausalLM.from_pretrained(resolve("bundled:tiny_base"), dtype=torch.float32)
        model = get_peft_model(base, LoraConfig(**{"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], **lora}))
        generator = torch.Generator().manual_seed(1)
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
        model.save_pretrained(str(tmp_path / "peft"))
        return tmp_path / "peft"

    return make


def peft_loss(adapter, data):
    """Mean loss per response token of a client's held-out records, by transformers and PEFT alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve("bundled:tiny_base"))
    base = AutoModelForCausalLM.from_pretrained(resolve("bundled:tiny_base"), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    nats, count = 0.0, 0
    for line in data.read_text().splitlines():
        record = json.loads(line)
        turns = [{"role": "user", "content": record["prompt"]}, {"role": "assistant", "content": record["completion"]}]
        asked = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
        whole = whole[: whole.rindex(tokenizer.eos_token) + len(tokenizer.eos_token)]
        start = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
        ids = torch.tensor([tokenizer(whole, add_special_tokens=False)["input_ids"]])
        labels = ids.clone()
        labels[:, :start] = -100
        with torch.no_grad():
            nats += float(model(input_ids=ids, labels=labels).loss) * (ids.shape[1] - start)
        count += ids.shape[1] - start
    return nats / count


def test_an_adapter_of_peft_with_other_layers_and_ranks_has_the_loss_that_peft_has(peft_adapter, write_jsonl, tmp_path):
    records = [{"prompt": f"What is {i} plus {i}?", "completion": f"It is {2 * i}."} for i in range(6)]
    for client in ("hr/a", "hr/b"):
        write_jsonl(tmp_path / "data" / client / "train.jsonl", records)
        held_out = write_jsonl(tmp_path / "data" / client / "eval.jsonl", records[:4])
    adapter = peft_adapter(
        target_modules=["q_proj", "k_proj", "down_proj"], rank_pattern={"k_proj": 3}, alpha_pattern={"q_proj": 40}
    )
    options = ["--data", str(tmp_path / "data"), "--resamples", "0"]
    config = tmp_path / "config.yaml"
    config.write_text("data: {clients_per_dept: 2}\n")
    result, _ = judged(tmp_path, "--config", str(config), "--adapter", f"mine={adapter}", *options)
    got = {name: figures["hr"]["loss"]["mean"] for name, figures in result["figures"].items()}
    assert got["mine"] == pytest.approx(peft_loss(adapter, held_out), rel=1e-5)
    assert abs(got["mine"] - got["base"]) > 0.01


def test_an_adapter_that_is_more_than_lora_is_refused_in_one_line(peft_adapter, tmp_path, capsys):
    adapter = peft_adapter(use_dora=True)
    arguments = ["evaluate", "--adapter", f"mine={adapter}", "--json", str(tmp_path / "x.json")]
    (tmp_path / "config.yaml").write_text("data: {clients_per_dept: 1}\n")
    capsys.readouterr()
    assert main([*arguments, "--config", str(tmp_path / "config.yaml")]) == 2
    error = capsys.readouterr().err
    assert "adapter_config.json: use_dora: expected False" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x.json").exists()
