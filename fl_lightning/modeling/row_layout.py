"""How a model gets the sequences of a batch: the first of three layouts that gives each sequence its loss alone.

==========  ===========================================================================================================
layout      what the model gets
==========  ===========================================================================================================
packed      one row without padding; its attention is replaced by `fl_lightning.modeling.attention`
padded      one row for each sequence, padded on the right; its own attention, so recurrent models and ALiBi are right
single      one sequence after another, for models in which the rows of a batch depend on each other
==========  ===========================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from fl_lightning.data.packing import PackedBatch, real_tokens, token_positions
from fl_lightning.data.tokenization import Example
from fl_lightning.data.transfer import to_device
from fl_lightning.modeling.attention import packed_kwargs
from fl_lightning.modeling.head_loss import TargetLosses, target_losses
from fl_lightning.modeling.limits import max_positions
from fl_lightning.modeling.packed_layout import PackedLayout
from fl_lightning.modeling.supervised_positions import last_mlp_on

RowLayout = Literal["packed", "padded", "single"]

LAYOUTS: dict[RowLayout, str] = {"packed": "packed", "padded": "padded", "single": "one record at a time"}
"""How the log names the layouts."""
TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}
"""Relative difference of a sequence's loss that is rounding: kernels round differently for rows of another length."""
LENGTHS = (12, 3, 33)
"""Tokens of the sequences that a layout is checked with; the later ones can see the earlier ones if it is wrong."""
MAX_WINDOW = 256
"""Windows and chunks of attention up to this many tokens are checked with a sequence that is longer."""


def layout_losses(
    model: Any, base: Any, batch: PackedBatch, layout: RowLayout, chunk_logits: int | None = None
) -> TargetLosses:
    """Losses at the positions whose next token is a target, S of them.

    Args:
        model: the PEFT model around `base`, or `base` itself.
        base: the transformers model.
        batch: T tokens with S targets; of one sequence if the layout is ``single``.
        layout: how the model gets them.
        chunk_logits: see `target_losses`.
    """
    run, keep = _forward(model, base, batch, layout)
    return target_losses(base, run, batch.targets, keep, chunk_logits)


def layout_logits(model: Any, base: Any, batch: PackedBatch, layout: RowLayout) -> torch.Tensor:
    """Logits at the positions whose next token is a target, shape (S, V); arguments as of `layout_losses`."""
    run, keep = _forward(model, base, batch, layout)
    logits = run().flatten(0, 1)
    return logits if keep is None else logits.index_select(0, keep)


def _forward(
    model: Any, base: Any, batch: PackedBatch, layout: RowLayout
) -> tuple[Callable[[], torch.Tensor], torch.Tensor | None]:
    """What runs the model and returns its logits, and the positions of the targets in them; None for all of them."""
    if layout != "packed":
        return _padded_forward(model, batch)
    kwargs = packed_kwargs(PackedLayout(batch.lengths, batch.starts, batch.longest))

    def run() -> torch.Tensor:
        with last_mlp_on(base, batch.keep):
            logits: torch.Tensor = model(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                logits_to_keep=batch.keep,
                use_cache=False,
                **kwargs,
            ).logits
        return logits

    return run, None


def _padded_forward(model: Any, batch: PackedBatch) -> tuple[Callable[[], torch.Tensor], torch.Tensor]:
    device, real = batch.input_ids.device, real_tokens(batch.lengths)
    index = to_device(token_positions(batch.lengths), device)
    ids = batch.input_ids.new_zeros(real.numel()).index_copy(0, index, batch.input_ids[0]).view(real.shape)
    mask = {} if len(real) == 1 else {"attention_mask": to_device(real.long(), device)}
    keep = index.index_select(0, batch.keep)

    def run() -> torch.Tensor:
        logits: torch.Tensor = model(input_ids=ids, use_cache=False, **mask).logits
        return logits

    return run, keep


def check_examples(config: Any, vocabulary: int) -> list[Example]:
    """Random sequences that show whether a layout is right: short, long, and longer than a small window."""
    text = config.get_text_config()
    windows = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
    longest = max_positions(config) or 2 * MAX_WINDOW
    lengths = [*LENGTHS, *(window + 5 for window in windows if isinstance(window, int) and 0 < window <= MAX_WINDOW)]
    draws = torch.Generator().manual_seed(0)
    return [
        Example(torch.randint(vocabulary, (n,), generator=draws), torch.arange(n) > 0)
        for n in (min(length, longest) for length in lengths)
    ]


def tolerance(dtype: torch.dtype, device: torch.device) -> float:
    """How much the loss of a sequence may differ, relative to it: `TOLERANCES` of the precision that is computed in.

    Args:
        dtype: of the model's weights.
        device: of the model; under autocast its dtype counts.
    """
    computed = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else dtype
    return TOLERANCES.get(computed, TOLERANCES[torch.bfloat16])
