"""``evaluate --run RUN``: evaluate the adapters of a run again and print the table."""

from __future__ import annotations

from pathlib import Path

from fl_lightning import processes
from fl_lightning.arguments import parse_config
from fl_lightning.errors import InputError, nearest
from fl_lightning.run_folder import find_run_folder
from fl_lightning.terminal import hush, quiet, take_option


def run(argv: list[str]) -> int:
    """Evaluate the adapters of a run again and print the table."""
    if "--help" in argv or "-h" in argv:
        print("usage: fl-lightning evaluate --run RUN [--output DIR]\n\nRUN is a run folder, or 'last' under --output.")
        return 0
    given = ["evaluate", *argv]
    name, argv = take_option(argv, "--run")
    output, argv = take_option(argv, "--output")
    if argv:
        raise InputError(f"unknown argument {argv[0]}{nearest(argv[0], ['--run', '--output'])}")
    if name is None:
        raise InputError("evaluate: no --run, wanted --run RUN with a run folder or 'last'")
    folder = find_run_folder(name, Path(output or "lightning_logs"))
    devices = parse_config(["--config", str(folder / "config.yaml")]).fabric.devices
    with processes.started(devices, given):
        quiet()
        from fl_lightning import run as runs

        hush()
        result = runs.evaluate(folder)
    if result is None:
        return 0
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
    return 0
