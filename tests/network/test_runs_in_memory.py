"""Runs between a server and its sites, joined in memory, against the same runs in one process."""

from dataclasses import replace

import pytest
import torch
from lightning.fabric import Fabric
from sites_in_memory import Memory

from fl_lightning import FederatedTrainer, FederationConfig, LoraClientModule
from fl_lightning.aggregation.sharing import share_policy
from fl_lightning.callbacks import NetworkLog, RunLedger
from fl_lightning.config import (
    ClientClustersConfig,
    DataConfig,
    DeptClustersConfig,
    NetworkConfig,
    PersonalConfig,
    RunConfig,
    TrainingConfig,
)
from fl_lightning.data.client_data import ClientData
from fl_lightning.linalg.own_mixture import alpha_of
from fl_lightning.modeling.lora import collect_lora_state, create_lora_model
from fl_lightning.network.compatibility import SharedSettings
from fl_lightning.network.coordinator.join import data_at_sites, join_sites
from fl_lightning.network.coordinator.remote_clients import RemoteClients
from fl_lightning.network.coordinator.requests import RequestTracker
from fl_lightning.network.coordinator.signatures import UpdateSignatures
from fl_lightning.network.site.levels import read_levels, read_mates
from fl_lightning.network.site.own_adapter import from_store
from fl_lightning.network.site.site import Site
from fl_lightning.network.site.store import SiteStore
from fl_lightning.personalization.mates import lent_adapters
from fl_lightning.provenance.chain import ChainError, LedgerFile
from fl_lightning.provenance.salts import make_secret
from fl_lightning.provenance.signing import load_public_key
from fl_lightning.runs.verify import verify_chain
from fl_lightning.storage.components import mate_component
from fl_lightning.storage.messages import decode, encode
from fl_lightning.training.local_clients import LocalClients
from fl_lightning.training.own_adapters import own_adapter

COUNTS = {"hr/a": 3, "hr/b": 5, "it/a": 4}
ROUNDS = 2


class Sites(Memory):
    """Sites with models; it keeps what they answer."""

    def __init__(self, make_site):
        super().__init__({client_id: make_site(client_id) for client_id in COUNTS})
        self.make_site, self.answers = make_site, []
        self.meddle = self._record

    def _record(self, client_id, request, answer):
        self.answers.append((client_id, request, answer))
        return answer

    def restart(self, client_id):
        """A new process for a site, which has its folder only."""
        self.sites[client_id] = self.make_site(client_id)


@pytest.fixture
def both(micro_model, make_examples, tmp_path):
    """Function that makes a run in one process and one between sites: (its state, the server's, sites, folders)."""
    data = {
        c: ClientData(*c.split("/"), make_examples(n, seed=n), make_examples(1, seed=50), make_examples(2, seed=n + 14))
        for c, n in COUNTS.items()
    }

    def made_module(config):
        return LoraClientModule(
            create_lora_model(micro_model("qwen"), r=2, lora_alpha=4, seed=3),
            learning_rate=config.training.learning_rate,
        )

    def fit(config, clients, data, callbacks=(), run_folder=None):
        trainer = FederatedTrainer(
            fabric=Fabric(accelerator="cpu", devices=1),
            callbacks=callbacks,
            federation=config.federation,
            training=config.training,
            personal=config.personal,
            seed=config.seed,
            run_folder=run_folder,
        )
        return trainer.fit(made_module(config), data, clients=clients)

    def run(meddle=lambda sites: None, config_of=lambda client_id, config: config, **blocks):
        federation = FederationConfig(
            rounds=ROUNDS,
            combiner="fedavg",
            client_clusters=ClientClustersConfig(num_clusters=1),
            dept_clusters=DeptClustersConfig(enabled=False),
            **blocks.pop("federation", {}),
        )
        training = TrainingConfig(learning_rate=5e-2, batch_size=2, **blocks.pop("training", {}))
        config = RunConfig(federation=federation, training=training, data=DataConfig(selection_fraction=0.4), **blocks)
        settings = SharedSettings.of(config, "fp32", "ab")
        module = made_module(config)
        initial = collect_lora_state(module.model)
        # They keep nothing between two fits, so one model does for all sites, before and after a restart.
        clients_here = LocalClients(Fabric(accelerator="cpu", devices=1), module, data, training, 1)

        def make_site(client_id):
            folder = tmp_path / client_id.replace("/", ".")
            own = config_of(client_id, config)
            return Site(own, clients_here, data[client_id], settings, folder, initial, lambda path, state: None)

        sites = Sites(make_site)
        meddle(sites)
        requests = RequestTracker(sites, run="5eed", settings=settings, network=config.network)
        run_folder = tmp_path / "run"
        run_folder.mkdir()
        signatures = UpdateSignatures(make_secret(run_folder))
        clients = RemoteClients(requests, share_policy(federation.share, federation.share_layers), signatures)
        levels = {}
        at_sites = data_at_sites(join_sites(requests, COUNTS))
        server = fit(config, clients, at_sites, [NetworkLog(levels), RunLedger()], run_folder)
        clients.finish(levels, ROUNDS)
        one_process = fit(config, clients_here, data)
        stores = {client_id: SiteStore(tmp_path / client_id.replace("/", ".") / "5eed") for client_id in COUNTS}
        return one_process, server, sites, stores

    return run


