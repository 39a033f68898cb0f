"""Tokens a second of the server's decoder with five adapters in a batch, beside `generate` without adapters."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu_sections.bench import Bench, Loaded
from fl_lightning.modeling.attention import restore_attention
from fl_lightning.modeling.generation.adapter_bank import AdapterBank
from fl_lightning.modeling.generation.decoding import Answer, Decoder
from fl_lightning.modeling.generation.token_sampling import Sampler, Sampling

ADAPTERS, PROMPT = 5, 64


def serving(bench: Bench) -> dict:
    loaded = bench.load(clients=1, records=4)
    model = loaded.module.model.eval()
    restore_attention(model.get_base_model())
    tokens = 8 if bench.small else 64
    result: dict[str, Any] = {"new_tokens": tokens, "prompt_tokens": PROMPT, "adapters": ADAPTERS, "rows": []}
    for rows in (1, 4) if bench.small else (1, 32, 128):
        for who, run in (("decoder, five adapters", decode), ("generate, base", generate)):

            def row(run: Any = run, rows: int = rows) -> dict:
                run(bench, loaded, rows, 4)  # warms up
                seconds, _ = bench.timed(lambda: run(bench, loaded, rows, tokens))
                return {"tokens_per_second": round(rows * tokens / seconds), "peak_gb": bench.peak_gb()}

            result["rows"].append({"who": who, "rows": rows} | bench.attempt(row))
    return result


def decode(bench: Bench, loaded: Loaded, rows: int, tokens: int) -> None:
    draws, model = torch.Generator().manual_seed(0), loaded.module.model
    bank = AdapterBank(model)
    states = [{n: t + 0.01 * torch.randn(t.shape, generator=draws) for n, t in loaded.start.items()}] * ADAPTERS
    adapters = [bank.prepare(state) for state in states]
    with bank.attached():
        decoder = Decoder(model, bank, ends=[-1])
        greedy = [Sampler(Sampling(temperature=0)) for _ in range(rows)]
        prompt = list(range(5, 5 + PROMPT))
        decoder.add([Answer(prompt, adapters[i % ADAPTERS], tokens, greedy[i]) for i in range(rows)])
        while decoder.answers:
            decoder.step()


@torch.inference_mode()
def generate(bench: Bench, loaded: Loaded, rows: int, tokens: int) -> None:
    model = loaded.module.model
    ids = torch.arange(5, 5 + PROMPT, device=bench.device).repeat(rows, 1)
    with model.disable_adapter():
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
        )
