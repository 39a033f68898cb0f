"""Gradient checkpointing (Chen, Xu, Zhang, Guestrin 2016, arXiv 1604.06174) for cohorts.

Only the input of each decoder layer is kept, and the backward pass runs the layer again: less memory, about a third
more time, the same numbers. transformers' implementation does not fit for two reasons. It does nothing in eval mode,
which the base is in while its adapters train; and each client's dropout has a separate generator, which must repeat its
draws in the second run. The last layer is not run again: its backward pass comes first, when its activations are still
in memory.
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
    """Check that a model has a list of decoder layers.

    Raises:
        InputError: if it has none.
    """
    if decoder_layers(model) is None:
        raise InputError(
            f"training.gradient_checkpointing: expected false for {type(model).__name__}, which has no list of decoder "
            "layers, got true"
        )


@contextlib.contextmanager
def recompute_layers(model: Any, cohort: LoraCohort) -> Iterator[None]:
    """Within this block all decoder layers but the last keep only their input.

    Args:
        model: a transformers causal language model that passes `check_layers`.
        cohort: attached to it.
    """
    layers = list(decoder_layers(model) or [])[:-1]
    original_forwards = [vars(layer).get("forward") for layer in layers]  # accelerate sets one on the instance
    for layer in layers:
        layer.forward = partial(
            checkpoint,
            layer.forward,
            use_reentrant=False,
            preserve_rng_state=False,  # the layers do not use the global generators
            context_fn=partial(_contexts, cohort),
        )
    try:
        yield
    finally:
        for layer, forward in zip(layers, original_forwards, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def _contexts(cohort: LoraCohort) -> tuple[Any, Any]:
    """Contexts of a layer's first and second run; called just before the first."""
    generators = cohort.generators
    return contextlib.nullcontext(), _rewound(generators, [_state(g) for g in generators])


@contextlib.contextmanager
def _rewound(generators: Sequence[torch.Generator | np.random.Generator], states: Sequence[Any]) -> Iterator[None]:
    """Within this block the generators start from these states; afterwards they continue where they were."""
    current = [_state(generator) for generator in generators]
    _set_states(generators, states)
    try:
        yield
    finally:
        _set_states(generators, current)


def _state(generator: torch.Generator | np.random.Generator) -> Any:
    return generator.get_state() if isinstance(generator, torch.Generator) else generator.bit_generator.state


def _set_states(generators: Sequence[torch.Generator | np.random.Generator], states: Sequence[Any]) -> None:
    for generator, state in zip(generators, states, strict=True):
        if isinstance(generator, torch.Generator):
            generator.set_state(state)
        else:
            generator.bit_generator.state = state