def own_states(stores, initial):
    """{client: its own adapter as the site has it after the last round}."""
    return {c: from_store(c, initial, store.load_before(ROUNDS + 1)[1]) for c, store in stores.items()}


def assert_same_bits(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in second)


def die_twice(sites):
    """A site is killed between two rounds, and another after it has saved a round but before its answer is out."""

    def meddle(client_id, request, answer):
        now = client_id, request["do"], request["request_id"]["round"]
        if now == ("hr/b", "fit", 2) and sites.here["hr/b"] == "1":
            sites.restart("hr/b")
            sites.here["hr/b"] = "2"
            return None
        if now == ("hr/a", "fit", 1):
            sites.restart("hr/a")
        return sites._record(client_id, request, answer)

    sites.meddle = meddle


def test_own_adapters_and_the_rounds_that_are_taken_are_those_of_one_process(both):
    one_process, server, sites, stores = both(
        die_twice, personal=PersonalConfig(own="during"), training={"early_stopping": True}
    )
    assert sites.asked("fit").count("hr/b") == ROUNDS + 1
    at_sites = own_states(stores, server.initial)
    for client_id in COUNTS:
        own, name = at_sites[client_id], f"{client_id}/own"
        assert_same_bits(own.own_adapters[client_id], one_process.own_adapters[client_id])
        assert own.best[name].round_num == one_process.best[name].round_num
        assert own.best[name].loss == pytest.approx(one_process.best[name].loss, rel=1e-6)
        assert_same_bits(own.final_own_adapter(client_id), one_process.final_own_adapter(client_id))
    taken = {name: best.round_num for name, best in one_process.best.items()}
    assert {taken["hr"], taken["it"]} == {1, 2}  # else stopping would change nothing
    for department in ("hr", "it"):
        assert server.best[department].round_num == taken[department]
        assert server.best[department].loss == pytest.approx(one_process.best[department].loss, rel=1e-6)
        assert_same_bits(server.final_adapter(department), one_process.final_adapter(department))
        received = read_levels(stores[f"{department}/a"].folder, server.initial)["department"]
        assert_same_bits(received, one_process.final_adapter(department))
    # No message of a site holds its own adapter: an update's tensors are the ones that one process averages, and of
    # selection records there are losses and numbers only.
    assert server.own_adapters == {}
    assert {name for name in server.best if "/" in name} == set()
    # (In its first round it is the update itself, and so it is with one site in a department: both have one start.)
    own_bytes = [t.numpy().tobytes() for c in ("hr/a", "hr/b") for t in at_sites[c].own_adapters[c].values()]
    for _, request, answer in sites.answers:
        header, states = decode(answer)
        assert not any(tensor in answer for tensor in own_bytes)
        assert "own" not in str(header).replace("is_own", "")
        if request["do"] == "evaluate" and request["split"] == "selection":
            assert header.keys() == {"client", "request_id", "metrics"}
            assert states == []
            assert all(metrics["correct"] == 0.0 and metrics["num_examples"] == 2 for metrics in header["metrics"])
    assert sum(request.get("split") == "selection" for _, request, _ in sites.answers) == ROUNDS * len(COUNTS)


@pytest.mark.parametrize("rate", [0.0, 2.0])
def test_own_adapters_that_learn_from_the_department_do_so_at_the_site(both, rate):
    one_process, server, _, stores = both(personal=PersonalConfig(own="during", apfl_alpha=0.5, apfl_rate=rate))
    for client_id, own in own_states(stores, server.initial).items():
        assert (alpha_of(own.own_adapters[client_id]) not in (None, 0.5)) == (rate > 0)
        assert_same_bits(own.own_adapters[client_id], one_process.own_adapters[client_id])


@pytest.mark.parametrize("federation", [{}, {"share": "alternate", "share_layers": [1]}])
def test_the_ledger_of_a_run_between_machines_has_the_signature_of_every_update(both, tmp_path, federation):
    both(die_twice, federation=federation)
    verified = verify_chain(tmp_path / "run")
    folders = {client_id: tmp_path / client_id.replace("/", ".") for client_id in COUNTS}
    assert verified.site_keys == {c: load_public_key(folder / "sign.key.pub") for c, folder in folders.items()}
    lines, rounds = verified.chain.lines, verified.chain.rounds
    assert [sorted(line["clients"]) for line in rounds.values()] == [sorted(COUNTS)] * ROUNDS
    assert all(len(entry["signature"]) == 128 for line in rounds.values() for entry in line["clients"].values())
    # A server that writes the whole chain anew with another update is found.
    rounds[2]["clients"]["hr/b"]["update"] = rounds[1]["clients"]["hr/b"]["update"]
    file = LedgerFile(tmp_path / "run" / "ledger.jsonl")
    file.begin(lines[0])
    for line in lines[1:]:
        file.append(line)
    with pytest.raises(ChainError, match=r"ledger.jsonl:3: hr/b: changed: its signature is not one of the site's key"):
        verify_chain(tmp_path / "run")


