"""Sites with secure aggregation, joined in memory: each has its own key, roster and folder, and learns what is told."""

import numpy as np
import torch
from sites_in_memory import Memory

from fl_lightning.aggregation.sharing import share_policy
from fl_lightning.config import FederationConfig, NetworkConfig, RunConfig
from fl_lightning.config.clusters import ClientClustersConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.federation.protocol import ClientTask, ClientUpdate, Metrics
from fl_lightning.network.compatibility import SharedSettings
from fl_lightning.network.coordinator.join import join_sites
from fl_lightning.network.coordinator.requests import RequestTracker
from fl_lightning.network.coordinator.secure_clients import SecureClients
from fl_lightning.network.site.site import Site
from fl_lightning.provenance.signing import key_at, public_line

START = {"q.lora_A.weight": torch.ones(2, 3), "q.lora_B.weight": torch.zeros(3, 2)}
RECORDS = {"hr/a": 3, "hr/b": 5, "hr/c": 2, "hr/d": 6}


class Fits:
    """A client that adds ``step`` times the round to all numbers; it keeps its tasks."""

    def __init__(self, records, step):
        self.records, self.step, self.tasks = records, step, []

    def fit(self, tasks, on_step=None, journal=None):
        for task in tasks:
            self.tasks.append(task)
            state = {name: tensor + self.step * task.round_num for name, tensor in task.start.items()}
            losses, metrics = [1.5], Metrics(3.0, 1.0, 2, 1)
            yield ClientUpdate(task.client_id, task.round_num, state, self.records, 77, losses, 0.1, metrics)

    def evaluate(self, jobs, split="eval"):
        return [Metrics(1.0, 1.0, 10, 2) for _ in jobs]


class SecureFederation:
    """Four sites of one department, and servers for them, one after another.

    Args:
        folder: of all sites.
        make_examples: fixture.
        records: {client_id: number of training records}.
        network: keys of the ``network`` block.
        federation: keys of the ``federation`` block.
        blocks: other blocks of the config.
    """

    def __init__(self, folder, make_examples, records=None, network=None, federation=None, **blocks):
        self.records = RECORDS if records is None else records
        self.folder, self._make_examples = folder, make_examples
        self.steps = {client_id: 0.01 * (i + 1) * (-1) ** i for i, client_id in enumerate(self.records)}
        self.config = RunConfig(
            federation=FederationConfig(
                secure_aggregation=True,
                client_clusters=ClientClustersConfig(num_clusters=1),
                **(federation or {}),
            ),
            network=NetworkConfig(
                **{"deadline": 0.5, "join_timeout": 0.5, "roster": str(folder / "roster"), **(network or {})}
            ),
            **blocks,
        )
        self.keys = {client_id: key_at(self.site_folder(client_id) / "sign.key") for client_id in self.records}
        self.write_roster(self.keys)
        self.prepare()
        self.post = Memory({client_id: self.make_site(client_id) for client_id in self.records})

    def prepare(self):
        """What sites train with: a class of models replaces it."""
        self.initial = START
        self.data = {client_id: self.data_of(client_id) for client_id in self.records}
        self.fits = {c: Fits(count, self.steps[c]) for c, count in self.records.items()}

    def data_of(self, client_id):
        train = self._make_examples(self.records[client_id], seed=len(client_id) + self.records[client_id])
        return ClientData(*client_id.split("/"), train, self._make_examples(1, seed=50))

    def site_folder(self, client_id):
        return self.folder / client_id.replace("/", ".")

    def write_roster(self, keys):
        lines = [f"{client_id} {public_line(key)}" for client_id, key in keys.items()]
        (self.folder / "roster").write_text("\n".join(["# of all sites", *lines]) + "\n")

    def make_site(self, client_id, config=None):
        config = config or self.config
        settings = SharedSettings.of(config, "fp32", "ab")
        folder = self.site_folder(client_id)
        fits, data = self.fits[client_id], self.data[client_id]
        return Site(config, fits, data, settings, folder, self.initial, lambda path, state: None)

    def restart(self, client_id):
        """A new process for a site, which has its folder only."""
        self.post.sites[client_id] = self.make_site(client_id)

    def server(self, attempt=1, run="5eed"):
        settings = SharedSettings.of(self.config, "fp32", "ab")
        requests = RequestTracker(self.post, run=run, settings=settings, network=self.config.network)
        clients = SecureClients(requests, share_policy(self.config.federation.share), self.config.federation, attempt)
        join_sites(requests, self.records)
        return clients

    def tasks(self, round_num=1, start=None):
        return [ClientTask(client_id, round_num, dict(start or START), 7, evaluate=True) for client_id in self.records]

    def round(self, clients, round_num=1, journal=None):
        """Play a round; the department's sum, or None."""
        assert list(clients.fit(self.tasks(round_num), None, journal)) == []
        return clients.masked_sums.get("hr")

    def mean(self, *client_ids, round_num=1):
        """What plain averaging gives for these clients; every number of an update has moved by the same."""
        weights = {client_id: self.records[client_id] for client_id in client_ids or self.records}
        moved = sum(n * self.steps[c] for c, n in weights.items()) * round_num / sum(weights.values())
        return np.full(12, moved)

    def lose(self, client_id, do, *, round_num=None, after=True):
        """From a request on, a site is killed: before it answers, or (`after`) when its answer is on its way."""

        def meddle(asked, header, answer):
            if asked != client_id or (header["do"] == do and round_num not in (None, header["request_id"]["round"])):
                return answer
            if header["do"] == do or client_id in lost:
                first = client_id not in lost
                lost.add(client_id)
                return answer if first and after else None
            return answer

        lost = set()
        self.post.meddle = meddle
