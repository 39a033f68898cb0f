"""Seconds and bytes of a department's step from masked and from plain updates, and their share of a round.

    python -m benchmarks.systems.secure_aggregation [--sites 4 16 64] [--sizes 17920 460800] [--repeats 3] [--round 16]

All sites and the server are in this process. Seconds are CPU seconds, so that a busy machine does not change them much;
"a site" is the mean of what one of them computes, masks and noise; "noise" is the step with masks and noise in shares
(`guard.name: dp`). 17,920 numbers is the adapter of the bundled base at rank 8, 460,800
that of SmolLM2-135M. `--round N` compares N sites of one department with a default round on the bundled base (`fit`,
two rounds less one, for N sites of 128 records instead of 12); 0 leaves it out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.common import fit_command, write_json
from fl_lightning.aggregation.department import aggregate_department
from fl_lightning.aggregation.secure import aggregate_securely
from fl_lightning.aggregation.weighting import ClientStats
from fl_lightning.config import FederationConfig, GuardConfig
from fl_lightning.privacy.secure_aggregation import session
from fl_lightning.privacy.secure_aggregation.client import SecureClient


class TimedClient(SecureClient):
    """Adds up the CPU seconds of all sites."""

    seconds = 0.0

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name not in ("advertise", "share_keys", "masked_input", "sign_survivors", "unmask"):
            return value

        def timed(*arguments: Any) -> Any:
            started = time.process_time()
            result = value(*arguments)
            TimedClient.seconds += time.process_time() - started
            return result

        return timed


def measure(sites: int, size: int, repeats: int) -> dict[str, Any]:
    """Medians of a step of one department, with masks and without."""
    generator = torch.Generator().manual_seed(sites)
    previous = {"lora_A": torch.randn(size, generator=generator)}
    updates = {
        f"hr/{i}": {"lora_A": previous["lora_A"] + 1e-2 * torch.randn(size, generator=generator)} for i in range(sites)
    }
    stats = {client_id: ClientStats(128, 9000) for client_id in updates}
    config, seconds = FederationConfig(), {"plain": [], "masked": [], "site": [], "noisy": [], "noisy_site": []}
    private = FederationConfig(guard=GuardConfig("dp"), weighting="uniform")
    options: dict[str, Any] = {"department": "hr", "asked": sites}
    for turn in range(repeats + 1):
        started = time.process_time()
        plain = aggregate_department(config, 1, previous, updates, stats, {})
        between, TimedClient.seconds = time.process_time(), 0.0
        masked = aggregate_securely(config, 1, previous, updates, stats, {}, **options, seed=turn)
        ended, masked_site = time.process_time(), TimedClient.seconds
        TimedClient.seconds = 0.0
        aggregate_securely(private, 1, previous, updates, stats, {}, **options, seed=turn, noise_key=str(turn))
        noisy = time.process_time() - ended
        if turn:
            seconds["plain"].append(between - started)
            seconds["masked"].append(ended - between)
            seconds["noisy"].append(noisy)
            seconds["site"].append(masked_site / sites)
            seconds["noisy_site"].append(TimedClient.seconds / sites)
    error = (plain.state["lora_A"] - masked.state["lora_A"]).abs().max().item()
    result = masked.masked
    assert result is not None
    return {
        "sites": sites,
        "size": size,
        **{name: statistics.median(values) for name, values in seconds.items()},
        "plain_bytes_up": 4 * size,
        "masked_bytes_up": max(result.bytes_up.values()),
        "more_bytes_down": max(result.bytes_down.values()),
        "largest_difference": error,
        "error_bound": result.error,
    }


def round_seconds(sites: int) -> float:
    """CPU seconds of a default round, with evaluation and files, for this number of sites instead of its twelve."""
    with tempfile.TemporaryDirectory() as scratch:
        options = ["--learning-rate", "0.005", "--logging.samples", "0"]
        spent = [
            fit_command("bundled:departments", Path(scratch) / str(n), *options, "--rounds", str(n))["cpu_seconds"]
            for n in (1, 2)
        ]
    return (spent[1] - spent[0]) * sites / 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--sizes", type=int, nargs="+", default=[17_920, 460_800])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--round", type=int, default=16)
    parser.add_argument("--json", default="lightning_logs/benchmarks/secure_aggregation.json")
    args = parser.parse_args()
    session.SecureClient = TimedClient  # type: ignore[misc]
    rows = [measure(sites, size, args.repeats) for size in args.sizes for sites in args.sites]
    table = Table(title="a department's step, CPU seconds; KiB of a site", title_justify="left")
    for column in (
        "numbers", "sites", "plain", "masked", "a site", "noise", "a site", "KiB up", "masked", "KiB down more"
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for row in rows:
        up, masked_up, down = (row[key] / 1024 for key in ("plain_bytes_up", "masked_bytes_up", "more_bytes_down"))
        table.add_row(
            f"{row['size']:,}", str(row["sites"]), f"{row['plain']:.3f}", f"{row['masked']:.3f}", f"{row['site']:.4f}",
            f"{row['noisy']:.3f}", f"{row['noisy_site']:.4f}", f"{up:.1f}", f"{masked_up:.1f}", f"{down:.1f}",
        )  # fmt: skip
    console = Console()
    console.print(table)
    facts: dict[str, Any] = {}
    if args.round:
        facts = {"round_sites": args.round, "round_cpu_seconds": round_seconds(args.round)}
        cost = measure(args.round, args.sizes[0], args.repeats)["masked"]
        facts["share_of_round"] = cost / facts["round_cpu_seconds"]
        console.print(
            f"a round of {args.round} sites: {facts['round_cpu_seconds']:.1f} CPU seconds; masks of {args.round} sites "
            f"in one department: {cost:.2f}, {100 * facts['share_of_round']:.1f} %"
        )
    write_json(args.json, {"rows": rows, **facts})


if __name__ == "__main__":
    main()
