"""The ``lora`` block of the configuration: the adapters, and who has another rank than the others."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from fl_lightning.config.checks import at_least, check, check_null, positive
from fl_lightning.errors import InputError, nearest


@dataclass
class LoraProfile:
    """What one department or client has instead of the values for all: a phone a small rank, a server a large one."""

    r: int = 8
    """Rank."""
    lora_alpha: float | None = None
    """Scale; null takes lora.lora_alpha."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_null(self, "lora.profiles.")
        at_least("lora.profiles.r", self.r, 1)
        if self.lora_alpha is not None:
            positive("lora.profiles.lora_alpha", self.lora_alpha)


@dataclass
class LoraConfig:
    """The LoRA adapters: ``h = W0 x + s B A x`` with ``s = lora_alpha / r``."""

    r: int = 8
    """Rank."""
    lora_alpha: float = 16
    """Scale; the update is multiplied by lora_alpha / r."""
    use_rslora: bool = False
    """Multiply by lora_alpha / sqrt(r) instead, which keeps large ranks learning (Kalajdzievski 2023)."""
    lora_dropout: float = 0.05
    """Dropout on the input of A, in [0, 1)."""
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])
    """Names of the linear layers that get an adapter."""
    profiles: dict[str, LoraProfile] = field(default_factory=dict)
    """Another rank or scale for a department (hr) or a client (hr/client_0); the client's goes before."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_null(self, "lora.")
        at_least("lora.r", self.r, 1)
        positive("lora.lora_alpha", self.lora_alpha)
        check(0 <= self.lora_dropout < 1, "lora.lora_dropout", self.lora_dropout, "a number in [0, 1)")
        ok = bool(self.target_modules) and all(name.strip() for name in self.target_modules)
        check(ok, "lora.target_modules", self.target_modules, "at least one module name, such as q_proj")

    def rank(self, client_id: str) -> int:
        """A client's rank.

        Example:
            >>> lora = LoraConfig(profiles={"hr": LoraProfile(4), "hr/client_1": LoraProfile(32)})
            >>> lora.rank("hr/client_0"), lora.rank("hr/client_1"), lora.rank("it/client_0")
            (4, 32, 8)
        """
        return self._profile(client_id).r

    def gain(self, client_id: str) -> float:
        """A client's scale over that of the adapters without a profile: 1 where there is none.

        Example:
            >>> LoraConfig(r=8, profiles={"hr": LoraProfile(4)}).gain("hr/client_0")  # (16 / 4) / (16 / 8)
            2.0
        """
        own = self._profile(client_id)
        return self._scale(own) / self._scale(LoraProfile(self.r))

    def is_mixed(self) -> bool:
        """Whether some client's rank or scale differs from the others'."""
        common = self.r, self._scale(LoraProfile(self.r))
        return any((profile.r, self._scale(profile)) != common for profile in self.profiles.values())

    def check_names(self, client_ids: Iterable[str]) -> None:
        """Check that every profile is somebody's.

        Raises:
            InputError: naming the first one that is nobody's.
        """
        known = {name for client_id in client_ids for name in (client_id, client_id.split("/", 1)[0])}
        for name in self.profiles:
            if name not in known:
                raise InputError(
                    f"lora.profiles: got {name!r}, wanted a department or department/client of the data"
                    f"{nearest(name, known)}"
                )

    def _profile(self, client_id: str) -> LoraProfile:
        department = client_id.split("/", 1)[0]
        return self.profiles.get(client_id) or self.profiles.get(department) or LoraProfile(self.r)

    def _scale(self, profile: LoraProfile) -> float:
        alpha = self.lora_alpha if profile.lora_alpha is None else profile.lora_alpha
        return alpha / (math.sqrt(profile.r) if self.use_rslora else profile.r)
