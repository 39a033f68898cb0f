"""Clients' own adapters beside the federation: each goes on from itself.

=================  ===============================================================  ====================================
``personal``       the own adapter v of a client                                    source
=================  ===============================================================  ====================================
``own: during``    is trained alone
``ditto_lambda``   is trained under ``λ / 2 · ‖v − w‖²``                            Ditto, Li et al. 2021, arXiv
                                                                                    2012.04221
``apfl_alpha``     is trained and used in ``α B_v A_v + (1 − α) B_w A_w``           APFL, Deng et al. 2020, arXiv
                                                                                    2003.13461
``apfl_rate``      likewise, and α learns: ``α ← clip(α − η ∂f/∂α, 0, 1)``          the same
``fedalt_weight``  is trained and used in ``(1 − β) B_v A_v + β B_u A_u``           FedALT, Bian et al. 2025, arXiv
                                                                                    2503.11880
``fedalt_gate``    likewise in ``(p B_v A_v + (1 − p) B_u A_u) x``, where a gate    the same
                   of each layer gives ``(p, 1 − p) = softmax(W_G x)``
=================  ===============================================================  ====================================

w is the department's adapter and u the mean of the factors of the other clients' own adapters in the department, both
of the start of the round and frozen while v trains. Ditto and APFL step v and w in turns within a round; here each
trains through the round. APFL mixes whole models; to mix the products is the same.

With ``apfl_rate`` α starts at ``apfl_alpha`` and takes one step of gradient descent in each round of its client, at the
first optimizer step; the paper has one step in every round of communication, too. f is the loss of that step's records
under the mixture, v, w and α are those of the round's start, and ``∂f/∂α`` is the inner product of the gradient at the
mixed weights and ``s (B_v A_v − B_w A_w)``, dropout included. The authors' code adds 0.02 α to that gradient; the paper
does not, nor is it here.

FedALT's gate is W_G of each layer, two rows without a bias; it starts as a linear layer of PyTorch does, from a seed of
the client, trains with v by the same optimizer and stays with the client. The paper's u is the mean over all other
clients, and dropout is on its input too. Only under FedALT does anything of own adapters leave the clients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from fl_lightning.config import PersonalConfig
from fl_lightning.federation.protocol import ClientTask
from fl_lightning.federation.state import FederationState, clients_by_department
from fl_lightning.linalg.adapter_algebra import concatenate_adapters
from fl_lightning.linalg.own_mixture import ALPHA, factors_of, gates_like, used_adapter, weights_of
from fl_lightning.seeding import derive_seed
from fl_lightning.state import LoraState


def own_tasks(config: PersonalConfig, state: FederationState, tasks: Sequence[ClientTask]) -> list[ClientTask]:
    """The fits of the sampled clients' own adapters; the first one of a client starts from the common start.

    They have the seeds of the clients' other fits. So an own adapter that is trained alone is the one that
    ``share: none`` would train.

    Args:
        config: the ``personal`` block.
        state: of the federation before the round.
        tasks: of the round.

    Returns:
        One task for each of `tasks`; none unless ``own: during``.
    """
    if config.own != "during":
        return []
    partners = Partners(config, state)
    return [
        replace(
            task,
            start=state.own_adapters.get(task.client_id) or partners.first_start(task),
            trainable_factor="all",
            relative_scaling=task.relative_scaling * partners.own_weight,
            frozen_product=partners.of(task.client_id),
            is_own=True,
            anchor=state.departments[task.department] if config.ditto_lambda else {},
            anchor_strength=config.ditto_lambda,
            alpha_rate=config.apfl_rate,
        )
        for task in tasks
    ]


def own_adapter(config: PersonalConfig, state: FederationState, client_id: str) -> LoraState:
    """What a client uses as its own after the run: its own adapter, mixed with its partner under APFL and FedALT.

    A client that never took part has the common start as its own, which changes nothing.
    """
    partners = Partners(config, state)
    learned = weights_of(state.own_adapters.get(client_id, {})) or partners.first_weights()
    own = {**state.final_own_adapter(client_id), **learned}
    return used_adapter(own, partners.of(client_id), partners.own_weight)


class Partners:
    """The products with which own adapters are mixed under APFL and FedALT.

    Args:
        config: the ``personal`` block.
        state: of the federation.

    Attributes:
        weight: of the partner in the mixture; 0 if there is none, 1 if clients learn their weights.
        own_weight: of own adapters; 1 if clients learn their weights.
    """

    def __init__(self, config: PersonalConfig, state: FederationState) -> None:
        self._config, self._state = config, state
        fixed = config.fedalt_weight or 1 - config.apfl_alpha
        self.weight, self.own_weight = (1.0, 1.0) if config.learns_mixture else (fixed, 1 - fixed)
        self._departments: dict[str, LoraState] = {}
        self._sums: dict[str, tuple[LoraState, int]] = {}

    def first_weights(self, seed: int | None = None) -> LoraState:
        """What weighs an own adapter before its first fit, where clients learn it; gates are zero without a seed."""
        if self._config.fedalt_gate:
            return gates_like(self._state.initial, seed)
        return {ALPHA: torch.tensor([self._config.apfl_alpha])} if self._config.apfl_rate else {}

    def first_start(self, task: ClientTask) -> Mapping[str, torch.Tensor]:
        """The state from which a client's own adapter starts the first time."""
        seed = derive_seed(task.run_seed, "fedalt_gate", task.client_id)
        return {**self._state.initial, **self.first_weights(seed)}

    def of(self, client_id: str) -> LoraState:
        """A client's partner times its weight; empty if there is none. Under APFL a department's clients share it."""
        department = client_id.split("/", 1)[0]
        if not self.weight:
            return {}
        if self._config.uses_fedalt:
            return self._rest(department, client_id)
        if department not in self._departments:
            adapter = self._state.adapter(department)
            self._departments[department] = concatenate_adapters([adapter], [self.weight])
        return self._departments[department]

    def _rest(self, department: str, client_id: str) -> LoraState:
        """β u of FedALT; empty while no other client of the department has an own adapter."""
        if department not in self._sums:
            names = clients_by_department(sorted(self._state.own_adapters)).get(department, [])
            self._sums[department] = _sum([factors_of(self._state.own_adapters[name]) for name in names]), len(names)
        total, count = self._sums[department]
        own = self._state.own_adapters.get(client_id)
        others = count - (own is not None)
        if not others:
            return {}
        means = {n: (t if own is None else t - own[n].double()) / others for n, t in total.items()}
        return concatenate_adapters([{name: mean.float() for name, mean in means.items()}], [self.weight])


def _sum(states: Sequence[Mapping[str, torch.Tensor]]) -> LoraState:
    """The sum of states in fp64, each read once."""
    total: LoraState = {}
    for state in states:
        total = {name: tensor.double() + total.get(name, 0.0) for name, tensor in state.items()}
    return total
