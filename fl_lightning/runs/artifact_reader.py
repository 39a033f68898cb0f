"""A run folder as far as it is there: what is missing or broken is noted, and the rest is read."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fl_lightning.errors import InputError
from fl_lightning.runs.artifacts import ROOT, Found, LeftOut, Run
from fl_lightning.runs.lenient import by_round, labels, mapping, matrix, number, numbers, text
from fl_lightning.storage.files import read_json
from fl_lightning.storage.run_layout import GROUPS

LEVELS = {f"{who}/{way}" for who in ("client", "department", "group") for way in ("up", "down")}


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Args:
        folder: as `fit` writes it; finished, interrupted or still running.

    Returns:
        What could be read; `Run.missing` says what could not.
    """
    run = Run(folder)
    _read_config(run)
    _read_evaluation(run)
    _read_clients(run)
    _read_metrics(run)
    _read_clusters(run)
    _read_aggregation(run)
    return run


def _json(run: Run, name: str, lacks: str) -> Any:
    """The value in a JSON file; None, and a note, where there is none."""
    try:
        return read_json(run.folder / name)
    except (InputError, OSError) as error:
        there = (run.folder / name).exists()
        why = f"cannot be used ({text(error)})" if there else "is missing"
        run.missing.append(f"{name} {why}: {lacks}")
        return None


def _read_config(run: Run) -> None:
    try:
        if not (run.folder / "config.yaml").is_file():
            raise OSError("no such file")
        run.config = (run.folder / "config.yaml").read_text(encoding="utf-8", errors="replace")
        values = mapping(yaml.safe_load(run.config))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        run.missing.append(f"config.yaml cannot be used ({text(error)}): what the run was asked for is not known")
        return
    planned = number(mapping(values.get("federation")).get("rounds"))
    run.planned = None if planned is None else int(planned)


def _read_evaluation(run: Run) -> None:
    name = "federated_eval.json"
    values = mapping(_json(run, name, "no comparison of base and departments; a run writes it after its first round"))
    for kind in ("departments", "groups"):
        for who, own in mapping(values.get(kind)).items():
            run.figures[who] = {stage: numbers(figures) for stage, figures in mapping(own).items()}
            if kind == "groups":
                run.groups.add(who)
    run.groups.update(mapping(_optional(run.folder / GROUPS)))


def _optional(path: Path) -> Any:
    try:
        return read_json(path) if path.exists() else None
    except (InputError, OSError):
        return None


def _read_clients(run: Run) -> None:
    lacks = "the clients' own losses come from metrics.csv alone"
    values = mapping(_json(run, "client_eval_all_rounds.json", lacks))
    for round_num, departments in by_round(values.get("rounds")).items():
        for department, clients in mapping(departments).items():
            for client, figures in mapping(clients).items():
                loss = number(mapping(figures).get("loss"))
                if loss is not None:
                    run.client_losses.setdefault(department, {}).setdefault(client, {})[round_num] = loss


def _read_metrics(run: Run) -> None:
    """Curves and costs out of the CSV logger's table; what other files say of clients stands."""
    for step, row in _rows(run):
        for name, value in row.items():
            *owner, kind, figure = ["", "", *name.split("/")]
            who = [part for part in owner if part]
            if (kind, figure) == ("eval", "loss"):
                if not who:
                    run.mean_loss[step] = value
                elif len(who) == 1:
                    run.losses.setdefault(who[0], {})[step] = value
                elif len(who) == 2:
                    clients = run.client_losses.setdefault(who[0], {})
                    clients.setdefault(who[1], {}).setdefault(step, value)
            elif name.removeprefix("round/bytes/") in LEVELS:
                run.sent.setdefault(step, {})[name.removeprefix("round/bytes/")] = value
            elif kind == "seconds" and not who:
                run.seconds.setdefault(step, {})[figure] = value
    if not run.losses and run.figures:  # first and last points are known all the same
        last = max((r for own in run.client_losses.values() for c in own.values() for r in c), default=1)
        for whose, stages in run.figures.items():
            points = {0: stages.get("base", {}).get("loss"), last: stages.get("final", {}).get("loss")}
            run.losses[whose] = {r: value for r, value in points.items() if value is not None}


