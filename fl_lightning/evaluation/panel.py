"""The clients on whose records departments are evaluated: all of a small department's, a sample of a large one's.

The sample is drawn once for a run, so that rounds are compared on the same records.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fl_lightning.config import EvaluationConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.federation.state import clients_by_department
from fl_lightning.seeding import derive_seed

log = logging.getLogger(__name__)


class ChosenClients(Mapping[str, ClientData]):
    """Some clients of a federation; records are read when a client is looked up."""

    def __init__(self, data: Mapping[str, ClientData], client_ids: Sequence[str]) -> None:
        self._data, self._ids = data, dict.fromkeys(client_ids)

    def __getitem__(self, client_id: str) -> ClientData:
        """One client."""
        if client_id not in self._ids:
            raise KeyError(client_id)
        return self._data[client_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


@dataclass(frozen=True)
class EvaluationPanel:
    """Whose records evaluate the adapters of departments and groups.

    Attributes:
        data: {client_id: records} of these clients, in the order of the federation.
        population: {department: number of all its clients}, if some department's clients are only sampled; else empty.
    """

    data: Mapping[str, ClientData]
    population: Mapping[str, int]

    @classmethod
    def draw(cls, data: Mapping[str, ClientData], config: EvaluationConfig, seed: int) -> EvaluationPanel:
        """Draw the panel by the run seed.

        Args:
            data: {client_id: records} of all clients.
            config: the ``evaluation`` block.
            seed: the run seed; the draw in a department depends only on it, the department's name and its clients.
        """
        departments = clients_by_department(data)
        counts = {name: config.num_clients(len(members)) for name, members in departments.items()}
        population = {name: len(members) for name, members in departments.items()}
        if counts == population:
            return cls(data, {})
        chosen: list[str] = []
        for name, members in departments.items():
            generator = random.Random(derive_seed(seed, "evaluation", name))
            chosen += [members[index] for index in sorted(generator.sample(range(len(members)), counts[name]))]
        return cls(ChosenClients(data, chosen), population)

    def log(self) -> None:
        """Say that departments are evaluated on samples, if they are."""
        counts = {name: len(members) for name, members in clients_by_department(self.data).items()}
        sampled = [name for name, total in self.population.items() if counts[name] < total]
        if sampled:
            first = sampled[0]
            log.info(
                "evaluating %s on a sample of clients (%s: %d of %s), with standard errors; "
                "evaluation.clients_per_dept: all takes every client",
                f"{len(sampled)} departments" if len(sampled) > 1 else first, first, counts[first],
                f"{self.population[first]:,}",
            )  # fmt: skip
