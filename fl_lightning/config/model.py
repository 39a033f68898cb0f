"""The ``model`` block: the frozen base model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fl_lightning.config.checks import Block, NotBlank

TINY_BASE = "bundled:tiny_base"
"""Name of the base model inside the package."""


@dataclass
class ModelConfig(Block, key="model"):
    """The frozen base model."""

    name_or_path: Annotated[str, NotBlank("a Hub id or a path")] = TINY_BASE
    """A Hub id, a local folder, a local .gguf file, or bundled:tiny_base."""
    load_in_4bit: bool = False
    """Quantize the base model to NF4 with bitsandbytes."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    trust_remote_code: bool = False
    """Run model code that comes with the weights. Only for models that you trust."""
