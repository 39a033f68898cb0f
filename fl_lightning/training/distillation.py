"""Distillation of a mixture of adapters into one adapter, which learns the mixture's probabilities.

``Σ_t KL(Σ_m π_m p_m(t) ‖ p_student(t))`` over the target positions t of the client's records, at temperature 1 and over
the whole vocabulary (Hinton, Vinyals and Dean 2015, arXiv 1503.02531). If that takes too much memory, the most likely
tokens of the mixture are kept, and all others count as one outcome.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from lightning.fabric import Fabric

from fl_lightning.config import TrainingConfig
from fl_lightning.data.packing import epoch_order, pack
from fl_lightning.data.tokenization import Example
from fl_lightning.modeling.cohort import LoraCohort
from fl_lightning.module import LoraClientModule
from fl_lightning.seeding import derive_seed
from fl_lightning.state import LoraState

SOFT_VALUES = 2**25
"""Probabilities of the mixture that are kept for all records of a client."""
MIN_TOKENS = 16
"""Tokens that are kept for a position, even if there are more than `SOFT_VALUES` then."""


class SoftTargets(NamedTuple):
    """The mixture's distribution at S positions.

    Attributes:
        tokens: the k most likely tokens, int32, shape (S, k); None for all of the vocabulary.
        log_probs: of these tokens in nats, shape (S, k).
    """

    tokens: torch.Tensor | None
    log_probs: torch.Tensor


class Distillation:
    """Distills mixtures on one model.

    Args:
        fabric: gives device and precision.
        module: around the PEFT model.
        cohort: of the module's model.
        training: the ``training`` block: batch size, clipping; rate and weight decay are the module's.
    """

    def __init__(self, fabric: Fabric, module: LoraClientModule, cohort: LoraCohort, training: TrainingConfig) -> None:
        self._fabric, self._module, self._cohort, self._training = fabric, module, cohort, training

    def distill(
        self,
        start: Mapping[str, torch.Tensor],
        states: Sequence[Mapping[str, torch.Tensor]],
        weights: Sequence[float],
        examples: Sequence[Example],
        *,
        epochs: int,
        seed: int,
    ) -> LoraState:
        """An adapter of the rank of `start` with the predictions of a mixture, trained without dropout.

        Args:
            start: the student before the first step.
            states: M adapters of the mixture, of any ranks.
            weights: of the adapters, of sum 1.
            examples: records of the client; their answers give the positions, not the probabilities.
            epochs: over the records, in micro-batches as in training.
            seed: of the orders.
        """
        targets = self.soft_targets(states, weights, examples)
        self._module.eval()
        self._cohort.load([start], self._fabric.device)
        optimizer = self._module.make_optimizer(self._cohort.parameters())
        with self._cohort.attached():
            for epoch in range(epochs):
                for batch in epoch_order(len(examples), self._training.batch_size, derive_seed(seed, epoch)):
                    self._add_gradients([examples[i] for i in batch], [targets[i] for i in batch])
                    self._cohort.clip_gradients(self._training.max_grad_norm)
                    optimizer.step()
                    optimizer.zero_grad()
        return self._cohort.state(0)

    @torch.no_grad()
    def soft_targets(
        self, states: Sequence[Mapping[str, torch.Tensor]], weights: Sequence[float], examples: Sequence[Example]
    ) -> list[SoftTargets]:
        """The mixture's distribution at the targets of each record; all adapters share a forward pass."""
        self._module.eval()
        self._cohort.load(states, self._fabric.device)
        shares = torch.tensor(weights, dtype=torch.float32, device=self._fabric.device).log()[:, None, None]
        kept = SOFT_VALUES // max(1, sum(example.num_targets for example in examples))
        result = []
        with self._cohort.attached():
            for example in examples:
                logits = torch.cat(self._logits([[example]] * len(states)))
                log_probs = logits.view(len(states), -1, logits.shape[-1]).log_softmax(-1)
                mixture = (log_probs + shares).logsumexp(0)
                if kept >= mixture.shape[-1]:
                    result.append(SoftTargets(None, mixture))
                else:
                    values, tokens = mixture.topk(min(max(kept, MIN_TOKENS), mixture.shape[-1]))
                    result.append(SoftTargets(tokens.int(), values))
        return result

    def _logits(self, clients: Sequence[Sequence[Example]]) -> list[torch.Tensor]:
        """fp32 logits at the targets of a row's clients, one after another: parts of shape (S, V)."""
        parts = []
        for row in self._module.parts(pack(clients)):
            with self._fabric.autocast():
                self._cohort.set_segments(row.client_tokens, lengths=row.lengths)
                parts.append(self._module.logits(row.to(self._fabric.device)).float())
        return parts

    def _add_gradients(self, examples: Sequence[Example], targets: Sequence[SoftTargets]) -> None:
        """Gradients of the mean divergence over the targets of a batch."""
        logits = torch.cat(self._logits([examples]))
        parts = torch.split(logits, [len(target.log_probs) for target in targets])
        divergences = [divergence(target, part).sum() for target, part in zip(targets, parts, strict=True)]
        (torch.stack(divergences).sum() / len(logits)).backward()  # type: ignore[no-untyped-call]


def divergence(targets: SoftTargets, logits: torch.Tensor) -> torch.Tensor:
    """KL of the mixture's distribution and the one of `logits`, shape (S,), in nats.

    Args:
        targets: at S positions.
        logits: of the student, shape (S, V).

    Example:
        >>> mixture = torch.tensor([[0.5, 0.25, 0.25]]).log()
        >>> whole = divergence(SoftTargets(None, mixture), torch.zeros(1, 3))
        >>> part = divergence(SoftTargets(torch.tensor([[0]]), mixture[:, :1]), torch.zeros(1, 3))
        >>> round(whole.item(), 3), round(part.item(), 3)
        (0.059, 0.059)
    """
    log_probs = logits.log_softmax(-1)
    if targets.tokens is None:
        return (targets.log_probs.exp() * (targets.log_probs - log_probs)).sum(-1)
    tokens = targets.tokens.long()
    probs = targets.log_probs.exp()
    known = (probs * (targets.log_probs - log_probs.gather(-1, tokens))).sum(-1)
    rest = (1 - probs.sum(-1)).clamp(min=1e-9)
    log_rest = log_probs.scatter(-1, tokens, -torch.inf).logsumexp(-1)
    return known + rest * (rest.log() - log_rest)
