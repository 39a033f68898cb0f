"""Audit a finished run: bounds on ε from its canaries, and membership tests of its records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fl_lightning.aggregation.secure import round_terms
from fl_lightning.aggregation.sharing import share_policy
from fl_lightning.config import RunConfig
from fl_lightning.data.canaries import ClientCanaries
from fl_lightning.data.tokenization import Example
from fl_lightning.errors import InputError
from fl_lightning.federation.state import FederationState, clients_by_department
from fl_lightning.modeling.input_energy import input_energy
from fl_lightning.modeling.lora import adapter_scaling, collect_lora_state
from fl_lightning.modeling.scaled_adapter import ScaledAdapter, read_adapter
from fl_lightning.privacy.audit.canary_directions import audit_mechanism
from fl_lightning.privacy.audit.membership import membership_test
from fl_lightning.privacy.audit.one_run import CONFIDENCE, epsilon_lower_bound, guess_coins, provable_epsilon
from fl_lightning.runs.audited_adapters import AuditedAdapter, audited_adapters
from fl_lightning.runs.build import RunComponents, build_components, build_tree, load_run_config
from fl_lightning.runs.resume import load_finished_state
from fl_lightning.seeding import derive_seed
from fl_lightning.state import is_lora_a
from fl_lightning.storage.files import write_json
from fl_lightning.storage.run_folder import locked
from fl_lightning.storage.run_layout import AUDIT, CANARIES, NETWORK, RECEIVED
from fl_lightning.training.client_sampling import num_sampled
from fl_lightning.training.local_clients import LocalClients

if TYPE_CHECKING:
    from fl_lightning.privacy.secure_aggregation.terms import Terms

Array = npt.NDArray[np.float64]

MIN_CLIENTS, MAX_CLIENTS, MAX_NUMBERS = 16, 200, 20_000_000
"""Canary clients of the audit of the mechanism, as many as have together at most so many numbers."""

ALL = "all"
"""Owner of a line over all adapters of a kind, each judged on the records of its own clients."""


@dataclass(frozen=True)
class AuditRequest:
    """Options of ``audit``.

    Attributes:
        run_folder: of a finished run.
        reference: folder of an adapter whose losses records are compared with, besides the base model's.
        delta: δ of the bounds; None takes that of ``federation.privacy``.
        max_records: at most n training and n held-out records of each client are tested for membership.
    """

    run_folder: Path
    reference: Path | None = None
    delta: float | None = None
    max_records: int = 256


def audit(request: AuditRequest) -> dict[str, Any]:
    """Audit a run, and write ``audit.json``.

    Returns:
        ``confidence`` and ``delta`` of the bounds; ``accountant``: {``client`` or ``record``: {department: ε}}, empty
        without differential privacy; ``canaries``: None without, else the ``audit`` block's choices and ``bounds``, a
        list of lines with ``kind``, ``owner``, ``canaries``, ``guesses``, ``correct``, ``epsilon`` (the lower bound),
        ``provable`` (what this number of guesses can prove at most) and ``upper`` (the accountant's ε for a record,
        None if it does not cover the adapter); ``mechanism``: the figures of `MechanismAudit`, None without
        differential privacy; ``membership``: a list of lines with ``kind``, ``owner``, ``score`` (base or reference)
        and the figures of `MembershipResult`.

    Raises:
        InputError: if the run is not finished, its records or its canaries are not here, or there is nothing to test.
    """
    run_folder = request.run_folder
    if network := [name for name in (NETWORK, RECEIVED) if (run_folder / name).exists()]:
        raise InputError(
            f"{run_folder}: expected a run of fit, got one between machines ({network[0]}), whose records are at its "
            "sites; train with fit on records that may be in one place, and audit that run"
        )
    config = load_run_config(run_folder)
    if config.audit.canaries and not (run_folder / CANARIES).exists():
        raise InputError(
            f"{run_folder / CANARIES}: expected the coins of audit.canaries {config.audit.canaries}, got no file; "
            "restore it, or start a new run"
        )
    with locked(run_folder):
        config = replace(config, fabric=config.fabric.alone())
        components = build_components(config, run_folder)
        state = load_finished_state(components, run_folder, config)
        result = _Audit(request, config, components, state).run()
        write_json(run_folder / AUDIT, result)
    return result


class _Audit:
    """One audit: the run, and the losses of the base model, which every adapter is compared with."""

    def __init__(
        self, request: AuditRequest, config: RunConfig, components: RunComponents, state: FederationState
    ) -> None:
        self._request, self._config, self._state = request, config, state
        self._canaries: Mapping[str, ClientCanaries] = components.canaries
        self._model, self._data = components.module.model, components.data
        self._initial, scaling = collect_lora_state(self._model), adapter_scaling(self._model)
        self._clients = LocalClients(components.fabric, components.module, components.data, config.training)
        self._adapters = audited_adapters(
            request.run_folder, config, state, build_tree(config, self._data), self._data, self._initial, scaling
        )
        self._references = {"base": ScaledAdapter(self._initial)}
        if request.reference is not None:
            self._references["reference"] = read_adapter(request.reference, self._initial, scaling)
        self._known: dict[tuple[str, str, str], Array] = {}
        privacy = config.federation.privacy
        self._delta = privacy.delta if request.delta is None else request.delta
        self._upper: dict[str, dict[str, float]] = {}
        if state.privacy is not None:
            noise, in_shares = privacy.noise_multiplier, config.federation.secure_aggregation
            self._upper = {  # a record moves the clipped update by 2 C at most
                "client": state.privacy.epsilons(noise, self._delta, in_shares=in_shares),
                "record": state.privacy.epsilons(noise / 2, self._delta, in_shares=in_shares),
            }

    def run(self) -> dict[str, Any]:
        """The audit's result.

        Raises:
            InputError: if there is nothing to test.
        """
        membership = self._membership()
        if not self._canaries and not membership:
            raise InputError(
                f"{self._request.run_folder}: expected canaries, or held-out records beside the training records, got "
                "neither; start a run with fit --audit.canaries 32, or hold records out (data.eval_fraction)"
            )
        choices = self._config.audit
        canaries = {
            "per_client": choices.canaries,
            "kind": choices.kind,
            "temperature": choices.temperature,
            "guesses": choices.guesses,
            "bounds": self._bounds() if self._canaries else [],
        }
        return {
            "confidence": CONFIDENCE,
            "delta": self._delta,
            "accountant": self._upper,
            "canaries": canaries if self._canaries else None,
            "mechanism": self._mechanism(),
            "membership": membership,
        }

    def _mechanism(self) -> dict[str, Any] | None:
        """An audit of the noise that protects whole clients; None without differential privacy."""
        config, ledger = self._config.federation, self._state.privacy
        rounds = max(ledger.rounds.values(), default=0) if ledger is not None else 0
        if not rounds:
            return None
        shared = share_policy(config.share, config.share_layers).shared(self._initial, 1)
        dimension = sum(tensor.numel() for tensor in shared.values())
        return audit_mechanism(
            canaries=max(MIN_CLIENTS, min(MAX_CLIENTS, MAX_NUMBERS // dimension)),
            dimension=dimension,
            noise_multiplier=config.privacy.noise_multiplier,
            rounds=rounds,
            delta=self._delta,
            seed=derive_seed(self._config.seed, "audit", "mechanism"),
            shares=self._terms_of_shares(),
        ).to_dict()

    def _terms_of_shares(self) -> Terms | None:
        """Terms of the run's smallest department, with clipping norm 1, if its clients have added noise in shares."""
        config = self._config.federation
        if not config.secure_aggregation:
            return None
        sizes = [len(members) for members in clients_by_department(self._data).values()]
        asked = num_sampled(
            min(sizes), clients_per_round=config.clients_per_round, client_fraction=config.client_fraction
        )
        config = replace(config, privacy=replace(config.privacy, clip=1.0))
        return round_terms(config, self._initial, run="audit", department="", round_num=1, invited=asked)

    def _bounds(self) -> list[dict[str, Any]]:
        """A line for each adapter, for its A alone, and for all of a kind."""
        lines = []
        for kind in dict.fromkeys(adapter.kind for adapter in self._adapters):
            of_kind = [adapter for adapter in self._adapters if adapter.kind == kind]
            lines += self._bounds_of(kind, of_kind, self._canary_scores)
            if kind != "group" and all(self._has_rank_of_model(adapter) for adapter in of_kind):
                lines += self._bounds_of(f"{kind}, A alone", of_kind, self._canary_energies)
        return lines

    def _bounds_of(
        self, kind: str, adapters: Sequence[AuditedAdapter], score: Callable[[AuditedAdapter], Array]
    ) -> list[dict[str, Any]]:
        lines, counts = [], np.zeros(3, int)
        for adapter in adapters:
            coins = np.array([coin for c in adapter.client_ids for coin in self._canaries[c].coins])
            scores = score(adapter)
            guesses = guess_coins(scores, round(self._config.audit.guesses * len(coins)))
            correct = int((guesses == np.where(coins, 1, -1)).sum())
            count = np.array([len(coins), np.count_nonzero(guesses), correct])
            counts += count
            lines.append(self._line(kind, adapter.owner, count, self._upper_of(adapter)))
        if kind.startswith("group") or len(adapters) < 2:  # canaries of a group are in the groups above it, too
            return lines
        uppers = [line["upper"] for line in lines]
        upper = None if None in uppers else max(uppers)
        return [self._line(kind, ALL, counts, upper), *lines]

    def _line(self, kind: str, owner: str, counts: npt.NDArray[np.int_], upper: float | None) -> dict[str, Any]:
        canaries, guesses, correct = map(int, counts)
        return {
            "kind": kind,
            "owner": owner,
            "canaries": canaries,
            "guesses": guesses,
            "correct": correct,
            "epsilon": epsilon_lower_bound(canaries, guesses, correct, self._delta),
            "provable": provable_epsilon(canaries, guesses, self._delta),
            "upper": upper,
        }

    def _upper_of(self, adapter: AuditedAdapter) -> float | None:
        """The accountant's ε for a record in an adapter; None if it does not cover it."""
        by_department = self._upper.get("record", {})
        departments = {client_id.split("/", 1)[0] for client_id in adapter.client_ids}
        if adapter.kind == "client" or not departments <= by_department.keys():
            return None
        return max(by_department[name] for name in departments)

    def _canary_scores(self, adapter: AuditedAdapter) -> Array:
        canaries = [(c, list(self._canaries[c].records)) for c in adapter.client_ids]
        return np.concatenate([self._scores(adapter, "base", c, "canaries", records) for c, records in canaries])

    def _canary_energies(self, adapter: AuditedAdapter) -> Array:
        records = [record for c in adapter.client_ids for record in self._canaries[c].records]
        changes = {
            name: tensor - self._initial[name] for name, tensor in adapter.adapter.state.items() if is_lora_a(name)
        }
        return input_energy(self._model, changes, records)

    def _has_rank_of_model(self, adapter: AuditedAdapter) -> bool:
        return all(adapter.adapter.state[name].shape == tensor.shape for name, tensor in self._initial.items())

    def _membership(self) -> list[dict[str, Any]]:
        """A line for each adapter and for all of a kind, against the base model and the reference."""
        lines = []
        for reference in self._references:
            for kind in dict.fromkeys(adapter.kind for adapter in self._adapters):
                of_kind = [adapter for adapter in self._adapters if adapter.kind == kind]
                scores = {adapter.owner: self._membership_scores(adapter, reference) for adapter in of_kind}
                if kind != "group" and len(scores) > 1:
                    together = [np.concatenate(both) for both in zip(*scores.values(), strict=True)]
                    scores = {ALL: (together[0], together[1]), **scores}
                for owner, (members, others) in scores.items():
                    if len(members) and len(others):
                        seed = derive_seed(self._config.seed, "audit", kind, owner, reference)
                        values = membership_test(members, others, seed=seed).to_dict()
                        lines.append({"kind": kind, "owner": owner, "score": reference, **values})
        return lines

    def _membership_scores(self, adapter: AuditedAdapter, reference: str) -> tuple[Array, Array]:
        """Scores of trained and of held-out records of an adapter's clients."""
        scores: dict[str, list[Array]] = {"train": [np.zeros(0)], "eval": [np.zeros(0)]}
        for client_id in adapter.client_ids:
            client, most = self._data[client_id], self._request.max_records
            canaries = self._canaries.get(client_id)
            trained = list(client.train)[: len(client.train) - len(canaries.included if canaries else ())]
            for split, records in (("train", trained), ("eval", list(client.eval))):
                scores[split].append(self._scores(adapter, reference, client_id, split, records[:most]))
        return np.concatenate(scores["train"]), np.concatenate(scores["eval"])

    def _scores(
        self, adapter: AuditedAdapter, reference: str, client_id: str, split: str, records: Sequence[Example]
    ) -> Array:
        """Mean loss over a record's targets with the reference minus that with the adapter, shape (records,)."""
        key = (reference, client_id, split)
        if key not in self._known:
            self._known[key] = self._losses(self._references[reference], records)
        own = (f"{adapter.kind} {adapter.owner}", client_id, split)
        if own not in self._known:
            self._known[own] = self._losses(adapter.adapter, records)
        return self._known[key] - self._known[own]

    def _losses(self, adapter: ScaledAdapter, records: Sequence[Example]) -> Array:
        sums = self._clients.evaluate_records(adapter.state, records, adapter.relative_scaling)
        return np.asarray(sums[:, 0] / np.maximum(sums[:, 2], 1), dtype=np.float64)
