"""Run folders: made whole, found again, and held by one process at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fl_lightning.errors import InputError
from fl_lightning.storage.files import sync_folder, write_text

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
LOCK = ".lock"


def check_output(root: Path) -> None:
    """Check that a run folder could be made under `root`, without making anything.

    Raises:
        InputError: if `root` is a file, or may not be written to.
    """
    place = root
    while not os.path.exists(place) and place != place.parent:  # false too for a name that is too long
        place = place.parent
    if not place.is_dir():
        raise InputError(f"output: {place} is a file, wanted a folder; choose another --output")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"output: {place} may not be written to; choose another --output")


def create_run_folder(root: Path, config: str) -> Path:
    """A new ``version_N`` folder under `root`, N one above the highest there; two processes never get the same one.

    Args:
        root: where runs are kept.
        config: what goes into the run's ``config.yaml``, which stands there from the first moment.

    Raises:
        InputError: if the folder cannot be made.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".version.", suffix=".tmp", dir=root))
        try:
            write_text(temporary / CONFIG, config)
            temporary.chmod(0o755)
            while True:
                taken = [int(m[1]) for p in root.iterdir() if (m := re.fullmatch(r"version_(\d+)", p.name))]
                folder = root / f"version_{max(taken, default=-1) + 1}"
                with contextlib.suppress(FileExistsError):
                    _rename_to_new(temporary, folder)
                    sync_folder(root)
                    return folder
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"output: cannot create a run folder in {root} ({error.strerror}); choose another --output"
        ) from error


def _rename_to_new(source: Path, target: Path) -> None:
    """Rename a folder to a name that nothing has; `FileExistsError` where something has, an empty folder included."""
    target.mkdir()
    os.replace(source, target)


@contextlib.contextmanager
def held(run_folder: Path) -> Iterator[None]:
    """Hold a run folder while this block runs; the system lets go of it when the process dies, however it does.

    Raises:
        InputError: if another process holds it, or its lock file cannot be written.
    """
    path = run_folder / LOCK
    try:  # a run folder may come from somebody else: what a link leads to is not emptied
        if os.path.exists(path) and not path.is_file():
            raise OSError(errno.EINVAL, "not a plain file")
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); remove it, or copy the run to a folder that may be written "
            "to; wanted a plain file"
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            who = os.read(handle, 20).decode("ascii", "replace").strip() or "unknown"
            raise InputError(
                f"{run_folder}: another process writes there (process {who}); wait for it, or stop it"
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def is_held(run_folder: Path) -> bool:
    """Whether a process holds a run folder; nothing is written."""
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


def warn_if_tight(folder: Path, wanted: int) -> None:
    """Warn if the disk of a folder has fewer bytes left than are wanted."""
    free = shutil.disk_usage(folder).free
    if wanted > free:
        log.warning(
            "%s: about %.1f GiB will be written and %.1f GiB are free; set retention.client_exports and "
            "retention.checkpoints, or choose another --output", folder, wanted / 2**30, free / 2**30,
        )  # fmt: skip


def find_run_folder(run: str, root: Path) -> Path:
    """The run folder that `run` names: a path, or ``last`` for the newest ``version_N`` under `root`.

    Raises:
        InputError: if there is no such run.
    """
    if run == "last":
        runs = [p for p in root.glob("version_*") if re.fullmatch(r"version_\d+", p.name) and (p / CONFIG).is_file()]
        if not runs:
            raise InputError(f"run 'last': no version_N folder in {root}; run 'fit' first or name another --output")
        return max(runs, key=lambda p: int(p.name.split("_")[1]))
    folder = Path(run)
    if not os.path.isdir(folder) and os.path.isdir(root / run):  # false too for a name that is too long
        folder = root / run
    if not os.path.isfile(folder / CONFIG):
        raise InputError(
            f"run {run!r}: no config.yaml there; wanted a run folder such as {root / 'version_0'} or 'last'"
        )
    return folder
