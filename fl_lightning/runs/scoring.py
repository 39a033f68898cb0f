"""Judging the adapters of a run, or any others, on a data folder: reads both, and says how the figures look."""

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

from fl_lightning.config import RunConfig
from fl_lightning.errors import InputError, nearest
from fl_lightning.evaluation.scoring import Adapter, Judge, judge, read_adapter
from fl_lightning.modeling.lora import adapter_scaling, collect_lora_state
from fl_lightning.runs.build import build_components
from fl_lightning.storage.files import write_json, write_text
from fl_lightning.storage.run_layout import BASE, shared_adapters
from fl_lightning.training.local_clients import LocalClients

FIGURES = ("loss", "perplexity", "token_accuracy", "exact_match", "rouge_l")
COLUMNS = {"loss": "loss", "token_accuracy": "accuracy", "exact_match": "exact", "rouge_l": "ROUGE-L"}
"""Of the table on the terminal; a perplexity is its loss in other words."""


@dataclass(frozen=True)
class Wanted:
    """What `evaluate` is asked for.

    Attributes:
        run_folder: whose adapters are judged; None for those given only.
        adapters: {name: folder} besides.
        data: folder of the records; the config's where None.
        matrix: every adapter on every department, and not only on its own.
        max_new_tokens: of generated answers; 0 generates none.
        records: at most so many held-out records of a client; None for all.
        resamples: of the intervals.
    """

    run_folder: Path | None
    adapters: Mapping[str, Path]
    data: str | None = None
    matrix: bool = False
    max_new_tokens: int = 0
    records: int | None = None
    resamples: int = 1000


def judge_run(config: RunConfig, wanted: Wanted) -> dict[str, Any]:
    """Judge.

    Returns:
        ``data``, ``departments``, ``adapters`` {name: folder}, and ``figures`` {adapter: {department: figures}}, see
        `fl_lightning.evaluation.scoring.amounts_to`. The base model is among the adapters, as ``base``.

    Raises:
        InputError: if an adapter is missing or does not fit, or there is nothing to judge.
    """
    config = replace(config, fabric=config.fabric.alone())
    if wanted.data is not None:
        config = replace(config, data=replace(config.data, root=wanted.data))
    components = build_components(config)
    own = {} if wanted.run_folder is None else shared_adapters(wanted.run_folder)
    folders = {**own, **wanted.adapters}
    model = components.module.model
    initial, scaling = collect_lora_state(model), adapter_scaling(model)
    adapters = {BASE: Adapter(initial)}
    adapters.update({name: read_adapter(folder, initial, scaling) for name, folder in folders.items()})
    departments = sorted({client.department for client in components.data.values()})
    pairs = [(name, department) for name in adapters for department in departments if _meets(name, department, wanted)]
    if all(name == BASE for name, _ in pairs):
        raise InputError(
            f"evaluate: no adapter is called as a department of {config.data.root} ({', '.join(departments)}); wanted "
            "--matrix for all of them on all departments, or adapters of these names"
        )
    jury = Judge(
        LocalClients(components.fabric, components.module, components.data, config.training),
        components.tokenizer,
        max_new_tokens=wanted.max_new_tokens,
        records=wanted.records,
    )
    figures = judge(jury, adapters, components.data, pairs=pairs, seed=config.seed, resamples=wanted.resamples)
    return {
        "data": config.data.root,
        "departments": departments,
        "adapters": {name: str(folder) for name, folder in folders.items()},
        "figures": figures,
    }


def _meets(name: str, department: str, wanted: Wanted) -> bool:
    return wanted.matrix or name in (BASE, department) or name in wanted.adapters


def named_adapters(given: Sequence[str]) -> dict[str, Path]:
    """{name: folder} of ``NAME=FOLDER`` or ``FOLDER`` arguments.

    Raises:
        InputError: for a name that is taken or a folder that is not there.

    Example:
        >>> named_adapters(["."])
        {'.': PosixPath('.')}
    """
    found: dict[str, Path] = {}
    for item in given:
        name, separator, place = item.partition("=")
        path = Path(place if separator else item)
        name = name if separator else path.name or str(path)
        if name == BASE or name in found:
            raise InputError(f"--adapter {item}: {name!r} is taken, wanted NAME=FOLDER with another name")
        if not path.is_dir():
            raise InputError(f"--adapter {item}: no folder {path}, wanted an adapter in PEFT's format{_close(path)}")
        found[name] = path
    return found


def _close(path: Path) -> str:
    parent = path.parent
    return nearest(path.name, [p.name for p in parent.iterdir() if p.is_dir()]) if parent.is_dir() else ""


def show(result: Mapping[str, Any], console: Console | None = None) -> None:
    """The figures as tables: a line for each adapter on its own department, and a matrix of losses where there is one.

    What the tables have no room for (other intervals, other means over clients) is in the JSON and the CSV.
    """
    console = console or Console()
    figures, departments = result["figures"], result["departments"]
    whole = len(departments) > 1 and all(len(own) == len(departments) for own in figures.values())
    some = next(iter(next(iter(figures.values())).values()))
    columns = [name for name in COLUMNS if name in some]
    table = Table(title=f"held-out records of {result['data']}", title_justify="left", box=box.SIMPLE)
    table.add_column("adapter", overflow="fold", min_width=18)
    for name in ["loss", "95 %", *(COLUMNS[name] for name in columns[1:]), "records"]:
        table.add_column(name, justify="right", no_wrap=True)
    for department in departments:
        table.add_row(Text(department, style="bold"))
        for adapter in (name for name, own in figures.items() if department in own):
            if whole and adapter in departments and adapter != department:
                continue  # in the matrix
            values = figures[adapter][department]
            loss = values["loss"]
            interval = f"{loss['low']:.2f}–{loss['high']:.2f}" if "low" in loss else "–"
            means = [_number(values[name]["mean"]) for name in columns]
            table.add_row(Text(f"  {adapter}"), means[0], interval, *means[1:], str(values["num_records"]))
    console.print(table)
    if not whole:
        return
    matrix = Table(title="loss of every adapter (row) on every department", title_justify="left", box=box.SIMPLE)
    matrix.add_column("adapter", overflow="fold")
    for department in departments:
        matrix.add_column(department, justify="right", overflow="fold")
    best = {d: min(figures, key=lambda adapter: float(figures[adapter][d]["loss"]["mean"])) for d in departments}
    for adapter, own in figures.items():
        cells = [f"{own[d]['loss']['mean']:.3f}{' *' if best[d] == adapter else ''}" for d in departments]
        matrix.add_row(adapter, *cells)
    console.print(matrix)
    console.print("* the lowest of its column")


def _number(value: float) -> str:
    return f"{value:.{1 if value >= 100 else 3}f}"


def write(result: Mapping[str, Any], *, json_to: Path | None = None, csv_to: Path | None = None) -> None:
    """The figures as JSON, and as CSV with a line for each adapter, department and figure."""
    if json_to is not None:
        write_json(json_to, dict(result))
    if csv_to is not None:
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(["adapter", "department", "figure", "mean", "low", "high", "client_mean", "num_records"])
        for adapter, own in result["figures"].items():
            for department, values in own.items():
                for name in (name for name in FIGURES if name in values):
                    bounds = [values[name].get(bound, "") for bound in ("mean", "low", "high")]
                    macro = values["client_mean"].get(name, "")
                    lines.writerow([adapter, department, name, *bounds, macro, values["num_records"]])
        write_text(csv_to, text.getvalue())
