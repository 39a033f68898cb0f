"""What leaks where: canaries and records of clients, attacked in all that leaves them, and what each protection costs.

    python -m benchmarks.methods.leaks [--seeds 1 2 3] [--epsilons 2 8 32] [--local-epsilons 8 300] [--output DIR]

32 clients of the bundled departments, whose records are dealt by chance into those that train and those that are held
out, so that nothing but training tells them apart. They are one department, but where departments are mixed. Canaries
are added as by ``fit --audit.canaries``. Each seed has other records, canaries and coins, and one run for each row with
the same rounds and records; fewer bits and masked sums (by `aggregate_securely`) are those of the last round's updates
of the run without protection. The attacks are those of ``audit`` (`benchmarks/methods/leak_attacks.py`). They look at
the last round, and know the base model and all records. Controls are the same canaries and records attacked in the
adapters of a run on other records, and coins drawn anew.

"loss" is the held-out loss of the department's adapter, mean over clients, less that of the run without protection; of
mixed departments less that before mixing. "KiB up" are a client's tensors in a round, "ms" CPU milliseconds that are
added for a client in a round, its own and its share of the department's step.

DIR gets a file for each seed, which is not run again, and ``leaks.json``. --docs FILE puts the table into a document,
between its marks.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks.common import put_table, write_json
from benchmarks.methods.leak_attacks import Adapters, Found
from benchmarks.methods.leak_runs import Clients, Way
from benchmarks.methods.leak_tables import multipliers, notes, summarize, table
from fl_lightning.aggregation.secure import aggregate_securely
from fl_lightning.config import RunConfig
from fl_lightning.network.compression import decode, encode
from fl_lightning.runs.audited_adapters import unmixed_departments
from fl_lightning.state import is_lora_b
from fl_lightning.storage.files import read_json

FEW = ("--federation.share=freeze_a", "--lora-r", "4", "--learning-rate", "2e-2")
"""What noise asks for: few numbers. B alone at rank 4, as in docs/methods.md."""


def compressed(clients: Clients, transport: str) -> tuple[Adapters, dict[str, Any]]:
    """What the server has of the last round, if sites send their updates in fewer bits."""
    sites, adapters, size, started = clients.sites, [], 0, time.process_time()
    for client_id, state in sites.received.items():
        encoded = encode(state, sites.starts[client_id], transport)
        adapters.append(([client_id], decode(encoded.tensors, sites.starts[client_id], transport)))
        size += encoded.num_bytes
    seconds = (time.process_time() - started) / len(adapters)
    return adapters, {"loss": mean_loss(clients, adapters), "kib": size / len(adapters) / 1024, "seconds": seconds}


def masked_sums(clients: Clients, config: RunConfig, size: int) -> tuple[Adapters, dict[str, Any]]:
    """What the server has of the last round, if it gets masked sums of so many clients, some of whom may be left."""
    sites, adapters, up = clients.sites, [], 0
    ids, started = list(sites.received), time.process_time()
    for number in range(len(ids) // size):
        own = ids[number * size : (number + 1) * size]
        updates, stats = ({c: some[c] for c in own} for some in (sites.received, sites.stats))
        step = aggregate_securely(
            config.federation, config.federation.rounds, sites.starts[own[0]], updates, stats, {},
            department=f"sum {number}", asked=size, seed=clients.seed,
        )  # fmt: skip
        adapters.append((own, step.state))
        up = max(up, *step.masked.bytes_up.values())
    seconds = (time.process_time() - started) / (len(adapters) * size)
    loss = None if len(ids) % size else mean_loss(clients, adapters)
    return adapters, {"loss": loss, "kib": up / 1024, "seconds": seconds}


def mean_loss(clients: Clients, adapters: Adapters) -> float:
    """Held-out loss of the mean of adapters, which all stand for as many clients."""
    states = [state for _, state in adapters]
    mean = {name: torch.stack([s[name].double() for s in states]).mean(0).float() for name in states[0]}
    return clients.loss({"everybody": mean})


def measure(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """All rows of one seed: {"found": {row: what its attack has found}, "cost": {row: costs}}."""
    found: dict[str, Found] = {}
    cost: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="leaks-") as scratch:
        folder = Path(scratch)
        clients = Clients(folder, Way(), seed, args)
        config, state, cost["raw"] = clients.play(Way())
        found["raw"] = clients.attacker.attack(clients.single())
        cost["raw"]["own_loss"] = clients.attacker.held_out_loss(clients.single())
        found["department"] = clients.attacker.attack(clients.whole(state.departments))
        for size in args.sums:
            adapters, cost[f"sum {size}"] = masked_sums(clients, config, size)
            found[f"sum {size}"] = clients.attacker.attack(adapters)
        for name in ("bf16", "int8"):
            adapters, cost[name] = compressed(clients, name)
            found[name] = clients.attacker.attack(adapters)
        _, _, cost["A alone"] = clients.play(Way(("--federation.share=a",)))
        found["A alone"] = clients.attacker.attack(clients.single(), rows_of_a=True)
        cost["A alone"]["own_loss"] = clients.attacker.held_out_loss(clients.single())
        others = Clients(folder / "others", Way(), seed + 1000, argparse.Namespace(**{**vars(args), "canaries": 0}))
        others.play(Way())
        found["control"] = clients.attacker.attack(others.single())

        few = Clients(folder, Way(FEW), seed, args)
        _, state, cost["B alone"] = few.play(Way(FEW))
        found["B alone"] = few.attacker.attack(few.single())
        found["B alone, department"] = few.attacker.attack(few.whole(state.departments))
        for target, noise in multipliers(vars(args), "local").items():
            _, _, cost[f"local {target}"] = few.play(Way(FEW, local_noise=noise))
            found[f"local {target}"] = few.attacker.attack(few.single())
        for target, noise in multipliers(vars(args), "client").items():
            _, state, cost[f"dp {target}"] = few.play(Way(FEW, noise=noise))
            found[f"dp {target}"] = few.attacker.attack(few.whole(state.departments))

        apart = Clients(folder, Way(apart=True), seed, args)
        config, state, after = apart.play(Way(apart=True))
        before = unmixed_departments(config, state)
        found["before mixing"] = apart.attacker.attack(apart.whole(before))
        found["after mixing"] = apart.attacker.attack(apart.whole(state.departments))
        next_one = dict(zip(before, [*list(before)[1:], *list(before)[:1]], strict=True))
        elsewhere = {name: state.departments[other] for name, other in next_one.items()}
        found["elsewhere"] = apart.attacker.attack(apart.whole(elsewhere))
        cost["before mixing"] = {**after, "loss": apart.loss(before)}
        cost["after mixing"] = after
        [start, *_] = few.sites.starts.values()
        numbers = sum(tensor.numel() for name, tensor in start.items() if is_lora_b(name))
        base_loss = clients.loss()
    return {
        "found": {name: vars(value) for name, value in found.items()},
        "cost": cost,
        "numbers": numbers,
        "base_loss": base_loss,
    }


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--records", type=int, default=8, help="of a client, that train")
    parser.add_argument("--held-out", type=int, default=8)
    parser.add_argument("--canaries", type=int, default=8, help="of a client, half of which train")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--sums", type=int, nargs="+", default=[3, 8, 16])
    parser.add_argument("--epsilons", type=float, nargs="+", default=[2.0, 8.0, 32.0])
    parser.add_argument("--local-epsilons", type=float, nargs="+", default=[8.0, 300.0])
    parser.add_argument("--base", default="bundled:tiny_base")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", default="lightning_logs/benchmarks/leaks")
    parser.add_argument("--docs", type=Path, help="such as docs/privacy.md")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> str:
    """Run the seeds that are missing, write ``leaks.json``, and print the table."""
    args = arguments(argv)
    if wrong := [size for size in args.sums if not 3 <= size <= args.clients]:
        raise SystemExit(f"--sums: wanted 3 to {args.clients}, the number of clients, got {wrong[0]}")
    torch.set_num_threads(args.threads)
    asked = {name: value for name, value in vars(args).items() if name not in ("seeds", "threads", "output", "docs")}
    folder, found = Path(args.output), {}
    folder.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        path = folder / f"seed_{seed}.json"
        if not path.is_file():
            write_json(str(path), {"arguments": asked, **measure(seed, args)})
        found[seed] = read_json(path)
        if found[seed]["arguments"] != asked:
            raise SystemExit(f"{path}: made with {found[seed]['arguments']}, asked are {asked}; take another --output")
    summary = summarize(asked, found)
    write_json(str(folder / "leaks.json"), {"arguments": asked, **summary})
    rows = table(asked, summary)
    if args.docs is not None:
        put_table(args.docs, "leaks", rows)
    text = f"{rows}\n\n{notes(summary)}"
    print(text)
    return text


if __name__ == "__main__":
    main()
