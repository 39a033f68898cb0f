"""Whole runs with secure aggregation between a server and its sites, joined in memory, against runs in one process."""

from dataclasses import replace

import pytest
import torch
from lightning.fabric import Fabric
from secure_sites import RECORDS, SecureFederation

from fl_lightning import FederatedTrainer, LoraClientModule
from fl_lightning.callbacks import ClusterMonitor, Evaluation, NetworkLog, RoundCheckpoint, RunLedger
from fl_lightning.callbacks.round_checkpoint import restore_callbacks
from fl_lightning.config import DeptClustersConfig, GuardConfig, PersonalConfig, PrivacyConfig, TrainingConfig
from fl_lightning.errors import RunError
from fl_lightning.federation.checkpoint import newest_checkpoint
from fl_lightning.federation.journal import Journal
from fl_lightning.modeling.lora import collect_lora_state, create_lora_model
from fl_lightning.network.coordinator import secure_clients
from fl_lightning.network.coordinator.join import data_at_sites
from fl_lightning.network.site.own_adapter import from_store
from fl_lightning.network.site.store import SiteStore
from fl_lightning.privacy import epsilon_of_shares
from fl_lightning.runs.verify import verify_chain
from fl_lightning.training.local_clients import LocalClients

ROUNDS = 3
TRAINING = TrainingConfig(learning_rate=5e-2, batch_size=2)
BOTH = {**RECORDS, "it/a": 4, "it/b": 2, "it/c": 3}


class Killed(BaseException):
    """The process is gone."""


class Runs(SecureFederation):
    """Sites with models of two departments, servers for them, and runs of the same in one process."""

    def __init__(self, folder, make_examples, micro_model, **options):
        self._micro_model = micro_model
        super().__init__(folder, make_examples, records=BOTH, **options)

    def prepare(self):
        module = self.module()
        self.initial = collect_lora_state(module.model)
        self.data = {client_id: self.data_of(client_id) for client_id in self.records}
        self.local = LocalClients(Fabric(accelerator="cpu", devices=1), module, self.data, TRAINING, 1)
        self.fits = dict.fromkeys(self.records, self.local)

    def module(self):
        model = create_lora_model(self._micro_model("qwen"), r=2, lora_alpha=4, target_modules=["q_proj"], seed=3)
        return LoraClientModule(model, learning_rate=TRAINING.learning_rate)

    def trainer(self, callbacks=(), run_folder=None, **changes):
        config = replace(self.config.federation, **changes)
        return FederatedTrainer(
            fabric=Fabric(accelerator="cpu", devices=1), federation=config, callbacks=callbacks, training=TRAINING,
            personal=self.config.personal, seed=self.config.seed, run_folder=run_folder,
        )  # fmt: skip

    def one_process(self, **changes):
        return self.trainer(**changes).fit(self.module(), self.data, clients=self.local)

    def between_machines(self, attempt=1):
        """A server's process: it starts the run, or continues it."""
        run_folder = self.folder / "run"
        run_folder.mkdir(exist_ok=True)
        self.clients = self.server(attempt)
        found = newest_checkpoint(run_folder)
        callbacks = [NetworkLog({}), Evaluation(), ClusterMonitor(), RunLedger(), RoundCheckpoint(keep=0)]
        if found is not None:
            restore_callbacks(callbacks, found[1])
        self.last = self.trainer(callbacks, run_folder)
        return self.last.fit(
            self.module(), data_at_sites(self.clients.sites), clients=self.clients,
            resume_from=found and found[0], journal=Journal(run_folder / "checkpoints", self.last.writer),
        )  # fmt: skip


@pytest.fixture
def runs(tmp_path, make_examples, micro_model, monkeypatch):
    monkeypatch.setattr(secure_clients, "AWAY_SECONDS", 0.1)

    def make(blocks=None, **federation):
        federation = {"rounds": ROUNDS, **federation}
        return Runs(tmp_path, make_examples, micro_model, federation=federation, **(blocks or {}))

    return make


