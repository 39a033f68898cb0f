"""``personal.own: during``: own adapters beside the federation, which neither change it nor are changed by it."""

import shutil

import pytest
import torch
from run_files import adapters, metrics

from fl_lightning import InputError
from fl_lightning.config.parsing import parse_config
from fl_lightning.federation.checkpoint import newest_checkpoint
from fl_lightning.linalg.own_mixture import alpha_of, weights_of
from fl_lightning.runs.personalize import personalize
from fl_lightning.storage.personal_models import client_mixtures, personal_adapters
from fl_lightning.storage.run_layout import level_adapter
from fl_lightning.training.local_clients import LocalClients

pytestmark = pytest.mark.xdist_group("own_adapters")

DURING = ("--personal.own", "during")
ALONE = ("--federation.share", "none", "--no-dept-clustering", "--num-clusters", "1")


def watch_fits(monkeypatch, fits, stop_at=None):
    """Append (round, whether of own adapters) for each cohort that is fitted; the one of that number interrupts."""
    fit_cohort = LocalClients.fit_cohort

    def watched(self, tasks, on_step=None):
        if len(fits) == stop_at:
            raise KeyboardInterrupt
        fits.append((tasks[0].round_num, tasks[0].is_own))
        return fit_cohort(self, tasks, on_step)

    monkeypatch.setattr(LocalClients, "fit_cohort", watched)


@pytest.fixture(scope="module")
def fits():
    """Those of `with_own`."""
    return []


@pytest.fixture(scope="module")
def with_own(fit, fits, tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        watch_fits(monkeypatch, fits)
        return fit(tmp_path_factory.mktemp("own"), "--rounds", "2", *DURING)


def own_of(folder):
    return newest_checkpoint(folder)[0].own_adapters


def assert_same_bits(first, second):
    assert first.keys() == second.keys()
    for client_id, state in first.items():
        assert state.keys() == second[client_id].keys()
        for name, tensor in state.items():
            assert torch.equal(tensor, second[client_id][name]), f"{client_id} {name}"


def test_own_adapters_are_those_of_a_run_that_shares_nothing(fit, with_own, tmp_path):
    alone = newest_checkpoint(fit(tmp_path, "--rounds", "2", *ALONE))[0].personal
    assert len(alone) == 8
    assert_same_bits(own_of(with_own), {c: {n: state[n] for n in sorted(state)} for c, state in alone.items()})


def test_the_federation_is_the_one_without_own_adapters(finished, with_own):
    assert adapters(with_own) == adapters(finished)
    for step, row in metrics(finished).items():
        row_with_own = metrics(with_own)[step]
        if step:  # training tokens are counted wherever they go
            assert int(row_with_own.pop("round/tokens")) == 2 * int(row.pop("round/tokens"))
        assert {k: v for k, v in row_with_own.items() if "/own/" not in k} == row
        own_rows = {k.split("/own/")[1] for k in row_with_own if "/own/" in k}
        assert own_rows == ({"train/loss", "eval/loss", "eval/perplexity", "eval/token_accuracy"} if step else set())


@pytest.mark.slow
def test_a_run_that_is_resumed_between_rounds_has_the_same_own_adapters(fit, with_own, tmp_path):
    first = fit(tmp_path, "--rounds", "1", *DURING)
    fit(tmp_path, "--rounds", "2", *DURING, resume=first)
    assert_same_bits(own_of(first), own_of(with_own))


@pytest.mark.slow
def test_a_run_that_is_killed_between_own_fits_fits_the_others_only(fit, fits, with_own, tmp_path, monkeypatch):
    assert fits[-2:] == [(2, True)] * 2
    with monkeypatch.context() as interrupted:
        watch_fits(interrupted, [], stop_at=len(fits) - 1)  # before the last fit of all, which is of own adapters
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path / "killed", "--rounds", "2", *DURING)
    (killed,) = (tmp_path / "killed").glob("version_0")
    again = []
    watch_fits(monkeypatch, again)
    fit(tmp_path / "killed", "--rounds", "2", *DURING, resume=killed)
    assert again == [(2, True)]
    assert_same_bits(own_of(killed), own_of(with_own))
    assert adapters(killed) == adapters(with_own)


def test_only_sampled_clients_train_their_own_adapters(fit, tmp_path):
    folder = fit(tmp_path, "--rounds", "1", *DURING, "--federation.clients_per_round", "1")
    assert len(own_of(folder)) == 4


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (ALONE, "share: none trains nothing else"),
        (("--federation.share", "central", "--federation.combiner", "fedavg", *ALONE[2:]), "one client for all"),
        (("--lora.profiles", "{hr: {r: 4}}", "--federation.combiner", "svd", *ALONE[2:]), "several ranks or scales"),
        (("--federation.guard.name", "dp", "--federation.weighting", "uniform", *ALONE[2:]), "own adapters have none"),
        (("--personal.fedalt_weight", "0.5", "--federation.guard.name", "median", *ALONE[2:]), "no guard looks at"),
        (("--personal.ditto_lambda", "0.1", "--federation.combiner", "stack", *ALONE[2:]), "combiner: stack keeps"),
    ],
)
def test_choices_that_leave_no_place_for_own_adapters_are_refused(options, reason):
    with pytest.raises(InputError, match=f"personal.own: .*{reason}.*; expected after, or .*got during"):
        parse_config([*options, *DURING])


