"""The page: all sections in one HTML file that needs no other file, and the pictures as files beside it.

The template engine escapes all text from the run folder. In addition, the page's content security policy allows only
its one script and loads nothing.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fl_lightning.errors import InputError
from fl_lightning.report.adapter_map import adapter_map
from fl_lightning.report.audit import audit
from fl_lightning.report.cluster_count import cluster_count
from fl_lightning.report.clusters import clusters
from fl_lightning.report.comparison import comparison
from fl_lightning.report.costs import costs
from fl_lightning.report.drawing import RenderedPicture, check_installed, render_picture
from fl_lightning.report.elements import Section
from fl_lightning.report.losses import losses
from fl_lightning.report.personal import personal
from fl_lightning.report.run_summary import config, excluded_updates, overview, progress
from fl_lightning.report.samples import samples
from fl_lightning.report.similarity import similarity
from fl_lightning.runs.artifact_reader import read_artifacts
from fl_lightning.runs.artifacts import RunArtifacts
from fl_lightning.storage.files import write_text

if TYPE_CHECKING:
    from markupsafe import Markup

log = logging.getLogger(__name__)

FOLDER = "report"
TEMPLATES = Path(__file__).parent / "templates"
TOPICS: tuple[Callable[[RunArtifacts], Section], ...] = (
    losses, comparison, clusters, similarity, cluster_count, adapter_map, costs, excluded_updates,
)  # fmt: skip


def write_report(run_folder: Path, *, count: int = 3) -> Path:
    """Draw the pictures of a run and write its page.

    Args:
        run_folder: finished, interrupted or still running.
        count: sample prompts per department; 0 loads no model.

    Returns:
        ``<run_folder>/report/index.html``.

    Raises:
        InputError: if ``report`` in the run folder is a link or a file.
        RunError: if matplotlib or jinja2 is not installed.
        OSError: if a file cannot be written.
    """
    check_installed()
    target = run_folder / FOLDER
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InputError(f"{target}: expected a folder of an earlier report, or none, got a link or a file; remove it")
    run = read_artifacts(run_folder)
    sections = [topic(run) for topic in TOPICS]
    sections += [personal(run)] if run.personal else []
    sections += [audit(run)] if run.audit else []
    sections += [samples(run_folder, target, count), config(run)]
    pictures = {}
    for section in sections:
        for picture in section.pictures:
            log.info("drawing %s", picture.name)
            pictures[picture.name] = render_picture(picture, target)
    page = target / "index.html"
    write_text(page, render_page(run, sections, pictures))
    return page


def render_page(run: RunArtifacts, sections: list[Section], pictures: Mapping[str, RenderedPicture]) -> str:
    """The page as HTML text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(
        name=run.folder.resolve().name,
        overview=overview(run),
        progress=progress(run),
        missing=run.missing,
        sections=sections,
        rendered=pictures,
        style=(TEMPLATES / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_policy=f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'",
    )


def breakable(name: str) -> Markup:
    """A name, escaped, that may be wrapped after its underscores.

    Example:
        >>> breakable("a_<b>")
        Markup('a_<wbr>&lt;b&gt;')
    """
    from markupsafe import Markup

    return Markup("_<wbr>").join(name.split("_"))
