"""Share policies: what travels between clients and their department.

Example:
    >>> share_policy("a").shared_factor(1), share_policy("a").private_factor
    ('a', 'b')
"""

from fl_lightning.aggregation.sharing import alternate, central, freeze_a, local_only, share_a, share_all, share_b
from fl_lightning.aggregation.sharing.policy import SharePolicy
from fl_lightning.errors import InputError, nearest

__all__ = ["SHARE_POLICIES", "SharePolicy", "share_policy"]

SHARE_POLICIES: dict[str, SharePolicy] = {
    "all": share_all.POLICY,
    "a": share_a.POLICY,
    "b": share_b.POLICY,
    "freeze_a": freeze_a.POLICY,
    "alternate": alternate.POLICY,
    "none": local_only.POLICY,
    "central": central.POLICY,
}


def share_policy(name: str) -> SharePolicy:
    """The policy of that name.

    Raises:
        InputError: if there is none.
    """
    if name not in SHARE_POLICIES:
        wanted = ", ".join(SHARE_POLICIES)
        raise InputError(f"federation.share: got {name!r}, wanted one of {wanted}{nearest(name, SHARE_POLICIES)}")
    return SHARE_POLICIES[name]
