"""The elements of a page: sections of text, tables, and pictures that are drawn later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fl_lightning import console

WIDTH = 4.8
"""Width of a picture in inches: its text is readable on a page of 390 pixels."""
MAX_ROWS = 400
"""Rows of a table that the page shows."""
UNKNOWN = "–"


@dataclass(frozen=True)
class Table:
    """Rows of text; the first cell of each is its heading.

    Attributes:
        caption: above the table.
        head: headings of the columns.
        rows: cells.
        text_columns: indices of the columns that hold text, not numbers.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: Sequence[int] = ()

    @property
    def visible_rows(self) -> Sequence[Sequence[str]]:
        """The rows that the page shows."""
        return self.rows[:MAX_ROWS]

    @property
    def num_hidden(self) -> int:
        """Number of rows that the page does not show."""
        return len(self.rows) - len(self.visible_rows)


@dataclass(frozen=True)
class Picture:
    """A picture to draw, with its content in words and numbers.

    Attributes:
        name: of its file, without the suffix.
        alt: description for readers who cannot see it.
        caption: above the picture.
        draw: draws on a matplotlib figure, in a `Theme`.
        size: width and height in inches.
        table: the numbers that are drawn.
        on_page: whether the page shows it; if not, it is only a file beside the page.
    """

    name: str
    alt: str
    caption: str
    draw: Callable[[Any, Any], None]
    size: tuple[float, float]
    table: Table
    on_page: bool = True


@dataclass(frozen=True)
class Heatmap:
    """A square table with colored cells.

    Attributes:
        caption: above the table.
        names: of rows and columns.
        cells: (text, background, text color) of each cell, row by row; CSS colors.
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
class PromptAnswers:
    """One prompt with the record's answer and those of two models."""

    client: str
    prompt: str
    reference: str
    base: str
    adapter: str


@dataclass
class Section:
    """A section of the page.

    Attributes:
        key: its anchor on the page.
        title: its heading.
        text: paragraphs.
        pictures: with their tables, which can be opened.
        tables: shown open.
        collapsed: tables that can be opened.
        frames: shown one at a time, by a slider.
        slider: label of the slider.
        answers: {department: answers to prompts}.
        code: shown as it is.
        missing: sentences about what the section lacks, and why.
    """

    key: str
    title: str
    text: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    collapsed: list[Table] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    slider: str = "Round"
    answers: dict[str, list[PromptAnswers]] = field(default_factory=dict)
    code: str = ""
    missing: list[str] = field(default_factory=list)


def format_number(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash for None.

    Example:
        >>> format_number(1.23456), format_number(None), format_number(1234.5, 0)
        ('1.235', '–', '1,234')
    """
    return UNKNOWN if value is None else f"{value:,.{digits}f}"


def format_size(size: float | None) -> str:
    """A number of bytes for a table; a dash for None.

    Example:
        >>> format_size(2048), format_size(32 * 2**20), format_size(None)
        ('2.0 KiB', '32.0 MiB', '–')
    """
    return UNKNOWN if size is None else console.format_bytes(int(size))


def shorten(name: str, length: int = 22) -> str:
    """A name that fits beside an axis.

    Example:
        >>> shorten("hr"), shorten("customer_support_of_the_north")
        ('hr', 'customer_suppo…e_north')
    """
    return name if len(name) <= length else f"{name[: length - 8]}…{name[-7:]}"
