"""Clients' local training: this package against a bare PyTorch loop on the same records, one epoch a client.

    python -m benchmarks.systems.local_training [--model bundled:tiny_base] [--batch-size 4] [--records 32]
        [--repeats 5]

The bare loop is what most federated frameworks do: one client after another, batches padded to their longest record,
full logits, Hugging Face's loss, PEFT's own layers, clip_grad_norm_, torch's AdamW. Also printed: tokens a second of
real (not padding) tokens, the share of the machine's GEMM rate that the fit reaches, counting useful work only, and the
speed of all clients' adapters over that of a single one on the same records.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from lightning.fabric import Fabric

from benchmarks.common import alternate, report
from fl_lightning import LoraClientModule, ModelConfig, TrainingConfig, create_lora_model, load_base_model
from fl_lightning.data.client_data import ClientData, load_clients
from fl_lightning.data.packing import epoch_order
from fl_lightning.federation.protocol import ClientTask
from fl_lightning.modeling.lora import collect_lora_state, load_lora_state
from fl_lightning.modeling.supervised_positions import last_mlp
from fl_lightning.seeding import derive_seed
from fl_lightning.training.local_clients import LocalClients

RATE, SEED = 5e-3, 1234


def bare_loop(model: torch.nn.Module, data: dict[str, ClientData], start: dict, batch_size: int, pad: int) -> None:
    """One epoch of every client, padded, full logits."""
    for client_id, client in data.items():
        load_lora_state(model, start)
        model.train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
        for batch in epoch_order(len(client.train), batch_size, derive_seed(SEED, "order", 1, client_id, 0)):
            examples = [client.train[i] for i in batch]
            ids = torch.nn.utils.rnn.pad_sequence([e.ids for e in examples], batch_first=True, padding_value=pad)
            marks = torch.nn.utils.rnn.pad_sequence([e.supervised for e in examples], batch_first=True)
            mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(e.ids) for e in examples], batch_first=True)
            loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(~marks, -100)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        collect_lora_state(model)


def gemm_rate(tokens: int, hidden: int, inner: int) -> float:
    """FLOP/s of the machine on a product of the shape that dominates the fit."""
    x, w = torch.randn(tokens, hidden), torch.randn(hidden, inner)
    best = 0.0
    for _ in range(30):
        started = time.perf_counter()
        for _ in range(10):
            x @ w
        best = max(best, 10 * 2 * tokens * hidden * inner / (time.perf_counter() - started))
    return best


def useful_flops(model: torch.nn.Module, data: dict[str, ClientData]) -> float:
    """Forward and backward to the inputs: 4 FLOP a weight and token in the body, 4 a weight and target in the head.

    The last layer's MLP is needed at the targets only, and counted there only.
    """
    config = model.config
    body = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lora" not in n)
    head = config.vocab_size * config.hidden_size
    body -= head if any("lm_head" in n for n, _ in model.named_parameters()) else 0
    lora = sum(p.numel() for p in model.parameters() if p.requires_grad)
    examples = [e for c in data.values() for e in c.train]
    tokens, targets = sum(map(len, examples)), sum(int(e.supervised.sum()) for e in examples)
    attention = sum(len(e) ** 2 for e in examples) * config.hidden_size * config.num_hidden_layers  # causal half
    mlp = last_mlp(model.get_base_model())
    unneeded = sum(p.numel() for p in mlp.parameters() if p.ndim == 2) if mlp is not None else 0
    return tokens * (4 * body + 6 * lora) - (tokens - targets) * 4 * unneeded + targets * 4 * head + attention * (2 + 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bundled:tiny_base")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--records", type=int, default=32)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", default="lightning_logs/benchmarks/local_training.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    def fresh() -> tuple:
        base, tokenizer = load_base_model(ModelConfig(name_or_path=args.model), dtype=torch.float32)
        return create_lora_model(base, seed=1), tokenizer

    bare, tokenizer = fresh()
    bare.get_base_model().set_attn_implementation("sdpa")
    data = load_clients(
        "bundled:departments", tokenizer, clients_per_dept=args.clients, max_records=args.records, max_length=512
    )
    start = collect_lora_state(bare)
    training = TrainingConfig(learning_rate=RATE, batch_size=args.batch_size)
    ours = LoraClientModule(fresh()[0], learning_rate=RATE)
    fabric = Fabric(accelerator="cpu", devices=1)
    clients = LocalClients(fabric, ours, data, training)
    tasks = [ClientTask(client_id, 1, start, SEED) for client_id in data]

    # The same records as a single client's, in batches as large as those of all clients together.
    everything = ClientData("all", "one", [e for client in data.values() for e in client.train], ())
    one_training = TrainingConfig(learning_rate=RATE, batch_size=args.batch_size * len(data))
    one = LocalClients(fabric, ours, {"all/one": everything}, one_training)

    def run(at_once: int | str) -> None:
        clients.clients_at_once = at_once
        list(clients.fit(tasks))

    contestants = {
        "bare loop": lambda: bare_loop(bare, data, start, args.batch_size, tokenizer.pad_token_id),
        "ours, one client at a time": lambda: run(1),
        "ours, auto": lambda: run("auto"),
        "ours, one adapter on all records": lambda: list(one.fit([ClientTask("all/one", 1, start, SEED)])),
    }
    seconds = alternate(contestants, args.repeats)
    tokens = sum(len(e) for c in data.values() for e in c.train)
    flops, best = useful_flops(ours.model, data), min(seconds["ours, auto"])
    config = ours.model.config
    peak = gemm_rate(1024, config.hidden_size, config.intermediate_size)
    facts = {
        "batch_size": args.batch_size,
        "threads": args.threads,
        "real tokens": tokens,
        "tokens/s bare": round(tokens / min(seconds["bare loop"])),
        "tokens/s auto": round(tokens / best),
        "GEMM GFLOP/s": round(peak / 1e9, 1),
        "useful GFLOP/s auto": round(flops / best / 1e9, 1),
        "share of GEMM rate": round(flops / best / peak, 3),
        "auto over one adapter": round(min(seconds["ours, one adapter on all records"]) / best, 3),
    }
    report(f"local training, {args.model}, batch {args.batch_size}", seconds, "bare loop", facts, args.json)


if __name__ == "__main__":
    main()
