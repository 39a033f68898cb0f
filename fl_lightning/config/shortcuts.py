"""Short flags of the command line, such as ``--rounds``, and the dotted keys that they stand for."""

from __future__ import annotations

import json
from collections.abc import Sequence

from fl_lightning.errors import InputError

SHORTCUTS = {
    "--rounds": "federation.rounds",
    "--clients-per-dept": "data.clients_per_dept",
    "--local-epochs": "training.local_epochs",
    "--learning-rate": "training.learning_rate",
    "--max-records": "data.max_records",
    "--batch-size": "training.batch_size",
    "--lora-r": "lora.r",
    "--lora-alpha": "lora.lora_alpha",
    "--lora-dropout": "lora.lora_dropout",
    "--target-modules": "lora.target_modules",
    "--num-clusters": "federation.client_clusters.num_clusters",
    "--global-mix": "federation.client_clusters.global_mix",
    "--dept-clustering": "federation.dept_clusters.enabled",
    "--no-dept-clustering": "federation.dept_clusters.enabled",
    "--load-in-4bit": "model.load_in_4bit",
    "--device-map": "fabric.accelerator",
    "--dtype": "fabric.precision",
    "--data": "data.root",
    "--output": "output",
    "--seed": "seed",
    "--sign-key": "ledger.sign_key",
}
SWITCHES = {"--dept-clustering": "true", "--no-dept-clustering": "false", "--load-in-4bit": "true"}
"""Shortcuts without a value, and the value that they set."""


def expand_shortcuts(argv: Sequence[str]) -> list[str]:
    """Replace shortcuts with the dotted overrides that they stand for.

    Raises:
        InputError: if a flag lacks its value, or a switch has one.

    Example:
        >>> expand_shortcuts(["--rounds", "5", "--target-modules", "q_proj", "k_proj", "--no-dept-clustering"])[:2]
        ['--federation.rounds=5', '--lora.target_modules=["q_proj", "k_proj"]']
    """
    expanded, rest = [], list(argv)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if flag not in SHORTCUTS:
            expanded.append(flag + equals + value)
            continue
        key = SHORTCUTS[flag]
        if flag in SWITCHES and equals:
            raise InputError(f"{flag}: expected the flag without a value, or --{key}={value}, got {value!r}")
        values = [SWITCHES[flag]] if flag in SWITCHES else [value] if equals else _take_values(flag, rest)
        if flag == "--target-modules":
            names = [name for text in values for name in text.replace(",", " ").split()]
            values = [json.dumps(names)] if names else []
        if not values:
            raise InputError(f"{flag}: expected a value for {key}, got none")
        expanded.append(f"--{key}={values[0]}")
    return expanded


def _take_values(flag: str, rest: list[str]) -> list[str]:
    """Remove a flag's value, or the several values of ``--target-modules``, from the beginning of `rest`."""
    values: list[str] = []
    while rest and (flag == "--target-modules" or not values):
        is_value = not rest[0].startswith("-") or (flag != "--target-modules" and _is_number(rest[0]))
        if not is_value:
            break
        values.append(rest.pop(0))
    return values


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
