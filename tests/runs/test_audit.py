"""`audit` on small runs: a planted leak is found, noise is not taken for one, and what cannot be tested is refused."""

import io
import json
import shutil
import stat

import numpy as np
import pytest
import torch
from rich.console import Console
from run_files import DEPARTMENTS, adapters
from shared_folder import make_once

from fl_lightning.cli import main
from fl_lightning.errors import InputError
from fl_lightning.federation.checkpoint import newest_checkpoint
from fl_lightning.privacy import epsilon, epsilon_of_shares, mechanism
from fl_lightning.privacy.audit.membership import membership_test
from fl_lightning.privacy.audit.one_run import epsilon_lower_bound
from fl_lightning.runs.audit import AuditRequest, audit
from fl_lightning.runs.audit_table import show
from fl_lightning.runs.build import build_components, load_run_config

pytestmark = pytest.mark.xdist_group("audit")

CANARIES = 24
LEAKY = ["--rounds", "1", "--local-epochs", "20", "--clients-per-dept", "1", "--audit.canaries", str(CANARIES)]
PRIVATE = ["--rounds", "2", "--audit.canaries", "32", "--audit.kind", "new_tokens", "--audit.guesses", "1.0"]
PRIVATE += ["--federation.guard.name", "dp", "--federation.weighting", "uniform", "--num-clusters", "1"]
PRIVATE += ["--federation.privacy.noise_seed", "5"]
IN_SHARES = ["--federation.secure_aggregation", "true", "--federation.masking.min_clients", "2"]

QUIET = [*LEAKY, "--federation.guard.name", "dp", "--federation.weighting", "uniform", "--num-clusters", "1"]
QUIET += ["--federation.combiner", "fedavg", "--federation.privacy={clip: 10.0, noise_multiplier: 4.0, noise_seed: 5}"]
"""A leaky run with much noise, whose ε its canaries could disprove: 0.9 for a client, twice that for a record."""


@pytest.fixture(scope="module")
def leaky(fit, tmp_path_factory):
    """A run whose clients have seen their canaries twenty times. Read it; copy it before changing it."""
    return make_once(tmp_path_factory, "leaky_run", lambda folder: fit(folder, *LEAKY)) / "version_0"


@pytest.fixture(scope="module")
def result(leaky):
    return audit(AuditRequest(leaky))


def lines(result, kind):
    return {line["owner"]: line for line in result["canaries"]["bounds"] if line["kind"] == kind}


