"""The page: sections drawn, put into one HTML file that needs nothing but itself, and the files beside it.

Everything that comes from the run folder is escaped by the template engine. Besides, the page's own policy lets it run
its one script only and load nothing at all.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_lightning.errors import InputError
from fl_lightning.report.adapter_map import landscape
from fl_lightning.report.cluster_count import choice
from fl_lightning.report.clusters import clusters
from fl_lightning.report.comparison import comparison
from fl_lightning.report.costs import costs
from fl_lightning.report.drawing import check_installed, draw
from fl_lightning.report.elements import Section
from fl_lightning.report.losses import losses
from fl_lightning.report.run_summary import config, glance, left_out, state
from fl_lightning.report.samples import samples
from fl_lightning.report.similarity import similarity
from fl_lightning.runs.artifact_reader import read_run
from fl_lightning.runs.artifacts import Run
from fl_lightning.storage.files import write_text

if TYPE_CHECKING:
    from markupsafe import Markup

log = logging.getLogger(__name__)

FOLDER = "report"
TEMPLATES = Path(__file__).parent / "templates"
THEMES: tuple[Callable[[Run], Section], ...] = (
    losses, comparison, clusters, similarity, choice, landscape, costs, left_out,
)  # fmt: skip


def write_report(run_folder: Path, *, count: int = 3) -> Path:
    """Draw the pictures of a run and write its page.

    Args:
        run_folder: finished, interrupted or still running.
        count: sample answers a department; 0 loads no model.

    Returns:
        ``<run_folder>/report/index.html``.

    Raises:
        InputError: if the folder's ``report`` is no folder of its own.
        RunError: if matplotlib or jinja2 is not installed.
        OSError: if the disk does not take a file.
    """
    check_installed()
    target = run_folder / FOLDER
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InputError(f"{target}: not a folder of this run; wanted none there, or one that an earlier report made")
    run = read_run(run_folder)
    sections = [theme(run) for theme in THEMES]
    sections += [samples(run_folder, target, count), config(run)]
    drawn = {}
    for section in sections:
        for picture in section.pictures:
            log.info("drawing %s", picture.name)
            drawn[picture.name] = draw(picture, target)
    page = target / "index.html"
    write_text(page, render(run, sections, drawn))
    return page


def render(run: Run, sections: list[Section], drawn: dict[str, Any]) -> str:
    """The page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breaks"] = breaks
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(
        name=run.folder.resolve().name,
        glance=glance(run),
        state=state(run),
        missing=run.missing,
        sections=sections,
        drawn=drawn,
        style=(TEMPLATES / "page.css").read_text(encoding="utf-8"),
        script=script,
        allowed=f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'",
    )


def breaks(name: str) -> Markup:
    """A name, escaped, that may be broken behind its underscores.

    Example:
        >>> breaks("a_<b>")
        Markup('a_<wbr>&lt;b&gt;')
    """
    from markupsafe import Markup

    return Markup("_<wbr>").join(name.split("_"))
