"""`forget` against a run of `fit` with ``data.exclude`` that is made beside it."""

import json
import shutil
import stat
from pathlib import Path

import pytest
from rich.console import Console

from fl_lightning.callbacks import RoundCheckpoint
from fl_lightning.errors import InputError
from fl_lightning.federation.checkpoint import checkpoints
from fl_lightning.provenance.certificate import check_certificate
from fl_lightning.provenance.chain import read_chain
from fl_lightning.runs.audit import AuditRequest, audit
from fl_lightning.runs.build import load_run_config
from fl_lightning.runs.forgetting import forget as forget_module
from fl_lightning.runs.forgetting import start as start_module
from fl_lightning.runs.forgetting.forget import forget, plan_forget
from fl_lightning.runs.forgetting.plan import asked
from fl_lightning.runs.forgetting.request import ForgetRequest, look_up
from fl_lightning.runs.forgetting.traces import find_traces, purge
from fl_lightning.runs.verify import verify_run
from fl_lightning.storage.run_adapters import shared_adapters
from fl_lightning.storage.run_layout import CANARIES
from fl_lightning.training.local_clients import LocalClients

ROOT = Path(__file__).parents[3]
QUIET = Console(quiet=True)
SAMPLED = ["--federation.clients_per_round", "2"]
METHODS = {
    "default": [],
    "recommended": ["--config", "configs/recommended.yaml"],
    "share a": ["--federation.share", "a"],
    "client clusters": ["--federation.client_clusters.num_clusters", "3", *SAMPLED],
    "sampled": SAMPLED,
    "hierarchy": ["--federation.hierarchy.groups", "{trade: [finance, engineering], all: [trade, hr]}", *SAMPLED],
    "teams": ["--federation.hierarchy.groups", "{team: [finance/client_0, hr/client_1, hr/client_2]}", *SAMPLED],
    "residual": ["--config", "configs/methods/fedex_lora.yaml", *SAMPLED],
    "svd": ["--config", "configs/methods/flexlora.yaml", *SAMPLED],
    "fedadam": ["--federation.server.step", "fedadam", *SAMPLED],
    "outlier guard": ["--federation.guard.name", "outlier", *SAMPLED],
    "own adapters": ["--personal.own", "during", *SAMPLED],
    "fedalt": ["--personal.own", "during", "--personal.fedalt_weight", "0.3", *SAMPLED],
}
"""Options of runs; where clients are sampled, some take part late."""


LOOKED_UP = {}
"""{text of a config: what `look_up_clients` has found}."""


def look_up_clients(run_folder):
    """({client_id: the round in which it is asked first}, {client_id: its id in the data})."""
    text = (run_folder / "config.yaml").read_text()
    if text not in LOOKED_UP:
        config = load_run_config(run_folder)
        removal = look_up(config, ForgetRequest.of(clients=["hr/client_0"]))
        firsts = {}
        for number in range(1, config.federation.rounds + 1):
            for client_id in asked(config, removal.places, removal.before, number):
                firsts.setdefault(client_id, number)
        LOOKED_UP[text] = firsts, removal.before
    return LOOKED_UP[text]


def first_rounds(run_folder):
    return look_up_clients(run_folder)[0]


def three_records(departments, path):
    """Write a file with three records of two clients."""
    lines = []
    for client, split, count in (("client_1", "train", 2), ("client_3", "eval", 1)):
        source = next(departments.glob(f"engineering*/{client}/{split}.jsonl"))
        lines += source.read_text().splitlines(keepends=True)[:count]
    path.write_text("".join(lines))
    return path


ALONE = ("round 1", "late", "department", "records")
SEEDS = {"default": (1234, 7, 8), "sampled": (1234, 7, 8)}
CASES = [
    pytest.param(method, seed, what, marks=[] if (method, seed) == ("sampled", 1234) else pytest.mark.slow)
    for method in METHODS
    for seed in SEEDS.get(method, (1234,))
    for what in (ALONE if method == "sampled" or (method, seed) == ("default", 1234) else ("late", "together"))
]
"""Everything that may be named is named alone in runs of two methods; in those of the others, "together" takes out one
of each kind, in three departments: what went wrong with one of them would differ there."""


def request_of(what, before, departments, folder):
    """(request, who is meant, options that leave the same out)."""
    firsts, ids = look_up_clients(before)
    client_id, names, records = None, [], None
    if what == "late":
        client_id = max(firsts, key=lambda c: (firsts[c], c))
    elif what in ("round 1", "together"):
        from_all = what == "round 1"
        client_id = next(c for c in sorted(firsts) if firsts[c] == 1 and (from_all or ids[c].startswith("finance/")))
    if what in ("department", "together"):
        names = ["hr"]
    if what in ("records", "together"):
        records = three_records(departments, folder / "records.jsonl")
    clients = [] if client_id is None else [ids[client_id]]
    options = ["--data.exclude", json.dumps([*names, *clients])] if names or clients else []
    options += ["--data.exclude_records", str(records)] if records else []
    return ForgetRequest.of(clients, names, records), client_id, options


