"""Architectures of transformers, each with random weights: the numbers of plain transformers and PEFT.

For each: adapters of two clients in one batch, with the loss that PEFT's model with the exported adapter has record by
record; greedy answers of `generate`, also when several adapters are served at once; the merged model. ``pytest -s``
prints the table of docs/models.md.
"""

from __future__ import annotations

import shutil

import peft
import pytest
import tokenizers
import torch
import transformers as hf
from architectures import ARCHITECTURES, VOCABULARY, random_model

from fl_lightning.config import ModelConfig
from fl_lightning.data.packing import pack
from fl_lightning.data.tokenization import Example
from fl_lightning.errors import InputError
from fl_lightning.modeling.base_model import load_base_model
from fl_lightning.modeling.cohort import LoraCohort
from fl_lightning.modeling.generation.adapter_bank import AdapterBank
from fl_lightning.modeling.generation.decoding import Answer, Decoder
from fl_lightning.modeling.generation.generate import generate
from fl_lightning.modeling.generation.token_sampling import Sampler, Sampling
from fl_lightning.modeling.limits import is_recurrent
from fl_lightning.modeling.lora import collect_lora_state, create_lora_model, export_lora_adapter
from fl_lightning.modeling.merging import merge_adapter
from fl_lightning.module import LoraClientModule

RECURRENT = {
    "Bamba", "FalconH1", "FalconMamba", "GraniteMoeHybrid", "Jamba", "Lfm2 (convolutions)", "Mamba", "Mamba2",
    "MiniMax (linear attention)", "NemotronH", "Qwen3Next", "Qwen3.5 (text)", "RecurrentGemma", "Rwkv",
    "Zamba2 (shared layers)",
}  # fmt: skip
PADDED = RECURRENT | {
    "BioGpt", "Bloom", "Doge", "Falcon", "Falcon with ALiBi", "Gemma 2 (soft caps)", "GPTNeo (local attention)",
    "gpt-oss (sinks)", "Llama 4 (chunks, vision tower)", "Llama 4 (text)", "Mpt (ALiBi)", "Nemotron", "StableLm",
    "VaultGemma", "XGLM",
}  # fmt: skip
SHARED_WEIGHTS = {"Zamba2 (shared layers)"}
RELATIVE = 1e-5
NEW_TOKENS = 5
END = 2


@pytest.fixture(scope="module")
def tokenizer_files(tmp_path_factory):
    """A tokenizer of words ``w0`` to ``w255``."""
    folder = tmp_path_factory.mktemp("tokenizer")
    words = tokenizers.models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w1")
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), eos_token="w2", pad_token="w0", unk_token="w1"
    )
    fast.save_pretrained(folder)
    return folder


def draw_records(draw):
    records = []
    for length in (30, 7, 12):
        supervised = torch.rand(length, generator=draw) > 0.4
        supervised[0], supervised[-1] = False, True
        records.append(Example(torch.randint(3, VOCABULARY, (length,), generator=draw), supervised))
    return records


@torch.no_grad()
def plain_loss(model, records):
    """The summed loss in plain transformers, one record at a time."""
    total = 0.0
    for record in records:
        logits = model(input_ids=record.ids[None], use_cache=False).logits[0, :-1].float()
        marks = record.supervised[1:]
        total += float(torch.nn.functional.cross_entropy(logits[marks], record.ids[1:][marks], reduction="sum"))
    return total


def plain_answer(model, prompt):
    """The greedy answer of transformers' `generate` to one prompt, without its end."""
    ids = model.generate(
        input_ids=prompt[None], attention_mask=torch.ones_like(prompt[None]), max_new_tokens=NEW_TOKENS,
        do_sample=False, eos_token_id=END, pad_token_id=0,
    )  # fmt: skip
    return [token for token in ids[0, len(prompt) :].tolist() if token != END]


def plain(folder):
    return hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def cohort_losses(module, states, clients):
    """The summed loss of each client's adapter on its records, all in one batch."""
    cohort, losses = LoraCohort(module.model), torch.zeros(len(clients))
    cohort.load(states, "cpu")
    with torch.no_grad(), cohort.attached():
        for row in module.parts(pack(clients)):
            cohort.set_segments(row.client_tokens, lengths=row.lengths)
            losses += module(row).loss
    return losses.tolist()