@pytest.mark.parametrize("apfl", [{}, {"apfl_alpha": 0.5}, {"apfl_alpha": 0.5, "apfl_rate": 0.1}])
def test_where_all_sites_lend_each_gets_what_it_gets_in_one_process(both, apfl):
    personal = PersonalConfig(own="during", mates="all", **apfl)
    one_process, server, sites, stores = both(die_twice, personal=personal, network=NetworkConfig(lend="all"))
    own = {client_id: own_adapter(personal, one_process, client_id) for client_id in COUNTS}
    for client_id, store in stores.items():
        expected = lent_adapters(client_id, own, "all")
        received = {mate_component(mate): state for mate, state in read_mates(store.folder, server.initial).items()}
        assert list(received) == list(expected)
        for mate, state in received.items():
            assert_same_bits(state, expected[mate])
    assert (len(sites.asked("lend")), len(sites.asked("borrow"))) == (3, 3)


def test_a_site_that_does_not_lend_sends_its_own_adapter_to_nobody(both):
    wishes = {"hr/a": ("department", "all"), "hr/b": ("off", "all"), "it/a": ("all", "off")}

    def config_of(client_id, config):
        lend, mates = wishes[client_id]
        return replace(config, network=NetworkConfig(lend=lend), personal=PersonalConfig(own="during", mates=mates))

    _, server, sites, stores = both(config_of=config_of, personal=PersonalConfig(own="during"))
    borrowed = {c: list(read_mates(store.folder, server.initial)) for c, store in stores.items()}
    assert borrowed == {"hr/a": ["it/a"], "hr/b": ["hr/a", "it/a"], "it/a": []}
    assert (sites.asked("lend"), sites.asked("borrow")) == (["hr/a", "it/a"], ["hr/a", "hr/b"])
    # A server that asks it all the same gets a reason, and no message of the site holds any of the tensors.
    header, states = next(message for _, message, _ in sites.sent if message[0]["do"] == "lend")
    header = {**header, "request_id": {**header["request_id"], "task": "asked again"}}
    sites.answers.append(("hr/b", header, sites.sites["hr/b"].handle(encode(header, states))))
    assert "network.lend: expected department or all" in decode(sites.answers[-1][2])[0]["failed"]
    own = own_states(stores, server.initial)["hr/b"].own_adapters["hr/b"]
    assert not any(tensor.numpy().tobytes() in answer for tensor in own.values() for _, _, answer in sites.answers)
    # hr/a's goes to its department and no further.
    own = own_states(stores, server.initial)["hr/a"].own_adapters["hr/a"]
    got = {client_id: dict(zip(header["mates"], states, strict=True)) for client_id, (header, states), _ in sites.sent
           if header["do"] == "borrow"}  # fmt: skip
    assert "hr/a" not in got["hr/a"]
    assert_same_bits(got["hr/b"]["hr/a"], own)


def test_without_borrowers_or_lenders_nobody_is_asked(both):
    _, _, sites, _ = both(personal=PersonalConfig(own="during"), network=NetworkConfig(lend="all"))
    assert sites.asked("lend") == sites.asked("borrow") == []
    assert len(sites.asked("finish")) == len(COUNTS)


def test_layers_that_are_not_shared_stay_at_the_site_and_equal_those_of_one_process(both):
    # With alternate a site needs the frozen factor of the shared layers, too.
    one_process, server, sites, stores = both(die_twice, federation={"share": "alternate", "share_layers": [1]})
    for client_id, store in stores.items():
        private = store.load_before(ROUNDS + 1)[1]["private"]
        assert_same_bits(private, one_process.personal[client_id])
        assert all(".layers.0." in name for name in private)
    for department in ("hr", "it"):
        shared = {n: t for n, t in server.departments[department].items() if ".layers.1." in n}
        assert_same_bits(shared, {n: one_process.departments[department][n] for n in shared})
    private_bytes = [t.numpy().tobytes() for store in stores.values() for round_num in range(1, ROUNDS + 1)
                     for t in store.load_before(round_num + 1)[1]["private"].values() if bool(t.any())]  # fmt: skip
    initial_bytes = {t.numpy().tobytes() for t in server.initial.values()}
    private_bytes = [tensor for tensor in private_bytes if tensor not in initial_bytes]
    assert private_bytes
    for _, request, answer in sites.answers:
        assert not any(tensor in answer for tensor in private_bytes)
        if request["do"] == "fit":
            assert all(".layers.1." in name for name in decode(answer)[1][0])
    for _, (header, states), _ in sites.sent:  # after its first fit a site is not even sent old values
        if header["do"] == "fit" and header["request_id"]["round"] > 1:
            assert all(".layers.1." in name for name in states[0])
