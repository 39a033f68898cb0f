"""A site: holds base model, records and its private tensors, and answers the server's requests.

It does not know Flower: requests and replies are bytes. Records never leave it, and the site's own adapter only at the
end of the run and if the site's config lends it. An update leaves it reduced to what is shared, clipped and noised if
``network.local_privacy`` is on, and encoded as ``network.transport`` says, or masked if
``federation.secure_aggregation`` is on.
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
from fl_lightning.network.compression import decode as decode_update
from fl_lightning.network.compression import encode as encode_update
from fl_lightning.network.masked_messages import STEPS
from fl_lightning.network.site.lending import borrowed_adapters, lent_adapter
from fl_lightning.network.site.levels import write_levels
from fl_lightning.network.site.local_dp import LocalLedger, privatize, read_secret
from fl_lightning.network.site.masking import SiteMasking
from fl_lightning.network.site.own_adapter import after_fit, from_store, own_fit, to_store
from fl_lightning.network.site.store import SiteStore
from fl_lightning.network.site.update_signature import UpdateSigner
from fl_lightning.state import LoraState
from fl_lightning.storage.messages import decode, encode

log = logging.getLogger(__name__)
Export = Callable[[Path, LoraState], object]


class Site:
    """One client of a federation, on its own machine.

    Args:
        config: of the site.
        clients: fit and evaluate adapters.
        data: the client's records.
        settings: what the server's must match.
        folder: where the site keeps its secrets, its ledger, its private tensors and its own adapter.
        initial: the adapter from which everybody starts, A₀ and B = 0.
        export: writes an adapter in PEFT's format.

    Attributes:
        finished: whether the run has ended and nothing more will be asked.
        mismatch: why this site cannot take part in the server's run, or None.
    """

    def __init__(
        self,
        config: RunConfig,
        clients: ClientTransport,
        data: ClientData,
        settings: SharedSettings,
        folder: Path,
        initial: LoraState,
        export: Export,
    ) -> None:
        self._config, self._clients, self._data = config, clients, data
        self._settings, self._folder, self._initial, self._export = settings, folder, initial, export
        self._policy = share_policy(config.federation.share, config.federation.share_layers)
        self._started_tasks: set[str] = set()
        self._mates: dict[str, dict[str, LoraState]] = {}
        self.client_id = data.client_id
        self._signer = UpdateSigner(folder, data.client_id)
        self._masking: SiteMasking | None = None
        if config.federation.secure_aggregation:
            self._masking = SiteMasking(config, data.client_id, self._signer.key, folder)
        self.finished = False
        self.mismatch: str | None = None

    def handle(self, message: bytes) -> bytes:
        """The reply to a request; an error is a reply, too."""
        header: Any = {}
        try:
            header, states = decode(message)
            content, tensors = self._handle_request(header, states)
        except Exception as error:
            log.warning("%s: %s", type(error).__name__, error)
            content, tensors = {"failed": f"{type(error).__name__}: {error}"[:500]}, []
        request_id = header.get("request_id") if isinstance(header, dict) else None
        return encode({"client": self.client_id, "request_id": request_id, **content}, tensors)

    def _handle_request(
        self, header: dict[str, Any], states: list[LoraState]
    ) -> tuple[dict[str, Any], list[LoraState]]:
        if mismatch := find_mismatch(self._settings, header.get("settings")):
            self.mismatch = mismatch
            return {"refused": mismatch}, []
        request_id = header["request_id"]
        if request_id["task"] in self._started_tasks:
            raise ValueError("expected a new task, got one that this site has started before")
        self._started_tasks.add(request_id["task"])
        store = SiteStore(self._folder / _check_run_id(request_id["run"]))
        if header["do"] == "hello":
            return {"site": vars(self._info(store))}, []
        if header["do"] == "fit":
            content, tensors = self._fit(header, states, store)
            return {**content, "site": vars(self._info(store))}, tensors
        if self._masking is not None and header["do"] in STEPS:
            return self._masking.answer(header)
        if header["do"] == "evaluate":
            return self._evaluate(header, states, store), []
        if header["do"] == "finish":
            self._finish(header, states, store)
            return {"done": True}, []
        if header["do"] == "lend":
            saved = store.load_before(int(request_id["round"]) + 1)[1]
            own = from_store(self.client_id, self._initial, saved)
            return {"lent": True}, [lent_adapter(self._config, own, self.client_id, states[0])]
        if header["do"] == "borrow":
            lent = dict(zip(header["mates"], states, strict=True))
            borrowed = borrowed_adapters(self._config, self.client_id, lent, self._initial, request_id["round"])
            self._mates.setdefault(request_id["run"], {}).update(borrowed)
            return {"done": True}, []
        known = "hello, fit, evaluate, lend, borrow or finish"
        raise ValueError(f"expected {known}, got {str(header['do'])[:80]!r}")

    def _fit(
        self, header: dict[str, Any], states: list[LoraState], store: SiteStore
    ) -> tuple[dict[str, Any], list[LoraState]]:
        values, run_id = header["task"], header["request_id"]["run"]
        if self._masking is not None:
            if (answered := self._masking.advertised(header)) is not None:
                return answered, []
            values = {**values, "evaluate": False}
        if values["client_id"] != self.client_id:
            raise ValueError(f"expected a task of {self.client_id}, got one of {str(values['client_id'])[:80]!r}")
        round_num = int(values["round_num"])
        kept = _round_before(header, round_num)
        _, saved = store.load_before(kept + 1)
        start = {**states[0], **saved.get("private", {})}
        task = ClientTask(**values, start={name: start[name] for name in sorted(start)}, frozen_product=states[1])
        own = from_store(self.client_id, self._initial, saved)
        own_task = own_fit(self._config.personal, own, task)
        update, *own_update = self._clients.fit([task, *own_task], lambda *_: signals.check())
        log.info("round %d: fitted %d records in %.1f s", round_num, update.num_examples, update.seconds)
        shared = replace(update, state=self._policy.shared(update.state, round_num))
        released = self._privatize(shared, task.start, run_id) if shared.state else shared
        if self._masking is not None:
            if own_task:
                own = after_fit(self._config, own, own_task[0], own_update[0], self._clients, self._data)
                store.save(round_num, to_store(own), keep=kept)
            return self._masking.begin(header, store.folder, released, task, self._initial), []
        # A combiner that draws new starts leaves nothing to which the last rounding error could be added.
        draws_new_starts = self._config.federation.combiner in KEEP_PRODUCTS
        last_error = None if draws_new_starts else saved.get("rest")
        encoded = encode_update(released.state, task.start, self._config.network.transport, last_error)
        private = self._policy.private(update.state)
        if bad := [name for name, tensor in private.items() if not bool(torch.isfinite(tensor).all())]:
            raise ValueError(f"{bad[0]}: not finite after the fit; nothing of it is saved or sent")
        if own_task:
            own = after_fit(self._config, own, own_task[0], own_update[0], self._clients, self._data)
        if private or encoded.error_feedback or own_task:
            states_to_save = {"private": private, "rest": encoded.error_feedback, **to_store(own)}
            store.save(round_num, states_to_save, keep=kept)
        shared_start = self._policy.shared(task.start, round_num)
        sent = decode_update(encoded.tensors, shared_start, self._config.network.transport) if shared_start else {}
        released = self._signer.sign(released, sent, header["ledger"])
        content = {"update": header_of(released), "transport_error": encoded.relative_error}
        return content, [encoded.tensors]

    def _privatize(self, update: ClientUpdate, start: Mapping[str, torch.Tensor], run_id: str) -> ClientUpdate:
        privacy = self._config.network.local_privacy
        if privacy.clip is None:
            return update
        privatized = privatize(
            update,
            start,
            clip=privacy.clip,
            noise_multiplier=privacy.noise_multiplier,
            secret=read_secret(self._folder / "secret"),
            run_id=run_id,
        )
        ledger = LocalLedger(self._folder / "releases.json")
        ledger.record(privatized.release, privacy.noise_multiplier)
        if privacy.noise_multiplier > 0:
            log.info("round %d: ε %.3g at δ %g so far", update.round_num, ledger.epsilon(privacy.delta), privacy.delta)
        return privatized.update

    def _evaluate(self, header: dict[str, Any], states: list[LoraState], store: SiteStore) -> dict[str, Any]:
        split, private = header["split"], {}
        if split not in ("eval", "selection"):
            raise ValueError(f"split: expected eval or selection, got {str(split)[:80]!r}")
        if split == "selection" and not self._config.training.early_stopping:
            raise ValueError("training.early_stopping: expected true for selection records to judge, got false")
        if header["with_private"]:
            kept = _round_before(header, int(header["request_id"]["round"]) + 1)
            private = store.load_before(kept + 1)[1].get("private", {})
        metrics = self._clients.evaluate([({**state, **private}, self.client_id) for state in states], split)
        if split == "selection":  # which stop by their loss and its number of tokens alone
            metrics = [replace(m, correct=0.0) for m in metrics]
        return {"metrics": [vars(m) for m in metrics]}

    def _finish(self, header: dict[str, Any], states: list[LoraState], store: SiteStore) -> None:
        """Write this site's whole adapter: its department's, with the site's private tensors if it has some.

        Besides it what `personalize` needs, which this site's records alone decide.
        """
        saved = store.load_before(_round_before(header, int(header["request_id"]["round"]) + 1) + 1)[1]
        adapter = {**states[0], **saved.get("private", {})}
        self._export(store.folder / "adapter", adapter)
        levels = dict(zip(header["levels"], [adapter, *states[1:]], strict=True))
        mates = self._mates.get(header["request_id"]["run"])
        write_levels(store.folder, self._config, self.client_id, levels, int(header["rounds"]), mates)
        self.finished = True
        log.info("the run has ended; this site's adapter is in %s", store.folder / "adapter")
        if self._config.data.selection_fraction:
            log.info("choose by this site's records: fl-lightning personalize --run %s", store.folder)

    def _info(self, store: SiteStore) -> SiteInfo:
        return SiteInfo(
            client_id=self.client_id,
            train=len(self._data.train) if self._masking is None else min(1, len(self._data.train)),
            eval=len(self._data.eval),
            selection=len(self._data.selection),
            tokens=0 if self._masking is not None else sum(len(example) for example in self._data.train),
            records=records_digest(self._data),
            r=self._config.lora.rank(self.client_id),
            kept=store.load_before(2**31)[0] if self._policy.keeps_private else 0,
            lend=str(self._config.network.lend),
            mates=str(self._config.personal.mates),
            public_key=self._signer.public_key,
        )


def _round_before(header: Mapping[str, Any], round_num: int) -> int:
    """The round whose saved tensors a request goes on from: the one before its own, or the one that the server names.

    With buffered rounds the server knows which of the site's updates was taken; later ones may have come too late.
    """
    return int(header.get("kept", round_num - 1))


def _check_run_id(run_id: object) -> str:
    """The id of a run, safe as the name of a folder.

    Raises:
        InputError: if it is not.
    """
    if not isinstance(run_id, str) or not run_id.isalnum() or not run_id.isascii() or len(run_id) > 64:
        raise InputError(f"run id: expected 1 to 64 letters and digits, got {str(run_id)[:80]!r}")
    return run_id
