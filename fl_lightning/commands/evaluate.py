"""``evaluate``: evaluate a run's adapters again; or any adapters on any data, with confidence intervals."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from fl_lightning import launch
from fl_lightning.commands.parser import Parser, at_least
from fl_lightning.config.parsing import parse_config
from fl_lightning.console import setup_logging, silence_libraries
from fl_lightning.errors import InputError
from fl_lightning.storage.run_folder import find_run_folder
from fl_lightning.storage.run_layout import CONFIG

USAGE = """fl-lightning evaluate --run RUN [--output DIR]
       fl-lightning evaluate [--run RUN] [--adapter NAME=FOLDER ...] [--config FILE] [--data DIR] [OPTIONS]"""
DESCRIPTION = """With --run (and --output) only: rewrite federated_eval.json, client_eval_all_rounds.json and the losses
in department_mixtures.json of the run.
With any other option: evaluate adapters on records, and write nothing into the run."""


def run(argv: list[str]) -> int:
    """Evaluate."""
    args = _parser().read(argv)
    root = Path(args.output)
    if any(value for name, value in vars(args).items() if name not in ("run", "output")) or args.resamples == 0:
        return _score(args, root)
    if args.run is None:
        raise InputError("evaluate: expected --run with a run folder or 'last', got none; --help lists more")
    return _rewrite(find_run_folder(args.run, root), ["evaluate", *argv])


def _parser() -> Parser:
    parser = Parser("evaluate", DESCRIPTION, usage=USAGE)
    parser.takes_run(required=False)
    add = parser.add_argument
    help_ = "another adapter in PEFT's format; may be repeated"
    add("--adapter", action="append", default=[], metavar="NAME=FOLDER", help=help_)
    add("--config", metavar="FILE", help="base model and data settings, if there is no run")
    add("--data", metavar="DIR", help="records other than the run's")
    add("--matrix", action="store_true", help="every adapter on every department, not only on its own")
    add("--generate", action="store_true", help="also generate answers: exact match and ROUGE-L")
    help_ = "with --generate: limit of an answer (default: 64)"
    add("--max-new-tokens", type=at_least(1), metavar="N", help=help_)
    add("--records", type=at_least(1), metavar="N", help="use at most N held-out records of each client")
    help_ = "bootstrap resamples for the 95 %% intervals (default: 1000); 0 leaves them out"
    add("--resamples", type=at_least(0), metavar="N", help=help_)
    add("--json", metavar="FILE", help="also write the figures as JSON")
    add("--csv", metavar="FILE", help="also write the figures as CSV")
    return parser


def _rewrite(folder: Path, argv: list[str]) -> int:
    """Rewrite a run's evaluation."""
    devices = parse_config(["--config", str(folder / CONFIG)]).fabric.devices
    with launch.started(devices, argv):
        setup_logging()
        with launch.importing():
            from fl_lightning.runs.evaluate import evaluate

        silence_libraries()
        result = evaluate(folder)
    if result is not None:
        _show(folder, result)
    return 0


def _score(args: Namespace, root: Path) -> int:
    """Evaluate any adapters on any data."""
    if args.run is None and args.config is None:
        raise InputError("evaluate: expected --run or --config for the base model and the data, got neither")
    if args.run is None and not args.adapter:
        raise InputError("evaluate: expected adapters by --run or --adapter, got none")
    folder = None if args.run is None else find_run_folder(args.run, root)
    setup_logging()
    with launch.importing():
        from fl_lightning.runs import scoring

    silence_libraries()
    request = scoring.ScoringRequest(
        folder,
        scoring.parse_adapter_options(args.adapter),
        args.data,
        args.matrix,
        (args.max_new_tokens or 64) if args.generate else 0,
        args.records,
        1000 if args.resamples is None else args.resamples,
    )
    source = args.config if folder is None or args.config else str(folder / CONFIG)
    result = scoring.score_run(parse_config(["--config", source]), request)
    json_path, csv_path = (None if path is None else Path(path) for path in (args.json, args.csv))
    scoring.write(result, json_path=json_path, csv_path=csv_path)
    scoring.show(result)
    return 0


def _show(folder: Path, result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from fl_lightning.evaluation.department_mixtures import describe_mixture

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
    for name, values in result.get("mixtures", {}).get("departments", {}).items():
        Console().print(describe_mixture(name, values["weights"], values["losses"]))
