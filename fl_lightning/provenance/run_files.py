"""Digests of the files that a finished run leaves, for the last line of its ledger, and their check.

``metrics.csv``, TensorBoard's events, ``client_runs/`` and what later commands add (``report/``, ``merged/``, …) are
not covered (`NOT_COVERED`): most of them hold seconds. ``checkpoints/history.jsonl`` has seconds too: each checkpoint
has its SHA-256 up to its round, which is checked but is not in the ledger.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fl_lightning.errors import InputError
from fl_lightning.provenance.chain import ChainError
from fl_lightning.provenance.digests import file_digest, folder_digest, json_digest
from fl_lightning.storage.files import read_json
from fl_lightning.storage.manifest import MANIFEST, check_manifest
from fl_lightning.storage.run_layout import (
    ADAPTERS,
    CHECKPOINT_FACTS,
    CHECKPOINTS,
    CLIENT_EVALUATION,
    CLIENT_EXPORTS,
    CLIENT_INDEX,
    CLUSTER_METADATA,
    CONFIG,
    DEPARTMENT_INDEX,
    DEPARTMENT_MIXTURES,
    EARLY_STOPPING,
    EVALUATION,
    GROUP_INDEX,
    HISTORY,
    LEDGER,
    MIXTURE_LEVELS,
    NETWORK,
    SAMPLES,
    round_folders,
)

FILES = (
    CONFIG, EVALUATION, CLIENT_EVALUATION, CLIENT_INDEX, DEPARTMENT_INDEX, GROUP_INDEX, DEPARTMENT_MIXTURES,
    EARLY_STOPPING, SAMPLES, NETWORK,
)  # fmt: skip
"""Files with a digest each."""

FOLDERS = (f"{ADAPTERS}/*", f"{CLIENT_EXPORTS}/*/*", MIXTURE_LEVELS)
"""Folders with a digest each."""

NOT_COVERED = (
    (
        "metrics.csv, hparams.yaml, TensorBoard's events, mlruns/, loggers.json",
        "written by the loggers, with clock times",
    ),
    ("client_runs/", "losses of every step; the updates of these steps are in the ledger"),
    ("checkpoints/history.jsonl", "logged rows with seconds: compared with the checkpoints, but not in the ledger"),
    ("report/, merged/, publish/, personal/, personal_eval.json, newcomers.json", "written later, by other commands"),
    ("what a log or the screen has shown", "it is no file of the run"),
)
"""(files that a finished run's ledger has no digest of, why)."""


def describe_files(run_folder: Path) -> dict[str, Any]:
    """The digests in the last line of a ledger, of the files as they are now.

    Returns:
        ``files``: {path: digest}; ``folders``: {path: digest of names and bytes}; ``checkpoints``: {path: digest}.
    """
    files = [run_folder / name for name in FILES] + sorted((run_folder / CLUSTER_METADATA).glob("*.json"))
    return {
        "files": {_name(run_folder, path): file_digest(path) for path in files if path.is_file()},
        "folders": {
            _name(run_folder, path): folder_digest(path)
            for pattern in FOLDERS
            for path in sorted(run_folder.glob(pattern))
            if path.is_dir()
        },
        "checkpoints": {
            _name(run_folder, path): checkpoint_digest(path)
            for path in round_folders(run_folder / CHECKPOINTS).values()
        },
    }


def checkpoint_digest(folder: Path) -> str:
    """The digest of a checkpoint by its manifest, whose digests are not computed again.

    The content of ``state.json`` counts, without where the rows end in ``history.jsonl``: these have seconds.

    Raises:
        InputError: if the manifest or ``state.json`` cannot be read.
    """
    manifest, facts = read_json(folder / MANIFEST), read_json(folder / CHECKPOINT_FACTS)
    if not isinstance(manifest, dict) or not isinstance(facts, dict) or not isinstance(facts.get("extra"), dict):
        raise InputError(f"{folder}: expected a checkpoint as the run wrote it")
    facts = {**facts, "extra": {key: value for key, value in facts["extra"].items() if key != HISTORY.split(".")[0]}}
    entries = {name: entry for name, entry in manifest.items() if name != CHECKPOINT_FACTS}
    return json_digest({"files": entries, "facts": facts})


def check_files(run_folder: Path, end: Mapping[str, Any]) -> None:
    """Check that the files of a run are those of the last line of its ledger.

    Raises:
        ChainError: naming the first file that was changed, is missing, or was added.
    """
    _compare(run_folder, end["files"], _present(run_folder, FILES, CLUSTER_METADATA), file_digest)
    folders = [_name(run_folder, path) for pattern in FOLDERS for path in run_folder.glob(pattern)]
    _compare(run_folder, end["folders"], folders, folder_digest)
    if (run_folder / CHECKPOINTS).exists():
        _check_strays(run_folder / CHECKPOINTS)
        for name in end["checkpoints"]:
            _check_checkpoint(run_folder / name)
        present = [_name(run_folder, path) for path in round_folders(run_folder / CHECKPOINTS).values()]
        _compare(run_folder, end["checkpoints"], present, checkpoint_digest)


def _present(run_folder: Path, names: tuple[str, ...], folder: str) -> list[str]:
    paths = [*(run_folder / name for name in names), *(run_folder / folder).glob("*.json")]
    return [_name(run_folder, path) for path in paths if path.exists()]


def _compare(run_folder: Path, expected: Mapping[str, str], present: list[str], digest: Callable[[Path], str]) -> None:
    for name, value in expected.items():
        path = run_folder / name
        if not _is_inside(name):
            raise ChainError(f"{run_folder / LEDGER}: the last line: expected paths in the run, got {name[:80]!r}")
        if not path.exists():
            raise ChainError(f"{path}: missing: the ledger's last line has its SHA-256")
        if path.is_dir() == (digest is file_digest) or not (path.is_dir() or path.is_file()):
            raise ChainError(f"{path}: changed: expected a {'file' if digest is file_digest else 'folder'}")
        try:
            actual = digest(path)
        except (OSError, InputError) as error:
            raise ChainError(f"{path}: changed: it cannot be read ({error})") from error
        if actual != value:
            raise ChainError(f"{path}: changed: expected the SHA-256 {str(value)[:12]}…, got {actual[:12]}…")
    if added := sorted(set(present) - set(expected)):
        raise ChainError(f"{run_folder / added[0]}: added: the ledger's last line does not have it")


def _check_checkpoint(folder: Path) -> None:
    """Check a checkpoint's files against its manifest, and this against the one way to write it."""
    if not folder.is_dir():
        raise ChainError(f"{folder}: missing: the ledger's last line has its SHA-256")
    changed = None
    try:
        listed = check_manifest(folder)
        for path in (folder / MANIFEST, folder / CHECKPOINT_FACTS):
            if path.read_bytes() != (json.dumps(read_json(path), indent=1) + "\n").encode():
                changed = changed or path
    except (InputError, OSError, ValueError, AttributeError, RecursionError) as error:
        raise ChainError(f"changed: {error}" if str(folder) in str(error) else f"{folder}: changed: {error}") from error
    if changed is not None:
        raise ChainError(f"{changed}: changed: expected the file as the run wrote it")
    files = {_name(folder, file) for file in folder.rglob("*") if file.is_file()}
    if added := sorted(files - {*listed, MANIFEST}):
        raise ChainError(f"{folder / added[0]}: added: {MANIFEST} does not name it")


def _check_strays(folder: Path) -> None:
    """Check that nothing lies beside the checkpoints from which a run that goes on would take its updates."""
    expected = {HISTORY, *(path.name for path in round_folders(folder).values())}
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if added := sorted(names - expected):
        raise ChainError(f"{folder / added[0]}: added: no file of a finished run")


def _is_inside(name: str) -> bool:
    """Whether a path leads to a place in the folder to which it is relative."""
    return not name.startswith("/") and not {"", ".", ".."} & set(name.split("/"))


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
