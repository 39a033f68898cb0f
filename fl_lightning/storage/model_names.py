"""The names of a run's models, as commands take them.

==========================  ==========================================================================
name                        what it is
==========================  ==========================================================================
``hr``                      the adapter of a department or a group
``hr+``                     with ``dept_clusters.mix: predictions``: the mixture of a department's levels
``hr/client_0``             a client's adapter of its last or best round
``hr/client_0+``            after `personalize`: the mixture of a client's levels, for `serve` and `chat`
``hr/client_0+adapter``     the one adapter made of this mixture
==========================  ==========================================================================
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from fl_lightning.errors import InputError, nearest
from fl_lightning.storage.personal_models import (
    MIXTURE,
    ONE_ADAPTER,
    MixtureSource,
    ModelSource,
    client_mixtures,
    department_mixtures,
    personal_adapters,
)
from fl_lightning.storage.run_adapters import client_adapters, shared_adapters


def all_adapters(run_folder: Path) -> dict[str, Path]:
    """{name: folder} of `shared_adapters`, then of `client_adapters`, then of `personal_adapters`.

    Raises:
        InputError: if an index is not as `fit` writes it.
    """
    of_clients = {name: folder for name, (_, folder) in client_adapters(run_folder).items()}
    return shared_adapters(run_folder) | of_clients | personal_adapters(run_folder)


def all_models(run_folder: Path, wanted: str | None = None) -> dict[str, ModelSource]:
    """{name: where its adapters are} of `all_adapters`, then of `department_mixtures` and of `client_mixtures`.

    Args:
        run_folder: of the run.
        wanted: the name that is asked for. If it is not a mixture's, mixtures without adapters are left out.

    Raises:
        InputError: if an index is not as `fit` writes it, or a mixture is wanted and its adapters are not there.
    """
    mixtures: dict[str, MixtureSource] = {}
    with contextlib.suppress(*() if wanted and wanted.endswith(MIXTURE) else (InputError,)):
        mixtures = department_mixtures(run_folder) | client_mixtures(run_folder)
    return {**all_adapters(run_folder), **mixtures}


def chosen_adapters(run_folder: Path, names: Sequence[str] = ()) -> dict[str, Path]:
    """{name: folder} of the adapters named, in that order; of all departments and groups if none is named.

    Args:
        run_folder: of the run.
        names: departments, groups, clients such as ``hr/client_0``, and ``hr/client_0+adapter``.

    Raises:
        InputError: if the run has no adapter of a name, or an index is not as `fit` writes it.
    """
    shared = shared_adapters(run_folder)
    if not names:
        return shared
    adapters = all_adapters(run_folder)
    for name in names:
        if name.endswith(MIXTURE):
            one = f"; {name.removesuffix(MIXTURE)}{ONE_ADAPTER} is one adapter made of them" if "/" in name else ""
            raise InputError(f"--models {name}: a mixture has several adapters, which only serve and chat can use{one}")
        if name not in adapters:
            hint = nearest(name, adapters) or f"; expected one of {', '.join(shared)}, or a client such as hr/client_0"
            raise InputError(f"--models: {run_folder} has no adapter of {name!r}{hint}")
    return {name: adapters[name] for name in names}


def folder_names(names: Iterable[str]) -> dict[str, str]:
    """{name: the same with ``-`` in place of ``/`` and ``+``}, in the order of `names`.

    Raises:
        InputError: if two results are equal, ignoring case.

    Example:
        >>> folder_names(["hr", "hr/client_0"])
        {'hr': 'hr', 'hr/client_0': 'hr-client_0'}
    """
    folders = {name: name.replace("/", "-").replace("+", "-") for name in names}
    owners: dict[str, str] = {}
    for name, folder in folders.items():
        if (other := owners.setdefault(folder.casefold(), name)) != name:
            raise InputError(f"--models: {other!r} and {name!r} would share the name {folder!r}; name one at a time")
    return folders
