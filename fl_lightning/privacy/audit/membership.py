"""Membership inference on records whose membership is known: trained ones against held-out ones.

A record's score is higher where it looks trained on: its loss without the adapter minus its loss with it (Carlini et
al. 2022, "Membership Inference Attacks From First Principles", arXiv 2112.03570, sections IV and V, say why averages
hide what matters, and why true positives are counted at few false ones). Trained and held-out records were not divided
by an auditor's coins, so the test gives no bound on ε: records that differ for other reasons look like leaks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import beta

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MembershipResult:
    """A membership test.

    Attributes:
        members: number of trained records.
        others: number of held-out records.
        auc: probability that a trained record's score is above a held-out one's, ties counting half.
        auc_low: lower end of its 95 % interval, by resampling both kinds of records (percentiles).
        auc_high: upper end.
        tpr: share of trained records above a threshold that at most `max_fpr` of the held-out ones exceed.
        tpr_low: lower end of its exact 95 % interval at this threshold (Clopper, Pearson 1934).
        tpr_high: upper end.
        fpr: share of held-out records above the threshold. 0 if they are too few for `max_fpr`.
        max_fpr: the asked share.
    """

    members: int
    others: int
    auc: float
    auc_low: float
    auc_high: float
    tpr: float
    tpr_low: float
    tpr_high: float
    fpr: float
    max_fpr: float

    def to_dict(self) -> dict[str, float]:
        """The values, as JSON."""
        return asdict(self)


def membership_test(
    members: Array, others: Array, *, seed: int, max_fpr: float = 0.01, resamples: int = 1000, level: float = 0.95
) -> MembershipResult:
    """Test how well scores tell trained records from held-out ones.

    Args:
        members: scores of trained records, shape (n,).
        others: scores of held-out records, shape (m,).
        seed: of the resampling.
        max_fpr: share of held-out records that may be taken for trained ones, in [0, 1).
        resamples: for the interval of the AUC.
        level: of the intervals.

    Raises:
        ValueError: if one kind is empty, a score is not finite, or an option is out of range.

    Example:
        >>> result = membership_test(np.array([3.0, 2.0, 0.5]), np.array([1.0, 0.0]), seed=0)
        >>> round(result.auc, 3), round(result.tpr, 3), result.fpr  # 5 of 6 pairs; 2 of 3 above 1.0
        (0.833, 0.667, 0.0)
    """
    for name, scores in (("members", members), ("others", others)):
        if scores.ndim != 1 or not len(scores) or not np.isfinite(scores).all():
            raise ValueError(f"{name}: expected at least one finite score, got shape {scores.shape}")
    if not (0 <= max_fpr < 1 and 0 < level < 1 and resamples >= 1):
        raise ValueError(
            f"max_fpr, level, resamples: expected [0, 1), (0, 1) and at least 1, got {max_fpr}, {level}, {resamples}"
        )
    members, others = np.sort(members), np.sort(others)
    below, upto = (np.searchsorted(others, members, side=side) for side in ("left", "right"))
    n, m = len(members), len(others)

    def auc(member_counts: Array, other_counts: Array) -> float:
        total = np.concatenate([[0.0], np.cumsum(other_counts)])
        return float(member_counts @ (total[below] + total[upto])) / (2 * n * m)

    generator = np.random.default_rng(seed)
    shares = [np.full(size, 1 / size) for size in (n, m)]
    resampled = [auc(*(generator.multinomial(len(p), p).astype(float) for p in shares)) for _ in range(resamples)]
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    threshold = others[m - 1 - int(max_fpr * m + 1e-9)]  # as few others are above it as are allowed
    hits, false = int((members > threshold).sum()), int((others > threshold).sum())
    tail = (1 - level) / 2
    return MembershipResult(
        members=n,
        others=m,
        auc=auc(np.ones(n), np.ones(m)),
        auc_low=float(low),
        auc_high=float(high),
        tpr=hits / n,
        tpr_low=float(beta.ppf(tail, hits, n - hits + 1)) if hits else 0.0,
        tpr_high=float(beta.ppf(1 - tail, hits + 1, n - hits)) if hits < n else 1.0,
        fpr=false / m,
        max_fpr=max_fpr,
    )
