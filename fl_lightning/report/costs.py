"""What a run cost: bytes by round and level, seconds by round and phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fl_lightning.report.drawing import HATCHES, Theme
from fl_lightning.report.elements import WIDTH, Picture, Section, Table, figure, kib
from fl_lightning.runs.artifacts import Run

LEVELS = {
    "client/up": "clients, up",
    "client/down": "clients, down",
    "department/up": "departments, up",
    "department/down": "departments, down",
    "group/up": "groups, up",
    "group/down": "groups, down",
}
PHASES = {"fit": "fit", "aggregate": "aggregate", "evaluate": "evaluate", "write": "write, beside them"}


def costs(run: Run) -> Section:
    """Bars of both."""
    section = Section("costs", "Bytes and seconds")
    if any(value for own in run.sent.values() for value in own.values()):
        section.text.append("Bytes of adapters that travelled, counted from the tensors that were shared.")
        section.pictures.append(_bytes(run))
    elif run.sent:
        section.missing.append("No adapter travelled in this run: its config shares none.")
    else:
        section.missing.append("How much travelled is not known: neither metrics.csv nor cluster_metadata/ says it.")
    if run.seconds:
        section.text.append(
            "Seconds of a phase: fitting holds the clients' evaluation of their own adapters; writing happens in a "
            "thread of its own while the other phases go on, so its bar stands beside theirs."
        )
        section.pictures.append(_seconds(run))
    else:
        section.missing.append("Seconds by phase are not known: no seconds/* in metrics.csv.")
    return section


def _bytes(run: Run) -> Picture:
    levels = [level for level in LEVELS if any(level in own for own in run.sent.values())]
    scale, unit = (2**20, "MiB") if max(sum(own.values()) for own in run.sent.values()) >= 16 * 2**20 else (1024, "KiB")
    parts = {LEVELS[level]: {r: own.get(level, 0.0) / scale for r, own in run.sent.items()} for level in levels}
    rows = [[str(r), *(kib(own.get(level)) for level in levels), kib(sum(own.values()))] for r, own in run.sent.items()]
    total = sum(sum(own.values()) for own in run.sent.values())
    rows.append(["all", *(kib(sum(own.get(level, 0) for own in run.sent.values())) for level in levels), kib(total)])
    table = Table("Bytes by round and level", ["round", *(LEVELS[level] for level in levels), "all"], rows)
    alt = f"Stacked bars of what travelled in {len(run.sent)} rounds, by level; {kib(total)} in all."

    def draw(canvas: Any, theme: Theme) -> None:
        _stack(canvas, theme, sorted(run.sent), parts, unit)

    return Picture("bytes", alt, "Bytes by round and level", draw, (WIDTH, 3.2), table)


def _seconds(run: Run) -> Picture:
    phases = [phase for phase in PHASES if any(phase in own for own in run.seconds.values())]
    rows = [[str(r), *(figure(own.get(phase), 2) for phase in phases)] for r, own in run.seconds.items()]
    sums = {phase: sum(own.get(phase, 0.0) for own in run.seconds.values()) for phase in phases}
    rows.append(["all", *(figure(sums[phase], 2) for phase in phases)])
    table = Table("Seconds by round and phase", ["round", *phases], rows)
    alt = f"Bars of seconds in {len(run.seconds)} rounds. In all: "
    alt += ", ".join(f"{phase} {sums[phase]:.1f}" for phase in phases) + "."
    parts = {PHASES[phase]: {r: own.get(phase, 0.0) for r, own in run.seconds.items()} for phase in phases}

    def draw(canvas: Any, theme: Theme) -> None:
        _stack(canvas, theme, sorted(run.seconds), parts, "seconds")

    return Picture("seconds", alt, "Seconds by round and phase", draw, (WIDTH, 3.2), table)


def _stack(
    canvas: Any, theme: Theme, rounds: Sequence[int], parts: Mapping[str, Mapping[int, float]], unit: str
) -> None:
    """A pile of bars for each round; what happens beside the others gets a narrow bar of its own."""
    axes = canvas.subplots()
    floor = dict.fromkeys(rounds, 0.0)
    for number, (label, values) in enumerate(parts.items()):
        apart = label == PHASES["write"]
        heights = [values.get(r, 0.0) for r in rounds]
        axes.bar(
            [r + 0.42 for r in rounds] if apart else rounds,
            heights,
            width=0.2 if apart else 0.6,
            bottom=None if apart else [floor[r] for r in rounds],
            label=label,
            color=theme.colours[number % len(theme.colours)],
            hatch=HATCHES[number % len(HATCHES)],
            edgecolor=theme.ground,
            linewidth=0.5,
        )
        if not apart:
            floor = {r: floor[r] + height for r, height in zip(rounds, heights, strict=True)}
    axes.set_ylabel(unit)
    room = 0.8 + max(0, 4 - len(rounds)) / 2  # a single round is no broad block
    axes.set_xlim(min(rounds) - room, max(rounds) + room)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    shown = rounds[:: -(-len(rounds) // 8)]
    axes.set_xticks(shown, [str(r) for r in shown])
    axes.set_xlabel("round")
    canvas.legend(loc="outside upper left", ncols=2)
