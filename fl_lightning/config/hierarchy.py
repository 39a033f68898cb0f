"""The ``federation.hierarchy`` block of the configuration: groups above the departments, and teams inside them."""

from __future__ import annotations

from dataclasses import dataclass, field

from fl_lightning.config.checks import check, check_null, unit


@dataclass
class HierarchyConfig:
    """A tree over the clients: a step like the departments' own at every group, see `fl_lightning.clustering.tree`."""

    groups: dict[str, list[str]] = field(default_factory=dict)
    """{group: members}; members are departments, other groups, or clients (hr/client_0), which become a team."""
    momentum: float = 1.0
    """The step of a group's state towards its members' mean, in (0, 1]; 1 takes the mean."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_null(self, "federation.hierarchy.")
        for name, group in self.groups.items():
            check(bool(group), f"federation.hierarchy.groups.{name}", group, "a list of at least one member")
        unit("federation.hierarchy.momentum", self.momentum, zero=False)
