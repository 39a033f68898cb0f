"""Local differential privacy: a site clips its update and adds noise before anything leaves it.

``start + Δ min(1, C / ‖Δ‖) + N(0, (z C)² I)``, the mechanism of `fl_lightning.privacy` with one client. Unlike there,
the server need not be trusted: it only ever sees noisy updates.

The unit of privacy is one site's whole update in a round (A, or A and B if B is shared): from what it receives, the
server can hardly tell which of any two updates was sent (Kasiviswanathan et al. 2011, "What Can We Learn Privately?").
Two clipped updates are up to 2 C apart, so ε is that of noise multiplier z / 2. Sites do not hide each other, and there
is no sampling of sites. Every further round costs more.

Not protected:

- That the site takes part, when it replies, its numbers of records and tokens, and its rank. Losses, seconds and
  metrics on held-out records are private, so `privatize` removes them.
- Replies to evaluation requests: their metrics are sent as they are.
- Anything from a person who can read the site's disk: with the secret, the noise can be subtracted.
- Attacks on floating point (Mironov 2012).

ε covers all records of the site at once, so the noise must be large: its norm is about ``z C √d`` for d parameters,
however many records there are.

The noise is drawn from the site's secret and a hash of run, round, start, parameters and the difference itself. A round
that is repeated, after a resume for example, sends the same bytes again, which reveal nothing new. A round that is
asked for twice with two starts gets different noise each time, and both releases are counted.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fl_lightning.errors import InputError
from fl_lightning.federation.protocol import ClientUpdate
from fl_lightning.privacy import epsilon, noisy_mean
from fl_lightning.state import LoraState
from fl_lightning.storage.files import check_secret, read_json, write_json, write_secret


@dataclass(frozen=True)
class PrivatizedUpdate:
    """An update that may leave its site.

    Attributes:
        update: with the noisy state, fp32, and without losses, seconds and metrics.
        release: id under which the ledger counts it; equal for equal bytes.
    """

    update: ClientUpdate
    release: str


def privatize(
    update: ClientUpdate,
    start: Mapping[str, torch.Tensor],
    *,
    clip: float,
    noise_multiplier: float,
    secret: str,
    run_id: str,
) -> PrivatizedUpdate:
    """Clip an update's difference from its start and add noise.

    Args:
        update: its state has only the parameters that are sent.
        start: from which it was trained; at least these parameters.
        clip: C > 0, the norm over all tensors together.
        noise_multiplier: z, at least 0; 0 only clips.
        secret: of the site, from `read_secret`.
        run_id: of the run.

    Raises:
        ValueError: if a value is out of range or not finite, or names or shapes differ.

    Example:
        >>> update = ClientUpdate("hr/a", 1, {"lora_A": torch.tensor([6.0, 8.0])}, 3, 90, losses=[2.5])
        >>> start = {"lora_A": torch.zeros(2)}
        >>> sent = privatize(update, start, clip=5.0, noise_multiplier=0.0, secret="5e" * 32, run_id="x").update
        >>> sent.state["lora_A"].tolist(), sent.losses
        ([3.0, 4.0], [])
    """
    names = sorted(update.state)
    if missing := [n for n in names if n not in start or start[n].shape != update.state[n].shape]:
        raise ValueError(f"{missing[0]}: expected a tensor of the same shape in the start, got none")
    before = {n: start[n].detach().to("cpu", torch.float64) for n in names}
    difference = {n: update.state[n].detach().to("cpu", torch.float64) - before[n] for n in names}
    context: list[str | int] = [
        run_id,
        update.client_id,
        update.round_num,
        float(clip).hex(),
        float(noise_multiplier).hex(),
        _digest(before),
        _digest(difference),
    ]
    noisy = noisy_mean(
        {update.client_id: difference},
        clip=clip,
        noise_multiplier=noise_multiplier,
        asked=1,
        seed=_keyed_hash(secret, "noise", context),
    )
    state = {n: (before[n] + noisy.mean[n]).float() for n in names}
    sent = replace(update, state=state, losses=[], seconds=0.0, metrics=None)
    return PrivatizedUpdate(sent, _keyed_hash(secret, "release", context))


class LocalLedger:
    """All releases of a site, in any run, in a file on the site's disk.

    Args:
        path: a JSON file; it is created with the first release.
        cost: from noise multiplier, number of rounds and δ to ε.

    Raises:
        InputError: if the file is not a ledger.
    """

    def __init__(self, path: Path, cost: Callable[[float, int, float], float] | None = None) -> None:
        self._path, self._cost = path, local_epsilon if cost is None else cost
        content = read_json(path) if path.exists() else {"releases": {}}
        releases = content.get("releases") if isinstance(content, dict) else None
        if not isinstance(releases, dict) or not all(_is_multiplier(z) for z in releases.values()):
            raise InputError(f"{path}: expected a ledger of releases, got other content; restore the file as written")
        self.releases: dict[str, float] = releases

    def record(self, release: str, noise_multiplier: float) -> None:
        """Count a release; it is on the disk when this returns, so call it before anything is sent."""
        if release not in self.releases:
            self.releases[release] = noise_multiplier
            write_json(self._path, {"releases": self.releases})

    def epsilon(self, delta: float) -> float:
        """ε of all releases together; Gaussian mechanisms, and noise in shares, compose by ``1 / z² = Σ 1 / z_i²``.

        Args:
            delta: δ in (0, 1).

        Raises:
            InputError: if dp-accounting is not installed.
        """
        if not self.releases:
            return 0.0
        if not all(self.releases.values()):
            return math.inf
        return self._cost(sum(z**-2 for z in self.releases.values()) ** -0.5, 1, delta)


def local_epsilon(noise_multiplier: float, rounds: int, delta: float) -> float:
    """ε of a number of rounds, between any two updates of a site in each.

    Args:
        noise_multiplier: z, at least 0; 0 gives infinity.
        rounds: T.
        delta: δ in (0, 1).

    Raises:
        ValueError: if an argument is out of range.
        InputError: if dp-accounting is not installed.

    Example:
        >>> round(local_epsilon(8.0, 10, 1e-5), 3)  # equals that of 4.0 between one update and none
        3.341
    """
    return epsilon(noise_multiplier / 2, rounds, delta, clients=1, asked=1)


def read_secret(path: Path) -> str:
    """The site's secret, 64 hexadecimal digits; created from the system's entropy if the file is missing.

    Raises:
        InputError: if the file is not a secret, or other users may read it.
    """
    if not os.path.lexists(path):
        with contextlib.suppress(FileExistsError):  # another process was first
            write_secret(path, os.urandom(32).hex().encode() + b"\n")
    if path.is_symlink() or not path.is_file():
        raise InputError(f"{path}: not a regular file; expected the site's secret")
    check_secret(path)
    text = path.read_bytes()[:100].decode("ascii", "replace").strip()
    try:
        if len(bytes.fromhex(text)) == 32 and len(text) == 64:
            return text
    except ValueError:
        pass
    raise InputError(f"{path}: expected 64 hexadecimal digits, got something else; restore the secret as written")


def _keyed_hash(secret: str, purpose: str, context: list[str | int]) -> str:
    """64 hexadecimal digits; without the secret they cannot be told from random ones."""
    return hmac.new(bytes.fromhex(secret), json.dumps([purpose, *context]).encode(), hashlib.sha256).hexdigest()


def _digest(state: LoraState) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(json.dumps([name, list(state[name].shape)]).encode())
        digest.update(state[name].contiguous().numpy().data)
    return digest.hexdigest()


def _is_multiplier(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf
