"""Training speed: this package, a bare loop, the same compiled, a Trainer per client; and the default config."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import torch

from benchmarks.gpu_sections.bench import Bench, Loaded
from benchmarks.gpu_sections.contestants import BareLoop, trainer_per_client
from benchmarks.gpu_sections.machine import gemm_rate
from benchmarks.systems.local_training import useful_flops
from fl_lightning.data.client_data import ClientData
from fl_lightning.modeling.attention import restore_attention
from fl_lightning.training.memory_estimate import MARGIN
from fl_lightning.training.row_budget import model_bytes

Clients: TypeAlias = Mapping[str, ClientData]

PLAN = [(4, 16), (1, 8), (16, 64)]
"""(batch size, records of a client); of 16 clients the last makes rows of about 15,000 tokens."""
CONTESTANTS: list[tuple[str, int | str, int | None, bool]] = [
    ("ours, auto", "auto", None, False),
    ("ours, auto, CUDA graphs", "auto", None, True),
    ("ours, one at a time", 1, 4, False),
    ("ours, one at a time, CUDA graphs", 1, 4, True),
]
"""(name, clients at once, clients of each department, graphs)."""


class Rows:
    """Rows of a table: figures of a contestant, or its error."""

    def __init__(self, bench: Bench, loaded: Loaded) -> None:
        self.bench, self.loaded, self.rows = bench, loaded, []
        config = loaded.module.model.config
        self.rate = gemm_rate(bench, 1024 if bench.small else 16384, config.hidden_size, config.intermediate_size)

    def add(self, who: str, batch_size: int, measure: Callable[[], tuple[Clients, float, int]]) -> None:
        """Add what `measure` returns: (clients, seconds, steps)."""

        def row() -> dict:
            data, seconds, steps = measure()
            tokens, flops = self.loaded.tokens(data), useful_flops(self.loaded.module.model, data)
            return {
                "clients": len(data),
                "tokens": tokens,
                "seconds": round(seconds, 3),
                "tokens_per_second": round(tokens / seconds),
                "share_of_gemm_rate": round(flops / seconds / self.rate, 4),
                "ms_per_step": round(1000 * seconds / max(1, steps), 1),
                "tokens_per_step": round(tokens / max(1, steps)),
                "peak_gb": self.bench.peak_gb(),
            }

        self.rows.append({"who": who, "batch": batch_size} | self.bench.attempt(row))

    def as_json(self) -> dict:
        return {"clients": len(self.loaded.data), "gemm_tflops": round(self.rate / 1e12, 3), "rows": self.rows}


def training(bench: Bench) -> dict:
    loaded = bench.load(clients=4, records=64)
    table, everything = Rows(bench, loaded), dict(loaded.data)
    for batch_size, records in PLAN:
        for who, at_once, clients, graphs in CONTESTANTS:
            if (at_once == 1 and batch_size == 16) or (graphs and not bench.is_gpu):
                continue
            loaded.local.data = everything
            data = loaded.cut(records, clients)
            table.add(who, batch_size, partial(ours, bench, loaded, data, batch_size, at_once, graphs))
            if bench.is_gpu and "error" not in table.rows[-1]:
                table.rows[-1]["predicted_gb"] = predicted_gb(loaded)
            bench.say(f"{who}, batch {batch_size}: largest step {max(loaded.steps, default=0)} tokens")
    loaded.local.data = everything
    restore_attention(loaded.module.model.get_base_model())
    for batch_size, records in PLAN[:2]:
        table.add("bare loop", batch_size, partial(bare, bench, loaded, loaded.cut(records, 4), batch_size, False))
    trainer_per_client(bench, loaded, loaded.cut(4, 1), 4)  # imports and warms up
    for batch_size, records in PLAN[:2]:
        table.add(
            "Trainer per client", batch_size, partial(trainers, bench, loaded, loaded.cut(records, 2), batch_size)
        )
    return table.as_json()


def compiled(bench: Bench) -> dict:
    """The bare loop with compiled layers; the last section, since compiling takes long."""
    loaded = bench.load(clients=4, records=16)
    table = Rows(bench, loaded)
    table.add("bare loop, compiled", 4, partial(bare, bench, loaded, loaded.cut(16, 4), 4, True))
    return table.as_json()


def rows(bench: Bench) -> dict:
    """Larger and larger rows: the smallest one that keeps the card busy."""
    loaded = bench.load(clients=4, records=64)
    table = Rows(bench, loaded)
    data = loaded.cut(16)
    for batch_size, at_once in ((4, 1), (4, 2), (4, 4), (4, 8), (4, 16), (8, 16), (16, 16)):
        table.add(f"ours, {at_once} at once", batch_size, partial(ours, bench, loaded, data, batch_size, at_once))
    return table.as_json()


def ours(
    bench: Bench, loaded: Loaded, data: Clients, batch_size: int, at_once: int | str, graphs: bool = False
) -> tuple:
    loaded.local.training = replace(loaded.local.training, cuda_graphs=graphs)
    bench.fit(loaded, first_records(data, 2 * batch_size), batch_size, at_once)  # warms up
    bench.fit(loaded, data, batch_size, at_once)
    return data, loaded.seconds, len(loaded.steps)


def bare(bench: Bench, loaded: Loaded, data: Clients, batch_size: int, is_compiled: bool) -> tuple:
    loop = BareLoop(bench, loaded, is_compiled)
    loop.run(first_records(data, 2 * batch_size), batch_size)
    seconds, _ = bench.timed(lambda: loop.run(data, batch_size))
    return data, seconds, loop.steps


def trainers(bench: Bench, loaded: Loaded, data: Clients, batch_size: int) -> tuple:
    seconds, steps = bench.timed(lambda: trainer_per_client(bench, loaded, data, batch_size))
    return data, seconds, steps


def predicted_gb(loaded: Loaded) -> float:
    """What `doctor` would predict of torch's memory for the largest step of the last fit: no libraries, no context."""
    per_token, fixed = model_bytes(loaded.module.model, loaded.local.training.gradient_checkpointing)
    return round((fixed - MARGIN["cuda"] + per_token * max(loaded.steps)) / 1e9, 2)


def first_records(data: Clients, records: int) -> dict[str, ClientData]:
    """The same clients with few records each, for a fit that warms up."""
    return {client_id: replace(client, train=client.train[:records]) for client_id, client in data.items()}


def default(bench: Bench) -> dict:
    """Fit and evaluation of every client of configs/default.yaml, as in a round, on the GPU and on the CPU."""
    result = {}
    for device in dict.fromkeys((bench.device, "cpu")):
        on_device = copy.copy(bench)
        on_device.device = device

        def one(on_device: Bench = on_device) -> dict:
            loaded = on_device.load(clients=3, records=128, name="bundled:tiny_base")
            jobs = [(loaded.start, client_id) for client_id in loaded.data]
            data = dict(loaded.data)
            on_device.fit(loaded, first_records(data, 4), 4, "auto")
            on_device.fit(loaded, data, 4, "auto")
            evaluating, _ = on_device.timed(lambda: loaded.local.evaluate(jobs))
            return {
                "fit_seconds": round(loaded.seconds, 2),
                "evaluation_seconds": round(evaluating, 2),
                "cpu_threads": torch.get_num_threads(),
            }

        result[device] = bench.attempt(one)
    return result