@pytest.mark.parametrize(("method", "seed", "what"), CASES)
def test_the_new_run_is_the_one_that_never_had_them(
    method, seed, what, run_fit, shared_run, departments, contents, tmp_path
):
    options = [str(ROOT / option) if option.startswith("configs/") else option for option in METHODS[method]]
    options += ["--seed", str(seed)]
    name = f"{method.replace(' ', '_')}_{seed}"
    before = shutil.copytree(shared_run(name, *options), tmp_path / "runs" / "version_0")
    request, client_id, exclude = request_of(what, before, departments, tmp_path)
    result = forget(before, request, console=QUIET)
    if what == "late" and "--federation.clients_per_round" in options:
        assert result.plan.start_round == first_rounds(before)[client_id] - 1 > 0
    never = run_fit(tmp_path / "never", *options, *exclude)
    both = [contents(folder) for folder in (result.run_folder, never)]
    kept = checkpoints(before)
    for number in (n for n in range(1, result.plan.start_round + 1) if n not in kept):
        for side in both:  # losses over all clients' records, of a state that is gone
            side["rows"][number] = {key: value for key, value in side["rows"][number].items() if not is_of_many(key)}
    assert both[0] == both[1]
    assert contents(before)["folders"] != contents(never)["folders"]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["late", "records"])
def test_a_run_with_canaries_is_the_one_that_never_had_them_and_others_keep_their_coins(
    what, run_fit, shared_run, departments, contents, tmp_path
):
    options = ["--audit.canaries", "3", "--audit.answer_tokens", "4", *SAMPLED]
    before = shutil.copytree(shared_run("audited", *options), tmp_path / "runs" / "version_0")
    if what == "late":
        changed = {late_client(before)}
        request, exclude = ForgetRequest.of(clients=list(changed)), ["--data.exclude", json.dumps(list(changed))]
    else:
        changed = {"engineering/client_1", "engineering/client_3"}
        path = three_records(departments, tmp_path / "records.jsonl")
        request, exclude = ForgetRequest.of(records=path), ["--data.exclude_records", str(path)]
    result = forget(before, request, console=QUIET)
    assert (result.plan.start_round > 0) == (what == "late")
    never = run_fit(tmp_path / "never", *options, *exclude)
    both = [contents(folder) for folder in (result.run_folder, never)]
    for number in range(1, result.plan.start_round + 1):
        for side in both:
            side["rows"][number] = {key: value for key, value in side["rows"][number].items() if not is_of_many(key)}
    assert both[0] == both[1]
    old, new, other = (
        json.loads((folder / CANARIES).read_text())["clients"] for folder in (before, result.run_folder, never)
    )
    assert new == other
    assert stat.S_IMODE((result.run_folder / CANARIES).stat().st_mode) == 0o600
    assert {c: new[c] for c in old.keys() - changed} == {c: old[c] for c in old.keys() - changed}
    assert new.keys() == old.keys() - (changed if what == "late" else set())
    assert CANARIES in {trace.path.name for trace in find_traces(before, load_run_config(before))}
    assert audit(AuditRequest(result.run_folder)) == audit(AuditRequest(never))


def is_of_many(key):
    """Whether a logged figure is an evaluation of a department, a group, or all."""
    return "eval/" in key and key.count("/") <= 2


def late_client(run_folder):
    firsts = first_rounds(run_folder)
    return max(firsts, key=lambda c: (firsts[c], c))


def test_the_certificate_holds_and_the_run_before_is_marked(sampled):
    client, request = late_client(sampled), ForgetRequest.of(clients=[late_client(sampled)])
    first = first_rounds(sampled)[client]
    old = read_chain(sampled)
    result = forget(sampled, request, console=QUIET)
    assert result.run_folder == sampled.parent / "version_1"
    chain = read_chain(result.run_folder)
    values = verify_run(result.run_folder).certificate
    assert values["taken_out"] == {"clients": [client]}
    assert (values["first_round"], values["before"]["head"], values["after"]["head"]) == (first, old.head, chain.head)
    assert client in old.rounds[first]["clients"]
    assert all(client not in line["clients"] for line in chain.rounds.values())
    for number in range(1, first):  # the rounds taken over, word for word
        both = [{k: v for k, v in c.rounds[number].items() if k != "previous"} for c in (old, chain)]
        assert both[0] == both[1]
    mark = json.loads((sampled / "FORGOTTEN.json").read_text())
    assert mark == {"new_run": "version_1", "taken_out": {"clients": [client]}, "first_round": first, "purged": False}
    for use in (lambda: plan_forget(sampled, request), lambda: shared_adapters(sampled)):
        with pytest.raises(InputError, match="taken out"):
            use()
    with pytest.raises(InputError, match=f"--client: .*{client}"):
        plan_forget(result.run_folder, request)  # it is not in the new run


