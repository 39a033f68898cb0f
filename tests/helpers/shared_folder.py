"""Folders that are expensive to make, made once for all worker processes of a test session."""

import os

from filelock import FileLock


def make_once(tmp_path_factory, name, make):
    """The folder ``name`` that all workers share; the first one to ask fills it with ``make(folder)``.

    Tests must not change it: they copy it first.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, done = root / name, root / f"{name}.done"
    with FileLock(root / f"{name}.lock"):
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
