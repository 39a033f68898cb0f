"""Names of repositories, base models and licences."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from fl_lightning.bundled import PREFIX
from fl_lightning.config import ModelConfig
from fl_lightning.errors import InputError
from fl_lightning.storage.model_names import folder_names

UNNAMED_BASE = "BASE-MODEL-NOT-NAMED"
"""In ``adapter_config.json`` if the base is a folder or file of one machine."""


def check_prefix(prefix: str) -> str:
    """The prefix, if it is ORG/NAME with names that the Hub allows.

    Raises:
        InputError: if it is not.

    Example:
        >>> check_prefix("acme/assistants")
        'acme/assistants'
    """
    if prefix.count("/") != 1:
        raise InputError(
            f"--repo-prefix: expected ORG/NAME, ORG being a user or organisation of the Hub, got {prefix!r}"
        )
    return check_id(prefix, "--repo-prefix")


def check_id(name: str, option: str) -> str:
    """The id, if the Hub allows it.

    Raises:
        InputError: if it does not.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        reason = " ".join(str(error).split()).removesuffix(f": '{name}'.")
        raise InputError(f"{option}: expected an id of the Hub, got {name!r} ({reason})") from error
    return name


def repositories(prefix: str, names: Iterable[str]) -> dict[str, str]:
    """{department, group or client: its repository}.

    Raises:
        InputError: if the Hub does not allow an id, or two are equal.

    Example:
        >>> repositories("acme/assistants", ["hr", "hr/client_0"])
        {'hr': 'acme/assistants-hr', 'hr/client_0': 'acme/assistants-hr-client_0'}
    """
    check_prefix(prefix)
    return {n: check_id(f"{prefix}-{short}", f"repository of {n}") for n, short in folder_names(names).items()}


def hub_id(model: ModelConfig, base: str | None = None) -> str | None:
    """The base model's id on the Hub; None if unknown.

    Args:
        model: the ``model`` block.
        base: an id that takes precedence over the block.

    Raises:
        InputError: if the Hub does not allow the id `base`.

    Example:
        >>> hub_id(ModelConfig(name_or_path="Qwen/Qwen1.5-1.8B")), hub_id(ModelConfig(name_or_path="/models/qwen"))
        ('Qwen/Qwen1.5-1.8B', None)
    """
    if base is not None:
        return check_id(base, "--base-model")
    name = model.name_or_path
    local = name.startswith((PREFIX, ".", "/", "~")) or name.lower().endswith(".gguf") or os.path.exists(name)
    if local or name.count("/") > 1:
        return None
    try:
        return check_id(name, "model.name_or_path")
    except InputError:
        return None


def public_base_name(model: ModelConfig, base: str | None) -> str:
    """The value of ``base_model_name_or_path`` for others: never a path of this machine."""
    if base is not None:
        return base
    return model.name_or_path if model.name_or_path.startswith(PREFIX) else UNNAMED_BASE


def check_licence(licence: str) -> str:
    """The licence's identifier in lower case, as the Hub writes it.

    Raises:
        InputError: if it is not an identifier.

    Example:
        >>> check_licence("Apache-2.0")
        'apache-2.0'
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.\-+]{0,63}", licence.lower()):
        raise InputError(f"--licence: expected an identifier such as apache-2.0, cc-by-4.0 or other, got {licence!r}")
    return licence.lower()