def test_turning_own_adapters_on_in_the_middle_of_a_run_is_refused(fit, finished, tmp_path):
    copied = shutil.copytree(finished, tmp_path / "version_0")
    with pytest.raises(InputError, match="personal.own: expected 'after', with which the run started, got 'during'"):
        fit(tmp_path, "--rounds", "3", *DURING, resume=copied)


SELECTION = ("--data.selection_fraction", "0.25", "--federation.combiner", "fedavg", "--batch-size", "2")


@pytest.fixture(scope="module")
def measured(fit, tmp_path_factory):
    """{when own adapters are trained: (run folder, result of personalize)}."""
    folders = {
        own: fit(tmp_path_factory.mktemp(own), "--rounds", "2", *SELECTION, "--personal.own", own)
        for own in ("after", "during", "off")
    }
    return {own: (folder, personalize(folder)) for own, folder in folders.items()}


LEARNED = {
    "apfl": ("--personal.apfl_alpha", "0.5", "--personal.apfl_rate", "5"),
    "fedalt": ("--personal.fedalt_gate", "true"),
}
"""{method: options by which clients learn how to weigh their own adapters}."""


@pytest.fixture(scope="module", params=LEARNED)
def learned(request, fit, tmp_path_factory):
    """(method, fits, run folder) of a run of two rounds."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        watch_fits(monkeypatch, fits := [])
        folder = fit(
            tmp_path_factory.mktemp(request.param), "--rounds", "2", *SELECTION, *DURING, *LEARNED[request.param]
        )
    return request.param, fits, folder


def test_what_clients_learn_is_resumed_exactly_after_a_kill_between_own_fits(fit, learned, tmp_path, monkeypatch):
    method, fits, expected = learned
    options = ("--rounds", "2", *SELECTION, *DURING, *LEARNED[method])
    with monkeypatch.context() as interrupted:
        watch_fits(interrupted, [], stop_at=len(fits) - 1)
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path, *options)
    (killed,) = tmp_path.glob("version_0")
    watch_fits(monkeypatch, again := [])
    fit(tmp_path, *options, resume=killed)
    assert again == [(2, True)]
    assert_same_bits(own_of(killed), own_of(expected))
    assert all(weights_of(own) for own in own_of(killed).values())
    assert adapters(killed) == adapters(expected)


def test_apfl_logs_each_clients_weight_and_personalize_says_it(learned):
    method, _, folder = learned
    if method != "apfl":
        pytest.skip("has no number for each client")
    alphas = {client_id: alpha_of(own) for client_id, own in own_of(folder).items()}
    rows = metrics(folder)
    assert {c: float(rows[2][f"{c}/own/alpha"]) for c in alphas} == pytest.approx(alphas, rel=1e-5)
    assert {float(rows[1][f"{c}/own/alpha"]) for c in alphas} == {0.5}  # in the first round v = w
    assert 0.5 not in alphas.values()
    result = personalize(folder)
    assert {client_id: values["apfl_alpha"] for client_id, values in result["clients"].items()} == alphas


def test_personalize_measures_gated_adapters_and_writes_none_of_them(learned, caplog):
    method, _, folder = learned
    if method != "fedalt":
        pytest.skip("has plain adapters")
    result = personalize(folder)
    assert "own adapters of 8 clients have gates (personal.fedalt_gate), for which PEFT has no format" in caplog.text
    mixtures, ones = client_mixtures(folder), personal_adapters(folder)
    for client_id, values in result["clients"].items():
        assert values["gated"]
        assert values["own"] > 0
        assert values["mixture"] > 0
        assert not (folder / level_adapter("own", client_id)).exists()
        assert "own" not in values["adapters"]
        assert (folder / values["adapters"]["department"]).is_dir()
        assert (f"{client_id}+" in mixtures) == (values["weights"]["own"] < 0.005)
        assert (f"{client_id}+adapter" in ones) == (values["chosen"] != "own") == (values["adapter"] is not None)
        assert values["adapter"] in (None, values["level"])


@pytest.mark.slow
def test_personalize_says_the_same_of_own_adapters_trained_during_the_run_or_after_it(measured):
    assert not (measured["during"][0] / "personal" / "own").exists()
    assert (measured["after"][0] / "personal" / "own").exists()
    assert measured["during"][1] == measured["after"][1]


@pytest.mark.slow
def test_personalize_without_own_adapters_chooses_among_the_shared_ones(measured):
    folder, result = measured["off"]
    assert not (folder / "personal" / "own").exists()
    assert result["levels"] == ["department", "cluster", "root", "base"]
    assert (result["mean"]["own"], result["hurt"]) == (None, None)
    for values in result["clients"].values():
        assert values["own"] is None
        assert "own" not in values["weights"]
        assert values["mixture"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [("--personal.ditto_lambda", "0.5"), ("--personal.apfl_alpha", "0.5"), ("--personal.fedalt_weight", "0.5")],
)
def test_a_method_changes_own_adapters_only_and_personalize_measures_what_the_client_uses(
    fit, measured, tmp_path, method
):
    levels = ["--personal.levels", "[own, department]"]
    folder = fit(tmp_path, "--rounds", "2", *SELECTION, *DURING, *method, *levels)
    assert (departments := adapters(folder)) == adapters(measured["during"][0])
    assert departments
    values, plain = (result["clients"] for result in (personalize(folder), measured["during"][1]))
    assert all(values[c]["own"] != plain[c]["own"] for c in plain)
