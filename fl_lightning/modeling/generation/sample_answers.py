"""Random answers of a fixed length, several prompts in one batch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from fl_lightning.modeling.generation.generate import batches, pad_left
from fl_lightning.modeling.limits import is_recurrent


@torch.inference_mode()
def sample_answers(
    model: Any,
    prompts: Sequence[torch.Tensor],
    *,
    num_tokens: int,
    temperature: float,
    seed: int,
    forbidden: Collection[int] = (),
    batch_size: int = 16,
) -> list[torch.Tensor]:
    """An answer to each prompt, drawn token by token from the model's whole distribution.

    Args:
        model: a transformers or PEFT causal language model, with its active adapter.
        prompts: token ids, each 1-D and not empty; the draws depend on all of them.
        num_tokens: length of every answer.
        temperature: divides the logits, above 0.
        seed: of the draws; torch's own state is left as it was.
        forbidden: tokens that are never drawn, such as those that end an answer.
        batch_size: prompts per forward pass, longest first.

    Returns:
        Token ids on the CPU, each of shape (num_tokens,), in the order of the prompts.
    """
    answers: list[torch.Tensor] = [torch.empty(0, dtype=torch.long)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for batch in batches(order, prompts, batch_size, same_length=is_recurrent(model)):
            ids, mask = pad_left([prompts[i] for i in batch], filler=0)
            out = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                num_beams=1,
                suppress_tokens=sorted(forbidden) or None,
                pad_token_id=0,
            )[:, ids.shape[1] :].cpu()
            for row, i in enumerate(batch):
                answers[i] = out[row].clone()
    model.train(was_training)
    return answers
