"""The coordinator's side and the site's, joined in memory: what is asked, what is taken, what is refused."""

import time

import pytest
import torch
from sites_in_memory import Memory

from fl_lightning.aggregation.sharing import share_policy
from fl_lightning.config import LocalPrivacyConfig, RunConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.errors import RunError
from fl_lightning.federation.protocol import ClientTask, ClientUpdate, Metrics
from fl_lightning.network.compatibility import SharedSettings
from fl_lightning.network.coordinator.join import join_sites
from fl_lightning.network.coordinator.remote_clients import RemoteClients
from fl_lightning.network.coordinator.requests import RequestTracker
from fl_lightning.network.coordinator.signatures import UpdateSignatures
from fl_lightning.network.coordinator.site_evaluation import NO_METRICS
from fl_lightning.network.coordinator.transport import Reply
from fl_lightning.network.site.levels import read_levels
from fl_lightning.network.site.site import Site
from fl_lightning.provenance.signing import key_at
from fl_lightning.runs.build import load_run_config
from fl_lightning.storage.messages import decode, encode

START = {"q.lora_A.weight": torch.ones(2, 3), "q.lora_B.weight": torch.zeros(3, 2)}
IDS = ["hr/a", "hr/b", "it/a"]


class Fits:
    """Clients that add one to A and two to B, and whose loss is the sum of the adapter."""

    def __init__(self):
        self.tasks, self.evaluated = [], []
        self.spoil = lambda state: state

    def fit(self, tasks, on_step=None, journal=None):
        for task in tasks:
            self.tasks.append(task)
            state = {n: t + (1.0 if "lora_A" in n else 2.0) for n, t in task.start.items()}
            yield ClientUpdate(task.client_id, task.round_num, self.spoil(state), 3, 30, [1.0], 0.1)

    def evaluate(self, jobs, split="eval"):
        self.evaluated += list(jobs)
        return [Metrics(float(sum(t.sum() for t in s.values())), 1.0, 10, 2) for s, _ in self.evaluated[-len(jobs) :]]


@pytest.fixture
def federation(tmp_path, make_examples):
    """Function that makes (clients, post, {client_id: Fits}) from config blocks; all sites have joined."""

    def make(*, join=True, sites=IDS, site_config=None, secret=None, **blocks):
        network = {"deadline": 0.4, "join_timeout": 0.4, **blocks.pop("network", {})}
        config = made(network=network, **blocks)
        fits, homes = {}, {}
        for client_id in sites:
            department, client = client_id.split("/")
            data = ClientData(department, client, make_examples(3), make_examples(2, seed=1))
            fits[client_id] = Fits()
            own = config if site_config is None else site_config
            folder = tmp_path / client_id.replace("/", ".")
            settings = SharedSettings.of(own, "fp32", "ab")
            homes[client_id] = Site(own, fits[client_id], data, settings, folder, START, lambda place, state: None)
        post = Memory(homes)
        settings = SharedSettings.of(config, "fp32", "ab")
        requests = RequestTracker(post, run="5eed", settings=settings, network=config.network)
        signatures = None if secret is None else UpdateSignatures(secret)
        clients = RemoteClients(requests, share_policy(config.federation.share), signatures)
        if join:
            join_sites(clients._requests, sites)
        return clients, post, fits

    return make


def made(**blocks):
    config = RunConfig()
    kinds = {name: type(getattr(config, name)) for name in blocks}
    return RunConfig(**{name: kinds[name](**values) for name, values in blocks.items()})


def tasks(round_num=1, ids=IDS):
    return [ClientTask(client_id, round_num, dict(START), 7) for client_id in ids]


def test_sites_join_with_counts_and_hashes_and_nothing_else(federation):
    clients, post, _ = federation()
    assert sorted(clients.sites) == IDS
    facts = clients.sites["hr/a"]
    assert (facts.train, facts.eval, facts.selection, facts.r, facts.kept) == (3, 2, 0, 8, 0)
    assert len(facts.records) == 16
    assert post.asked("hello") == IDS


