"""Gradient checkpointing (Chen, Xu, Zhang, Guestrin 2016, arXiv 1604.06174) for cohorts.

Of each decoder layer only its input is kept, and the backward pass runs the layer again: less memory, about a third
more time, the same numbers. Two things here differ from what transformers has of its own. The base is in eval mode
while its adapters train, in which transformers checkpoints nothing; and clients' dropout comes from generators of their
own, which must give the same draws the second time. The last layer is not run again: its backward pass comes first,
when all that it needs is still there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from fl_lightning.errors import InputError
from fl_lightning.modeling.cohort import LoraCohort
from fl_lightning.modeling.supervised_positions import decoder_layers


def check_layers(model: Any) -> None:
    """Check that a model can be run layer by layer.

    Raises:
        InputError: if it has no list of layers.
    """
    if decoder_layers(model) is None:
        raise InputError(
            f"training.gradient_checkpointing: got true, but {type(model).__name__} has no list of layers; wanted false"
        )


@contextlib.contextmanager
def recomputed(model: Any, cohort: LoraCohort) -> Iterator[None]:
    """Inside this block all decoder layers but the last keep their input only.

    Args:
        model: a transformers causal language model that `check_layers` takes.
        cohort: attached to it.
    """
    layers = list(decoder_layers(model) or [])[:-1]
    before = [vars(layer).get("forward") for layer in layers]  # accelerate puts one there
    for layer in layers:
        layer.forward = partial(
            checkpoint,
            layer.forward,
            use_reentrant=False,
            preserve_rng_state=False,  # nothing is drawn from the global generators
            context_fn=partial(_contexts, cohort),
        )
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def _contexts(cohort: LoraCohort) -> tuple[Any, Any]:
    """What a layer is run in at first, and what it is run in again; made just before the first time."""
    generators = cohort.generators
    return contextlib.nullcontext(), _replayed(generators, [_state(g) for g in generators])


@contextlib.contextmanager
def _replayed(generators: Sequence[torch.Generator | np.random.Generator], states: Sequence[Any]) -> Iterator[None]:
    """Inside this block the generators draw from these states on; afterwards from where they were."""
    now = [_state(generator) for generator in generators]
    _set_states(generators, states)
    try:
        yield
    finally:
        _set_states(generators, now)


def _state(generator: torch.Generator | np.random.Generator) -> Any:
    return generator.get_state() if isinstance(generator, torch.Generator) else generator.bit_generator.state


def _set_states(generators: Sequence[torch.Generator | np.random.Generator], states: Sequence[Any]) -> None:
    for generator, state in zip(generators, states, strict=True):
        if isinstance(generator, torch.Generator):
            generator.set_state(state)
        else:
            generator.bit_generator.state = state