def test_a_planted_leak_is_proved(result):
    for kind in ("client", "department", "mixed"):
        assert lines(result, kind)["all"]["epsilon"] > 2
    everybody = lines(result, "client")["all"]
    assert (everybody["canaries"], everybody["guesses"]) == (4 * CANARIES, 4 * CANARIES // 2)
    assert everybody["upper"] is None
    assert everybody["provable"] == epsilon_lower_bound(96, 48, 48, 1e-5)
    assert result["accountant"] == {}
    assert result["mechanism"] is None


def test_every_adapter_has_a_line_with_its_bound(leaky, result):
    kinds = ["client", "client, A alone", "department", "department, A alone", "mixed", "mixed, A alone"]
    assert list(dict.fromkeys(line["kind"] for line in result["canaries"]["bounds"])) == kinds
    assert list(lines(result, "mixed")) == ["all", *DEPARTMENTS]
    for line in result["canaries"]["bounds"]:
        counts = (line["canaries"], line["guesses"], line["correct"])
        assert line["epsilon"] == epsilon_lower_bound(*counts, result["delta"])
    for kind in kinds:
        own = [line for owner, line in lines(result, kind).items() if owner != "all"]
        assert lines(result, kind)["all"]["correct"] == sum(line["correct"] for line in own)
    assert json.loads((leaky / "audit.json").read_text()) == result


def test_membership_is_that_of_losses_computed_by_peft(leaky, result, tokenizer):
    import torch
    from peft import PeftModel
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM

    config = load_run_config(leaky)
    components = build_components(config, leaky)
    base = AutoModelForCausalLM.from_pretrained(config.model.name_or_path, dtype=torch.float32)
    client = components.data["hr/client_0"]

    def losses(model, records):
        with torch.no_grad():
            logits = [model(e.ids[None]).logits[0, :-1] for e in records]
        pairs = zip(logits, records, strict=True)
        return np.array([float(cross_entropy(x[e.supervised[1:]], e.ids[1:][e.supervised[1:]])) for x, e in pairs])

    records = [list(client.train)[:8], list(client.eval)]
    before = [losses(base, some) for some in records]
    model = PeftModel.from_pretrained(base, leaky / "client_exports" / "hr" / "round_1_client_0").eval()
    expected = membership_test(*(b - losses(model, s) for b, s in zip(before, records, strict=True)), seed=0)
    (got,) = [t for t in result["membership"] if (t["kind"], t["owner"]) == ("client", "hr/client_0")]
    assert got["auc"] == pytest.approx(expected.auc)
    assert (got["tpr"], got["members"], got["others"]) == (expected.tpr, 8, 4)


def test_canaries_are_training_records_and_their_file_is_secret(leaky):
    assert stat.S_IMODE((leaky / "canaries.json").stat().st_mode) == 0o600
    coins = {
        client_id: [canary["in"] for canary in some]
        for client_id, some in json.loads((leaky / "canaries.json").read_text())["clients"].items()
    }
    assert all(len(some) == CANARIES for some in coins.values())
    state, extra = newest_checkpoint(leaky)
    assert state.examples == {client_id: 8 + sum(some) for client_id, some in coins.items()}
    with_canaries = build_components(load_run_config(leaky), leaky)
    anew = build_components(load_run_config(leaky))  # without the file, as before the run existed
    for client_id, client in with_canaries.data.items():
        assert [e.ids.tolist() for e in client.train] == [e.ids.tolist() for e in anew.data[client_id].train]
        assert len(client.train) == state.examples[client_id]
        assert extra.identity["clients"].keys() == coins.keys()


def test_a_killed_run_with_canaries_ends_with_the_same_bytes(fit, tmp_path):
    options = ["--clients-per-dept", "1", "--audit.canaries", "4"]
    straight = fit(tmp_path / "straight", "--rounds", "2", *options)
    first = fit(tmp_path / "resumed", "--rounds", "1", *options)
    resumed = fit(tmp_path / "resumed", "--rounds", "2", *options, resume=first)
    assert adapters(resumed) == adapters(straight)
    assert (resumed / "canaries.json").read_bytes() == (straight / "canaries.json").read_bytes()
    without = fit(tmp_path / "without", "--rounds", "2", *options[:2])
    assert not (without / "canaries.json").exists()
    assert adapters(without) != adapters(straight)
    with pytest.raises(InputError, match="audit.canaries: expected 4, with which the run started, got 5; start a new"):
        fit(tmp_path / "resumed", "--rounds", "3", *options[:2], "--audit.canaries", "5", resume=first)


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["server", "shares"])
def test_under_differential_privacy_no_bound_is_above_the_accountants(fit, tmp_path, noise):
    pytest.importorskip("dp_accounting", reason="dp-accounting is not installed: pip install 'fl_lightning[privacy]'")
    run = fit(tmp_path, *PRIVATE, *(IN_SHARES if noise == "shares" else []))
    result = audit(AuditRequest(run))
    clients, records = (result["accountant"][unit] for unit in ("client", "record"))
    if noise == "shares":
        costs = epsilon_of_shares(1.0, 2, 1e-5), epsilon_of_shares(0.5, 2, 1e-5)
    else:
        costs = epsilon(1.0, 2, 1e-5, clients=1, asked=1), epsilon(0.5, 2, 1e-5, clients=1, asked=1)
    assert (clients["hr"], records["hr"]) == pytest.approx(costs)
    mechanism = result["mechanism"]
    assert mechanism["upper"] == clients["hr"]
    assert mechanism["rounds"] == 2
    assert mechanism["epsilon"] <= mechanism["upper"]
    text = io.StringIO()
    show(result, Console(file=text, width=200))
    assert "200 canary clients in random directions, sent through clipping and noise of 2 rounds" in text.getvalue()
    covered = [line for line in result["canaries"]["bounds"] if not line["kind"].startswith("client")]
    assert {line["kind"] for line in covered} == {
        "department", "department, A alone", "mixed", "mixed, A alone"
    }  # fmt: skip
    for line in covered:
        assert line["epsilon"] <= clients["hr"] < line["upper"] == records["hr"]
    assert all(line["upper"] is None for line in result["canaries"]["bounds"] if line["kind"].startswith("client"))


