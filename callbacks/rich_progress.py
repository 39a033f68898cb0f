"""Progress on the terminal: bars for rounds, clients and steps, and a table after each round."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from fl_lightning.callbacks.base import FederatedCallback
from fl_lightning.federation.state import clients_by_department

if TYPE_CHECKING:
    from fl_lightning.federation.protocol import ClientTask, ClientUpdate
    from fl_lightning.trainer import FederatedTrainer


class RichProgress(FederatedCallback):
    """Nested bars (rounds, departments, clients, steps with tokens/s and time left) and the round's table.

    Args:
        console: None draws on standard error. Bars are drawn on terminals only, tables everywhere.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._progress: Progress | None = None
        self._bars: dict[str, TaskID] = {}
        self._before: dict[str, float] = {}
        self._pending: dict[str, int] = {}
        self._tokens, self._since, self._started = 0, 0.0, 0.0

    def on_federation_start(self, *, trainer: FederatedTrainer) -> None:
        """Draw the bars."""
        self._started = time.perf_counter()
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        rounds = trainer.federation_config.rounds
        for name, total in (("rounds", rounds), ("departments", 1), ("clients", 1), ("steps", 100)):
            self._bars[name] = self._progress.add_task(name, total=total, note="")
        self._progress.update(self._bars["rounds"], completed=trainer.round_num)
        self._progress.start()

    def on_round_start(self, *, trainer: FederatedTrainer, tasks: Sequence[ClientTask]) -> None:
        """Reset the bars of a round."""
        self._tokens, self._since = 0, time.perf_counter()
        self._pending = {}
        for task in tasks:
            self._pending[task.department] = self._pending.get(task.department, 0) + 1
        self._before = _losses(trainer)
        self._reset("departments", len(self._pending))
        self._reset("clients", len(tasks))

    def on_step_end(self, *, trainer: FederatedTrainer, client_ids: Sequence[str], share: float, tokens: int) -> None:
        """Advance the step bar and show the speed."""
        self._tokens += tokens
        speed = self._tokens / max(time.perf_counter() - self._since, 1e-9)
        # Kept short: the bar, the clock and the time left must fit into 80 columns as well.
        self._update("steps", completed=100 * share, note=f"{speed:,.0f} tokens/s")

    def on_client_end(self, *, trainer: FederatedTrainer, update: ClientUpdate) -> None:
        """Advance the client bar, and the department bar after a department's last client."""
        self._advance("clients")
        self._pending[update.department] -= 1
        if self._pending[update.department] == 0:
            self._advance("departments")

    def on_round_end(self, *, trainer: FederatedTrainer) -> None:
        """Print the round's table."""
        self._advance("rounds")
        self.console.print(round_table(trainer, self._before, time.perf_counter() - self._since))

    def on_federation_end(self, *, trainer: FederatedTrainer) -> None:
        """Print where the results are."""
        if trainer.run_folder is not None:
            seconds = time.perf_counter() - self._started
            self.console.print(f"Done in {seconds:.0f} s. Adapters, metrics and logs are in {trainer.run_folder}")

    def on_federation_close(self, *, trainer: FederatedTrainer) -> None:
        """Remove the bars from the terminal."""
        if self._progress is not None:
            self._progress.stop()

    def _reset(self, bar: str, total: int) -> None:
        if self._progress is not None:
            self._progress.reset(self._bars[bar], total=total)

    def _advance(self, bar: str) -> None:
        if self._progress is not None:
            self._progress.advance(self._bars[bar])

    def _update(self, bar: str, *, completed: float, note: str) -> None:
        if self._progress is not None:
            self._progress.update(self._bars[bar], completed=completed, note=note)


def _losses(trainer: FederatedTrainer) -> dict[str, float]:
    """{department or group: held-out loss} in the newest row."""
    _, row = (trainer.rows() or [(0, {})])[-1]
    names = (*trainer.federation.departments, *trainer.tree.groups)
    return {name: row[key] for name in names if (key := f"{name}/eval/loss") in row}


def round_table(trainer: FederatedTrainer, before: dict[str, float], seconds: float) -> Table:
    """A table of the round: department, loss before and after, cluster, KiB sent by its clients, rejected clients."""
    report, after = trainer.report, _losses(trainer)
    rounds = trainer.federation_config.rounds
    table = Table(title=f"round {trainer.round_num} of {rounds} · {seconds:.1f} s", title_justify="left")
    table.add_column("department")
    private = any(department.epsilon is not None for department in report.departments.values())
    for column in ("loss before", "loss after", "cluster", "KiB sent", "left out", *(["ε"] if private else [])):
        table.add_column(column, justify="right")
    clustered = {member for clustering in report.clusterings.values() for member in clustering.assignments}
    senders_of = clients_by_department(report.bytes_sent)
    for name, department in report.departments.items():
        # Weights of single clients are unknown under guards by coordinate and secure aggregation.
        senders = [f"{name}/{client}" for client in department.weights] or senders_of.get(name, [])
        sent = sum(report.bytes_sent.get(client_id, 0) for client_id in senders)
        cluster = trainer.federation.cluster_assignments.get(name) if name in clustered else None
        table.add_row(
            name,
            f"{before[name]:.4f}" if name in before else "–",
            f"{after[name]:.4f}" if name in after else "–",
            "–" if cluster is None else str(cluster),
            f"{sent / 1024:.1f}",
            ", ".join(department.rejected) or "–",
            *([] if not private else ["–" if department.epsilon is None else f"{department.epsilon:.2f}"]),
        )
    groups = [group for group in trainer.tree.groups if group in before and group in after]
    if groups:
        table.add_section()
    for group in groups:
        number = str(trainer.federation.cluster_assignments[group]) if group in clustered else "–"
        table.add_row(group, f"{before[group]:.4f}", f"{after[group]:.4f}", number, "", "")
    names = trainer.federation.departments
    if names.keys() <= before.keys() & after.keys():
        mean = [sum(values[name] for name in names) / len(names) for values in (before, after)]
        table.add_section()
        table.add_row("mean", f"{mean[0]:.4f}", f"{mean[1]:.4f}", "", "", "")
    return table
