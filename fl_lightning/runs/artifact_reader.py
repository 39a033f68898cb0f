"""Read a run folder that may be unfinished or damaged: problems are noted, everything else is read."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fl_lightning.errors import InputError
from fl_lightning.runs.artifacts import (
    LEVELS,
    PERSONAL_LOSSES,
    ROOT,
    ClusteringResult,
    DepartmentMixture,
    ExcludedUpdate,
    PersonalResult,
    RunArtifacts,
)
from fl_lightning.runs.audit_reader import parse_audit
from fl_lightning.runs.lenient import by_round, labels, mapping, matrix, number, numbers, text
from fl_lightning.storage.files import read_json
from fl_lightning.storage.run_layout import (
    AUDIT,
    CHECKPOINT_FACTS,
    CHECKPOINTS,
    CLIENT_EVALUATION,
    CLUSTER_METADATA,
    CONFIG,
    DEPARTMENT_MIXTURES,
    EVALUATION,
    GROUP_INDEX,
    METRICS,
    PERSONAL_EVALUATION,
    cluster_file,
    cluster_files,
    round_folders,
)

MAX_STEP = 10**9
"""A row of ``metrics.csv`` with a larger step is not a round's."""


def read_artifacts(folder: Path, *, with_metadata: bool = True) -> RunArtifacts:
    """Read a run folder.

    Args:
        folder: as ``fit`` writes it; finished, interrupted or still running.
        with_metadata: also read ``cluster_metadata/``, with several files per round.

    Returns:
        The contents; `RunArtifacts.missing` lists what could not be read.
    """
    run = RunArtifacts(folder)
    _read_config(run)
    _read_evaluation(run)
    _read_client_evaluation(run)
    _read_metrics(run)
    _read_personal(run)
    _read_mixtures(run)
    if (run.folder / AUDIT).exists():
        run.audit = parse_audit(_read(run, AUDIT, "what the audit has found is not shown"))
    if with_metadata:
        _read_clusters(run)
        _read_client_clusters(run)
        _read_aggregation(run)
    return run


def read_num_examples(folder: Path) -> dict[str, int]:
    """{client_id: training records} from the newest checkpoint; empty if there is none."""
    checkpoints = list(round_folders(folder / CHECKPOINTS).values())
    if not checkpoints:
        return {}
    counts = numbers(mapping(_read_optional(checkpoints[-1] / CHECKPOINT_FACTS)).get("examples"))
    return {client_id: int(count) for client_id, count in counts.items()}


def _read(run: RunArtifacts, name: str, consequence: str) -> Any:
    """The value in a JSON file; None, and a note, if it cannot be read."""
    try:
        return read_json(run.folder / name)
    except (InputError, OSError) as error:
        _note(run, name, error, consequence)
        return None


def _note(run: RunArtifacts, name: str, error: Exception, consequence: str) -> None:
    if (run.folder / name).exists():
        run.broken[name] = text(error)
        run.missing.append(f"{name} cannot be used ({text(error)}): {consequence}")
    else:
        run.missing.append(f"{name} is missing: {consequence}")


def _read_optional(path: Path) -> Any:
    try:
        return read_json(path) if path.exists() else None
    except (InputError, OSError):
        return None


def _read_config(run: RunArtifacts) -> None:
    path = run.folder / CONFIG
    try:
        if not path.is_file():
            raise OSError("not a file")
        run.config_text = path.read_text(encoding="utf-8", errors="replace")
        values = mapping(yaml.safe_load(run.config_text))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        _note(run, CONFIG, error, "the settings of the run are not known")
        return
    rounds = number(mapping(values.get("federation")).get("rounds"))
    run.planned_rounds = None if rounds is None else int(rounds)


