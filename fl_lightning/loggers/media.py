"""Images, texts and chart layouts for the loggers that support them: TensorBoard, MLflow and Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
CELL, LETTER, LINE = 48, 7, 14
"""Pixels: side of a cell, width of a letter, height of a line."""
LOW, HIGH = (33, 102, 172), (178, 24, 43)
"""Colors of −1 and 1; 0 is white."""


def heatmap(names: Sequence[str], values: Sequence[Sequence[float]]) -> Pixels:
    """An image of similarities in [−1, 1], with names and numbers, shape (height, width, 3).

    Args:
        names: of rows and columns, n of them.
        values: shape (n, n); cells that are not finite are gray.
    """
    from PIL import Image, ImageDraw

    n, side = len(names), min(CELL, max(8, 1600 // max(1, len(names))))
    margin = LETTER * max(map(len, names), default=0) + 12
    picture = Image.new("RGB", (margin + n * side + 12, LINE + 8 + n * side + 12), "white")
    draw = ImageDraw.Draw(picture)
    for row, name in enumerate(names):
        top = LINE + 8 + row * side
        if side >= LINE:
            draw.text((6, top + (side - LINE) // 2), name, fill="black")
            draw.text((margin + row * side + 2, 4), str(row + 1), fill="black")
        for column in range(n):
            value = float(values[row][column])
            left = margin + column * side
            draw.rectangle((left, top, left + side - 2, top + side - 2), fill=_color(value))
            if side >= 40:
                ink = "white" if abs(value) > 0.6 else "black"
                draw.text((left + 6, top + (side - LINE) // 2), f"{value:.2f}", fill=ink)
    return np.asarray(picture, dtype=np.uint8)


def _color(value: float) -> tuple[int, int, int]:
    if not np.isfinite(value):
        return 200, 200, 200
    end, share = (HIGH if value > 0 else LOW), min(1.0, abs(value))
    red, green, blue = (round(255 + share * (channel - 255)) for channel in end)
    return red, green, blue


def logger_kind(logger: Any) -> str:
    """``tensorboard``, ``mlflow``, ``wandb``, or the empty string for loggers that support numbers only."""
    for cls in type(logger).__mro__:
        name = {"TensorBoardLogger": "tensorboard", "MLFlowLogger": "mlflow", "WandbLogger": "wandb"}.get(cls.__name__)
        if name:
            return name
    return ""


def log_image(logger: Any, key: str, pixels: Pixels, step: int) -> None:
    """Log an image; no effect for loggers that support numbers only."""
    kind = logger_kind(logger)
    if kind == "tensorboard":
        logger.experiment.add_image(key, pixels, step, dataformats="HWC")
    elif kind == "mlflow":
        logger.experiment.log_image(logger.run_id, pixels, key=key.replace("/", "_"), step=step)
    elif kind == "wandb":
        logger.log_image(key, [pixels], step=step)


def log_text(logger: Any, key: str, markdown: str, step: int) -> None:
    """Log a text in Markdown; no effect for loggers that support numbers only."""
    kind = logger_kind(logger)
    if kind == "tensorboard":
        logger.experiment.add_text(key, markdown, step)
    elif kind == "mlflow":
        logger.experiment.log_text(logger.run_id, markdown, f"{key}_{step}.md")
    elif kind == "wandb":
        logger.log_text(key, columns=["text"], data=[[markdown]], step=step)


def log_layout(logger: Any, layout: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """Define charts of several metrics, {section: {chart: tags}}; only TensorBoard has them."""
    if logger_kind(logger) == "tensorboard":
        sections = {
            section: {name: ["Multiline", list(tags)] for name, tags in charts.items()}
            for section, charts in layout.items()
        }
        logger.experiment.add_custom_scalars(sections)


def log_outcome(logger: Any, config: Mapping[str, Any], metrics: Mapping[str, float], step: int) -> None:
    """Log a run's config together with its final metrics, for tables over several runs."""
    kind = logger_kind(logger)
    if kind == "tensorboard":
        logger.log_hyperparams(dict(config), metrics=dict(metrics), step=step)
    elif kind:
        logger.log_metrics(dict(metrics), step=step)
