"""Buffered rounds between machines, joined in memory: against one process with the same order of events, and killed."""

import heapq
import json

import pytest
import torch
from lightning.fabric import Fabric
from sites_in_memory import Memory

from fl_lightning import ClusterMonitor, Evaluation, FederatedTrainer, LoraClientModule, RoundCheckpoint
from fl_lightning.aggregation.sharing import share_policy
from fl_lightning.callbacks import NetworkLog, RunLedger
from fl_lightning.callbacks.round_checkpoint import restore_callbacks
from fl_lightning.config import (
    ClientClustersConfig,
    ClientProfilesConfig,
    DeptClustersConfig,
    FederationConfig,
    GuardConfig,
    NetworkConfig,
    RunConfig,
    ScheduleConfig,
    TrainingConfig,
)
from fl_lightning.data.client_data import ClientData
from fl_lightning.errors import InputError, RunError
from fl_lightning.federation.checkpoint import newest_checkpoint
from fl_lightning.federation.client_profiles import client_profiles
from fl_lightning.federation.journal import Journal
from fl_lightning.modeling.lora import collect_lora_state, create_lora_model
from fl_lightning.network.compatibility import SharedSettings
from fl_lightning.network.coordinator import site_rounds
from fl_lightning.network.coordinator.buffered_clients import BufferedClients
from fl_lightning.network.coordinator.join import data_at_sites, join_sites
from fl_lightning.network.coordinator.requests import RequestTracker
from fl_lightning.network.coordinator.signatures import UpdateSignatures
from fl_lightning.network.coordinator.site_rounds import SiteRounds
from fl_lightning.network.site.site import Site
from fl_lightning.network.site.store import SiteStore
from fl_lightning.provenance.salts import make_secret
from fl_lightning.runs.verify import verify_chain
from fl_lightning.storage.messages import decode
from fl_lightning.training.local_clients import LocalClients

SPEEDS = {"hr/a": 40.0, "hr/b": 25.0, "hr/c": 11.0, "it/a": 30.0, "it/b": 7.0}
"""Tokens per second; hr/c is some steps late."""


class TimedSites(Memory):
    """Sites whose answers come in the order of virtual time, one at a time; it outlives servers that are killed."""

    def __init__(self, sites, end_of_fit):
        super().__init__(sites)
        self.end_of_fit, self.now, self.coming, self.due = end_of_fit, 0.0, [], {}
        self.arrived, self.kill_at, self.silent = [], None, set()

    def send(self, client_id, kind, body, ttl):
        number = super().send(client_id, kind, body, ttl)
        if kind == "train":
            reply = self.inbox.pop()
            fit = client_id, decode(body)[0]["task"]["round_num"]
            # The site has been training since an earlier server asked for the same.
            end = self.due.setdefault(fit, self.end_of_fit(client_id, self.now))
            if client_id not in self.silent:
                self.coming = [item for item in self.coming if item[1] != client_id]
                heapq.heappush(self.coming, (end, client_id, number, reply))
            heapq.heapify(self.coming)
        return number

    def receive(self, timeout):
        if self.inbox:
            return self.inbox.pop(0)
        if not timeout or not self.coming:
            return super().receive(timeout)
        self.now, client_id, _, reply = heapq.heappop(self.coming)
        self.arrived.append(client_id)
        if len(self.arrived) == self.kill_at:
            heapq.heappush(self.coming, (self.now, client_id, 0, reply))  # the server has not seen it
            raise KeyboardInterrupt
        return reply