def _read_evaluation(run: RunArtifacts) -> None:
    name = EVALUATION
    consequence = "no comparison of base and departments; a run writes it after its first round"
    values = mapping(_read(run, name, consequence))
    run.is_evaluated = bool(values)
    for kind in ("departments", "groups"):
        for owner, stages in mapping(values.get(kind)).items():
            run.metrics[owner] = {stage: numbers(metrics) for stage, metrics in mapping(stages).items()}
            if kind == "groups":
                run.groups.add(owner)
    run.mean_metrics = {stage: numbers(metrics) for stage, metrics in mapping(values.get("mean")).items()}
    run.groups.update(mapping(_read_optional(run.folder / GROUP_INDEX)))


def _read_client_evaluation(run: RunArtifacts) -> None:
    name, consequence = CLIENT_EVALUATION, "the clients' own losses come from metrics.csv alone"
    values = mapping(_read(run, name, consequence))
    for round_num, departments in by_round(values.get("rounds")).items():
        run.client_metrics[round_num] = {
            department: {client: numbers(metrics) for client, metrics in mapping(clients).items()}
            for department, clients in mapping(departments).items()
        }
        for department, clients in run.client_metrics[round_num].items():
            for client, metrics in clients.items():
                if "loss" in metrics:
                    curves = run.client_losses.setdefault(department, {})
                    curves.setdefault(client, {})[round_num] = metrics["loss"]


def _read_metrics(run: RunArtifacts) -> None:
    """Curves, bytes and seconds from the CSV logger's table; it does not replace clients' losses from other files."""
    curves = {
        "selection/loss": run.selection_loss,
        "selection/own_loss": run.own_selection_loss,
        "round/tokens": run.tokens,
        "round/virtual_hours": run.virtual_hours,
    }
    for step, row in _metrics_rows(run):
        for name, value in row.items():
            *owner, kind, metric = ["", "", *name.split("/")]
            owner = [part for part in owner if part]
            if (kind, metric) == ("eval", "loss"):
                if not owner:
                    run.mean_loss[step] = value
                elif len(owner) == 1:
                    run.losses.setdefault(owner[0], {})[step] = value
                elif len(owner) == 2:
                    clients = run.client_losses.setdefault(owner[0], {})
                    clients.setdefault(owner[1], {}).setdefault(step, value)
            elif name.removeprefix("round/bytes/") in LEVELS:
                run.bytes_sent.setdefault(step, {})[name.removeprefix("round/bytes/")] = value
            elif name in curves:
                curves[name][step] = value
            elif name == "round/n_clusters":
                run.n_clusters[step] = int(value)
            elif kind == "seconds" and not owner:
                run.seconds.setdefault(step, {})[metric] = value
    if not run.losses and run.metrics:  # the first and the last point are known from the evaluation
        last = max((r for clients in run.client_losses.values() for c in clients.values() for r in c), default=1)
        for owner_name, stages in run.metrics.items():
            points = {0: stages.get("base", {}).get("loss"), last: stages.get("final", {}).get("loss")}
            run.losses[owner_name] = {r: value for r, value in points.items() if value is not None}


def _read_personal(run: RunArtifacts) -> None:
    if not (run.folder / PERSONAL_EVALUATION).exists():
        return
    value = _read(run, PERSONAL_EVALUATION, "what personalize has chosen is not known")
    for client_id, values in mapping(mapping(value).get("clients")).items():
        result = mapping(values)
        weights = numbers(result.get("weights"))
        if weights:
            losses = {kind: loss for kind, loss in numbers(result).items() if kind in PERSONAL_LOSSES}
            chosen, adapter_is = (text(result.get(key, "")) for key in ("chosen", "adapter_is"))
            run.personal[client_id] = PersonalResult(weights, chosen, adapter_is, losses)


def _read_mixtures(run: RunArtifacts) -> None:
    if not (run.folder / DEPARTMENT_MIXTURES).exists():
        return
    value = _read(run, DEPARTMENT_MIXTURES, "the departments' mixtures are not shown")
    for department, values in mapping(mapping(value).get("departments")).items():
        weights, losses = (numbers(mapping(values).get(key)) for key in ("weights", "losses"))
        if weights:
            run.mixtures[department] = DepartmentMixture(weights, losses)