@pytest.mark.slow
def test_a_bound_of_a_private_run_could_be_above_the_accountants_and_is_without_noise(fit, tmp_path, monkeypatch):
    pytest.importorskip("dp_accounting", reason="dp-accounting is not installed: pip install 'fl_lightning[privacy]'")
    line = lines(audit(AuditRequest(fit(tmp_path / "private", *QUIET))), "department")["all"]
    assert line["upper"] == pytest.approx(epsilon(2.0, 1, 1e-5, clients=1, asked=1))  # half the noise multiplier
    assert line["epsilon"] <= line["upper"] < line["provable"]
    monkeypatch.setattr(mechanism, "gaussian", lambda key, name, count: torch.zeros(count, dtype=torch.float64))
    line = lines(audit(AuditRequest(fit(tmp_path / "without", *QUIET))), "department")["all"]
    assert line["epsilon"] > line["upper"]


def test_a_run_without_canaries_is_tested_for_membership(copied, capsys):
    assert main(["audit", "--run", str(copied), "--reference", str(copied / "adapters" / "finance")]) == 0
    text = capsys.readouterr().out
    assert "No canaries, so no bound on ε" in text
    assert "by loss against the base model" in text
    assert "by loss against the reference" in text
    result = json.loads((copied / "audit.json").read_text())
    assert result["canaries"] is None
    assert {test["score"] for test in result["membership"]} == {"base", "reference"}
    everybody = next(t for t in result["membership"] if (t["kind"], t["owner"]) == ("client", "all"))
    assert (everybody["members"], everybody["others"]) == (64, 32)


def test_table_has_bounds_beside_what_can_be_proved(result):
    text = io.StringIO()
    show(result, Console(file=text, width=100))
    printed = text.getvalue()
    line = lines(result, "client")["all"]
    assert f"{line['correct']} of 48" in printed
    assert f"{line['provable']:.2f}" in printed
    assert "with 100 at most 3.49, with 1,000 at most 5.81" in printed


@pytest.fixture
def moved(leaky, tmp_path):
    return shutil.copytree(leaky, tmp_path / "moved")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: (run / "canaries.json").unlink(), "expected the coins of audit.canaries 24, got no file"),
        (lambda run: (run / "canaries.json").chmod(0o644), "others may read it; expected mode 0600"),
        (lambda run: (run / "canaries.json").write_text("{}"), "expected canaries, as fit writes them"),
        (lambda run: (run / "network.json").write_text("{}"), "expected a run of fit, got one between machines"),
        (lambda run: shutil.rmtree(run / "checkpoints"), "no checkpoint"),
    ],
    ids=["no coins", "open coins", "other coins", "between machines", "no checkpoint"],
)
def test_what_cannot_be_audited_is_refused(moved, change, message):
    change(moved)
    before = (moved / "audit.json").read_bytes() if (moved / "audit.json").exists() else None
    with pytest.raises(InputError, match=message):
        audit(AuditRequest(moved))
    assert before == ((moved / "audit.json").read_bytes() if (moved / "audit.json").exists() else None)


def test_coins_of_other_clients_are_refused(moved):
    value = json.loads((moved / "canaries.json").read_text())
    value["clients"]["hr/other"] = value["clients"].pop("hr/client_0")
    (moved / "canaries.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match="expected canaries of the clients in data.root, got a difference in hr/"):
        audit(AuditRequest(moved))


def test_nothing_to_test_is_refused_with_the_way_out(copied, monkeypatch):
    from fl_lightning.runs import audit as module

    monkeypatch.setattr(module, "audited_adapters", lambda *_: [])
    with pytest.raises(InputError, match="expected canaries, or held-out records .* start a run with fit --audit.can"):
        audit(AuditRequest(copied))
    assert not (copied / "audit.json").exists()