class Runs:
    """Runs of one federation, in one process and between machines."""

    def __init__(self, folder, micro_model, data, trace, options):
        self.folder, self.micro_model, self.data = folder, micro_model, data
        network = NetworkConfig(**options.pop("network", {"deadline": 600.0}))
        profiles = ClientProfilesConfig(speed="trace", trace=str(trace))
        schedule = options.pop("schedule")
        federation = {
            "combiner": "fedavg", "client_clusters": ClientClustersConfig(num_clusters=1),
            "dept_clusters": DeptClustersConfig(enabled=False), "rounds": 12, **options,
        }  # fmt: skip
        training = TrainingConfig(learning_rate=5e-2, batch_size=2)
        schedules = [ScheduleConfig(mode="buffered", clients=c, **schedule) for c in (profiles, ClientProfilesConfig())]
        here, machines = (
            RunConfig(
                federation=FederationConfig(schedule=s, **federation), training=training, network=network, seed=11
            )
            for s in schedules
        )
        self.here, self.config = here, machines
        module = self.module()
        self.initial = collect_lora_state(module.model)
        self.local = LocalClients(Fabric(accelerator="cpu", devices=1), module, data, training, 1)
        profile_of = client_profiles(profiles, data, 11)

        def end_of_fit(client_id, begin):
            return profile_of(client_id).end_of_fit(begin, sum(map(len, data[client_id].train)), 0)

        self.settings = SharedSettings.of(machines, "fp32", "ab")
        self.sites = TimedSites({client_id: self.site(client_id) for client_id in SPEEDS}, end_of_fit)

    def module(self):
        model = create_lora_model(self.micro_model("qwen"), r=2, lora_alpha=4, target_modules=["q_proj"], seed=3)
        return LoraClientModule(model, learning_rate=5e-2)

    def site(self, client_id):
        folder = self.folder / "sites" / client_id.replace("/", ".")
        return Site(self.config, self.local, self.data[client_id], self.settings, folder, self.initial, lambda *_: None)

    def store(self, client_id):
        return SiteStore(self.folder / "sites" / client_id.replace("/", ".") / "5eed")

    def one_process(self):
        trainer = FederatedTrainer(
            fabric=Fabric(accelerator="cpu", devices=1), federation=self.here.federation, training=self.here.training,
            seed=11,
        )  # fmt: skip
        return trainer.fit(self.module(), self.data, clients=self.local)

    def server(self, *callbacks):
        """A server's process: it starts the run, or continues it."""
        requests = RequestTracker(self.sites, run="5eed", settings=self.settings, network=self.config.network)
        data = data_at_sites(join_sites(requests, SPEEDS))
        run_folder = self.folder / "run"
        run_folder.mkdir(exist_ok=True)
        signatures = UpdateSignatures(make_secret(run_folder))
        self.clients = BufferedClients(requests, share_policy(self.config.federation.share), signatures)
        found = newest_checkpoint(run_folder) if run_folder.exists() else None
        self.levels = {}
        kept = [
            SiteRounds(self.clients),
            NetworkLog(self.levels),
            Evaluation(),
            ClusterMonitor(),
            RunLedger(),
            RoundCheckpoint(keep=0),
            *callbacks,
        ]
        if found is not None:
            restore_callbacks(kept, found[1])
        self.trainer = FederatedTrainer(
            fabric=Fabric(accelerator="cpu", devices=1), federation=self.config.federation, callbacks=kept,
            training=self.config.training, seed=11, run_folder=run_folder,
        )  # fmt: skip
        return self.trainer.fit(
            self.module(), data, clients=self.clients, resume_from=found and found[0],
            journal=Journal(run_folder / "checkpoints", self.trainer.writer),
        )  # fmt: skip


@pytest.fixture
def runs(micro_model, make_examples, tmp_path):
    def make(**options):
        data = {
            c: ClientData(*c.split("/"), make_examples(2 + i, seed=i), make_examples(1, seed=50))
            for i, c in enumerate(SPEEDS)
        }
        trace = tmp_path / "trace.jsonl"
        lines = [json.dumps({"client": c, "tokens_per_second": speed}) for c, speed in SPEEDS.items()]
        trace.write_text("\n".join(lines))
        return Runs(tmp_path, micro_model, data, trace, options)

    return make


