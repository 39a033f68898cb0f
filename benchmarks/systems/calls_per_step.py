"""Torch calls of an optimizer step on a 24-layer Qwen2: a bare loop with PEFT, one client, and K clients together.

    python -m benchmarks.systems.calls_per_step [--clients 16] [--layers 24] [--json …]

A step is forward, backward, clipping and AdamW on four records a client. Its calls depend on the model's layers and not
on its width, which is tiny here; on a GPU they bound the speed of small rows. Calls are the `aten` operators in torch's
profile. `grouped_mm` counts as one, as on a GPU, where it is one kernel; on a CPU torch runs a product for each group
inside of it, and what it calls there is shown in a second column.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from lightning.fabric import Fabric
from torch.nn.utils.rnn import pad_sequence
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.common import write_json
from fl_lightning import LoraClientModule, TrainingConfig, create_lora_model
from fl_lightning.data.client_data import ClientData
from fl_lightning.data.tokenization import Examples
from fl_lightning.federation.protocol import ClientTask
from fl_lightning.modeling.lora import collect_lora_state
from fl_lightning.training.local_clients import LocalClients

VOCABULARY, WIDTH, RECORDS = 256, 64, 4
GROUPED = "aten::_grouped_mm"


def make_model(layers: int) -> torch.nn.Module:
    """A random Qwen2 with PEFT's LoRA on queries and values."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    return create_lora_model(Qwen2ForCausalLM(config).requires_grad_(False), r=8, lora_dropout=0.05)


def make_examples(seed: int) -> Examples:
    """One micro-batch of records of 12 to 20 tokens, whose last third is supervised."""
    draws = torch.Generator().manual_seed(seed)
    lengths = [12 + (seed + 3 * i) % 9 for i in range(RECORDS)]
    ids = [torch.randint(VOCABULARY, (n,), generator=draws).tolist() for n in lengths]
    return Examples(ids, [[3 * i >= 2 * n for i in range(n)] for n in lengths])


def count_calls(step: Callable[[], object]) -> tuple[int, int]:
    """Calls of a step, and calls inside of grouped products."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    inside = 0
    events = [event for event in profiler.events() if event.name.startswith("aten::")]
    for event in events:
        parent = event.cpu_parent
        while parent is not None and parent.name != GROUPED:
            parent = parent.cpu_parent
        inside += parent is not None
    return len(events) - inside, inside


def bare_loop_calls(layers: int) -> tuple[int, int]:
    """Calls of the loop without this package: padded batch, PEFT's layers, clip_grad_norm_, AdamW."""
    model = make_model(layers).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0, foreach=True)
    examples = list(make_examples(0))

    def step() -> None:
        ids = pad_sequence([e.ids for e in examples], batch_first=True)
        marks = pad_sequence([e.supervised for e in examples], batch_first=True)
        mask = pad_sequence([torch.ones_like(e.ids) for e in examples], batch_first=True)
        model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(~marks, -100)).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step()  # AdamW makes its states
    return count_calls(step)


def cohort_calls(num_clients: int, layers: int) -> tuple[int, int]:
    """Calls of a step of this package's clients, all at once."""
    module = LoraClientModule(make_model(layers))
    data = {f"d/c{k}": ClientData("d", f"c{k}", make_examples(k), make_examples(k)) for k in range(num_clients)}
    training = TrainingConfig(batch_size=RECORDS, local_epochs=2)
    clients = LocalClients(Fabric(accelerator="cpu", devices=1), module, data, training, num_clients)
    start, fitting = collect_lora_state(module.model), clients._fitting
    counts, step = [], fitting._step

    def counted_step(*args: object) -> torch.Tensor:
        losses = []
        counts.append(count_calls(lambda: losses.append(step(*args))))
        return losses[0]

    fitting._step = counted_step
    clients.fit_cohort([ClientTask(client_id, 1, start, 1) for client_id in data])
    return counts[-1]  # in the first step AdamW makes its states


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--json", default="lightning_logs/benchmarks/calls_per_step.json")
    args = parser.parse_args()
    counts = {
        "bare loop": bare_loop_calls(args.layers),
        "one client": cohort_calls(1, args.layers),
        f"{args.clients} clients": cohort_calls(args.clients, args.layers),
    }
    print(f"{'':<12} {'calls':>8} {'inside grouped_mm':>18}")
    for name, (calls, inside) in counts.items():
        print(f"{name:<12} {calls:>8,} {inside:>18,}")
    bare, one, many = (calls for calls, _ in counts.values())
    ratios = {"one client / bare loop": round(one / bare, 3), f"{args.clients} clients / one": round(many / one, 3)}
    print(*(f"{name}: {ratio}" for name, ratio in ratios.items()), sep="\n")
    write_json(args.json, {"calls": counts, **ratios})


if __name__ == "__main__":
    main()