def test_updates_are_what_the_sites_made(federation):
    clients, _, _ = federation()
    found = {u.client_id: u for u in clients.fit(tasks())}
    assert sorted(found) == IDS
    assert all(torch.equal(u.state["q.lora_A.weight"], START["q.lora_A.weight"] + 1) for u in found.values())
    assert all(torch.equal(u.state["q.lora_B.weight"], START["q.lora_B.weight"] + 2) for u in found.values())
    assert clients.traffic["up"] > 0
    assert clients.traffic["down"] > 0
    assert clients.traffic["refused"] == 0


def test_what_the_journal_has_is_not_asked_for_again(federation):
    clients, post, _ = federation()
    known = ClientUpdate("hr/a", 1, dict(START), 3, 30)
    kept = []

    class Journal:
        def replay(self, cohort):
            return [known] if cohort[0].client_id == "hr/a" else None

        def record(self, updates):
            kept.extend(updates)

    found = [u.client_id for u in clients.fit(tasks(), None, Journal())]
    assert found == IDS
    assert post.asked("fit") == ["hr/b", "it/a"]
    assert [u.client_id for u in kept] == ["hr/b", "it/a"]


def test_share_a_sends_a_only_and_b_stays_on_the_sites_disk(federation):
    clients, post, fits = federation(federation={"share": "a"})
    (first,) = clients.fit(tasks(1, ["hr/a"]))
    assert torch.equal(first.state["q.lora_B.weight"], START["q.lora_B.weight"])  # the server knows the start only
    assert clients.sites["hr/a"].kept == 1
    list(clients.fit(tasks(2, ["hr/a"])))
    headers = [(states, header) for _, (header, states), _ in post.sent if header["do"] == "fit"]
    assert [sorted(states[0]) for states, _ in headers] == [sorted(START), ["q.lora_A.weight"]]
    assert torch.equal(fits["hr/a"].tasks[1].start["q.lora_B.weight"], torch.full((3, 2), 2.0))


def test_a_site_whose_private_factor_is_lost_says_so_and_makes_no_update(federation, tmp_path, log_messages):
    clients, _, fits = federation(federation={"share": "a"})
    list(clients.fit(tasks(1, ["hr/a"])))
    (saved,) = tmp_path.glob("hr.a/5eed/round_1/kept.safetensors")
    saved.write_bytes(b"torn")
    assert list(clients.fit(tasks(2, ["hr/a"]))) == []
    assert len(fits["hr/a"].tasks) == 1
    assert any("a reply of hr/a is rejected" in m and "expected a readable kept.safetensors" in m for m in log_messages)


def test_a_round_that_is_done_again_starts_from_the_same_b(federation):
    clients, _, fits = federation(federation={"share": "a"})
    for round_num in (1, 2, 2, 3):
        list(clients.fit(tasks(round_num, ["hr/a"])))
    assert [float(t.start["q.lora_B.weight"][0, 0]) for t in fits["hr/a"].tasks] == [0.0, 2.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("meddle", "reason"),
    [
        (lambda h, s: ({**h, "client": "hr/b"}, s), "got one of 'hr/b'"),
        (
            lambda h, s: ({**h, "update": {**h["update"], "client_id": "hr/b"}}, s),
            "an update of hr/a, got one of",
        ),
        (lambda h, s: ({**h, "update": {**h["update"], "round_num": 9}}, s), "of round 1, got 9"),
        (lambda h, s: ({**h, "request_id": {**h["request_id"], "run": "0"}}, s), r"its run differ"),
        (lambda h, s: ({**h, "request_id": {**h["request_id"], "nonce": "0"}}, s), r"its nonce differ"),
        (lambda h, s: ({**h, "request_id": {**h["request_id"], "task": "0"}}, s), r"its task differ"),
        (lambda h, s: ({**h, "request_id": None}, s), r"its run, round, nonce, task differ"),
        (lambda h, s: ({**h, "update": {**h["update"], "num_examples": 10**6}}, s), "from 1000000 records"),
        (
            lambda h, s: ({**h, "site": {**h["site"], "records": "0"}}, s),
            "records, rank and key that the site joined with",
        ),
        (lambda h, s: ({**h, "update": {**h["update"], "seconds": "1"}}, s), "expected numbers as losses and seconds"),
        (lambda h, s: ({**h, "update": {**h["update"], "metrics": {"x": 1}}}, s), "unexpected keyword"),
        (lambda h, s: (h, [{n: t[:1] for n, t in s[0].items()}]), "shape"),
        (lambda h, s: (h, [{**s[0], "q.lora_A.weight": s[0]["q.lora_A.weight"] * torch.nan}]), "not finite"),
        (lambda h, s: (h, [{"q.lora_A.weight": s[0]["q.lora_A.weight"]}]), "lora_B"),
        (lambda h, s: (h, []), "got 0 states"),
        (lambda h, s: ([h], s), "as header, got list"),
        (lambda h, s: ({**h, "extra": "x" * 2_000_000}, s), "expected at most .* bytes"),
    ],
)
def test_an_answer_that_is_none_is_refused_and_the_round_goes_on(federation, log_messages, meddle, reason):
    import re

    clients, post, _ = federation()
    post.meddle = lambda client_id, q, a: encode(*meddle(*decode(a))) if client_id == "hr/a" else a
    assert [u.client_id for u in clients.fit(tasks())] == ["hr/b", "it/a"]
    (said,) = [m for m in log_messages if "is rejected" in m]
    assert "hr/a" in said
    assert re.search(reason, said), said
    assert clients.traffic["refused"] == 1