def assert_same_bits(first, second):
    assert first.keys() == second.keys()
    for owner, state in first.items():
        assert all(torch.equal(tensor, second[owner][name]) for name, tensor in state.items()), owner


def check_ledger(made):
    """Every update, late ones too, is in the ledger once, with its site's signature."""
    verified = verify_chain(made.folder / "run")
    assert verified.site_keys.keys() == SPEEDS.keys()
    entries = [entry for line in verified.chain.rounds.values() for entry in line["clients"].values()]
    assert all(len(entry["signature"]) == 128 for entry in entries)
    assert any("asked" in entry for entry in entries)


METHODS = {
    "plain": {"schedule": {"buffer": 2}},
    "late ones dropped, few at a time": {"schedule": {"buffer": 1, "concurrency": 2, "max_staleness": 1}},
    "momentum, a guard and clusters": {
        "schedule": {"buffer": 2, "steps_per_clustering": 3, "staleness": "constant"}, "combiner": "flora",
        "guard": GuardConfig(name="norm_clip"), "dept_clusters": DeptClustersConfig(),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_sites_that_answer_in_a_fixed_order_give_the_bytes_of_one_process(runs, name):
    made = runs(**METHODS[name])
    expected, state = made.one_process(), made.server()
    assert_same_bits(expected.departments, state.departments)
    assert_same_bits(expected.past, state.past)
    check_ledger(made)
    assert expected.examples == state.examples
    assert any(row.get("round/stale", 0) or row.get("round/dropped", 0) for _, row in made.trainer.history)
    assert all("round/virtual_hours" not in row for _, row in made.trainer.history)


def test_a_site_goes_on_from_the_private_factor_of_its_last_update_that_was_taken(runs):
    made = runs(share="a", schedule={"buffer": 1, "max_staleness": 1})
    expected, state = made.one_process(), made.server()
    for department, states in state.departments.items():
        assert all(torch.equal(states[n], t) for n, t in expected.departments[department].items() if "lora_A" in n)
    assert expected.personal.keys() == made.clients.kept.keys()
    for client_id, number in made.clients.kept.items():
        assert_same_bits({"b": made.store(client_id).load_before(number + 1)[1]["private"]},
                         {"b": expected.personal[client_id]})  # fmt: skip
    # Some fits came too late, and what the site saved of them is not gone on from.
    last = {c: made.store(c).load_before(10**6)[0] for c in made.clients.kept}
    assert any(last[c] > number for c, number in made.clients.kept.items())


def test_a_server_killed_anywhere_takes_every_update_once(runs):
    options = {"share": "all", "schedule": {"buffer": 2, "concurrency": 2}}
    made = runs(**options)
    expected = made.one_process()
    kills = 0
    for at in range(1, 200):
        made.sites.kill_at = len(made.sites.arrived) + 1 + at % 5
        try:
            state = made.server()
        except KeyboardInterrupt:
            kills += 1
            made.sites.arrived.pop()
            continue
        break
    assert kills > 5
    assert_same_bits(expected.departments, state.departments)
    assert_same_bits(expected.past, state.past)
    check_ledger(made)
    folder = made.folder / "run" / "checkpoints" / "arrivals"
    assert len(list(folder.iterdir())) <= 2 + len(SPEEDS)  # those that no checkpoint needs are gone


def test_a_damaged_update_is_asked_for_again(runs):
    made = runs(schedule={"buffer": 3})
    expected = made.one_process()
    made.sites.kill_at = 6
    with pytest.raises(KeyboardInterrupt):
        made.server()
    made.sites.arrived.pop()
    made.sites.kill_at = None
    files = sorted((made.folder / "run" / "checkpoints" / "arrivals").iterdir())
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[:-1])
    asked = len(made.sites.asked("fit"))
    state = made.server()
    assert len(made.sites.asked("fit")) > asked
    assert state.round_num == expected.round_num
    assert all(torch.isfinite(t).all() for states in state.departments.values() for t in states.values())


def test_nobody_waits_for_a_silent_site_and_it_comes_back(runs):
    made = runs(rounds=14, schedule={"buffer": 1, "max_staleness": 40})
    made.sites.silent.add("hr/a")

    class Back(RoundCheckpoint):
        """The silent site connects anew after round 6."""

        state_key = "Back"

        def on_federation_start(self, *, trainer):
            pass

        def on_round_end(self, *, trainer):
            if trainer.round_num == 6:
                made.sites.silent.clear()
                made.sites.here["hr/a"] = "2"

    made.server(Back())
    taken = [c for _, row in made.trainer.history for c in SPEEDS if f"{c}/eval/loss" in row]
    assert made.trainer.federation.round_num == 14
    assert "hr/a" in taken
    starts = [h["task"]["round_num"] for c, (h, _), _ in made.sites.sent if h["do"] == "fit" and c == "hr/a"]
    assert starts[0] == 1
    assert starts[1] == 7  # from the state after round 6, and not from the one that it was asked with


def test_a_department_steps_without_a_site_that_stays_away(runs, monkeypatch):
    monkeypatch.setattr(site_rounds, "AWAY_SECONDS", 0.0)
    made = runs(rounds=6, schedule={"buffer": 3})
    made.sites.silent.add("hr/c")

    class Leave(RoundCheckpoint):
        """A site is gone for good after the first round."""

        state_key = "Leave"

        def on_federation_start(self, *, trainer):
            pass

        def on_round_end(self, *, trainer):
            made.sites.here.pop("hr/c", None)

    made.server(Leave())
    sizes = {c for _, row in made.trainer.history for c in ("hr/a", "hr/b") if f"{c}/eval/loss" in row}
    assert sizes == {"hr/a", "hr/b"}


def test_a_rejected_reply_is_asked_for_again_and_others_go_on(runs, monkeypatch, log_messages):
    monkeypatch.setattr(site_rounds, "RETRY_SECONDS", 0.0)
    made = runs(rounds=8, schedule={"buffer": 1})
    bad = []

    def meddle(client_id, request, answer):
        if client_id == "hr/b" and request["do"] == "fit" and not bad:
            bad.append(client_id)
            return answer[:-1]
        return answer

    made.sites.meddle = meddle
    assert made.server().round_num == 8
    assert made.sites.asked("fit").count("hr/b") >= 2
    assert any("hr/b: no update: " in message for message in log_messages)


def test_a_run_without_any_answer_ends_with_an_error_and_can_be_resumed(runs):
    made = runs(schedule={"buffer": 2}, network={"deadline": 0.3})
    made.sites.silent.update(SPEEDS)
    with pytest.raises(RunError, match=r"expected an update of a site within 0 s \(network.deadline\), got none"):
        made.server()
    made.sites.silent.clear()
    made.sites.due.clear()
    assert made.server().round_num == 12


def test_the_end_names_the_steps_of_each_department(runs):
    made = runs(schedule={"buffer": 1})
    made.server()
    made.clients.finish(made.levels, 12)
    sent = {c: h["rounds"] for c, (h, _), _ in made.sites.sent if h["do"] == "finish"}
    assert sent["hr/a"] + sent["it/a"] == 12
    assert sent["hr/a"] == sent["hr/c"]
    config = (made.folder / "sites" / "it.a" / "5eed" / "config.yaml").read_text()
    assert "mode: sync" in config
    assert f"rounds: {sent['it/a']}" in config


def test_a_checkpoint_without_the_buffers_is_refused(runs):
    made = runs(schedule={"buffer": 2})
    made.server()
    made.trainer.callbacks[1].load_state_dict({"buffers": {}})
    with pytest.raises(InputError, match="expected a checkpoint of buffered rounds"):
        made.trainer.callbacks[1].on_federation_start(trainer=made.trainer)
