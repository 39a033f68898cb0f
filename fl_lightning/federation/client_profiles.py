"""How fast the clients of a simulation are: drawn by seeds of run, department and client, or read from a trace."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fl_lightning.config.schedule import ClientProfilesConfig
from fl_lightning.errors import InputError
from fl_lightning.seeding import derive_seed

DAY = 24 * 3600.0
"""Seconds of a day."""
TRACE_KEYS = ("client", "tokens_per_second", "bandwidth_kib", "available_from", "available_hours")
"""Keys of a line of a trace; only the speed must be there. A profile without a client is drawn by clients that have
none."""


@dataclass(frozen=True)
class ClientProfile:
    """How fast one client is.

    Attributes:
        tokens_per_second: training tokens.
        bandwidth_kib: KiB per second, up and down alike; None sends in no time.
        available_from: seconds after midnight at which its hours begin.
        available_for: seconds of a day in which it can start a fit.
    """

    tokens_per_second: float
    bandwidth_kib: float | None = None
    available_from: float = 0.0
    available_for: float = DAY

    def end_of_fit(self, begin: float, tokens: int, num_bytes: int) -> float:
        """The virtual second at which an update arrives. A fit waits for the client's hours; their end does not cut it.

        Args:
            begin: virtual second at which the client is asked.
            tokens: of all epochs.
            num_bytes: sent down and up together.

        Example:
            >>> ClientProfile(10.0, bandwidth_kib=1.0).end_of_fit(100.0, tokens=50, num_bytes=2048)
            107.0
            >>> ClientProfile(10.0, available_from=3600.0, available_for=60.0).end_of_fit(0.0, 50, 0)
            3605.0
        """
        phase = (begin - self.available_from) % DAY
        start = begin if phase < self.available_for else begin + DAY - phase
        transfer = 0.0 if self.bandwidth_kib is None else num_bytes / 1024 / self.bandwidth_kib
        return start + transfer + tokens / self.tokens_per_second


def client_profiles(
    config: ClientProfilesConfig, client_ids: Iterable[str], seed: int
) -> Callable[[str], ClientProfile]:
    """From a client to its profile, which depends on nothing but the config, the seed and the names of the clients.

    Args:
        config: the block ``federation.schedule.clients``; `speed` is set.
        client_ids: of all clients, in any order; `slow_share` of them are slow.
        seed: the run seed.

    Raises:
        InputError: if the trace cannot be used.
    """
    trace = read_trace(Path(config.trace)) if config.trace is not None else []
    by_name = {row["client"]: row for row in trace if "client" in row}
    anonymous = [row for row in trace if "client" not in row]
    slow: set[str] = set()
    if config.slow_share:
        names = sorted(client_ids, key=lambda name: (derive_seed(seed, "slow", *name.split("/", 1)), name))
        slow = set(names[: round(config.slow_share * len(names))])

    def profile(client_id: str) -> ClientProfile:
        draw = random.Random(derive_seed(seed, "profile", *client_id.split("/", 1)))
        speed, row = config.tokens_per_second, by_name.get(client_id)
        hour = draw.uniform(0, 24)
        if config.speed == "log_normal":
            speed *= math.exp(config.sigma * draw.gauss(0, 1))
        elif config.speed == "trace" and row is None:
            if not anonymous:
                expected = f"a line for {client_id}, or lines without client"
                raise InputError(f"{config.trace}: expected {expected}, got neither")
            row = draw.choice(anonymous)
        drawn = ClientProfile(speed, config.bandwidth_kib, hour * 3600, config.available_hours * 3600)
        result = drawn if row is None else _with_row(drawn, row)
        if client_id in slow:
            return replace(result, tokens_per_second=result.tokens_per_second / config.slow_factor)
        return result

    return profile


def _with_row(profile: ClientProfile, row: Mapping[str, Any]) -> ClientProfile:
    return ClientProfile(
        row["tokens_per_second"],
        row.get("bandwidth_kib", profile.bandwidth_kib),
        row.get("available_from", profile.available_from / 3600) * 3600,
        row.get("available_hours", profile.available_for / 3600) * 3600,
    )


def read_trace(path: Path) -> list[dict[str, Any]]:
    """The lines of a trace.

    Raises:
        InputError: naming file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"federation.schedule.clients.trace: {path}: expected a JSON Lines file ({error})") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            row = _parsed(line)
            if row is None:
                expected = "an object with tokens_per_second, and of " + ", ".join(TRACE_KEYS) + " no others"
                raise InputError(f"{path}:{number}: expected {expected}, numbers above 0, got {line[:80]}")
            rows.append(row)
    if not rows:
        raise InputError(f"{path}: expected at least one profile, got none")
    return rows


def _parsed(line: str) -> dict[str, Any] | None:
    """A line of a trace; None if it is not a profile."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or "tokens_per_second" not in row or not row.keys() <= set(TRACE_KEYS):
        return None
    if not isinstance(row.get("client", ""), str) or not 0 < _number(row.get("available_hours", 24)) <= 24:
        return None
    if not 0 <= _number(row.get("available_from", 0)) < 24:
        return None
    return row if all(_number(row.get(key, 1)) > 0 for key in ("tokens_per_second", "bandwidth_kib")) else None


def _number(value: object) -> float:
    """A finite JSON number; else NaN, which is in no interval."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else math.nan  # type: ignore[arg-type]


def trace_digest(path: str) -> str:
    """SHA-256 of a trace, by which a resumed run knows it, wherever it is."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