def _rows(run: Run) -> Iterator[tuple[int, dict[str, float]]]:
    path = run.folder / "metrics.csv"
    lacks = "no loss by round and no seconds; keep CSVLogger in logging.loggers"
    if not path.is_file():
        run.missing.append(f"metrics.csv is missing: {lacks}")
        return
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(file):
                step = number(row.pop("step", None))
                if step is not None and 0 <= step < 1e9:
                    own = {text(k): number(value) for k, value in row.items() if isinstance(k, str)}
                    yield int(step), {k: value for k, value in own.items() if value is not None}
    except (OSError, csv.Error) as error:
        run.missing.append(f"metrics.csv cannot be used ({text(error)}): {lacks}")


def _read_clusters(run: Run) -> None:
    for round_num, path in _of_rounds(run.folder, "department_clusters"):
        similarity = _optional(path.with_name(f"round_{round_num}_similarity.json"))
        value = _json(run, f"cluster_metadata/{path.name}", "the clusters of this round are not shown")
        found = _found(value, similarity)
        if found is not None:
            run.clusters.setdefault(round_num, {})[ROOT] = found
    for round_num, path in _of_rounds(run.folder, "hierarchy"):
        value = _json(run, f"cluster_metadata/{path.name}", "the groups' clusters of this round are not shown")
        for group, own in mapping(mapping(value).get("groups")).items():
            found = _found(own, mapping(own).get("similarity"))
            run.groups.add(group)
            if found is not None:
                run.clusters.setdefault(round_num, {})[group] = found
    run.clusters = dict(sorted(run.clusters.items()))
    for round_num, path in _of_rounds(run.folder, "client_clusters"):
        value = _json(run, f"cluster_metadata/{path.name}", "the clients' clusters of this round are not shown")
        for department, own in mapping(mapping(value).get("departments")).items():
            assignments = labels(mapping(own).get("assignments"))
            if assignments:
                run.client_clusters.setdefault(round_num, {})[department] = assignments


def _found(value: Any, similarity: Any) -> Found | None:
    values, alike = mapping(value), mapping(similarity)
    assignments = labels(values.get("assignments"))
    if not assignments:
        return None
    names = alike.get("departments")
    members = [text(name) for name in names] if isinstance(names, list) else []
    count = number(values.get("n_clusters"))
    return Found(
        assignments,
        n_clusters=None if count is None else int(count),
        method=text(values.get("method", "")),
        select=text(values.get("select", "")),
        inertias=_by_k(values.get("inertias")),
        scores=_by_k(values.get("scores")),
        members=members,
        cosine=matrix(alike.get("cosine"), len(members)),
        representation=text(alike.get("representation", "")),
    )


def _by_k(value: Any) -> dict[int, float]:
    found = {k: number(own) for k, own in by_round(value).items()}
    return {k: own for k, own in found.items() if own is not None}


def _read_aggregation(run: Run) -> None:
    for round_num, path in _of_rounds(run.folder, "aggregation"):
        values = mapping(_json(run, f"cluster_metadata/{path.name}", "who was left out of this round is not known"))
        for department, own in mapping(values.get("departments")).items():
            facts = mapping(own)
            for client, reason in mapping(facts.get("left_out")).items():
                run.left_out.append(LeftOut(round_num, department, client, text(reason)))
            for client, factor in numbers(facts.get("scaled")).items():
                run.scaled.append(LeftOut(round_num, department, client, f"shortened to {factor:.3g} of its length"))
            epsilon = number(facts.get("epsilon"))
            if epsilon is not None:
                run.epsilon[department] = epsilon
        levels = {k: v for k, v in numbers(values.get("bytes")).items() if k in LEVELS}
        if levels:
            run.sent[round_num] = levels
    if not (run.folder / "cluster_metadata").is_dir():
        lacks = "no clusters, similarities and reasons for leaving clients out; see logging.save_cluster_metadata"
        run.missing.append(f"cluster_metadata/ is missing: {lacks}")


def _of_rounds(folder: Path, kind: str) -> list[tuple[int, Path]]:
    """(round, file) of ``cluster_metadata/round_R_<kind>.json``, in the order of rounds."""
    paths = (folder / "cluster_metadata").glob(f"round_*_{kind}.json")
    found = [(re.fullmatch(rf"round_([0-9]{{1,9}})_{kind}\.json", p.name), p) for p in paths]
    return sorted((int(match[1]), path) for match, path in found if match)
