"""Bandwidth of aggregating clients' states: `flora_weighted_aggregate` against a plain memory copy of the same states.

    python -m benchmarks.methods.aggregation [--states 100] [--tensors 64] [--megabytes 8] [--repeats 7]

GB/s are bytes of fp32 states read a second, counted alike for everybody. Copies are ``dst.copy_(src)`` for each tensor:
from memory to memory (into a state of their own for each state), and into one state again and again, whose writes stay
in the cache where it is large enough. The aggregation reads as many bytes and also reads and writes its fp64 sums.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from benchmarks.common import alternate, report
from fl_lightning import flora_weighted_aggregate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--states", type=int, default=100)
    parser.add_argument("--tensors", type=int, default=64)
    parser.add_argument("--megabytes", type=float, default=8.0, help="of a state")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", default="lightning_logs/benchmarks/aggregation.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    rank = 16
    width = max(1, round(args.megabytes * 1e6 / 4 / args.tensors / rank))
    names = [f"layers.{i // 2}.q_proj.lora_{'AB'[i % 2]}.weight" for i in range(args.tensors)]
    states = [{name: torch.randn(rank, width) for name in names} for _ in range(args.states)]
    items = [(state, weight + 0.5) for weight, state in enumerate(states)]
    own = [{name: torch.zeros(rank, width) for name in names} for _ in states]

    def copy(into: list[dict[str, torch.Tensor]]) -> None:
        for source, target in zip(states, into, strict=True):
            for name, tensor in source.items():
                target[name].copy_(tensor)

    one = [own[0]] * len(states)
    contestants = {
        "copy, memory to memory": lambda: copy(own),
        "copy, into one state": lambda: copy(one),
        "flora_weighted_aggregate": lambda: flora_weighted_aggregate(items),
    }
    seconds = alternate(contestants, args.repeats)
    size = args.states * args.tensors * rank * width * 4
    facts = {
        "threads": args.threads,
        "MB of a state": round(size / args.states / 1e6, 2),
        "GB/s": {name: round(size / 1e9 / statistics.median(own), 2) for name, own in seconds.items()},
    }
    title = f"aggregation of {args.states} states of {args.tensors} tensors"
    report(title, seconds, "copy, memory to memory", facts, args.json)


if __name__ == "__main__":
    main()
