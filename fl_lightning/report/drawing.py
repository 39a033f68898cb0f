"""Drawing in two themes: pictures for the page, light and dark, and a file to take along."""

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
    """Colours of a picture; its ground is the page's."""

    name: str
    ink: str
    faint: str
    grid: str
    ground: str
    colours: tuple[str, ...]


# Okabe and Ito's colours, which people with any colour vision tell apart; the second row lighter, for a dark ground.
LIGHT = Theme(
    "light", "#1b1f24", "#6b7480", "#d5dae0", "#ffffff",
    ("#0072b2", "#c44e00", "#00805e", "#b0518a", "#9a6b00", "#2a86c4", "#4d4d4d", "#8a3ffc"),
)  # fmt: skip
DARK = Theme(
    "dark", "#e8eaed", "#9aa3ad", "#3a4149", "#14171b",
    ("#6bb8f0", "#f29a5c", "#4fcfa5", "#e5a3c8", "#f0d254", "#a8d4ff", "#d0d0d0", "#c4a5ff"),
)  # fmt: skip


def check_installed() -> None:
    """Check that what a report needs is there.

    Raises:
        RunError: saying how to install it.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise RunError(f"report: {error.name} is not installed; {EXTRA}") from error


@dataclass(frozen=True)
class Drawn:
    """A picture as the page holds it: addresses that contain the picture itself."""

    picture: Picture
    light: str
    dark: str

    @property
    def width(self) -> int:
        """CSS pixels."""
        return round(self.picture.size[0] * 96)

    @property
    def height(self) -> int:
        """CSS pixels."""
        return round(self.picture.size[1] * 96)


def draw(picture: Picture, folder: Path) -> Drawn:
    """Draw a picture for the page, and into ``<name>.png`` in a folder."""
    write_bytes(folder / f"{picture.name}.png", _render(picture, LIGHT, "png"))
    light, dark = (base64.b64encode(_render(picture, theme, "svg")).decode() for theme in (LIGHT, DARK))
    return Drawn(picture, f"data:image/svg+xml;base64,{light}", f"data:image/svg+xml;base64,{dark}")


def _render(picture: Picture, theme: Theme, form: str) -> bytes:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    plain = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), theme.ink)
    lines = {"axes.edgecolor": theme.faint, "xtick.color": theme.faint, "ytick.color": theme.faint}
    rules = {
        **plain, **lines, "font.size": 10, "font.family": "DejaVu Sans", "axes.titlesize": 10,
        "axes.facecolor": "none", "axes.spines.top": False, "axes.spines.right": False, "grid.color": theme.grid,
        "legend.frameon": False, "legend.fontsize": 9, "xtick.labelsize": 9, "ytick.labelsize": 9,
        "hatch.linewidth": 0.6, "text.parse_math": False, "svg.fonttype": "path", "svg.hashsalt": picture.name,
    }  # fmt: skip
    with rc_context(rules), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box is drawn; the table has the name
        figure = Figure(figsize=picture.size, layout="constrained")
        figure.patch.set_facecolor(theme.ground if form == "png" else "none")
        picture.draw(figure, theme)
        data = io.BytesIO()
        kept = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}  # equal runs, equal bytes
        figure.savefig(data, format=form, dpi=150, metadata=kept)
    return data.getvalue()


def whole_rounds(axes: Any) -> None:
    """Ticks of a round axis at whole rounds."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    axes.set_xlabel("round")


def look(theme: Theme, number: int) -> dict[str, Any]:
    """Colour, line and marker of the n-th of several lines: told apart without colour as well."""
    return {
        "color": theme.colours[number % len(theme.colours)],
        "linestyle": LINES[number % len(LINES)],
        "marker": MARKERS[number % len(MARKERS)],
    }
