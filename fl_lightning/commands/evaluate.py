"""``evaluate``: the adapters of a run again; or any adapters on any data, with intervals and generated answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fl_lightning import launch
from fl_lightning.config.parsing import parse_config
from fl_lightning.console import hush, quiet, take_all, take_flag, take_number, take_option
from fl_lightning.errors import InputError, nearest
from fl_lightning.storage.run_folder import find_run_folder
from fl_lightning.storage.run_layout import CONFIG

USAGE = """usage: fl-lightning evaluate --run RUN [--output DIR]
       fl-lightning evaluate [--run RUN] [--adapter NAME=FOLDER …] [--config FILE] [--data DIR] [--matrix] [--generate]
                             [--max-new-tokens N] [--records N] [--resamples N] [--json FILE] [--csv FILE]

The first form writes federated_eval.json and client_eval_all_rounds.json of a run anew. Each of the other options asks
for the second one, which writes nothing into the run.

  --run RUN               a run folder, or 'last' under --output (default: lightning_logs)
  --adapter NAME=FOLDER   an adapter in PEFT's format besides; may be given several times
  --config FILE           what base model and data settings to take, where there is no run
  --data DIR              other records than the run's
  --matrix                every adapter on every department, not only on its own
  --generate              let the adapters answer, too: exact match and ROUGE-L
  --max-new-tokens N      of an answer (default: 64)
  --records N             at most so many held-out records a client
  --resamples N           for the 95 % intervals (default: 1000); 0 leaves them out
  --json FILE, --csv FILE where else the figures go
"""


def run(argv: list[str]) -> int:
    """Evaluate."""
    if "--help" in argv or "-h" in argv:
        print(USAGE, end="")
        return 0
    given = ["evaluate", *argv]
    name, argv = take_option(argv, "--run")
    output, argv = take_option(argv, "--output")
    root = Path(output or "lightning_logs")
    if argv:
        return _judge(argv, name, root)
    if name is None:
        raise InputError("evaluate: no --run, wanted --run RUN with a run folder or 'last'; --help lists more")
    return _again(find_run_folder(name, root), given)


def _again(folder: Path, given: list[str]) -> int:
    """Write a run's evaluation anew."""
    devices = parse_config(["--config", str(folder / CONFIG)]).fabric.devices
    with launch.started(devices, given):
        quiet()
        from fl_lightning.runs.evaluate import evaluate

        hush()
        result = evaluate(folder)
    if result is not None:
        _show(folder, result)
    return 0


def _judge(argv: list[str], name: str | None, root: Path) -> int:
    """Any adapters on any data."""
    adapters, argv = take_all(argv, "--adapter")
    config_file, argv = take_option(argv, "--config")
    data, argv = take_option(argv, "--data")
    json_to, argv = take_option(argv, "--json")
    csv_to, argv = take_option(argv, "--csv")
    matrix, argv = take_flag(argv, "--matrix")
    generated, argv = take_flag(argv, "--generate")
    longest, argv = take_number(argv, "--max-new-tokens", 1)
    records, argv = take_number(argv, "--records", 1)
    resamples, argv = take_number(argv, "--resamples", 0)
    if argv:
        known = [word.strip(",") for line in USAGE.splitlines() for word in line.split() if word.startswith("--")]
        raise InputError(f"evaluate: unknown argument {argv[0]}{nearest(argv[0], known)}")
    if name is None and config_file is None:
        raise InputError("evaluate: neither --run nor --config, wanted one of them for base model and data")
    if name is None and not adapters:
        raise InputError("evaluate: neither --run nor --adapter, wanted something to judge")
    folder = None if name is None else find_run_folder(name, root)
    quiet()
    from fl_lightning.runs import scoring

    hush()
    request = scoring.ScoringRequest(
        folder,
        scoring.parse_adapter_options(adapters),
        data,
        matrix,
        (longest or 64) if generated else 0,
        records,
        1000 if resamples is None else resamples,
    )
    source = config_file if folder is None or config_file is not None else str(folder / CONFIG)
    result = scoring.score_run(parse_config(["--config", str(source)]), request)
    json_path, csv_path = (None if path is None else Path(path) for path in (json_to, csv_to))
    scoring.write(result, json_path=json_path, csv_path=csv_path)
    scoring.show(result)
    return 0


def _show(folder: Path, result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=str(folder), title_justify="left")
    table.add_column("department")
    for column in ("loss", "perplexity", "token accuracy"):
        table.add_column(column, justify="right")
    groups = result.get("groups", {})
    for who, values in [*result["departments"].items(), *groups.items(), ("mean", result["mean"])]:
        base, final = values["base"], values["final"]
        table.add_row(
            who,
            f"{base['loss']:.3f} → {final['loss']:.3f}",
            f"{base['perplexity']:.1f} → {final['perplexity']:.1f}",
            f"{base['token_accuracy']:.3f} → {final['token_accuracy']:.3f}",
        )
    Console().print(table)
