"""Run folders ``version_N``: made atomically, found by name, and locked by one process at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from fl_lightning.errors import InputError
from fl_lightning.storage.files import FILE_MODE, sync_folder, temporary_folder, write_text
from fl_lightning.storage.run_layout import CONFIG, LOCK

log = logging.getLogger(__name__)

RUN_PREFIX = "version"


def check_output(root: Path) -> None:
    """Check that a folder could be made under `root`, without making anything.

    Raises:
        InputError: if `root` is a file, or may not be written to.
    """
    existing = root
    while not os.path.exists(existing) and existing != existing.parent:  # also false for a name that is too long
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"output: {existing} is a file, expected a folder; choose another --output")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"output: {existing} is not writable; choose another --output")


def create_run_folder(root: Path, config: str) -> Path:
    """Make a new ``version_N`` folder under `root`, see `create_numbered_folder`.

    Args:
        root: folder of the runs.
        config: text of the run's ``config.yaml``, which exists as soon as the folder does.

    Raises:
        InputError: if the folder cannot be made.
    """
    return create_numbered_folder(root, RUN_PREFIX, lambda folder: write_text(folder / CONFIG, config))


def create_numbered_folder(root: Path, prefix: str, fill: Callable[[Path], None]) -> Path:
    """Make a new folder ``{prefix}_N`` under `root`, N one above the highest; no two processes get the same one.

    Args:
        root: made if it does not exist.
        prefix: first part of the folder's name.
        fill: writes the files that exist as soon as the folder does.

    Raises:
        InputError: if the folder cannot be made.
    """
    try:
        with temporary_folder(root / prefix) as temporary:
            fill(temporary)
            while True:
                folder = root / f"{prefix}_{max(numbered_folders(root, prefix), default=-1) + 1}"
                with contextlib.suppress(FileExistsError):
                    folder.mkdir()  # fails if the name is taken, which a rename to an empty folder does not
                    os.replace(temporary, folder)
                    sync_folder(root)
                    return folder
    except OSError as error:
        raise InputError(
            f"output: cannot create a folder in {root} ({error.strerror}); choose another --output"
        ) from error


def numbered_folders(root: Path, prefix: str) -> dict[int, Path]:
    """{N: path} of everything called ``{prefix}_N`` in a folder, by number; empty if there is no such folder."""
    matches = [(re.fullmatch(rf"{prefix}_(\d+)", path.name), path) for path in root.glob(f"{prefix}_*")]
    return dict(sorted((int(match[1]), path) for match, path in matches if match))


@contextlib.contextmanager
def locked(run_folder: Path) -> Iterator[None]:
    """Lock a run folder while this block runs; the system unlocks it when the process dies, for whatever reason.

    Raises:
        InputError: if another process has locked it, or its lock file cannot be written.
    """
    path = run_folder / LOCK
    try:  # a run folder may come from somebody else: the target of a link is not emptied
        if os.path.exists(path) and not path.is_file():
            raise OSError(errno.EINVAL, "not a regular file")
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, FILE_MODE)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); expected a regular file: remove it, or copy the run to a "
            "writable folder"
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            process = os.read(handle, 20).decode("ascii", "replace").strip() or "unknown"
            raise InputError(
                f"{run_folder}: another process is writing to it (process {process}); wait for it, or stop it"
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def is_locked(run_folder: Path) -> bool:
    """Whether a process has locked a run folder; nothing is written."""
    try:
        handle = os.open(run_folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def warn_low_disk(folder: Path, num_bytes: int) -> None:
    """Warn if the disk of a folder has less space left than `num_bytes`."""
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        log.warning(
            "%s: a run writes about %.1f GiB, but only %.1f GiB are free; set retention.client_exports and "
            "retention.checkpoints, or choose another --output", folder, num_bytes / 2**30, free / 2**30,
        )  # fmt: skip


def find_run_folder(run: str, root: Path) -> Path:
    """The run folder that `run` names: a path, a name under `root`, or ``last`` for the newest ``version_N`` there.

    Raises:
        InputError: if there is no such run.
    """
    if run == "last":
        if (newest := newest_folder(root, RUN_PREFIX, CONFIG)) is None:
            raise InputError(f"run 'last': no version_N folder in {root}; run 'fit' first or name another --output")
        return newest
    folder = named_folder(run, root)
    if not os.path.isfile(folder / CONFIG):
        raise InputError(
            f"run {run!r}: no {CONFIG} in it; expected a run folder such as {root / f'{RUN_PREFIX}_0'} or 'last'"
        )
    return folder


def newest_folder(root: Path, prefix: str, marker: str) -> Path | None:
    """The folder ``{prefix}_N`` with the highest N that has the file `marker`; None if there is none."""
    folders = [path for path in numbered_folders(root, prefix).values() if (path / marker).is_file()]
    return folders[-1] if folders else None


def named_folder(name: str, root: Path) -> Path:
    """The folder that a user names: a path, or a name under `root`."""
    # os.path.isdir is also false for a name that is too long, where Path.is_dir may raise
    return root / name if not os.path.isdir(name) and os.path.isdir(root / name) else Path(name)
