"""Pictures, texts and layouts for those Lightning loggers that take them: TensorBoard, MLflow and Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
CELL, LETTER, LINE = 48, 7, 14
LOW, HIGH = (33, 102, 172), (178, 24, 43)
"""Colours of −1 and 1; 0 is white."""


def heatmap(names: Sequence[str], values: Sequence[Sequence[float]]) -> Pixels:
    """A picture of similarities in [−1, 1], with names and numbers, shape (height, width, 3).

    Args:
        names: of rows and columns, n of them.
        values: shape (n, n); what is not finite is grey.
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
            draw.rectangle((left, top, left + side - 2, top + side - 2), fill=_colour(value))
            if side >= 40:
                ink = "white" if abs(value) > 0.6 else "black"
                draw.text((left + 6, top + (side - LINE) // 2), f"{value:.2f}", fill=ink)
    return np.asarray(picture, dtype=np.uint8)


def _colour(value: float) -> tuple[int, int, int]:
    if not np.isfinite(value):
        return 200, 200, 200
    end, share = (HIGH if value > 0 else LOW), min(1.0, abs(value))
    red, green, blue = (round(255 + share * (channel - 255)) for channel in end)
    return red, green, blue


def kind(logger: Any) -> str:
    """``tensorboard``, ``mlflow``, ``wandb``, or the empty string for loggers that take figures only."""
    for cls in type(logger).__mro__:
        name = {"TensorBoardLogger": "tensorboard", "MLFlowLogger": "mlflow", "WandbLogger": "wandb"}.get(cls.__name__)
        if name:
            return name
    return ""


def put_picture(logger: Any, key: str, pixels: Pixels, step: int) -> None:
    """A picture under a key; nothing for loggers that take figures only."""
    which = kind(logger)
    if which == "tensorboard":
        logger.experiment.add_image(key, pixels, step, dataformats="HWC")
    elif which == "mlflow":
        logger.experiment.log_image(logger.run_id, pixels, key=key.replace("/", "_"), step=step)
    elif which == "wandb":
        logger.log_image(key, [pixels], step=step)


def put_text(logger: Any, key: str, markdown: str, step: int) -> None:
    """A text in Markdown under a key; nothing for loggers that take figures only."""
    which = kind(logger)
    if which == "tensorboard":
        logger.experiment.add_text(key, markdown, step)
    elif which == "mlflow":
        logger.experiment.log_text(logger.run_id, markdown, f"{key}_{step}.md")
    elif which == "wandb":
        logger.log_text(key, columns=["text"], data=[[markdown]], step=step)


def put_layout(logger: Any, layout: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """Charts that show several figures together, {section: {chart: tags}}; only TensorBoard has them."""
    if kind(logger) == "tensorboard":
        charts = {section: {c: ["Multiline", list(t)] for c, t in own.items()} for section, own in layout.items()}
        logger.experiment.add_custom_scalars(charts)


def put_outcome(logger: Any, config: Mapping[str, Any], figures: Mapping[str, float], step: int) -> None:
    """What a run was made of beside what came out, for tables over several runs."""
    which = kind(logger)
    if which == "tensorboard":
        logger.log_hyperparams(dict(config), metrics=dict(figures), step=step)
    elif which:
        logger.log_metrics(dict(figures), step=step)
