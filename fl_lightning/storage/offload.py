"""States of many clients on disk while a round waits: safetensors files that read like dictionaries of tensors."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from fl_lightning.state import LoraState
from fl_lightning.storage.manifest import FileDigest, size_and_digest
from fl_lightning.storage.tensors import write_state

MAX_IN_MEMORY = 64
"""With more clients than this, states are offloaded."""


class OffloadedState(Mapping[str, torch.Tensor]):
    """A state in a separate file; each access maps one tensor. The file goes when the object does.

    Args:
        path: of the file, which must not exist yet.
        state: what to write.
        folder: that the file is in; it lives as long as the state does.
    """

    def __init__(self, path: Path, state: Mapping[str, torch.Tensor], folder: OffloadFolder) -> None:
        write_state(path, state)
        self._path, self._folder = path, folder
        self._names = list(state)
        self._digest: FileDigest | None = None
        weakref.finalize(self, path.unlink, missing_ok=True)

    def __getitem__(self, name: str) -> torch.Tensor:
        """One tensor, mapped from the file; it stays valid after the file is gone."""
        if name not in self._names:
            raise KeyError(name)
        with safe_open(self._path, "pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def in_memory(self) -> LoraState:
        """All tensors, read at once."""
        with safe_open(self._path, "pt") as file:
            return {name: file.get_tensor(name) for name in self._names}

    def write_to(self, path: Path) -> FileDigest:
        """Put the state's file at another path as well: as a link where the disk allows it, without reading it.

        Returns:
            The size and SHA-256 of the file, which are computed once.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(self._path, path)
        except OSError:  # on another disk
            shutil.copyfile(self._path, path)
        if self._digest is None:
            self._digest = size_and_digest(self._path)
        return self._digest

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class OffloadFolder:
    """A temporary folder for offloaded states; it is removed with the last of them.

    Args:
        parent: of the folder; the system's folder for temporary files if None.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self._path = Path(tempfile.mkdtemp(prefix=".states.", suffix=".tmp", dir=parent))
        self._numbers = itertools.count()
        weakref.finalize(self, shutil.rmtree, self._path, ignore_errors=True)

    def store(self, state: Mapping[str, torch.Tensor]) -> OffloadedState:
        """Write a state to the folder and return the mapping that reads it."""
        return OffloadedState(self._path / f"{next(self._numbers)}.safetensors", state, self)