SECRET = "5e" * 32


@pytest.mark.parametrize("transport", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("share", ["all", "a", "alternate"])
def test_updates_are_signed_by_their_sites_as_the_server_decodes_them(federation, share, transport):
    clients, post, _ = federation(secret=SECRET, federation={"share": share}, network={"transport": transport})
    for round_num in (1, 2):
        updates = list(clients.fit(tasks(round_num)))
        assert [len(update.signature) for update in updates] == [128] * 3
    assert clients.public_keys == {name: clients.sites[name].public_key for name in IDS}
    salts = {h["ledger"]["salt"] for _, (h, _), _ in post.sent if h["do"] == "fit"}
    assert len(salts) == len(IDS)  # each site gets its own alone


@pytest.mark.parametrize(
    "meddle",
    [
        lambda h, s: ({**h, "update": {**h["update"], "signature": ""}}, s),
        lambda h, s: ({**h, "update": {**h["update"], "signature": "00" * 64}}, s),
        lambda h, s: ({**h, "update": {**h["update"], "signature": 7}}, s),
        lambda h, s: ({**h, "update": {**h["update"], "losses": [0.5]}}, s),
        lambda h, s: (h, [{n: t + 1e-6 for n, t in s[0].items()}]),
    ],
)
def test_an_update_without_its_sites_signature_is_refused(federation, log_messages, meddle):
    clients, post, _ = federation(secret=SECRET)
    post.meddle = lambda client_id, q, a: encode(*meddle(*decode(a))) if client_id == "hr/a" else a
    assert [update.client_id for update in clients.fit(tasks())] == ["hr/b", "it/a"]
    (said,) = [message for message in log_messages if "is rejected" in message]
    assert "hr/a" in said
    assert "signature" in said


def test_a_signature_of_another_round_is_refused(federation, log_messages):
    clients, post, _ = federation(secret=SECRET)
    first = {update.client_id: update.signature for update in clients.fit(tasks(1))}

    def old(client_id, question, answer):
        header, states = decode(answer)
        return encode({**header, "update": {**header["update"], "signature": first[client_id]}}, states)

    post.meddle = old
    assert list(clients.fit(tasks(2))) == []
    assert sum("signature: expected one of the key" in message for message in log_messages) == 3


def test_a_site_that_comes_back_with_another_key_is_refused(federation, log_messages, tmp_path):
    clients, post, _ = federation(secret=SECRET)
    for name in ("sign.key", "sign.key.pub"):
        (tmp_path / "hr.a" / name).unlink()
    post.sites["hr/a"]._signer = type(post.sites["hr/a"]._signer)(tmp_path / "hr.a", "hr/a")
    assert [update.client_id for update in clients.fit(tasks())] == ["hr/b", "it/a"]
    assert any("expected the records, rank and key that the site joined with" in message for message in log_messages)


def test_no_private_key_is_in_a_message_or_log(federation, log_messages, tmp_path):
    clients, post, _ = federation(secret=SECRET)
    answers = []
    post.meddle = lambda client_id, q, a: answers.append(a) or a
    list(clients.fit(tasks()))
    path = tmp_path / "hr.a" / "sign.key"
    assert path.stat().st_mode & 0o777 == 0o600
    written = [line.encode() for line in path.read_text().splitlines() if "PRIVATE KEY" not in line]
    raw = key_at(path).private_bytes_raw()
    texts = [*answers, *(message.encode() for message in log_messages)]
    assert answers
    assert not any(secret in text for secret in (*written, raw, raw.hex().encode()) for text in texts)


def test_an_oversized_answer_is_not_even_decoded(federation, log_messages):
    clients, post, _ = federation()
    post.meddle = lambda client_id, q, a: b"\0" * 3_000_000 if client_id == "hr/a" else a
    assert len(list(clients.fit(tasks()))) == 2
    assert any("got 3,000,000 bytes" in m for m in log_messages)


def test_a_replayed_round_is_refused(federation, log_messages):
    clients, post, _ = federation()
    old = {}
    post.meddle = lambda client_id, q, a: old.setdefault(client_id, a)
    assert len(list(clients.fit(tasks(1)))) == 3
    assert list(clients.fit(tasks(2))) == []
    assert sum("replies to another request (its round, nonce, task differ): late" in m for m in log_messages) == 3


def test_an_answer_that_comes_after_the_round_is_left_unread(federation, log_messages):
    clients, post, _ = federation(network={"quorum": 0.5})
    late = []

    def hold(client_id, question, answer):
        if client_id == "hr/b" and question["do"] == "fit" and question["request_id"]["round"] == 1:
            late.append(answer)
            return None
        return answer

    post.meddle = hold
    assert [u.client_id for u in clients.fit(tasks(1))] == ["hr/a", "it/a"]
    post.inbox.append(Reply(5, late[0]))
    assert len(list(clients.fit(tasks(2)))) == 3
    assert any("no longer pending" in m for m in log_messages)


def test_a_site_does_no_task_twice(federation, log_messages):
    clients, post, fits = federation()
    list(clients.fit(tasks(1, ["hr/a"])))
    question = next(encode(*message) for _, message, _ in post.sent if message[0]["do"] == "fit")
    header, _ = decode(post.sites["hr/a"].handle(question))
    assert "expected a new task" in header["failed"]
    assert len(fits["hr/a"].tasks) == 1


def test_a_site_does_no_other_clients_task(federation):
    clients, post, fits = federation()
    list(clients.fit(tasks(1, ["hr/a"])))
    header, states = next(m for _, m, _ in post.sent if m[0]["do"] == "fit")
    found, _ = decode(post.sites["hr/b"].handle(encode(header, states)))
    assert "expected a task of hr/b" in found["failed"]
    assert not fits["hr/b"].tasks


def test_the_deadline_ends_the_wait_for_a_site_that_hangs(federation, log_messages):
    clients, post, _ = federation()
    post.meddle = lambda client_id, q, a: None if client_id == "hr/a" else a
    started = time.monotonic()
    assert [u.client_id for u in clients.fit(tasks())] == ["hr/b", "it/a"]
    assert 0.3 < time.monotonic() - started < 3
    assert any("goes on without hr/a: it did not reply in time" in m for m in log_messages)
    # It still owes an answer, so it is not waited for a second time.
    started = time.monotonic()
    for _ in range(2):  # nor by the next evaluation of the round
        assert clients.evaluate([(START, "hr/a"), (START, "hr/b")]) == [NO_METRICS, Metrics(6.0, 1.0, 10, 2)]
    assert time.monotonic() - started < 0.3


def test_the_quorum_of_each_department_ends_the_wait_early(federation):
    clients, post, _ = federation(network={"quorum": 0.5, "deadline": 30.0})
    post.meddle = lambda client_id, q, a: None if client_id == "hr/a" else a
    started = time.monotonic()
    assert [u.client_id for u in clients.fit(tasks())] == ["hr/b", "it/a"]
    assert time.monotonic() - started < 3


def test_a_site_that_fails_is_not_waited_for(federation, log_messages):
    clients, _, fits = federation(network={"deadline": 30.0})

    def fail(state):
        raise RuntimeError("no memory left")

    fits["hr/a"].spoil = fail
    started = time.monotonic()
    assert len(list(clients.fit(tasks()))) == 2
    assert time.monotonic() - started < 3
    assert any("the site says: RuntimeError: no memory left" in m for m in log_messages)


def test_a_site_that_makes_nan_keeps_and_sends_nothing(federation, log_messages):
    clients, post, fits = federation(federation={"share": "a"})
    fits["hr/a"].spoil = lambda state: {n: t * torch.nan for n, t in state.items()}
    assert len(list(clients.fit(tasks()))) == 2
    assert clients.sites["hr/a"].kept == 0
    assert any("hr/a is rejected" in m and "not finite" in m for m in log_messages)


def test_a_site_that_goes_and_comes_back_within_the_round_is_asked_again(federation):
    clients, post, fits = federation(network={"deadline": 30.0})

    def crash(client_id, question, answer):
        if client_id == "hr/a" and question["do"] == "fit" and post.here["hr/a"] == "1":
            post.here["hr/a"] = "2"  # a new process, which knows nothing of the question
            return None
        return answer

    post.meddle = crash
    assert sorted(u.client_id for u in clients.fit(tasks())) == IDS
    assert len(fits["hr/a"].tasks) == 2
    assert fits["hr/a"].tasks[0].run_seed == fits["hr/a"].tasks[1].run_seed


def test_a_lost_question_is_asked_again_after_a_while(federation, monkeypatch):
    monkeypatch.setattr("fl_lightning.network.coordinator.requests.RETRY_SECONDS", 0.05)
    clients, post, fits = federation(network={"deadline": 30.0})
    post.meddle = lambda client_id, q, a: "node gone" if client_id == "hr/a" and len(fits["hr/a"].tasks) < 2 else a
    assert sorted(u.client_id for u in clients.fit(tasks())) == IDS
    assert len(fits["hr/a"].tasks) == 2


def test_a_site_that_is_away_is_asked_once_it_is_there(federation):
    clients, post, fits = federation(network={"deadline": 30.0})
    del post.here["hr/a"]
    found = []
    for update in clients.fit(tasks()):
        found.append(update.client_id)
        if len(found) == 2:
            post.here["hr/a"] = "9"
    assert found == ["hr/b", "it/a", "hr/a"]


def test_a_site_with_another_config_is_refused_with_the_key_on_both_sides(federation):
    other = made(lora={"r": 4})
    with pytest.raises(RunError, match=r"lora\.r: expected the same on both sides, got 8 on the server, 4 at the site"):
        federation(site_config=other)


@pytest.mark.parametrize("block", [{"data": {"max_records": 5}}, {"training": {"batch_size": 1}}])
def test_machine_settings_may_differ(federation, block):
    clients, _, _ = federation(site_config=made(**block))
    assert sorted(clients.sites) == IDS


def test_a_run_goes_on_without_a_site_that_does_not_join_where_the_quorum_lets_it(federation):
    clients, post, _ = federation(join=False, network={"quorum": 0.5})
    del post.here["hr/b"]
    assert sorted(join_sites(clients._requests, IDS)) == ["hr/a", "it/a"]


def test_too_few_sites_end_the_run_with_the_first_one_missing(federation):
    clients, post, _ = federation(join=False)
    del post.here["hr/b"]
    with pytest.raises(
        RunError, match=r"hr: expected 2 sites .* within 0 s .*, got 1 of 2 sites; hr/b: it has not connected"
    ):
        join_sites(clients._requests, IDS)


def test_evaluation_goes_to_the_owner_in_the_order_of_the_jobs(federation):
    clients, _, fits = federation()
    other = {name: tensor + 1 for name, tensor in START.items()}
    found = clients.evaluate([(START, "it/a"), (other, "hr/a"), (other, "it/a")])
    assert [m.loss_sum for m in found] == [6.0, 18.0, 18.0]
    assert [len(fits[c].evaluated) for c in IDS] == [1, 0, 2]


def test_many_jobs_of_one_site_go_in_several_messages(federation):
    clients, post, _ = federation()
    jobs = [({name: tensor + k for name, tensor in START.items()}, "hr/a") for k in range(40)]
    assert [m.loss_sum for m in clients.evaluate(jobs)] == [6.0 + 12 * k for k in range(40)]
    assert len(post.asked("evaluate")) == 3


def test_under_share_a_a_site_evaluates_with_its_own_b(federation):
    clients, _, fits = federation(federation={"share": "a"})
    clients.evaluate([(START, "hr/a")])
    list(clients.fit(tasks(1, ["hr/a"])))
    clients.evaluate([(START, "hr/a")])
    seen = [float(state["q.lora_B.weight"][0, 0]) for state, _ in fits["hr/a"].evaluated]
    assert seen == [0.0, 2.0]


def test_selection_records_answer_nothing_but_early_stopping(federation, log_messages):
    clients, _, fits = federation()
    assert clients.evaluate([(START, "hr/a")], "selection") == [NO_METRICS]
    assert any("training.early_stopping: expected true for selection records to judge" in m for m in log_messages)
    assert fits["hr/a"].evaluated == []


@pytest.mark.parametrize("figures", [{}, [{"loss_sum": 1.0}], [None], "x"])
def test_figures_that_are_none_are_left_out(federation, log_messages, figures):
    clients, post, _ = federation()
    post.meddle = lambda client_id, q, a: encode({**decode(a)[0], "metrics": figures})
    assert clients.evaluate([(START, "hr/a")]) == [NO_METRICS]
    assert any("no metrics of hr/a" in m for m in log_messages)


@pytest.mark.parametrize("bad", [{"loss_sum": float("nan")}, {"num_tokens": 0}, {"loss_sum": 1e300}, {"correct": True}])
def test_figures_that_are_no_numbers_are_left_out(federation, bad):
    clients, post, _ = federation()
    figures = [{**vars(Metrics(1.0, 1.0, 10, 2)), **bad}]
    post.meddle = lambda client_id, q, a: encode({**decode(a)[0], "metrics": figures})
    assert clients.evaluate([(START, "hr/a")]) == [NO_METRICS]


@pytest.mark.parametrize(("transport", "tolerance"), [("bf16", 1e-2), ("int8", 2e-2)])
def test_fewer_bits_arrive_as_nearly_the_same(federation, transport, tolerance):
    clients, _, _ = federation(network={"transport": transport})
    (update,) = clients.fit(tasks(1, ["hr/a"]))
    assert torch.allclose(update.state["q.lora_A.weight"], START["q.lora_A.weight"] + 1, atol=tolerance)
    assert "hr/a" in clients.transport_errors


def test_local_privacy_clips_and_sends_no_losses(federation):
    clients, _, _ = federation(network={"local_privacy": LocalPrivacyConfig(clip=0.5)})
    (update,) = clients.fit(tasks(1, ["hr/a"]))
    moved = sum(float((update.state[n] - START[n]).square().sum()) for n in START) ** 0.5
    assert moved == pytest.approx(0.5, rel=1e-5)
    assert update.losses == []
    assert update.metrics is None


def test_at_the_end_each_site_writes_its_whole_adapter_and_keeps_the_levels(federation, tmp_path):
    clients, post, _ = federation(federation={"share": "a"})
    written = {}
    for client_id, site in post.sites.items():
        site._export = lambda place, state, c=client_id: written.update({c: state})
    list(clients.fit(tasks(1)))
    department = {name: tensor + 5 for name, tensor in START.items()}
    root = {name: tensor - 1 for name, tensor in START.items()}
    clients.finish({"hr": {"department": department, "root": root}, "it": {"department": department}}, rounds=3)
    assert sorted(written) == IDS
    assert float(written["hr/a"]["q.lora_A.weight"][0, 0]) == 6.0
    assert float(written["hr/a"]["q.lora_B.weight"][0, 0]) == 2.0
    assert all(site.finished for site in post.sites.values())
    kept = read_levels(tmp_path / "hr.a" / "5eed", START)
    assert list(kept) == ["department", "root"]
    assert torch.equal(kept["department"]["q.lora_A.weight"], written["hr/a"]["q.lora_A.weight"])
    assert torch.equal(kept["root"]["q.lora_A.weight"], root["q.lora_A.weight"])
    assert list(read_levels(tmp_path / "it.a" / "5eed", START)) == ["department"]
    assert load_run_config(tmp_path / "hr.a" / "5eed").federation.rounds == 3


def test_a_message_that_is_too_large_to_send_says_so(federation):
    clients, _, _ = federation(network={"max_message_mb": 0.006})
    big = {"q.lora_A.weight": torch.zeros(200, 30), "q.lora_B.weight": torch.zeros(3, 2)}
    with pytest.raises(RunError, match=r"network\.max_message_mb"):
        list(clients.fit([ClientTask("hr/a", 1, big, 7)]))
