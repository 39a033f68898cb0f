"""The table of `benchmarks/methods/leaks.py`: what was found in each row, over all seeds, and what the row costs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common import markdown, number, shown
from benchmarks.methods.leak_attacks import Found
from fl_lightning.network.site.local_dp import local_epsilon
from fl_lightning.privacy import epsilon, noise_multiplier_for
from fl_lightning.privacy.audit.canary_directions import audit_mechanism
from fl_lightning.runs.comparison.statistics import interval

DELTA = 1e-5
"""Of all bounds and accounts."""
DRAWS = 1000
LABELS = {
    "raw": "a client's adapter, A and B",
    "bf16": "the same, `transport: bf16`",
    "int8": "the same, `transport: int8`",
    "A alone": "A of a client, `share: a`",
    "B alone": "B of a client at rank 4, `share: freeze_a`",
    "local": "the same, `network.local_privacy`, ε = {}",
    "sum": "`secure_aggregation`: a sum of {}",
    "department": "the department's adapter, a mean of {clients}",
    "B alone, department": "the department's B at rank 4",
    "dp": "the same, `guard.name: dp`, ε = {} for a client",
    "before mixing": "a department's adapter, a mean of {apart}",
    "after mixing": "the same after mixing, ratio 0.3",
    "elsewhere": "another department's adapter after mixing",
    "control": "control: adapters of other records",
}
"""Rows in their order; {} is the ε or the size in a row's name."""
REFERENCES = {"after mixing": "before mixing", "before mixing": None}
"""With which row a row's loss is compared, if not with `raw`; with None it has no costs."""


def multipliers(args: Mapping[str, Any], kind: str) -> dict[str, float]:
    """{target ε: noise multiplier}, of a site's own noise (``local``), or of a department's for its clients."""
    targets = args["local_epsilons" if kind == "local" else "epsilons"]
    asked = {f"{t:g}": noise_multiplier_for(t, args["rounds"], DELTA, clients=1, asked=1) for t in targets}
    return {t: (2 * z if kind == "local" else z) for t, z in asked.items()}


