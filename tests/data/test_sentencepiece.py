"""Tokenizers that put a mark in front of words, as SentencePiece does: built here, trained on a few sentences."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from fl_lightning.data.records import Record
from fl_lightning.data.tokenization import encode, encode_prompt
from tests.helpers.chat_templates import FOLDER, KINDS, TALK, special_tokens

WORDS = [turn.content for record in KINDS.values() for turn in record] + ["[INST] ### user assistant USER: ASSISTANT:"]
KIND_OF_TOKENIZER = (
    "unigram",
    "bpe with a dummy prefix",
    "bpe with byte fallback",
    "byte-level bpe that trims offsets",
)


def build(kind: str, name: str) -> PreTrainedTokenizerFast:
    marks, bos, eos = special_tokens(name)
    special = ["<unk>", *marks]
    if kind == "unigram":
        model = Tokenizer(models.Unigram())
        model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        model.decoder = decoders.Metaspace(prepend_scheme="always")
        trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>")
    elif kind.startswith("byte-level"):
        model = Tokenizer(models.BPE())
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder, model.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=True)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet)
    else:
        model = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback="fallback" in kind, fuse_unk=True))
        model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        model.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        bytes_ = [f"<0x{byte:02X}>" for byte in range(256)] if "fallback" in kind else []
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*special, *bytes_])
    model.train_from_iterator(WORDS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, bos_token=bos, eos_token=eos, unk_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.chat_template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    return tokenizer


@pytest.mark.parametrize("name", ["llama2", "mistral_v0_1", "vicuna", "zephyr", "alpaca", "gemma", "phi3", "qwen3"])
@pytest.mark.parametrize("kind", KIND_OF_TOKENIZER)
def test_tokens_are_those_of_the_whole_text_and_answers_are_learned_to_the_end(kind, name):
    tokenizer, record = build(kind, name), KINDS["two turns"]
    messages = [turn.as_message() for turn in record]
    expected = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    (example,) = encode([record], tokenizer, 4096)
    ids = example.ids.tolist()
    written = ids if ids == expected[: len(ids)] else ids[:-1]
    assert written == expected[: len(written)]
    text = tokenizer.decode(example.ids[example.supervised])
    assert "Ann came first." in text
    assert "Bob." in text
    assert not any(question in text for question in ("Who was", "And second"))
    assert int(example.ids[-1]) in tokenizer.added_tokens_decoder
    assert bool(example.supervised[-1])
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=True, return_dict=False, add_generation_prompt=True)
    assert encode_prompt(TALK[:1], tokenizer) == prompt


@pytest.mark.parametrize("kind", KIND_OF_TOKENIZER)
def test_characters_of_several_bytes_and_emoji_stay_whole(kind):
    tokenizer = build(kind, "zephyr")
    record = Record([TALK[0], *KINDS["one turn"][1:]])
    record[1] = type(record[1])("assistant", "Zoë 🙂 grüßt")
    (example,) = encode([record], tokenizer, 4096)
    (alone,) = [tokenizer.decode(example.ids[example.supervised])]
    assert alone.endswith("</s>")
    if "byte" in kind:
        assert "Zoë 🙂 grüßt" in alone
