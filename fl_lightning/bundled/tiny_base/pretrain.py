"""Pre-train the tiny base model that ships beside this file.

A Qwen2-architecture causal language model (the model type of Qwen1.5, so that one LoRA config serves both) with a
byte-level BPE tokenizer and a ChatML template, small enough that a whole federated run takes minutes on two CPU cores.

    python fl_lightning/bundled/tiny_base/pretrain.py --corpus CORPUS_DIR --output fl_lightning/bundled/tiny_base

The corpus is a folder of UTF-8 ``*.txt`` files whose documents are separated by ``<|endoftext|>``. Seed, corpus hash,
versions and losses are written to ``training.json`` beside the weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

SEED = 1234
VOCAB_SIZE = 4096
END, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
WINDOW, BATCH, STEPS = 256, 8, 5000
PEAK_RATE, WARMUP, FINAL_SHARE = 4e-3, 60, 0.05
VALIDATION_WINDOWS = 128

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def read_corpus(folder: Path) -> tuple[list[str], str]:
    """Documents of every ``*.txt`` in the folder, in name order, and the SHA-256 over names and bytes."""
    files = sorted(p for p in folder.glob("*.txt"))
    if not files:
        raise SystemExit(f"{folder}: no .txt files, wanted a folder of corpus files")
    digest, documents = hashlib.sha256(), []
    for file in files:
        raw = file.read_bytes()
        digest.update(file.name.encode() + b"\0" + raw)
        documents += [d.strip("\n") for d in raw.decode().split(END) if d.strip()]
    return documents, digest.hexdigest()


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the corpus: any text can be encoded, there is no unknown token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in (END, IM_START, IM_END)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The ChatML marks are special tokens, not text to learn merges from.
    tokenizer.train_from_iterator(
        (d.replace(IM_START, "\n").replace(IM_END, "\n") for d in documents), trainer, length=len(documents)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=IM_END,
        pad_token=END,
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def pack(documents: list[str], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """All documents one after another, cut into windows: int64, shape (n_windows, WINDOW + 1)."""
    end = tokenizer.convert_tokens_to_ids(END)
    stream: list[int] = []
    for ids in tokenizer(documents, add_special_tokens=False)["input_ids"]:
        stream += [*ids, end]
    n = (len(stream) - 1) // WINDOW
    starts = np.arange(n)[:, None] * WINDOW + np.arange(WINDOW + 1)[None, :]
    return torch.from_numpy(np.asarray(stream, dtype=np.int64)[starts])


def build_model() -> Qwen2ForCausalLM:
    """Random weights; grouped queries (4 query heads, 2 key/value heads), so v_proj has out_features != in_features."""
    config = Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=160,
        intermediate_size=416,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    return Qwen2ForCausalLM(config)


def rate_at(step: int, steps: int) -> float:
    """Linear warm-up, then cosine from PEAK_RATE down to FINAL_SHARE of it."""
    if step < WARMUP:
        return PEAK_RATE * (step + 1) / WARMUP
    cosine = 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))
    return PEAK_RATE * (FINAL_SHARE + (1 - FINAL_SHARE) * cosine)


def loss_of(model: Qwen2ForCausalLM, windows: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy in nats."""
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


@torch.no_grad()
def validate(model: Qwen2ForCausalLM, windows: torch.Tensor) -> float:
    """Mean loss over all windows given."""
    model.eval()
    losses = [loss_of(model, batch).item() * len(batch) for batch in torch.split(windows, BATCH)]
    model.train()
    return sum(losses) / len(windows)


def main() -> None:
    """Train tokenizer and model, write both and what they were made of."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()

    torch.manual_seed(SEED)
    documents, corpus_hash = read_corpus(args.corpus)
    tokenizer = train_tokenizer(documents)
    windows = pack(documents, tokenizer)
    generator = torch.Generator().manual_seed(SEED)
    windows = windows[torch.randperm(len(windows), generator=generator)]
    held_out, training = windows[:VALIDATION_WINDOWS], windows[VALIDATION_WINDOWS:]
    bytes_per_token = sum(len(d.encode()) for d in documents) / (len(windows) * WINDOW)
    print(f"{len(training)} windows of {WINDOW} tokens, {bytes_per_token:.2f} bytes a token", flush=True)

    model = build_model()
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    started, order, position = time.perf_counter(), torch.empty(0, dtype=torch.long), 0
    for step in range(args.steps):
        if position + BATCH > len(order):
            order, position = torch.randperm(len(training), generator=generator), 0
        batch = training[order[position : position + BATCH]]
        position += BATCH
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, args.steps)
        loss = loss_of(model, batch)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 100 == 0:
            seconds = time.perf_counter() - started
            speed = (step + 1) * BATCH * WINDOW / seconds
            print(f"step {step + 1} loss {loss.item():.3f} {speed:.0f} tokens/s {seconds:.0f} s", flush=True)

    args.output.mkdir(parents=True, exist_ok=True)
    validation_loss = validate(model, held_out)
    model.to(torch.bfloat16).save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    facts = {
        "seed": SEED,
        "corpus_sha256": corpus_hash,
        "steps": args.steps,
        "tokens_seen": args.steps * BATCH * WINDOW,
        "parameters": sum(p.numel() for p in model.parameters()),
        "validation_loss": round(validation_loss, 4),
        "validation_bits_per_byte": round(validation_loss / math.log(2) / bytes_per_token, 4),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
    }
    (args.output / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
