"""A site's disk: what it keeps after each of the last rounds, and its adapter at the end.

    <output>/sites/<department>.<client>/<run>/round_R/kept.safetensors

A round that is repeated starts from what was saved before it, not from what its first attempt saved.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from fl_lightning.errors import InputError
from fl_lightning.state import LoraState
from fl_lightning.storage.files import atomic_folder, remove_temporaries
from fl_lightning.storage.tensors import read_state, write_state

log = logging.getLogger(__name__)

KEEP_ROUNDS = 8
"""Rounds that stay on the disk: a server may resume from an older checkpoint."""
FILE = "kept.safetensors"


class SiteStore:
    """Tensors of one site in one run, by round and kind.

    The kinds are ``private``, the factor and layers that the site does not share; ``rest``, the rounding error that the
    next round's update makes up for; and those of its own adapter, see `fl_lightning.network.site.own_adapter`.

    Args:
        folder: of the site and the run.

    Example:
        >>> import tempfile
        >>> store = SiteStore(Path(tempfile.mkdtemp()))
        >>> store.save(1, {"private": {"q.lora_B": torch.ones(1)}})
        >>> store.load_before(2), store.load_before(1)
        ((1, {'private': {'q.lora_B': tensor([1.])}}), (0, {}))
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if folder.is_dir():
            remove_temporaries(folder)

    def save(self, round_num: int, states: Mapping[str, Mapping[str, torch.Tensor]], keep: int = 0) -> None:
        """Save tensors of a round, all of them or none, and remove the oldest rounds, except the round `keep`."""
        tensors = {f"{kind}|{name}": tensor for kind, state in states.items() for name, tensor in state.items()}
        with atomic_folder(self.folder / f"round_{round_num}") as temporary:
            write_state(temporary / FILE, tensors)
        folders = self._round_folders()
        for old in sorted(folders.keys() - {keep})[:-KEEP_ROUNDS]:
            shutil.rmtree(folders[old], ignore_errors=True)

    def load_before(self, round_num: int) -> tuple[int, dict[str, LoraState]]:
        """The tensors of the last round before this one.

        A file that cannot be read is logged, and the round before it is taken, without its rounding error: the rounds
        after it have made up for that already.

        Returns:
            (round, {kind: tensors}); (0, {}) if there is no earlier round.

        Raises:
            InputError: if there are earlier rounds and none of them can be read.
        """
        folders = self._round_folders()
        first_error: InputError | OSError | ValueError | None = None
        for saved_round in sorted((r for r in folders if r < round_num), reverse=True):
            try:
                states = _read(folders[saved_round] / FILE)
            except (InputError, OSError, ValueError) as error:
                log.warning("this site's tensors after round %d cannot be read: %s", saved_round, error)
                first_error = first_error or error
                continue
            if first_error is not None:
                states.pop("rest", None)
                log.warning("its tensors after round %d are used instead, without their rounding error", saved_round)
            return saved_round, states
        if first_error is not None:
            raise InputError(
                f"{self.folder}: expected a readable {FILE} of a round before {round_num}, got none ({first_error}); "
                "restore one from a backup, or remove the folder to start from the server's state"
            ) from first_error
        return 0, {}

    def _round_folders(self) -> dict[int, Path]:
        return {
            int(match[1]): path
            for path in self.folder.glob("round_*")
            if (match := re.fullmatch(r"round_(\d+)", path.name))
        }


def _read(path: Path) -> dict[str, LoraState]:
    states: dict[str, LoraState] = {}
    for key, tensor in read_state(path).items():
        kind, name = key.split("|", 1)
        states.setdefault(kind, {})[name] = tensor
    return states
