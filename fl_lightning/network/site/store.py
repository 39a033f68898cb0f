"""A site's disk: its own factor after each of the last rounds of a run, and its whole adapter at the end.

    <output>/sites/<department>.<client>/<run>/round_R/own.safetensors

A round that is done again starts from what stood there before that round, whatever came of it the first time.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from fl_lightning.errors import InputError
from fl_lightning.state import LoraState
from fl_lightning.storage.files import atomic_folder, remove_temporaries
from fl_lightning.storage.tensors import read_state, write_state

KEPT = 8
"""Rounds whose factors are kept: a server may resume from an older checkpoint."""


class SiteStore:
    """Tensors of one site in one run, by round and kind.

    Args:
        folder: of the site and the run.

    Example:
        >>> import tempfile
        >>> store = SiteStore(Path(tempfile.mkdtemp()))
        >>> store.keep(1, {"own": {"q.lora_B": torch.ones(1)}})
        >>> store.before(2), store.before(1)
        ((1, {'own': {'q.lora_B': tensor([1.])}}), (0, {}))
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if folder.is_dir():
            remove_temporaries(folder)

    def keep(self, round_num: int, states: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Keep tensors of a round, all of them or none."""
        tensors = {f"{kind}|{name}": tensor for kind, state in states.items() for name, tensor in state.items()}
        with atomic_folder(self.folder / f"round_{round_num}") as temporary:
            write_state(temporary / "own.safetensors", tensors)
        for old in sorted(self._rounds())[:-KEPT]:
            shutil.rmtree(self._rounds()[old], ignore_errors=True)

    def before(self, round_num: int) -> tuple[int, dict[str, LoraState]]:
        """(round, {kind: tensors}) of the last round before this one that can be read; (0, {}) where there is none."""
        for found in sorted(self._rounds(), reverse=True):
            if found < round_num:
                with contextlib.suppress(OSError, InputError, ValueError):
                    states: dict[str, LoraState] = {}
                    for key, tensor in read_state(self._rounds()[found] / "own.safetensors").items():
                        kind, name = key.split("|", 1)
                        states.setdefault(kind, {})[name] = tensor
                    return found, states
        return 0, {}

    def _rounds(self) -> dict[int, Path]:
        return {
            int(match[1]): path
            for path in self.folder.glob("round_*")
            if (match := re.fullmatch(r"round_(\d+)", path.name))
        }