def assert_same_bits(first, second):
    assert first.keys() == second.keys()
    for owner, state in first.items():
        assert all(torch.equal(tensor, second[owner][name]) for name, tensor in state.items()), owner


@pytest.mark.parametrize("federation", [{}, {"share": "alternate", "combiner": "fedavg", "weighting": "uniform"}])
def test_a_run_between_machines_has_the_bytes_of_one_process_and_is_plain_averaging(runs, federation):
    made = runs(**federation)
    masked, state = made.one_process(), made.between_machines()
    assert_same_bits(masked.departments, state.departments)
    assert masked.examples == state.examples
    report = made.last.report.departments["hr"]
    # Against plain averaging one round is compared: training magnifies what rounding leaves.
    plain, masked = (made.one_process(secure_aggregation=is_on, rounds=1) for is_on in (False, True))
    for name, tensors in plain.departments.items():
        error = made.last.report.departments[name].quantization_error
        assert 0 < error < 1e-6
        for key, tensor in tensors.items():
            torch.testing.assert_close(masked.departments[name][key], tensor, rtol=0, atol=error + 2**-22)
        assert any(not torch.equal(tensor, plain.initial[key]) for key, tensor in tensors.items())
    assert (report.summed, report.weights, report.residual_norms) == (4, {}, {})
    assert made.last.report.bytes_sent["client/up"] > 0


def test_own_adapters_stay_at_their_sites_and_are_those_of_one_process(runs):
    made = runs({"personal": PersonalConfig(own="during")})
    made.lose("it/a", "sign", round_num=2)
    expected, state = made.one_process(), made.between_machines()
    assert state.own_adapters == {}
    for client_id in set(BOTH) - {"it/a"}:
        saved = SiteStore(made.site_folder(client_id) / "5eed").load_before(ROUNDS + 1)[1]
        own = from_store(client_id, made.initial, saved).own_adapters[client_id]
        assert_same_bits({client_id: own}, {client_id: expected.own_adapters[client_id]})


def test_noise_in_shares_between_machines_is_accounted_for_as_in_one_process(runs):
    pytest.importorskip("dp_accounting", reason="the extra 'privacy' is not installed")
    privacy = PrivacyConfig(noise_multiplier=1e-6)
    made = runs(rounds=1, guard=GuardConfig("dp"), weighting="uniform", privacy=privacy)
    together, state = made.one_process(), made.between_machines()
    for name, tensors in together.departments.items():
        for key, tensor in tensors.items():
            torch.testing.assert_close(state.departments[name][key], tensor, rtol=0, atol=1e-5)
    noisy = replace(made.config.federation, privacy=PrivacyConfig(noise_multiplier=2.0), rounds=2)
    made.config = replace(made.config, federation=noisy)
    for client_id in BOTH:
        made.restart(client_id)
    state = made.between_machines(attempt=2)
    assert made.last.report.departments["hr"].epsilon == epsilon_of_shares(2.0, 2, privacy.delta)
    assert state.privacy.rounds == dict.fromkeys(BOTH, 2)
    assert any((t - together.departments["hr"][n]).abs().max() > 1e-3 for n, t in state.departments["hr"].items())
    verify_chain(made.folder / "run")


def test_the_ledger_names_who_is_in_a_sum_and_nothing_else_of_a_site(runs):
    made = runs()
    made.lose("hr/b", "share", round_num=2)
    made.between_machines()
    rounds = verify_chain(made.folder / "run").chain.rounds
    assert rounds[1]["clients"] == {client_id: {"summed": True} for client_id in BOTH}
    assert rounds[2]["no_reply"] == ["hr/b"]
    assert rounds[3]["no_reply"] == ["hr/b"]


