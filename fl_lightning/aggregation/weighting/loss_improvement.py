"""Weights by how far training brought the client's own loss down: more for those that learned something.

``w_c = num_examples · max(0, first − last)``, where first and last are the means over the first and the last quarter of
the client's step losses: a single step's loss is mostly the luck of its batch. The losses are the client's word, and a
client that overstates them gains weight, so this is a rule for clients that are trusted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fl_lightning.aggregation.weighting import examples
from fl_lightning.aggregation.weighting.facts import ClientStats


def improvement(losses: Sequence[float]) -> float | None:
    """``first − last``, each the mean over a quarter of the losses, rounded down, and over one loss at least.

    Returns:
        None where there are fewer than two losses, or one is not finite.

    Example:
        >>> improvement([4.0, 2.0, 9.0, 9.0, 9.0, 9.0, 1.0, 2.0])
        1.5
    """
    if len(losses) < 2 or not all(math.isfinite(loss) for loss in losses):
        return None
    quarter = max(1, len(losses) // 4)
    return sum(losses[:quarter]) / quarter - sum(losses[-quarter:]) / quarter


def weights(updates: Mapping[str, ClientStats]) -> dict[str, float]:
    """``w_c = num_examples · max(0, first − last)``, not normalised; a client that did not improve has weight 0.

    The weights are those by examples where nobody improved, and where any client's improvement is not known: it has
    taken fewer than two steps, or a loss is not finite. Weight 0 would hold its few records against such a
    client, and a weight in another unit would not compare with the others'.

    Raises:
        ValueError: if there are no clients.

    Example:
        >>> good, worse = ClientStats(10, 900, losses=[3.0, 2.5]), ClientStats(40, 900, losses=[2.0, 2.5])
        >>> weights({"good": good, "worse": worse})
        {'good': 5.0, 'worse': 0.0}
    """
    found: dict[str, float] = {}
    for client, facts in updates.items():
        gain = improvement(facts.losses)
        if gain is None:
            return examples.weights(updates)
        found[client] = facts.num_examples * max(0.0, gain)
    return found if 0 < sum(found.values()) < math.inf else examples.weights(updates)
