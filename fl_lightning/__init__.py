"""Hierarchical federated LoRA fine-tuning of causal language models on PyTorch Lightning and Fabric.

Public names are imported on first use, so that importing the package stays light. They are listed in ``__init__.pyi``.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

from fl_lightning import openmp

openmp.set_short_waits()  # before anything imports torch

_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
_IMPORTS = [node for node in _STUB.body if isinstance(node, ast.ImportFrom)]
_MODULE_OF = {alias.name: str(node.module) for node in _IMPORTS for alias in node.names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
