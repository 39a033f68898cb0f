"""Draw pictures for the page in a light and a dark theme, and as PNG files."""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_lightning.errors import RunError
from fl_lightning.report.elements import Picture
from fl_lightning.storage.files import write_bytes

EXTRA = "pip install 'fl_lightning[report]'"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)))
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "ooo")


@dataclass(frozen=True)
class Theme:
    """Colors of a picture; the background is that of the page."""

    name: str
    foreground: str
    muted: str
    grid: str
    background: str
    colors: tuple[str, ...]


# Okabe and Ito's colors, which people with any color vision can tell apart; lighter ones for the dark background.
LIGHT = Theme(
    "light", "#1b1f24", "#6b7480", "#d5dae0", "#ffffff",
    ("#0072b2", "#c44e00", "#00805e", "#b0518a", "#9a6b00", "#2a86c4", "#4d4d4d", "#8a3ffc"),
)  # fmt: skip
DARK = Theme(
    "dark", "#e8eaed", "#9aa3ad", "#3a4149", "#14171b",
    ("#6bb8f0", "#f29a5c", "#4fcfa5", "#e5a3c8", "#f0d254", "#a8d4ff", "#d0d0d0", "#c4a5ff"),
)  # fmt: skip


def check_installed() -> None:
    """Check that the libraries of a report are installed.

    Raises:
        RunError: if one is missing; the message says how to install it.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise RunError(f"report: {error.name} is not installed; {EXTRA}") from error


@dataclass(frozen=True)
class RenderedPicture:
    """A picture as data URLs, one for each theme."""

    picture: Picture
    light: str
    dark: str

    @property
    def width(self) -> int:
        """In CSS pixels."""
        return round(self.picture.size[0] * 96)

    @property
    def height(self) -> int:
        """In CSS pixels."""
        return round(self.picture.size[1] * 96)


def render_picture(picture: Picture, folder: Path) -> RenderedPicture:
    """Draw a picture for the page, and as ``<name>.png`` in a folder."""
    write_bytes(folder / f"{picture.name}.png", _render(picture, LIGHT, "png"))
    light, dark = (base64.b64encode(_render(picture, theme, "svg")).decode() for theme in (LIGHT, DARK))
    return RenderedPicture(picture, f"data:image/svg+xml;base64,{light}", f"data:image/svg+xml;base64,{dark}")


def _render(picture: Picture, theme: Theme, file_format: str) -> bytes:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    text_colors = dict.fromkeys(
        ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), theme.foreground
    )
    line_colors = {"axes.edgecolor": theme.muted, "xtick.color": theme.muted, "ytick.color": theme.muted}
    settings = {
        **text_colors, **line_colors, "font.size": 10, "font.family": "DejaVu Sans", "axes.titlesize": 10,
        "axes.facecolor": "none", "axes.spines.top": False, "axes.spines.right": False, "grid.color": theme.grid,
        "legend.frameon": False, "legend.fontsize": 9, "xtick.labelsize": 9, "ytick.labelsize": 9,
        "hatch.linewidth": 0.6, "text.parse_math": False, "svg.fonttype": "path", "svg.hashsalt": picture.name,
    }  # fmt: skip
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # drawn as a box; the table has the name
        figure = Figure(figsize=picture.size, layout="constrained")
        figure.patch.set_facecolor(theme.background if file_format == "png" else "none")
        picture.draw(figure, theme)
        data = io.BytesIO()
        # No dates and versions: equal runs give equal bytes.
        metadata = {"Date": None, "Creator": None} if file_format == "svg" else {"Software": None}
        figure.savefig(data, format=file_format, dpi=150, metadata=metadata)
    return data.getvalue()


def set_round_axis(axes: Any) -> None:
    """Label the x axis as rounds, with ticks at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    axes.set_xlabel("round")


def line_style(theme: Theme, number: int) -> dict[str, Any]:
    """Color, line and marker of the n-th of several lines, which differ without color as well."""
    return {
        "color": theme.colors[number % len(theme.colors)],
        "linestyle": LINES[number % len(LINES)],
        "marker": MARKERS[number % len(MARKERS)],
    }
