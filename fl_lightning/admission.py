"""Which updates may be averaged at all: their tensors, their figures, and how far they moved."""

from __future__ import annotations

from fl_lightning.exchange import ClientTask, ClientUpdate
from fl_lightning.state import distance, problem_with
from fl_lightning.weighting import Facts

MAX_EXAMPLES = 10**9
"""More records than that are no client's: it claims a weight that would drown the others."""


def problem_with_update(update: ClientUpdate, task: ClientTask, limit: float) -> str | None:
    """Why an update may not be averaged; None if it may.

    Args:
        update: what came back.
        task: what was asked.
        limit: how far it may have moved from its start.

    Example:
        >>> import torch
        >>> task = ClientTask("hr/a", 1, {"lora_A": torch.zeros(1)}, 7)
        >>> problem_with_update(ClientUpdate("hr/a", 1, {"lora_A": torch.ones(1)}, 3, 10), task, limit=0.5)
        'it moved by 1, wanted at most 0.5 (federation.max_update_norm)'
    """
    if problem := problem_with(update.state, task.start):
        return problem
    examples = update.num_examples
    if type(examples) is not int or not 1 <= examples <= MAX_EXAMPLES:
        large = type(examples) is int and examples.bit_length() > 64  # Python writes out no integer of any length
        got = f"an integer of {examples.bit_length()} bits" if large else repr(examples)[:40]
        return f"num_examples is {got}, wanted an integer from 1 to {MAX_EXAMPLES:,}"
    try:
        Facts(examples, update.num_tokens, tuple(update.losses))
    except (TypeError, ValueError) as error:
        return str(error)
    moved = distance(update.state, task.start)
    if moved > limit:
        return f"it moved by {moved:.3g}, wanted at most {limit:.3g} (federation.max_update_norm)"
    return None
