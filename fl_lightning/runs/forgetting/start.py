"""The folder of the run without what is taken out, as that run would have left it after the round it starts from.

Copied are the files of the rounds in which nothing of it was: exports, logs and clusters of these rounds, the ledger's
lines, the states. What the records of all clients enter is computed again: the evaluations of base and adapters.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fl_lightning.config import RunConfig
from fl_lightning.errors import RunError
from fl_lightning.evaluation.departments import evaluate_departments, evaluate_groups, logged_metrics
from fl_lightning.evaluation.metrics import MetricValues
from fl_lightning.evaluation.panel import EvaluationPanel
from fl_lightning.federation.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from fl_lightning.federation.checkpoint_schema import CheckpointExtra
from fl_lightning.federation.history import HistoryEntry, HistoryFile, Row
from fl_lightning.federation.protocol import ClientTransport
from fl_lightning.federation.state import FederationState
from fl_lightning.modeling.lora import collect_lora_state
from fl_lightning.provenance.chain import Chain, LedgerFile
from fl_lightning.provenance.digests import json_digest
from fl_lightning.runs.build import RunComponents, build_tree
from fl_lightning.runs.forgetting.request import Removal
from fl_lightning.storage.files import check_secret, write_bytes, write_secret
from fl_lightning.storage.run_layout import (
    CHECKPOINTS,
    CLIENT_EXPORTS,
    CLIENT_RUNS,
    CLUSTER_METADATA,
    HISTORY,
    LEDGER,
    LEDGER_SECRET,
    UPDATES,
    checkpoint,
    parse_client_export,
    round_folders,
)

log = logging.getLogger(__name__)

_ROUND = re.compile(r"round_([0-9]{1,9})[._]")


class Evaluator:
    """Evaluates states on the records that are left, as the callback `Evaluation` does.

    Args:
        config: of the run without what is taken out.
        components: of this config.
        clients: evaluate adapters.
    """

    def __init__(self, config: RunConfig, components: RunComponents, clients: ClientTransport) -> None:
        self._clients, self._panel = clients, EvaluationPanel.draw(components.data, config.evaluation, config.seed)
        self._tree = build_tree(config, components.data)
        self._initial = collect_lora_state(components.module.model)
        self._departments = sorted({client_id.split("/", 1)[0] for client_id in components.data})
        self.names = {*self._departments, *self._tree.groups}
        """Departments and groups, which the metrics' names begin with."""

    def base(self) -> tuple[dict[str, MetricValues], dict[str, MetricValues], dict[str, float]]:
        """({department: metrics}, {group: metrics}, what is logged) of the base model."""
        data, population = self._panel.data, self._panel.population
        initial = dict.fromkeys(self._departments, self._initial)
        departments, _ = evaluate_departments(self._clients, data, initial, population)
        initial = dict.fromkeys(self._tree.groups, self._initial)
        groups = evaluate_groups(self._clients, data, initial, self._tree, population)
        return departments, groups, logged_metrics(departments, groups)

    def state(
        self, state: FederationState
    ) -> tuple[dict[str, MetricValues], dict[str, MetricValues], dict[str, float]]:
        """The same of a round's adapters."""
        data, population = self._panel.data, self._panel.population
        groups = evaluate_groups(self._clients, data, state.groups, self._tree, population)
        adapters = {name: state.adapter(name) for name in state.departments}
        departments, mean = evaluate_departments(self._clients, data, adapters, population)
        return departments, groups, logged_metrics(departments, groups, mean)


def prepare(
    folder: Path,
    before: Path,
    start_round: int,
    removal: Removal,
    fingerprint: Mapping[str, Any],
    evaluator: Evaluator,
    chain: Chain | None,
) -> None:
    """Fill a new run folder up to a round, the checkpoint of that round last; nothing if it has one already.

    Args:
        folder: of the new run, locked by this process.
        before: folder of the run before, locked by this process.
        start_round: the round after which both runs are the same; 0 takes over only the secret of the ledger.
        removal: what is taken out.
        fingerprint: of the new run.
        evaluator: on the records that are left.
        chain: of the run before, checked; None if it has none.

    Raises:
        RunError: if a state has something of what is taken out.
        InputError: if a checkpoint cannot be read.
    """
    if max(checkpoints(folder), default=-1) >= start_round:  # the checkpoint it began with is written last
        return
    if chain is not None and not (folder / LEDGER_SECRET).exists():
        check_secret(before / LEDGER_SECRET)
        write_secret(folder / LEDGER_SECRET, (before / LEDGER_SECRET).read_bytes())
    if start_round == 0:
        return
    loaded = {number: load_checkpoint(path) for number, path in checkpoints(before).items() if number <= start_round}
    for number, (state, _) in loaded.items():
        _check_free_of(state, removal, f"{before / checkpoint(number)}")
    _copy_files(before, folder, start_round)
    if chain is not None:
        _write_ledger(folder / LEDGER, chain, start_round, fingerprint)
    every = removal.config.evaluation.every
    rows = _rows(loaded[start_round][1].history, evaluator.names)
    results = {0: evaluator.base()}
    results |= {n: evaluator.state(state) for n, (state, _) in loaded.items() if n and n % every == 0}
    for number, (_, _, metrics) in results.items():
        rows.setdefault(number, {}).update(metrics)
    if lost := [n for n in range(1, start_round + 1) if n % every == 0 and n not in results]:
        log.info("rounds %s: no losses, since their states were not kept", ", ".join(map(str, lost)))
    _write_checkpoints(folder, start_round, loaded, rows, results, fingerprint)


def _check_free_of(state: FederationState, removal: Removal, name: str) -> None:
    touched = removal.gone | removal.changed
    owners = {*state.examples, *state.client_starts, *state.personal, *state.own_adapters}
    if found := sorted(touched & owners):
        raise RunError(f"{name}: expected a state without {found[0]}, got one with it; start anew with --from-start")


def _copy_files(before: Path, folder: Path, last: int) -> None:
    """Copy the files of all rounds up to the last one that both runs share."""
    paths: list[Path] = []
    for number, archived in round_folders(before / UPDATES).items():
        paths += sorted(archived.iterdir()) if number <= last else []
    paths += [path for path in (before / CLUSTER_METADATA).glob("round_*.json") if _round_of(path.name) <= last]
    paths += [path for path in (before / CLIENT_RUNS).glob("*/*/round_*.csv") if _round_of(path.name) <= last]
    for export in (before / CLIENT_EXPORTS).glob("*/round_*"):
        parsed = parse_client_export(export.name)
        if parsed is not None and parsed[0] <= last:
            paths += [path for path in sorted(export.rglob("*")) if path.is_file()]
    for path in paths:
        write_bytes(folder / path.relative_to(before), path.read_bytes())


def _round_of(name: str) -> int:
    match = _ROUND.match(name)
    return int(match[1]) if match else 2**31


def _write_ledger(path: Path, chain: Chain, last: int, fingerprint: Mapping[str, Any]) -> None:
    """Write the lines up to a round again: they differ only in the config, and so in the digests that link them."""

    def content(line: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in line.items() if key != "previous"}

    ledger = LedgerFile(path)
    ledger.begin({**content(chain.start), "config": json_digest(fingerprint["config"])})
    for number in range(1, last + 1):
        ledger.append(content(chain.rounds[number]))


def _rows(history: Iterable[Row], names: Iterable[str]) -> dict[int, dict[str, float]]:
    """{round: row} without the evaluations of departments and groups, which are of all clients' records."""
    prefixes = ("eval/", *(f"{name}/eval/" for name in names))
    rows: dict[int, dict[str, float]] = {}
    for step, row in history:
        kept = {key: value for key, value in row.items() if not key.startswith(prefixes)}
        rows.setdefault(step, {}).update(kept)
    return rows


def _write_checkpoints(
    folder: Path,
    last: int,
    loaded: Mapping[int, tuple[FederationState, CheckpointExtra]],
    rows: Mapping[int, dict[str, float]],
    results: Mapping[int, tuple[dict[str, MetricValues], dict[str, MetricValues], dict[str, float]]],
    fingerprint: Mapping[str, Any],
) -> None:
    """Write the history and the states that the run before has kept, the last one last."""
    history = HistoryFile(folder / CHECKPOINTS / HISTORY)
    history.replace([])
    records = loaded[last][1].records
    base, base_groups, _ = results[0]
    final, groups = base, base_groups
    for number in range(last + 1):
        if number in results:
            final, groups, _ = results[number]
        of_round = {key: by_round[number] for key, by_round in records.items() if number in by_round}
        entry = HistoryEntry(number, [(number, rows[number])] if rows.get(number) else [], of_round)
        mark = history.append(entry.line())
        if number not in loaded:
            continue
        state, extra = loaded[number]
        by_group = {name: {"base": base_groups[name], "final": values} for name, values in groups.items()}
        callbacks = {**extra.callbacks, "Evaluation": {"base": base, "final": final, "groups": by_group}}
        extra = replace(extra, callbacks=callbacks, identity=dict(fingerprint))
        save_checkpoint(folder / checkpoint(number), state, extra, mark)
