"""The ``model`` block: the frozen base model."""

from __future__ import annotations

from dataclasses import dataclass

from fl_lightning.config.checks import check, check_null

TINY_BASE = "bundled:tiny_base"
"""Name of the base model inside the package."""


@dataclass
class ModelConfig:
    """The frozen base model."""

    name_or_path: str = TINY_BASE
    """A Hub id, a local folder, a local .gguf file, or bundled:tiny_base."""
    load_in_4bit: bool = False
    """Quantise the base to NF4 with bitsandbytes."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    trust_remote_code: bool = False
    """Run model code that comes with the weights. Only for models you trust."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_null(self, "model.")
        check(bool(self.name_or_path.strip()), "model.name_or_path", self.name_or_path, "a Hub id or a path")
