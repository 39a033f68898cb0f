"""What a page is made of: sections of text, tables and pictures that are yet to be drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTH = 4.8
"""Of a picture, in inches: its letters can be read where the page is 390 pixels wide."""

MAX_ROWS = 400
"""Rows of a table that the page shows."""


@dataclass(frozen=True)
class Table:
    """Rows of text; the first cell of each is its heading.

    Attributes:
        words: columns that hold words and not figures, by number.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[int] = ()

    @property
    def shown(self) -> Sequence[Sequence[str]]:
        """The rows that the page shows."""
        return self.rows[:MAX_ROWS]

    @property
    def left_off(self) -> int:
        """How many it does not."""
        return len(self.rows) - len(self.shown)


@dataclass(frozen=True)
class Picture:
    """A picture to be drawn, and what it says in words and figures.

    Attributes:
        name: of its file, without the ending.
        alt: what is to be seen, for those who do not see it.
        draw: draws on a matplotlib figure, in a `Theme`.
        size: width and height in inches.
        table: the figures that are drawn.
        shown: whether the page has it; else it is a file beside the page only.
    """

    name: str
    alt: str
    caption: str
    draw: Callable[[Any, Any], None]
    size: tuple[float, float]
    table: Table
    shown: bool = True


@dataclass(frozen=True)
class Heatmap:
    """A square table with coloured cells.

    Attributes:
        cells: for each row the values, each with its background and its ink as CSS colours.
    """

    caption: str
    names: Sequence[str]
    cells: Sequence[Sequence[tuple[str, str, str]]]


@dataclass(frozen=True)
class Frame:
    """One position of a slider."""

    label: str
    heatmaps: Sequence[Heatmap]


@dataclass(frozen=True)
class Answer:
    """What two adapters say to a prompt."""

    client: str
    prompt: str
    reference: str
    base: str
    adapter: str


@dataclass
class Section:
    """A part of the page.

    Attributes:
        key: letters that its address on the page is made of.
        text: paragraphs.
        tables: shown openly; those of pictures can be opened.
        frames: shown one at a time, by a slider.
        slider: what the slider moves through.
        answers: {department: answers}.
        code: text that is shown as it is.
        missing: why the section has less in it than it could.
    """

    key: str
    title: str
    text: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    folded: list[Table] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    slider: str = "Round"
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    code: str = ""
    missing: list[str] = field(default_factory=list)


def figure(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash for none.

    Example:
        >>> figure(1.23456), figure(None), figure(1234.5, 0)
        ('1.235', '–', '1,234')
    """
    return "–" if value is None else f"{value:,.{digits}f}"


def short(name: str, longest: int = 22) -> str:
    """A name that fits beside an axis.

    Example:
        >>> short("hr"), short("customer_support_of_the_north")
        ('hr', 'customer_suppo…e_north')
    """
    return name if len(name) <= longest else f"{name[: longest - 8]}…{name[-7:]}"


def kib(value: float | None) -> str:
    """Bytes as KiB, or MiB where they are many.

    Example:
        >>> kib(2048), kib(32 * 2**20), kib(None)
        ('2.0 KiB', '32.0 MiB', '–')
    """
    if value is None:
        return "–"
    return f"{value / 2**20:,.1f} MiB" if value >= 16 * 2**20 else f"{value / 1024:,.1f} KiB"
