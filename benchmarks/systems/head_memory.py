"""Peak memory of a training step with a large vocabulary against the same step with a small one.

    python -m benchmarks.systems.head_memory [--vocabularies 4096 152000] [--targets 4096] [--hidden 64] [--whole]

Each step runs in a new process: a Qwen2 of one layer with random weights, two clients' adapters, forward, backward.
Its memory is the growth of the process's peak (``ru_maxrss``) over that just before the step, after a step with 8
targets: so neither libraries nor weights count, embeddings and head included. ``--whole`` computes all logits at once,
as before chunks. Printed: MiB of each step and their ratio, and the seconds of the step (the best of three).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.common import write_json


def work(vocabulary: int, targets: int, hidden: int, whole: bool) -> None:
    """In a child: one step; prints its MiB and seconds as JSON."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from fl_lightning import LoraClientModule, create_lora_model
    from fl_lightning.data.packing import pack
    from fl_lightning.data.tokenization import Example
    from fl_lightning.modeling.cohort import LoraCohort
    from fl_lightning.modeling.lora import collect_lora_state

    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = Qwen2Config(vocab_size=vocabulary, hidden_size=hidden, intermediate_size=2 * hidden, **heads)
    model = create_lora_model(Qwen2ForCausalLM(config).requires_grad_(False).eval(), lora_dropout=0.0)
    module, cohort = LoraClientModule(model).eval(), LoraCohort(model)
    if whole:
        module._chunk_logits = sys.maxsize
    state = collect_lora_state(model)
    cohort.load([state, state], "cpu")

    def step(count: int) -> float:
        length = 129  # of which the first has no prediction
        records = [Example(torch.randint(vocabulary, (length,)), torch.arange(length) > 0) for _ in range(count // 128)]
        if count < 128:
            records = [Example(torch.arange(count + 1), torch.arange(count + 1) > 0)]
        row = pack([records, records[:1]] if count < 128 else [records[::2], records[1::2]])
        started = time.perf_counter()
        with cohort.attached():
            cohort.set_segments(row.client_tokens, lengths=row.lengths)
            module(row).loss.sum().backward()
        return time.perf_counter() - started

    step(8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = [step(targets)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    seconds += [step(targets) for _ in range(2)]
    unit = 2**20 if sys.platform == "darwin" else 1024
    print(json.dumps({"mib": peak / unit, "seconds": min(seconds)}))


def measure(vocabulary: int, targets: int, hidden: int, whole: bool) -> dict[str, float]:
    """{"mib", "seconds"} of a step in a new process."""
    options = ["--vocabularies", vocabulary, "--targets", targets, "--hidden", hidden, *(["--whole"] if whole else [])]
    command = [sys.executable, "-m", "benchmarks.systems.head_memory", "--work", *map(str, options)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures: dict[str, float] = json.loads(printed.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[4096, 152_000])
    parser.add_argument("--targets", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", default="lightning_logs/benchmarks/head_memory.json")
    args = parser.parse_args()
    if args.work:
        work(args.vocabularies[0], args.targets, args.hidden, args.whole)
        return
    rows = {v: measure(v, args.targets, args.hidden, args.whole) for v in args.vocabularies}
    first = rows[args.vocabularies[0]]["mib"]
    for vocabulary, row in rows.items():
        print(f"{vocabulary:>8,}: {row['mib']:8.0f} MiB, {row['mib'] / first:.2f} of the first, {row['seconds']:.2f} s")
    write_json(args.json, {"rows": rows, "targets": args.targets, "hidden": args.hidden, "whole": args.whole})


if __name__ == "__main__":
    main()
