"""The ``audit`` block: canaries in the clients' records, from which the command audit bounds ε from below."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from fl_lightning.config.checks import Block, Interval, NonNegativeInt, PositiveFraction, PositiveInt


@dataclass
class AuditConfig(Block, key="audit"):
    """Records that an auditor adds to the training records, each by a fair coin; see docs/privacy.md."""

    canaries: NonNegativeInt = 0
    """Canaries of each client; about half of them become training records. 0 for none."""
    kind: Literal["generated", "new_tokens"] = "generated"
    """Answers that the base model generates, or single tokens that none of the client's records has; each to a prompt
    of the client's."""
    temperature: Annotated[float, Interval(0.8)] = 1.0
    """Of generated answers, at least 0.8: at lower ones canaries resemble each other."""
    answer_tokens: PositiveInt = 16
    """Tokens of a generated answer."""
    guesses: PositiveFraction = 0.5
    """Share of the canaries about which the audit guesses, those with the most telling scores. It is chosen before the
    run, since one that is chosen by its result proves nothing."""
