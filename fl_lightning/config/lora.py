"""The ``lora`` block: the adapters, and departments or clients with another rank or scale."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from fl_lightning.config.checks import Block, FractionBelowOne, PositiveFloat, PositiveInt, check
from fl_lightning.errors import InputError, nearest


@dataclass
class LoraProfile(Block, key="lora.profiles"):
    """Rank and scale of one department or client, such as a small rank for a phone and a large one for a server."""

    r: PositiveInt = 8
    """Rank."""
    lora_alpha: PositiveFloat | None = None
    """LoRA's α; null takes lora.lora_alpha."""


@dataclass
class LoraConfig(Block, key="lora"):
    """The LoRA adapters: ``h = W0 x + (lora_alpha / r) · B A x``."""

    r: PositiveInt = 8
    """Rank."""
    lora_alpha: PositiveFloat = 16.0
    """LoRA's α; the update is multiplied by lora_alpha / r."""
    use_rslora: bool = False
    """Multiply by lora_alpha / sqrt(r) instead, which keeps large ranks learning (Kalajdzievski 2023)."""
    lora_dropout: FractionBelowOne = 0.05
    """Dropout on the input of A, in [0, 1)."""
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])
    """Linear layers that get an adapter: names, regular expressions for whole names, or all-linear."""
    profiles: dict[str, LoraProfile] = field(default_factory=dict)
    """Another rank or scale for a department (hr) or a client (hr/client_0); a client's profile has priority."""

    def __post_init__(self) -> None:
        """Check the ranges, and that there is a target module."""
        super().__post_init__()
        ok = bool(self.target_modules) and all(name.strip() for name in self.target_modules)
        check(ok, "lora.target_modules", "at least one module name, such as q_proj", self.target_modules)

    def rank(self, client_id: str) -> int:
        """A client's rank.

        Example:
            >>> lora = LoraConfig(profiles={"hr": LoraProfile(4), "hr/client_1": LoraProfile(32)})
            >>> lora.rank("hr/client_0"), lora.rank("hr/client_1"), lora.rank("it/client_0")
            (4, 32, 8)
        """
        return self._profile(client_id).r

    def relative_scaling(self, client_id: str) -> float:
        """A client's α / r (or α / √r) divided by that of clients without a profile; 1 for the latter.

        Example:
            >>> LoraConfig(r=8, profiles={"hr": LoraProfile(4)}).relative_scaling("hr/client_0")  # (16 / 4) / (16 / 8)
            2.0
        """
        return self._scale(self._profile(client_id)) / self._scale(LoraProfile(self.r))

    def is_mixed(self) -> bool:
        """Whether some client's rank or scale differs from the others'."""
        common = self.r, self._scale(LoraProfile(self.r))
        return any((profile.r, self._scale(profile)) != common for profile in self.profiles.values())

    def check_names(self, client_ids: Iterable[str]) -> None:
        """Check that every profile names a department or client of the data.

        Raises:
            InputError: naming the first profile that does not.
        """
        known = {name for client_id in client_ids for name in (client_id, client_id.split("/", 1)[0])}
        for name in self.profiles:
            if name not in known:
                raise InputError(
                    f"lora.profiles: expected a department or department/client of the data, got {name!r}"
                    f"{nearest(name, known)}"
                )

    def _profile(self, client_id: str) -> LoraProfile:
        department = client_id.split("/", 1)[0]
        return self.profiles.get(client_id) or self.profiles.get(department) or LoraProfile(self.r)

    def _scale(self, profile: LoraProfile) -> float:
        alpha = self.lora_alpha if profile.lora_alpha is None else profile.lora_alpha
        return alpha / (math.sqrt(profile.r) if self.use_rslora else profile.r)
