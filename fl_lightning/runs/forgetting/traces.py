"""What a run leaves that may hold something of what is taken out, and its deletion."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fl_lightning.config import RunConfig
from fl_lightning.data.layout import find_places
from fl_lightning.data.lazy_clients import LAZY_ABOVE
from fl_lightning.data.token_store import default_folder
from fl_lightning.errors import InputError
from fl_lightning.storage.files import sync_folder
from fl_lightning.storage.forgotten import mark_forgotten, read_forgotten
from fl_lightning.storage.run_layout import (
    ADAPTERS,
    CANARIES,
    CERTIFICATE,
    CHECKPOINTS,
    CLIENT_EXPORTS,
    CLIENT_RUNS,
    CONFIG,
    FORGETTING,
    FORGOTTEN,
    LEDGER,
    LEDGER_SECRET,
    LOCK,
    LOGGERS,
    MIXTURE_LEVELS,
    PERSONAL,
    SAMPLES,
    UPDATES,
)

KEPT = {CONFIG, "hparams.yaml", LEDGER, LEDGER_SECRET, CERTIFICATE, FORGETTING, FORGOTTEN, LOCK, LOGGERS}
"""What a purge leaves in a run folder: the chain, which has commitments only, and what names the run."""

KINDS = {
    ADAPTERS: "adapters of departments and groups, which serve offers",
    CLIENT_EXPORTS: "clients' adapters",
    CHECKPOINTS: "states of the federation",
    UPDATES: "clients' updates of all rounds",
    MIXTURE_LEVELS: "adapters of mixtures",
    PERSONAL: "personal adapters, and the runs that made them",
    CANARIES: "canaries, with prompts of clients' records",
    SAMPLES: "answers to held-out prompts",
    CLIENT_RUNS: "training losses of each client",
    "report": "pages with losses and answers",
    "merged": "whole models",
    "publish": "folders as they were uploaded",
}
"""{name in a run folder: what it is}; anything else is figures."""


@dataclass(frozen=True)
class Trace:
    """A file or folder.

    Attributes:
        path: of it.
        what: it is.
    """

    path: Path
    what: str


def find_traces(run_folder: Path, config: RunConfig) -> list[Trace]:
    """What `purge` would delete, sorted; of a large federation the store of tokens too, which is outside the run."""
    inside = [path for path in sorted(run_folder.iterdir()) if path.name not in KEPT]
    traces = [Trace(path, KINDS.get(path.name, "figures")) for path in inside]
    if config.data.token_store is not None and _num_clients(config) > LAZY_ABOVE:
        folder = default_folder() if config.data.token_store == "auto" else Path(config.data.token_store).expanduser()
        traces += [
            Trace(path, "tokens, shared by runs, which make them again") for path in sorted(folder.glob("*.bin"))
        ]
    return traces


def _num_clients(config: RunConfig) -> int:
    """The clients of a run, by its data as they are now; 0 if they cannot be listed."""
    try:
        return sum(
            map(len, find_places(config.data.root, config.data.max_clients, columns=config.data.columns).values())
        )
    except InputError:
        return 0


def find_copies(run_folder: Path) -> list[str]:
    """What may be elsewhere and cannot be deleted from here, one sentence each."""
    copies = ["models that merge --to wrote elsewhere, copies, backups, and adapters that somebody has downloaded"]
    if (run_folder / "publish").exists():
        copies.append("repositories on the Hugging Face Hub: push was run; delete them there")
    if (run_folder / LOGGERS).exists():
        copies.append(f"runs at tracking services, with the ids in {run_folder / LOGGERS}")
    copies.append("the records themselves, which forget never touches")
    return copies


def purge(run_folder: Path, traces: Iterable[Trace]) -> None:
    """Delete traces of a run that is marked as forgotten; a call that was interrupted may be repeated.

    Raises:
        OSError: if something cannot be deleted.
    """
    for trace in traces:
        if trace.path.is_dir() and not trace.path.is_symlink():
            shutil.rmtree(trace.path)
        else:
            trace.path.unlink(missing_ok=True)
    sync_folder(run_folder)
    mark_forgotten(run_folder, {**(read_forgotten(run_folder) or {}), "purged": True})
