"""A site's worker: holds base model, records and its own factors, and answers what the server asks.

It knows nothing of Flower: a message is bytes, and so is the answer. Records never leave it; what does is what
`SharePolicy.sends` says, clipped and noisy where ``network.local_privacy`` is on, packed as ``network.transport`` says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fl_lightning import signals
from fl_lightning.aggregation.products.department_product import KEEP_PRODUCTS
from fl_lightning.aggregation.sharing import share_policy
from fl_lightning.config import RunConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.errors import InputError
from fl_lightning.federation.fingerprint import records_digest
from fl_lightning.federation.protocol import ClientTask, ClientTransport, ClientUpdate, header_of
from fl_lightning.network.compatibility import SharedSettings, SiteInfo, find_mismatch
from fl_lightning.network.site.compression import encode as pack_update
from fl_lightning.network.site.local_dp import LocalLedger, privatize, read_secret
from fl_lightning.network.site.store import SiteStore
from fl_lightning.state import LoraState, select
from fl_lightning.storage.messages import decode, encode

log = logging.getLogger(__name__)
Export = Callable[[Path, LoraState], object]


class Site:
    """One client of a federation, resident on its own machine.

    Args:
        config: the site's.
        clients: trains and evaluates.
        data: the client's records.
        agreement: what the server's run must have in common with this.
        folder: where the site keeps what is its own.
        export: writes an adapter in PEFT's format.

    Attributes:
        over: whether the run is at its end, and nothing more will be asked.
        refusal: why this site cannot take part in the server's run.
    """

    def __init__(
        self,
        config: RunConfig,
        clients: ClientTransport,
        data: ClientData,
        agreement: SharedSettings,
        folder: Path,
        export: Export,
    ) -> None:
        self._config, self._clients, self._data = config, clients, data
        self._agreement, self._folder, self._export = agreement, folder, export
        self._policy = share_policy(config.federation.share)
        self._seen: set[str] = set()
        self.client_id = data.client_id
        self.over = False
        self.refusal: str | None = None

    def answer(self, message: bytes) -> bytes:
        """What comes back for a message; an error is an answer, too."""
        header: Any = {}
        try:
            header, states = decode(message)
            found, sent = self._obey(header, states)
        except Exception as error:
            log.warning("%s: %s", type(error).__name__, error)
            found, sent = {"failed": f"{type(error).__name__}: {error}"[:500]}, []
        echo = header.get("echo") if isinstance(header, dict) else None
        return encode({"client": self.client_id, "echo": echo, **found}, sent)

    def _obey(self, header: dict[str, Any], states: list[LoraState]) -> tuple[dict[str, Any], list[LoraState]]:
        echo = header["echo"]
        if problem := find_mismatch(self._agreement, header["agreement"]):
            self.refusal = problem
            return {"refused": problem}, []
        if echo["task"] in self._seen:
            raise ValueError("this task was done before; wanted a new one")
        self._seen.add(echo["task"])
        store = SiteStore(self._folder / _safe(echo["run"]))
        if header["do"] == "hello":
            return {"site": vars(self._facts(store))}, []
        if header["do"] == "fit":
            found, sent = self._fit(header, states, store)
            return {**found, "site": vars(self._facts(store))}, sent
        if header["do"] == "evaluate":
            return self._evaluate(header, states, store), []
        if header["do"] == "finish":
            self._finish(header, states, store)
            return {"done": True}, []
        raise ValueError(f"got {str(header['do'])[:80]!r}, wanted hello, fit, evaluate or finish")

    def _fit(
        self, header: dict[str, Any], states: list[LoraState], store: SiteStore
    ) -> tuple[dict[str, Any], list[LoraState]]:
        values, echo = header["task"], header["echo"]
        if values["client_id"] != self.client_id:
            raise ValueError(f"a task of {str(values['client_id'])[:80]!r}, wanted one of {self.client_id}")
        round_num = int(values["round_num"])
        _, before = store.before(round_num)
        start = {**states[0], **before.get("own", {})}
        task = ClientTask(**values, start={name: start[name] for name in sorted(start)}, frozen_product=states[1])
        (update,) = self._clients.fit([task], lambda *_: signals.check())
        log.info("round %d: fitted %d records in %.1f s", round_num, update.num_examples, update.seconds)
        sends = self._policy.sends(round_num)
        sent = replace(update, state=select(update.state, sends))
        released = self._protected(sent, task.start, echo["run"]) if sent.state else sent
        transport = self._config.network.transport
        # A combiner that draws new starts leaves nothing that the last round's rounding error belongs to.
        rest = None if self._config.federation.combiner in KEEP_PRODUCTS else before.get("rest")
        packed = pack_update(released.state, task.start, transport, rest)
        own = select(update.state, self._policy.keeps)
        if bad := [name for name, tensor in own.items() if not bool(torch.isfinite(tensor).all())]:
            raise ValueError(f"{bad[0]}: not finite after the fit; nothing of it is kept or sent")
        if own or packed.rest:
            store.keep(round_num, {"own": own, "rest": packed.rest})
        found = {"update": header_of(released), "transport_error": packed.relative_error}
        return found, [packed.tensors]

    def _protected(self, update: ClientUpdate, start: Mapping[str, torch.Tensor], run: str) -> ClientUpdate:
        privacy = self._config.network.local_privacy
        if privacy.clip is None:
            return update
        found = privatize(
            update,
            start,
            clip=privacy.clip,
            noise_multiplier=privacy.noise_multiplier,
            secret=read_secret(self._folder / "secret"),
            run_id=run,
        )
        ledger = LocalLedger(self._folder / "releases.json")
        ledger.record(found.release, privacy.noise_multiplier)
        if privacy.noise_multiplier > 0:
            log.info("round %d: ε %.3g at δ %g so far", update.round_num, ledger.epsilon(privacy.delta), privacy.delta)
        return found.update

    def _evaluate(self, header: dict[str, Any], states: list[LoraState], store: SiteStore) -> dict[str, Any]:
        own: LoraState = {}
        if header["own"]:  # the site's own factor belongs to what is evaluated
            own = store.before(int(header["echo"]["round"]) + 1)[1].get("own", {})
        metrics = self._clients.evaluate([({**state, **own}, self.client_id) for state in states])
        return {"metrics": [vars(m) for m in metrics]}

    def _finish(self, header: dict[str, Any], states: list[LoraState], store: SiteStore) -> None:
        """Write this site's whole adapter: what the department came to, with the site's own factor where it has one."""
        own = store.before(int(header["echo"]["round"]) + 1)[1].get("own", {})
        self._export(store.folder / "adapter", {**states[0], **own})
        self.over = True
        log.info("the run is over; this site's adapter is in %s", store.folder / "adapter")

    def _facts(self, store: SiteStore) -> SiteInfo:
        data = self._data
        tokens = sum(len(example) for example in data.train)
        kept = store.before(2**31)[0] if self._policy.keeps != "none" else 0
        rank = self._config.lora.rank(self.client_id)
        return SiteInfo(self.client_id, len(data.train), len(data.eval), tokens, records_digest(data), rank, kept)


def _safe(run: object) -> str:
    """A run's id as a folder's name.

    Raises:
        InputError: if it is none.
    """
    if not isinstance(run, str) or not run.isalnum() or not run.isascii() or len(run) > 64:
        raise InputError(f"run id: got {str(run)[:80]!r}, wanted up to 64 letters and digits")
    return run
