"""Names on the Hub: of the repositories, of the base model and of the licence."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from fl_lightning.bundled import PREFIX
from fl_lightning.config import ModelConfig
from fl_lightning.errors import InputError
from fl_lightning.storage.run_adapters import folder_names

UNNAMED = "BASE-MODEL-NOT-NAMED"
"""Stands in ``adapter_config.json`` where the base is a folder or file of one machine."""


def check_prefix(prefix: str) -> str:
    """The prefix itself, if it is ORG/NAME as the Hub takes it.

    Raises:
        InputError: if it is not.

    Example:
        >>> check_prefix("acme/assistants")
        'acme/assistants'
    """
    if prefix.count("/") != 1:
        raise InputError(f"--repo-prefix: got {prefix!r}, wanted ORG/NAME, a user or organisation of the Hub first")
    return check_id(prefix, "--repo-prefix")


def check_id(name: str, what: str) -> str:
    """The id itself, if the Hub has such ids.

    Raises:
        InputError: if it has not.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        reason = " ".join(str(error).split()).removesuffix(f": '{name}'.")
        raise InputError(f"{what}: got {name!r}; {reason}") from error
    return name


def repositories(prefix: str, names: Iterable[str]) -> dict[str, str]:
    """{department, group or client: its repository}.

    Raises:
        InputError: if one is no id that the Hub takes, or two are alike.

    Example:
        >>> repositories("acme/assistants", ["hr", "hr/client_0"])
        {'hr': 'acme/assistants-hr', 'hr/client_0': 'acme/assistants-hr-client_0'}
    """
    check_prefix(prefix)
    return {n: check_id(f"{prefix}-{short}", f"repository of {n}") for n, short in folder_names(names).items()}


def hub_id(model: ModelConfig, given: str | None = None) -> str | None:
    """The base model's id on the Hub, as far as it is known.

    Args:
        model: the ``model`` block.
        given: an id that goes before what the block says.

    Raises:
        InputError: if `given` is no id.

    Example:
        >>> hub_id(ModelConfig(name_or_path="Qwen/Qwen1.5-1.8B")), hub_id(ModelConfig(name_or_path="/models/qwen"))
        ('Qwen/Qwen1.5-1.8B', None)
    """
    if given is not None:
        return check_id(given, "--base-model")
    name = model.name_or_path
    local = name.startswith((PREFIX, ".", "/", "~")) or name.lower().endswith(".gguf") or os.path.exists(name)
    if local or name.count("/") > 1:
        return None
    try:
        return check_id(name, "model.name_or_path")
    except InputError:
        return None


def in_adapter_config(model: ModelConfig, base: str | None) -> str:
    """What ``base_model_name_or_path`` says of the base: never a path of this machine."""
    if base is not None:
        return base
    return model.name_or_path if model.name_or_path.startswith(PREFIX) else UNNAMED


def check_licence(licence: str) -> str:
    """The licence's identifier as the Hub writes it, in small letters.

    Raises:
        InputError: if it is none.

    Example:
        >>> check_licence("Apache-2.0")
        'apache-2.0'
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.\-+]{0,63}", licence.lower()):
        raise InputError(f"--licence: got {licence!r}, wanted an identifier such as apache-2.0, cc-by-4.0 or other")
    return licence.lower()
