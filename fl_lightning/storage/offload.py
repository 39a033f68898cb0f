"""States of many clients on disk: memory-mapped safetensors files that read like dictionaries of tensors."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from fl_lightning.storage.tensors import write_state

IN_MEMORY = 64
"""Up to so many clients' states stay in memory."""


class SpilledState(Mapping[str, torch.Tensor]):
    """A state in a file of its own; each access maps one tensor. The file goes when the object does.

    Args:
        path: where to; nothing may stand there.
        state: what to write.
        spill: whose folder it is; lives as long as the state does.
    """

    def __init__(self, path: Path, state: Mapping[str, torch.Tensor], spill: Spill) -> None:
        write_state(path, state)
        self._path, self._spill = path, spill
        self._names = list(state)
        weakref.finalize(self, path.unlink, missing_ok=True)

    def __getitem__(self, name: str) -> torch.Tensor:
        """One tensor, mapped from the file; it stays good when the file is gone."""
        if name not in self._names:
            raise KeyError(name)
        with safe_open(self._path, "pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Spill:
    """A folder for states that do not stay in memory; it goes with the last of them.

    Args:
        inside: the folder is made in here; None takes the system's place for temporary files.
    """

    def __init__(self, inside: Path | None = None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix=".states.", suffix=".tmp", dir=inside))
        self._numbers = itertools.count()
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def keep(self, state: Mapping[str, torch.Tensor]) -> SpilledState:
        """Write a state and give it back as what reads it."""
        return SpilledState(self._folder / f"{next(self._numbers)}.safetensors", state, self)