def test_a_server_that_is_killed_again_and_again_ends_with_the_same_bytes(runs):
    made = runs()
    expected = made.one_process()
    kills = [("fit", 1), ("mask", 1), ("unmask", 1), ("share", 2), ("sign", 2), ("unmask", 3)]

    def meddle(client_id, header, answer):
        if kills and client_id == "it/b" and (header["do"], header["request_id"]["round"]) == kills[0]:
            kills.pop(0)
            raise Killed
        return answer

    made.post.meddle = meddle
    attempt = 1
    while True:
        try:
            state = made.between_machines(attempt)
            break
        except Killed:
            made.post.inbox.clear()
            attempt += 1
            if attempt in (3, 5):  # and sites too
                made.restart("hr/a")
                made.restart("it/c")
    assert attempt == 7
    assert_same_bits(expected.departments, state.departments)
    assert expected.examples == state.examples
    verify_chain(made.folder / "run")


def test_a_department_below_its_threshold_keeps_its_state_and_learns_in_the_next_round(runs, caplog):
    made = runs()
    away = {"it/a", "it/b"}
    before = {}

    def meddle(client_id, header, answer):
        if client_id in away and header["do"] == "mask" and header["request_id"]["round"] == 2:
            before.setdefault("it", dict(made.last.federation.departments["it"]))
            before.setdefault("hr", dict(made.last.federation.departments["hr"]))
            return None
        if header["request_id"]["round"] == 3 and header["do"] == "fit" and client_id == "it/a":
            before["after"] = {name: dict(s) for name, s in made.last.federation.departments.items()}
        return answer

    made.post.meddle = meddle
    state = made.between_machines()
    assert "it in round 2" in caplog.text
    assert_same_bits({"it": before["it"]}, {"it": before["after"]["it"]})
    moved = [not torch.equal(t, before["after"]["hr"][n]) for n, t in before["hr"].items()]
    assert any(moved)
    assert any(not torch.equal(t, before["it"][n]) for n, t in state.departments["it"].items())


def test_where_no_department_has_a_sum_the_run_stops_and_can_be_resumed(runs):
    made = runs()
    expected = made.one_process()
    made.post.meddle = lambda client_id, header, answer: (
        None if header["do"] == "mask" and header["request_id"]["round"] == 2 else answer
    )
    with pytest.raises(RunError, match="round 2: expected a masked sum of a department, got none"):
        made.between_machines()
    made.post.meddle = lambda client_id, header, answer: answer
    assert_same_bits(expected.departments, made.between_machines(attempt=2).departments)


def test_a_round_whose_sum_was_lost_with_one_of_its_sites_is_passed_over(runs, caplog):
    """The server is killed when all have signed, and a site never comes back: the same sum cannot be had again."""
    made = runs(dept_clusters=DeptClustersConfig())

    def kill(client_id, header, answer):
        if (header["do"], header["request_id"]["round"]) == ("unmask", 2):
            raise Killed
        return answer

    made.post.meddle = kill
    with pytest.raises(Killed):
        made.between_machines()
    made.post.inbox.clear()
    seen = {}

    def watch(client_id, header, answer):
        if header["do"] == "fit":
            states = seen.setdefault(header["request_id"]["round"], {})
            states.update({name: dict(s) for name, s in made.last.federation.departments.items()})
        return None if client_id in ("hr/d", "it/c") and header["do"] == "fit" else answer

    made.post.meddle = watch
    state = made.between_machines(attempt=2)
    assert "AlreadySigned: round 2: expected the sum that this site has signed before" in caplog.text
    assert_same_bits(seen[2], seen[3])  # nobody has a sum in round 2, and the run goes on
    assert state.cluster_assignments.keys() == {"hr", "it"}
    assert "expected at least 3 clients that have signed the list, got 0" in caplog.text
    assert any(not torch.equal(t, seen[3]["hr"][n]) for n, t in state.departments["hr"].items())
    assert made.last.report.departments["hr"].summed == 3
