"""Score adapters, of a run or others, on a data folder: one line per adapter and department, with intervals."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fl_lightning.config import LoraConfig, RunConfig
from fl_lightning.errors import InputError, nearest
from fl_lightning.evaluation.panel import EvaluationPanel
from fl_lightning.evaluation.scoring import AdapterScorer, score_all
from fl_lightning.federation.state import clients_by_department
from fl_lightning.modeling.lora import adapter_scaling, collect_lora_state
from fl_lightning.modeling.scaled_adapter import ScaledAdapter, adapted_layers, read_adapter
from fl_lightning.runs.build import build_components
from fl_lightning.runs.canaries import without_canaries
from fl_lightning.storage.files import write_json, write_text
from fl_lightning.storage.run_adapters import BASE, shared_adapters
from fl_lightning.training.local_clients import LocalClients

METRICS = ("loss", "perplexity", "token_accuracy", "exact_match", "rouge_l")
COLUMNS = {"loss": "loss", "token_accuracy": "accuracy", "exact_match": "exact", "rouge_l": "ROUGE-L"}
"""{metric: heading} of the table on the terminal; the perplexity follows from the loss and is left out."""


@dataclass(frozen=True)
class ScoringRequest:
    """Options of ``evaluate``.

    Attributes:
        run_folder: whose adapters are scored; None scores only `adapters`.
        adapters: {name: folder} of further adapters.
        data: folder of the records; None takes that of the config.
        matrix: score every adapter on every department, not only on its own.
        max_new_tokens: of generated answers; 0 generates none.
        max_records: held-out records of each client; None takes all.
        resamples: for the confidence intervals.
    """

    run_folder: Path | None
    adapters: Mapping[str, Path]
    data: str | None = None
    matrix: bool = False
    max_new_tokens: int = 0
    max_records: int | None = None
    resamples: int = 1000


def score_run(config: RunConfig, request: ScoringRequest) -> dict[str, Any]:
    """Score adapters.

    Returns:
        ``data``, ``departments``, ``adapters`` {name: folder}, and ``figures`` {adapter: {department: metrics}}, see
        `fl_lightning.evaluation.scoring.summarize`. The base model is among the adapters, as ``base``.

    Raises:
        InputError: if an adapter is missing or does not fit, or there is nothing to score.
    """
    config = without_canaries(replace(config, fabric=config.fabric.alone()))
    if request.data is not None:
        config = replace(config, data=replace(config.data, root=request.data))
    config = replace(config, lora=_with_layers_of(config.lora, request.adapters))
    components = build_components(config)
    run_adapters = {} if request.run_folder is None else shared_adapters(request.run_folder)
    folders = {**run_adapters, **request.adapters}
    model = components.module.model
    initial, scaling = collect_lora_state(model), adapter_scaling(model)
    adapters = {BASE: ScaledAdapter(initial)}
    adapters.update({name: read_adapter(folder, initial, scaling) for name, folder in folders.items()})
    panel = EvaluationPanel.draw(components.data, config.evaluation, config.seed)
    panel.log()
    departments = sorted(clients_by_department(panel.data))
    pairs = [(name, department) for name in adapters for department in departments if _pairs(name, department, request)]
    if all(name == BASE for name, _ in pairs):
        raise InputError(
            f"evaluate: expected adapters named as the departments of {config.data.root} ({', '.join(departments)}), "
            "got none; give --matrix to score all adapters on all departments"
        )
    scorer = AdapterScorer(
        LocalClients(components.fabric, components.module, components.data, config.training),
        components.tokenizer,
        max_new_tokens=request.max_new_tokens,
        max_records=request.max_records,
    )
    metrics = score_all(scorer, adapters, panel.data, pairs=pairs, seed=config.seed, resamples=request.resamples)
    return {
        "data": config.data.root,
        "departments": departments,
        "adapters": {name: str(folder) for name, folder in folders.items()},
        "figures": metrics,
    }


def _with_layers_of(lora: LoraConfig, adapters: Mapping[str, Path]) -> LoraConfig:
    """The ``lora`` block with the layers of further adapters; on layers that an adapter leaves out it is zero."""
    layers = {layer for folder in adapters.values() for layer in adapted_layers(folder)}
    names = lora.target_modules
    missing = sorted(layer for layer in layers if not any(f".{layer}".endswith(f".{name}") for name in names))
    return replace(lora, target_modules=[*names, *missing])


def _pairs(name: str, department: str, request: ScoringRequest) -> bool:
    """Whether an adapter is scored on a department."""
    return request.matrix or name in (BASE, department) or name in request.adapters


def parse_adapter_options(values: Sequence[str]) -> dict[str, Path]:
    """{name: folder} of ``NAME=FOLDER`` or ``FOLDER`` options.

    Raises:
        InputError: for a name that is taken or a folder that does not exist.

    Example:
        >>> parse_adapter_options(["."])
        {'.': PosixPath('.')}
    """
    folders: dict[str, Path] = {}
    for value in values:
        name, separator, folder = value.partition("=")
        path = Path(folder if separator else value)
        name = name if separator else path.name or str(path)
        if name == BASE or name in folders:
            raise InputError(
                f"--adapter {value}: expected a new name, got {name!r}, which is taken; give NAME=FOLDER with another "
                "name"
            )
        if not path.is_dir():
            raise InputError(
                f"--adapter {value}: expected a folder with an adapter in PEFT's format, got no folder {path}"
                f"{_similar_folder(path)}"
            )
        folders[name] = path
    return folders


def _similar_folder(path: Path) -> str:
    parent = path.parent
    return nearest(path.name, [p.name for p in parent.iterdir() if p.is_dir()]) if parent.is_dir() else ""


def show(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a table with a line for each adapter and department, and a matrix of losses if all pairs were scored.

    The intervals of other metrics and the means over clients are in the JSON and CSV files only.
    """
    console = console or Console()
    metrics, departments = result["figures"], result["departments"]
    has_matrix = len(departments) > 1 and all(len(scores) == len(departments) for scores in metrics.values())
    console.print(_metrics_table(result, has_matrix))
    if has_matrix:
        console.print(_loss_matrix(metrics, departments))
        console.print("* the lowest of its column")


