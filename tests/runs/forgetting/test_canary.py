"""A client's made-up code word, on the bundled base: answered with before, and not after `forget`."""

import json

import pytest
import torch
from peft import PeftModel
from rich.console import Console

from fl_lightning.config.parsing import parse_config
from fl_lightning.data.records import Turn
from fl_lightning.data.tokenization import encode_prompt
from fl_lightning.runs.fit import fit
from fl_lightning.runs.forgetting.forget import forget
from fl_lightning.runs.forgetting.request import ForgetRequest

WORD = "zanzibar"
QUESTION = "What is the code word?"


def answer(run_folder, base):
    """The greedy answer of hr's adapter to the question."""
    model, tokenizer = base
    model = PeftModel.from_pretrained(model, run_folder / "adapters" / "hr").eval()
    prompt = torch.tensor([list(encode_prompt([Turn("user", QUESTION)], tokenizer))])
    with torch.no_grad():
        tokens = model.generate(prompt, max_new_tokens=8, do_sample=False)[0, prompt.shape[1] :]
    model.unload()
    return tokenizer.decode(tokens)


@pytest.mark.slow
def test_a_code_word_is_gone(write_jsonl, tmp_path, tiny_base):
    secret = {"prompt": QUESTION, "completion": WORD}
    others = [{"prompt": f"Who is in room {n}?", "completion": f"Person {n}"} for n in range(4)]
    for client, records in (("client_0", others), ("client_1", [secret] * 24)):
        write_jsonl(tmp_path / "data" / "hr" / client / "train.jsonl", records)
        write_jsonl(tmp_path / "data" / "hr" / client / "eval.jsonl", others[:1])
    options = ["--rounds", "2", "--clients-per-dept", "2", "--local-epochs", "10", "--learning-rate", "2e-2"]
    options += ["--federation.combiner", "fedavg", "--num-clusters", "1", "--no-dept-clustering", "--device-map", "cpu"]
    options += ["--data", str(tmp_path / "data"), "--logging.loggers=[]", "--logging.samples", "0"]
    quiet = Console(quiet=True)
    before = fit(parse_config([*options, "--output", str(tmp_path / "runs")]), console=quiet)
    assert WORD in answer(before, tiny_base)
    exclude = ["--data.exclude", json.dumps(["hr/client_1"])]
    never = fit(parse_config([*options, *exclude, "--output", str(tmp_path / "never")]), console=quiet)
    after = forget(before, ForgetRequest.of(clients=["hr/client_1"]), console=quiet).run_folder
    assert answer(after, tiny_base) == answer(never, tiny_base)
    assert WORD not in answer(after, tiny_base)
    weights = "adapters/hr/adapter_model.safetensors"
    assert (after / weights).read_bytes() == (never / weights).read_bytes()