def _metrics_rows(run: RunArtifacts) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, {column: value}) of the rows of ``metrics.csv``."""
    name, consequence = METRICS, "no loss by round and no seconds; keep CSVLogger in logging.loggers"
    path = run.folder / name
    try:
        if not path.is_file():
            raise OSError("not a file")
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(file):
                step = number(row.pop("step", None))
                if step is not None and 0 <= step < MAX_STEP:
                    yield int(step), numbers({key: value for key, value in row.items() if isinstance(key, str)})
    except (OSError, csv.Error) as error:
        _note(run, name, error, consequence)


def _read_clusters(run: RunArtifacts) -> None:
    for round_num in cluster_files(run.folder, "department_clusters"):
        similarity = _read_optional(run.folder / cluster_file(round_num, "similarity"))
        value = _read(run, cluster_file(round_num, "department_clusters"), "the clusters of this round are not shown")
        result = _clustering_result(value, similarity)
        if result is not None:
            run.clusters.setdefault(round_num, {})[ROOT] = result
    for round_num in cluster_files(run.folder, "hierarchy"):
        value = _read(run, cluster_file(round_num, "hierarchy"), "the groups' clusters of this round are not shown")
        for group, clustering in mapping(mapping(value).get("groups")).items():
            result = _clustering_result(clustering, mapping(clustering).get("similarity"))
            run.groups.add(group)
            if result is not None:
                run.clusters.setdefault(round_num, {})[group] = result
    run.clusters = dict(sorted(run.clusters.items()))


def _read_client_clusters(run: RunArtifacts) -> None:
    for round_num in cluster_files(run.folder, "client_clusters"):
        value = _read(
            run, cluster_file(round_num, "client_clusters"), "the clients' clusters of this round are not shown"
        )
        for department, clustering in mapping(mapping(value).get("departments")).items():
            assignments = labels(mapping(clustering).get("assignments"))
            if assignments:
                run.client_clusters.setdefault(round_num, {})[department] = assignments


def _clustering_result(clustering: Any, similarity: Any) -> ClusteringResult | None:
    """None if there are no assignments."""
    values, similarities = mapping(clustering), mapping(similarity)
    assignments = labels(values.get("assignments"))
    if not assignments:
        return None
    names = similarities.get("departments")
    members = [text(name) for name in names] if isinstance(names, list) else []
    count = number(values.get("n_clusters"))
    return ClusteringResult(
        assignments,
        n_clusters=None if count is None else int(count),
        method=text(values.get("method", "")),
        select=text(values.get("select", "")),
        inertias=_by_k(values.get("inertias")),
        scores=_by_k(values.get("scores")),
        members=members,
        cosine=matrix(similarities.get("cosine"), len(members)),
        representation=text(similarities.get("representation", "")),
    )


def _by_k(value: Any) -> dict[int, float]:
    """{number of clusters: value}."""
    values = {k: number(item) for k, item in by_round(value).items()}
    return {k: item for k, item in values.items() if item is not None}


def _read_aggregation(run: RunArtifacts) -> None:
    for round_num in cluster_files(run.folder, "aggregation"):
        value = _read(run, cluster_file(round_num, "aggregation"), "the excluded updates of this round are not known")
        values = mapping(value)
        for department, step in mapping(values.get("departments")).items():
            for client, reason in mapping(mapping(step).get("left_out")).items():
                run.rejected.append(ExcludedUpdate(round_num, department, client, text(reason)))
            for client, factor in numbers(mapping(step).get("scaled")).items():
                reason = f"scaled to {factor:.3g} of its length"
                run.scaled.append(ExcludedUpdate(round_num, department, client, reason))
            epsilon = number(mapping(step).get("epsilon"))
            if epsilon is not None:
                run.epsilon[department] = epsilon
        if isinstance(values.get("bytes"), dict):
            run.bytes_sent[round_num] = {k: v for k, v in numbers(values["bytes"]).items() if k in LEVELS}
    if not (run.folder / CLUSTER_METADATA).is_dir():
        consequence = "no clusters, similarities and reasons for excluding updates; see logging.save_cluster_metadata"
        run.missing.append(f"{CLUSTER_METADATA}/ is missing: {consequence}")