def generated_answers(model, state, prompts):
    cohort = LoraCohort(model)
    cohort.load([state], "cpu")
    cohort.set_single_client()
    with cohort.attached():
        return [ids.tolist() for ids in generate(model, prompts, max_new_tokens=NEW_TOKENS, ends=[END])]


def served_answers(model, states, prompts):
    """Answers of one decoder, each with its adapter; the last prompt joins while the others are answered."""
    bank = AdapterBank(model)
    greedy = [Sampler(Sampling(temperature=0)) for _ in prompts]
    rows = [
        Answer(prompt.tolist(), bank.prepare(state), NEW_TOKENS, sampler)
        for prompt, state, sampler in zip(prompts, states, greedy, strict=True)
    ]
    with bank.attached():
        decoder = Decoder(model, bank, [END])
        decoder.add(rows[:-1])
        decoder.step()
        decoder.add(rows[-1:])
        while decoder.answers:
            decoder.step()
    return [row.tokens for row in rows]


def largest_difference(losses, expected):
    return max(abs(loss - wanted) / wanted for loss, wanted in zip(losses, expected, strict=True))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_numbers_are_those_of_plain_transformers_and_peft(name, tokenizer_files, tmp_path):
    random_model(name).save_pretrained(tmp_path / "base")
    shutil.copytree(tokenizer_files, tmp_path / "base", dirs_exist_ok=True)
    config, draw = ModelConfig(name_or_path=str(tmp_path / "base")), torch.Generator().manual_seed(3)
    model = create_lora_model(load_base_model(config, dtype=torch.float32)[0], 4, 8, 0.0, ARCHITECTURES[name][2])
    like = collect_lora_state(model.eval())
    states = [{n: torch.randn(t.shape, generator=draw) * 0.2 for n, t in like.items()} for _ in range(2)]
    adapters = [export_lora_adapter(model, tmp_path / f"adapter{k}", state) for k, state in enumerate(states)]
    records = draw_records(draw)
    clients, prompts = [records[:2], records[2:]], [record.ids for record in records]

    reference = peft.PeftModel.from_pretrained(plain(tmp_path / "base"), adapters[0], adapter_name="0").eval()
    reference.load_adapter(adapters[1], "1")
    expected = [plain_loss(reference, clients[0])]
    answers = [plain_answer(reference, prompt) for prompt in prompts[:2]]
    reference.set_adapter("1")
    expected.append(plain_loss(reference, clients[1]))
    answers.append(plain_answer(reference, prompts[2]))

    assert generated_answers(model, states[0], prompts[:2]) == answers[:2]
    assert is_recurrent(model) == (name in RECURRENT)  # `serve` refuses it, see tests/serving/test_engine.py
    if name not in RECURRENT:
        assert served_answers(model, [states[0], states[0], states[1]], prompts) == answers
    module = LoraClientModule(model).eval()
    module.choose_layout()
    assert module.layout == ("padded" if name in PADDED else "packed")
    assert module._chunk_logits is None  # its head may get positions in chunks
    module._chunk_logits = 8 * VOCABULARY
    together = largest_difference(cohort_losses(module, states, clients), expected)

    if name in SHARED_WEIGHTS:
        with pytest.raises(InputError, match="share a weight of the base model"):
            merge_adapter(config, adapters[0], tmp_path / "merged", dtype="fp32")
        apart = 0.0
    else:
        merged = merge_adapter(config, adapters[0], tmp_path / "merged", dtype="fp32").folder
        apart = largest_difference([plain_loss(plain(merged), clients[0])], expected[:1])
    served = "refused" if name in RECURRENT else "yes"
    merging = "refused" if name in SHARED_WEIGHTS else f"{apart:.0e}"
    print(f"\n| {name} | {module.layout} | {together:.0e} | {merging} | {served} |")
    assert max(together, apart) <= RELATIVE
