"""The costs of a run: bytes by round and level, seconds by round and phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fl_lightning.report.drawing import HATCHES, Theme
from fl_lightning.report.elements import WIDTH, Picture, Section, Table, format_number, format_size
from fl_lightning.runs.artifacts import RunArtifacts

LEVELS = {
    "client/up": "clients, up",
    "client/down": "clients, down",
    "department/up": "departments, up",
    "department/down": "departments, down",
    "group/up": "groups, up",
    "group/down": "groups, down",
}
PHASES = {"fit": "fit", "aggregate": "aggregate", "evaluate": "evaluate", "write": "write, in parallel"}


def costs(run: RunArtifacts) -> Section:
    """Bars of bytes and of seconds."""
    section = Section("costs", "Bytes and seconds")
    if any(size for sizes in run.bytes_sent.values() for size in sizes.values()):
        section.text.append("Bytes of adapters that were sent, counted from the shared tensors.")
        section.pictures.append(_bytes(run))
    elif run.bytes_sent:
        section.missing.append("No adapter was sent in this run: its config shares none.")
    else:
        section.missing.append("The bytes sent are unknown: they are neither in metrics.csv nor in cluster_metadata/.")
    if run.seconds:
        section.text.append(
            "Seconds by phase: fit includes the clients' evaluation of their own adapters; writing runs in a separate "
            "thread during the other phases, so its bar is beside theirs."
        )
        section.pictures.append(_seconds(run))
    else:
        section.missing.append("The seconds by phase are unknown: metrics.csv has no columns seconds/*.")
    return section


def _bytes(run: RunArtifacts) -> Picture:
    sent = run.bytes_sent
    levels = [level for level in LEVELS if any(level in sizes for sizes in sent.values())]
    largest = max(sum(sizes.values()) for sizes in sent.values())
    scale, unit = (2**20, "MiB") if largest >= 16 * 2**20 else (1024, "KiB")
    bars = {LEVELS[level]: {r: sizes.get(level, 0.0) / scale for r, sizes in sent.items()} for level in levels}
    rows = [
        [str(r), *(format_size(sizes.get(level)) for level in levels), format_size(sum(sizes.values()))]
        for r, sizes in sent.items()
    ]
    sums = {level: sum(sizes.get(level, 0) for sizes in sent.values()) for level in levels}
    total = sum(sum(sizes.values()) for sizes in sent.values())
    rows.append(["all", *(format_size(sums[level]) for level in levels), format_size(total)])
    table = Table("Bytes by round and level", ["round", *(LEVELS[level] for level in levels), "all"], rows)
    alt = f"Stacked bars of bytes sent in {len(sent)} rounds, by level; {format_size(total)} in all."

    def draw(canvas: Any, theme: Theme) -> None:
        _stacked_bars(canvas, theme, sorted(sent), bars, unit)

    return Picture("bytes", alt, "Bytes by round and level", draw, (WIDTH, 3.2), table)


def _seconds(run: RunArtifacts) -> Picture:
    phases = [phase for phase in PHASES if any(phase in seconds for seconds in run.seconds.values())]
    rows = [[str(r), *(format_number(seconds.get(p), 2) for p in phases)] for r, seconds in run.seconds.items()]
    sums = {phase: sum(seconds.get(phase, 0.0) for seconds in run.seconds.values()) for phase in phases}
    rows.append(["all", *(format_number(sums[phase], 2) for phase in phases)])
    table = Table("Seconds by round and phase", ["round", *phases], rows)
    alt = f"Bars of seconds in {len(run.seconds)} rounds. In all: "
    alt += ", ".join(f"{phase} {sums[phase]:.1f}" for phase in phases) + "."
    bars = {PHASES[p]: {r: seconds.get(p, 0.0) for r, seconds in run.seconds.items()} for p in phases}

    def draw(canvas: Any, theme: Theme) -> None:
        _stacked_bars(canvas, theme, sorted(run.seconds), bars, "seconds")

    return Picture("seconds", alt, "Seconds by round and phase", draw, (WIDTH, 3.2), table)


def _stacked_bars(
    canvas: Any, theme: Theme, rounds: Sequence[int], bars: Mapping[str, Mapping[int, float]], unit: str
) -> None:
    """Stacked bars for each round; the phase that runs in parallel gets a separate, narrow bar."""
    axes = canvas.subplots()
    bottom = dict.fromkeys(rounds, 0.0)
    for number, (label, values) in enumerate(bars.items()):
        separate = label == PHASES["write"]
        heights = [values.get(r, 0.0) for r in rounds]
        axes.bar(
            [r + 0.42 for r in rounds] if separate else rounds,
            heights,
            width=0.2 if separate else 0.6,
            bottom=None if separate else [bottom[r] for r in rounds],
            label=label,
            color=theme.colors[number % len(theme.colors)],
            hatch=HATCHES[number % len(HATCHES)],
            edgecolor=theme.background,
            linewidth=0.5,
        )
        if not separate:
            bottom = {r: bottom[r] + height for r, height in zip(rounds, heights, strict=True)}
    axes.set_ylabel(unit)
    margin = 0.8 + max(0, 4 - len(rounds)) / 2  # keeps the bar of a single round narrow
    axes.set_xlim(min(rounds) - margin, max(rounds) + margin)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    ticks = rounds[:: -(-len(rounds) // 8)]
    axes.set_xticks(ticks, [str(r) for r in ticks])
    axes.set_xlabel("round")
    canvas.legend(loc="outside upper left", ncols=2)
