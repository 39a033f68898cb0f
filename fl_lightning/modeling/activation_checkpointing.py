"""Gradient checkpointing (Chen, Xu, Zhang, Guestrin 2016, arXiv 1604.06174) for cohorts.

Only the input of each decoder layer is kept, and the backward pass runs the layer again: less memory, about a third
more time, the same numbers: dropout repeats its draws, see `fl_lightning.modeling.dropout`. transformers'
implementation does nothing in eval mode, which the base is in while its adapters train. The last layer is not run
again: its backward pass comes first, when its activations are still in memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from fl_lightning.errors import InputError
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
def recompute_layers(model: Any) -> Iterator[None]:
    """Within this block all decoder layers but the last keep only their input.

    Args:
        model: a transformers causal language model that passes `check_layers`.
    """
    layers = list(decoder_layers(model) or [])[:-1]
    original_forwards = [vars(layer).get("forward") for layer in layers]  # accelerate sets one on the instance
    for layer in layers:
        layer.forward = partial(
            checkpoint,
            layer.forward,
            use_reentrant=False,
            preserve_rng_state=False,  # the layers use no generator
        )
    try:
        yield
    finally:
        for layer, forward in zip(layers, original_forwards, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward
