"""Where a run continues: its newest checkpoint, if config, base model and data are those it was begun with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fl_lightning.config import RunConfig
from fl_lightning.errors import InputError
from fl_lightning.federation.checkpoint import newest_checkpoint
from fl_lightning.federation.checkpoint_schema import CheckpointExtra
from fl_lightning.federation.fingerprint import check_fingerprint
from fl_lightning.federation.state import FederationState
from fl_lightning.modeling.lora import collect_lora_state
from fl_lightning.runs.build import RunComponents, fingerprint_components
from fl_lightning.state import problem_with
from fl_lightning.storage.files import remove_temporaries
from fl_lightning.storage.offload import MAX_IN_MEMORY, OffloadFolder
from fl_lightning.storage.run_layout import ADAPTERS, CLIENT_EXPORTS

log = logging.getLogger(__name__)


def load_resume_state(
    components: RunComponents, run_folder: Path, run_fingerprint: Mapping[str, Any], rounds: int
) -> tuple[FederationState | None, CheckpointExtra]:
    """The newest complete checkpoint of a run.

    Args:
        components: as the config of now asks for them.
        run_folder: of the run, locked by this process.
        run_fingerprint: of this config, base model and data.
        rounds: of the run in all; fewer than it has done are refused.

    Returns:
        As `newest_checkpoint`; (None, nothing) for a run that was stopped before its first checkpoint.

    Raises:
        InputError: if the run has results but no checkpoint, or the checkpoint is of another config, base or data.
    """
    remove_temporaries(run_folder)
    checkpoint = newest_checkpoint(
        run_folder, OffloadFolder(run_folder).store if len(components.data) > MAX_IN_MEMORY else None
    )
    if checkpoint is None:
        if any((run_folder / name).exists() for name in (ADAPTERS, CLIENT_EXPORTS)):
            raise InputError(f"{run_folder}: no checkpoint to resume from; start the run again without --resume")
        log.info("%s was stopped before its first checkpoint and starts again", run_folder)
        return None, CheckpointExtra()
    state, extra = checkpoint
    if not extra.identity:
        raise InputError(
            f"{run_folder}: expected a checkpoint with the fingerprints of config, base and data, got one without; "
            "start a new run"
        )
    check_fingerprint(extra.identity, run_fingerprint)
    if state.round_num > rounds:
        raise InputError(
            f"federation.rounds: expected at least {state.round_num}, the rounds that {run_folder} has done, got "
            f"{rounds}; give more, or start a new run"
        )
    initial = collect_lora_state(components.module.model)
    problem = problem_with(initial, state.initial)
    if problem or any(not torch.equal(initial[name], tensor) for name, tensor in state.initial.items()):
        raise InputError(
            f"{run_folder}: expected the initial adapter that the run started from, got another one "
            f"({problem or 'other values'}) from the same config and base; use the versions of torch and peft that the "
            "run started with"
        )
    return state, extra


def load_finished_state(components: RunComponents, run_folder: Path, config: RunConfig) -> FederationState:
    """The state of a run after its last round.

    Args:
        components: of the config.
        run_folder: of the run, locked by this process.
        config: of the run.

    Raises:
        InputError: if the run is not finished, or was trained with another config or base or on other records.
    """
    run_fingerprint = fingerprint_components(config, components)
    state, _ = load_resume_state(components, run_folder, run_fingerprint, config.federation.rounds)
    done = 0 if state is None else state.round_num
    if state is None or done < config.federation.rounds:
        raise InputError(
            f"{run_folder}: expected a finished run, got {done} of {config.federation.rounds} rounds; continue it "
            f"with fl-lightning fit --resume {run_folder}"
        )
    return state