@pytest.mark.slow
def test_the_same_call_goes_on_after_an_interruption(sampled, contents, monkeypatch):
    request = ForgetRequest.of(clients=[late_client(sampled)])
    copy = shutil.copytree(sampled, sampled.parents[1] / "copy" / "version_0")
    expected = contents(forget(copy, request, console=QUIET).run_folder)

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    for module, name in ((forget_module, "prepare"), (start_module, "save_checkpoint"), (RoundCheckpoint, "_write"),
                         (forget_module, "write_certificate"), (forget_module, "mark_forgotten")):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(module, name, stop)
            with pytest.raises(KeyboardInterrupt):
                forget(sampled, request, console=QUIET)
        assert not (sampled / "FORGOTTEN.json").exists()
    result = forget(sampled, request, console=QUIET)
    assert result.run_folder.name == "version_1"
    assert contents(result.run_folder) == expected


@pytest.mark.slow
def test_a_second_client_is_taken_out_of_the_new_run(sampled, run_fit, contents, tmp_path):
    first, second = late_client(sampled), "finance/client_1"
    result = forget(sampled, ForgetRequest.of(clients=[first]), console=QUIET)
    again = forget(result.run_folder, ForgetRequest.of(clients=[second]), console=QUIET)
    never = run_fit(tmp_path / "never", *SAMPLED, "--data.exclude", json.dumps([first, second]))
    assert contents(again.run_folder) == contents(never)


@pytest.mark.slow
def test_the_clients_files_may_be_gone_but_no_others(sampled, departments, run_fit, contents, tmp_path):
    client = late_client(sampled)
    data = shutil.copytree(departments, tmp_path / "data")
    config = (sampled / "config.yaml").read_text().replace(str(departments), str(data))
    (sampled / "config.yaml").write_text(config)
    department, name = client.split("/")
    other = next(data.glob(f"{department}*/client_0/train.jsonl"))
    assert name != "client_0"
    shutil.rmtree(next(data.glob(f"{department}*/{name}")))
    kept = other.read_text()
    other.write_text(kept.splitlines(keepends=True)[0])
    with pytest.raises(InputError, match=f"{department}/client_0: expected the records with which the run started"):
        forget(sampled, ForgetRequest.of(clients=[client]), console=QUIET)
    assert not (sampled.parent / "version_1").exists()
    other.write_text(kept)
    result = forget(sampled, ForgetRequest.of(clients=[client]), console=QUIET)
    never = run_fit(tmp_path / "never", *SAMPLED, "--data.exclude", json.dumps([client]))
    assert contents(result.run_folder) == contents(never)


def test_a_run_with_a_damaged_ledger_starts_anew_without_a_certificate(sampled, caplog):
    path = sampled / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"round":2', b'"round":3', 1))
    result = forget(sampled, ForgetRequest.of(clients=[late_client(sampled)]), console=QUIET)
    assert (result.certificate, result.plan.start_round) == (None, 0)
    assert "no certificate can be written" in caplog.text


def test_a_purge_leaves_the_chain_and_may_be_repeated(sampled):
    result = forget(sampled, ForgetRequest.of(clients=[late_client(sampled)]), console=QUIET)
    chain = (sampled / "ledger.jsonl").read_bytes()
    traces = find_traces(sampled, load_run_config(sampled))
    names = {trace.path.name for trace in traces}
    assert {"adapters", "checkpoints", "client_exports", "client_runs", "metrics.csv", "federated_eval.json"} <= names
    for _ in range(2):
        purge(sampled, traces)
        left = {path.name for path in sampled.iterdir()}
        assert left <= {"config.yaml", "hparams.yaml", "ledger.jsonl", "ledger_secret", "FORGOTTEN.json", ".lock"}
    assert json.loads((sampled / "FORGOTTEN.json").read_text())["purged"]
    assert (sampled / "ledger.jsonl").read_bytes() == chain
    check_certificate(result.run_folder, read_chain(result.run_folder))


@pytest.mark.slow
def test_updates_with_the_same_inputs_are_taken_from_the_archive(run_fit, contents, tmp_path, monkeypatch):
    options = ["--retention.updates", "true", "--no-dept-clustering", "--training.clients_at_once", "1"]
    before = run_fit(tmp_path / "runs", *options)
    fitted, fit_cohort = [], LocalClients.fit_cohort

    def count(clients, tasks, *arguments):
        fitted.extend((task.client_id, task.round_num) for task in tasks)
        return fit_cohort(clients, tasks, *arguments)

    monkeypatch.setattr(LocalClients, "fit_cohort", count)
    result = forget(before, ForgetRequest.of(clients=["hr/client_2"]), console=QUIET)
    others = ["hr/client_0", "hr/client_1", "hr/client_3"]
    assert fitted == [(client_id, number) for number in (2, 3) for client_id in others]
    assert (result.plan.fits, result.plan.reused) == (11 * 3, 11 * 3 - len(fitted))
    never = run_fit(tmp_path / "never", *options, "--data.exclude", "[hr/client_2]")
    assert contents(result.run_folder) == contents(never)
    fitted.clear()
    forget(result.run_folder, ForgetRequest.of(clients=["finance/client_0"]), console=QUIET)  # it keeps them, too
    assert {client_id.split("/")[0] for client_id, _ in fitted} == {"finance"}