def summarize(args: Mapping[str, Any], seeds: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of all rows.

    Args:
        args: of the command line.
        seeds: {seed: what `measure` has found}.
    """
    rows: dict[str, dict[str, Any]] = {}
    first = next(iter(seeds.values()))
    for name in sorted(first["found"], key=_place):
        together = Found()
        for figures in seeds.values():
            together.add(Found(**figures["found"][name]))
        rows[name] = together.to_dict(DELTA)
        rows[name]["correct_by_seed"] = [figures["found"][name]["correct"] for figures in seeds.values()]
        rows[name]["upper"] = _upper(args, name)
        costs = [figures["cost"] for figures in seeds.values()]
        reference = REFERENCES.get(name, "raw")
        if name in costs[0] and reference is not None:
            base = "B alone" if name.startswith(("local", "dp")) else "raw"
            has_loss = costs[0][name]["loss"] is not None
            losses = [c[name]["loss"] - c[reference]["loss"] for c in costs] if has_loss else []
            is_whole = name.startswith("sum") or name in ("bf16", "int8")
            seconds = [c[name]["seconds"] - (0 if is_whole else c[base]["seconds"]) for c in costs]
            rows[name]["loss"] = vars(interval(losses)) if losses else None
            rows[name]["kib"] = costs[0][name]["kib"]
            rows[name]["milliseconds"] = 1000 * sorted(seconds)[len(seconds) // 2]
            if "own_loss" in costs[0][name]:
                own = [c[name]["own_loss"] - c["raw"]["own_loss"] for c in costs]
                rows[name]["own_loss"] = vars(interval(own))
    raw = Found()
    for figures in seeds.values():
        raw.add(Found(**figures["found"]["raw"]))
    mechanism = {
        target: audit_mechanism(
            canaries=200, dimension=first["numbers"], noise_multiplier=z, rounds=args["rounds"], delta=DELTA, seed=0
        ).to_dict()
        for target, z in multipliers(args, "client").items()
    }
    raw_losses = [figures["cost"]["raw"]["loss"] for figures in seeds.values()]
    return {
        "seeds": sorted(seeds),
        "rows": rows,
        "coins_drawn_anew": raw.coins_drawn_anew(DRAWS, DELTA),
        "mechanism": mechanism,
        "raw_loss": vars(interval(raw_losses)),
        "base_loss": vars(interval([figures["base_loss"] for figures in seeds.values()])),
    }


def table(args: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """The rows as Markdown, and below it what holds for all of them."""
    lines = []
    for name, row in summary["rows"].items():
        member, has_cost = row["membership"], "kib" in row
        by_seed = ", ".join(map(str, row["correct_by_seed"]))
        lines.append(
            [
                label(args, name),
                f"{row['correct']} of {row['guesses']} ({by_seed})",
                f"{number(row['epsilon'], 2)} ({number(row['provable'], 2)})",
                "–" if row["upper"] is None else number(row["upper"], 1),
                f"{member['auc']:.3f} ({member['auc_low']:.3f}–{member['auc_high']:.3f})",
                f"{100 * member['tpr']:.1f} ({100 * member['tpr_low']:.1f}–{100 * member['tpr_high']:.1f})",
                _change(row["loss"]) if has_cost and name != "raw" else "–",
                number(row["kib"], 1) if has_cost else "–",
                number(max(0.0, row["milliseconds"]), 1) if has_cost and name != "raw" else "–",
            ]
        )
    head = (
        "what is seen",
        "guesses that are right (by seed)",
        "ε ≥ (provable)",
        "ε ≤",
        "AUC",
        "TPR at 1 % FPR, %",
        "loss",
        "KiB up",
        "ms",
    )
    return markdown(head, lines)


def notes(summary: Mapping[str, Any]) -> str:
    """What stands below the table."""
    coins, own = summary["coins_drawn_anew"], summary["rows"]["A alone"]["own_loss"]
    lines = [
        f"Held-out loss of the base {shown(summary['base_loss'])}, without protection {shown(summary['raw_loss'])}.",
        f"Coins drawn anew, {coins['draws']:,} times: {100 * coins['correct']:.1f} % of the guesses are right, and "
        f"{100 * coins['above_zero']:.1f} % of the bounds above 0.",
        f"Clients' adapters under `share: a`, with their own B: loss {shown(own, signed=True)} against A and B.",
    ]
    for target, m in summary["mechanism"].items():
        lines.append(
            f"{m['canaries']} canary clients at ε = {target}: {m['correct']} of {m['guesses']} guesses right, ε ≥ "
            f"{m['epsilon']:.2f} (provable {m['provable']:.2f}); estimate {m['estimate']:.2f} "
            f"({m['estimate_low']:.2f}–{m['estimate_high']:.2f})."
        )
    return "\n".join(f"- {line}" for line in lines)


def _change(loss: Mapping[str, Any] | None) -> str:
    """A difference of losses; none that is less than is shown has a sign."""
    if loss is None or abs(loss["mean"]) >= 0.0005:
        return shown(loss, signed=True)
    return shown({**loss, "mean": 0.0})


def label(args: Mapping[str, Any], name: str) -> str:
    """What the table calls a row."""
    found = re.fullmatch(r"(\S+) ([\d.]+)", name)
    pattern, value = (LABELS[found[1]], found[2]) if found else (LABELS[name], "")
    return pattern.format(value, clients=args["clients"], apart=args["clients"] // 4)


def _place(name: str) -> tuple[int, float]:
    found = re.fullmatch(r"(\S+) ([\d.]+)", name)
    order: Sequence[str] = list(LABELS)
    return (order.index(found[1]), float(found[2])) if found else (order.index(name), 0.0)


def _upper(args: Mapping[str, Any], name: str) -> float | None:
    """The accountant's ε for a record; None where there is no noise."""
    kind, _, target = name.partition(" ")
    if kind == "dp":  # a record moves the clipped update by twice as much as leaving out its client
        return epsilon(multipliers(args, "client")[target] / 2, args["rounds"], DELTA, clients=1, asked=1)
    return local_epsilon(multipliers(args, "local")[target], args["rounds"], DELTA) if kind == "local" else None