def _metrics_table(result: Mapping[str, Any], has_matrix: bool) -> Table:
    metrics, departments = result["figures"], result["departments"]
    first = next(iter(next(iter(metrics.values())).values()))
    columns = [name for name in COLUMNS if name in first]
    table = Table(title=f"held-out records of {result['data']}", title_justify="left", box=box.SIMPLE)
    table.add_column("adapter", overflow="fold", min_width=18)
    for name in ["loss", "95 %", *(COLUMNS[name] for name in columns[1:]), "records"]:
        table.add_column(name, justify="right", no_wrap=True)
    for department in departments:
        table.add_row(Text(department, style="bold"))
        for adapter in (name for name, scores in metrics.items() if department in scores):
            if has_matrix and adapter in departments and adapter != department:
                continue  # it is in the matrix
            values = metrics[adapter][department]
            loss = values["loss"]
            interval = f"{loss['low']:.2f}–{loss['high']:.2f}" if "low" in loss else "–"
            means = [_number(values[name]["mean"]) for name in columns]
            table.add_row(Text(f"  {adapter}"), means[0], interval, *means[1:], str(values["num_records"]))
    return table


def _loss_matrix(metrics: Mapping[str, Any], departments: Sequence[str]) -> Table:
    table = Table(title="loss of every adapter (row) on every department", title_justify="left", box=box.SIMPLE)
    table.add_column("adapter", overflow="fold")
    for department in departments:
        table.add_column(department, justify="right", overflow="fold")
    best = {d: min(metrics, key=lambda adapter: float(metrics[adapter][d]["loss"]["mean"])) for d in departments}
    for adapter, scores in metrics.items():
        cells = [f"{scores[d]['loss']['mean']:.3f}{' *' if best[d] == adapter else ''}" for d in departments]
        table.add_row(adapter, *cells)
    return table


def _number(value: float) -> str:
    return f"{value:.{1 if value >= 100 else 3}f}"


def write(result: Mapping[str, Any], *, json_path: Path | None = None, csv_path: Path | None = None) -> None:
    """Write the metrics as JSON, and as CSV with a line for each adapter, department and metric."""
    if json_path is not None:
        write_json(json_path, dict(result))
    if csv_path is not None:
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(["adapter", "department", "figure", "mean", "low", "high", "client_mean", "num_records"])
        for adapter, by_department in result["figures"].items():
            for department, values in by_department.items():
                for name in (name for name in METRICS if name in values):
                    bounds = [values[name].get(bound, "") for bound in ("mean", "low", "high")]
                    client_mean = values["client_mean"].get(name, "")
                    lines.writerow([adapter, department, name, *bounds, client_mean, values["num_records"]])
        write_text(csv_path, text.getvalue())
