import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fl_lightning.config.parsing import parse_config
from fl_lightning.errors import InputError
from fl_lightning.runs.build import load_run_config
from fl_lightning.runs.forgetting.forget import plan_forget
from fl_lightning.runs.forgetting.plan import asked, make_plan, read_rows, why_anew
from fl_lightning.runs.forgetting.request import ForgetRequest, look_up

ROOT = Path(__file__).parents[3]


def late_client(run_folder):
    """(client, round): the client that is asked for the first time in the latest round."""
    config = load_run_config(run_folder)
    removal = look_up(config, ForgetRequest.of(clients=["hr/client_0"]))
    first = {}
    for number in range(config.federation.rounds, 0, -1):
        first |= dict.fromkeys(asked(config, removal.places, removal.before, number), number)
    return max(first.items(), key=lambda item: (item[1], item[0]))


def test_a_late_client_costs_the_rounds_from_its_first_on(sampled):
    client, first = late_client(sampled)
    assert first > 1
    _, removal, plan = plan_forget(sampled, ForgetRequest.of(clients=[client]))
    assert (plan.start_round, plan.first_round) == (first - 1, first)
    config = load_run_config(sampled)
    fits = [c for n in range(first, 4) for c in asked(config, removal.places, removal.before, n)]
    assert plan.fits == len([c for c in fits if c != client])
    assert removal.taken_out == {"clients": [client]}
    assert plan.seconds < plan.seconds_anew


def test_it_starts_earlier_if_the_checkpoint_was_not_kept(sampled):
    client, first = late_client(sampled)
    for number in range(1, first):
        shutil.rmtree(sampled / "checkpoints" / f"round_{number}", ignore_errors=True)
        _, _, plan = plan_forget(sampled, ForgetRequest.of(clients=[client]))
    assert plan.start_round == 0
    assert "no later checkpoint" in plan.reason


def test_seconds_are_those_of_the_rows(sampled):
    _, _, plan = plan_forget(sampled, ForgetRequest.of(clients=["hr/client_0"]), from_start=True)
    timed = [row for _, row in read_rows(sampled) if "seconds/fit" in row]
    whole = sum(row[f"seconds/{phase}"] for row in timed for phase in ("fit", "aggregate", "write", "evaluate"))
    assert len(timed) == 3
    assert 0.5 * whole < plan.seconds < 1.3 * whole  # fewer fits, and one evaluation of the base more


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], ""),
        (["--config", "configs/methods/dp_fedavg.yaml"], "noise must not be used"),
        (["--federation.schedule.clients.speed", "constant"], "when the others have finished"),
        (["--config", "configs/methods/central.yaml"], "all records"),
        (["--federation.dept_clusters.representation", "cross_loss"], "cross_loss"),
        (["--federation.weighting", "contribution"], "contribution"),
        (["--training.early_stopping", "true", "--data.selection_fraction", "0.3"], "early_stopping"),
        (["--retention.best", "1"], "retention.best"),
        (["--lora.profiles", "{hr/client_0: {r: 4}}", "--federation.combiner", "svd"], "a profile"),
    ],
)
def test_what_counts_from_round_1_on_starts_anew(options, reason, departments):
    if "svd" in options:
        options = [*options, "--no-dept-clustering", "--num-clusters", "1"]
    options = [str(ROOT / option) if option.startswith("configs/") else option for option in options]
    config = parse_config(["--data", str(departments), "--clients-per-dept", "4", *options])
    why = why_anew(config, look_up(config, ForgetRequest.of(clients=["hr/client_0"])))
    assert reason in why
    assert bool(reason) == bool(why)


def test_the_last_client_of_a_department_is_the_department(departments):
    config = parse_config(["--data", str(departments), "--clients-per-dept", "1"])
    assert "all of hr is taken out" in why_anew(config, look_up(config, ForgetRequest.of(clients=["hr/client_0"])))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"clients": ["hr"]}, "--client: expected a name such as hr/client_1, got 'hr'"),
        ({"departments": ["hr/client_0"]}, "--department: expected a name such as hr"),
        ({}, "expected --client, --department or --records"),
        ({"clients": ["hr/client_9"]}, "--client: .*'hr/client_9'; did you mean"),
        ({"departments": ["legal"]}, "--department: .*'legal'"),
        ({"departments": ["hr", "finance", "engineering"]}, "expected that some client is left"),
    ],
)
def test_bad_requests_are_refused(request_, message, departments):
    config = parse_config(["--data", str(departments), "--clients-per-dept", "4"])
    with pytest.raises(InputError, match=message):
        look_up(config, ForgetRequest.of(**request_))


def test_a_client_beyond_those_of_the_run_is_refused(departments):
    config = parse_config(["--data", str(departments), "--clients-per-dept", "2"])
    with pytest.raises(InputError, match="that the run has .*'hr/client_3'"):
        look_up(config, ForgetRequest.of(clients=["hr/client_3"]))


def test_records_of_nobody_in_the_run_are_refused(departments, tmp_path):
    path = tmp_path / "gone.jsonl"
    record = next(departments.glob("hr*/client_3/train.jsonl")).read_text().splitlines()[0]
    path.write_text(f"{record}\n")
    config = parse_config(["--data", str(departments), "--clients-per-dept", "2"])
    with pytest.raises(InputError, match="expected records of clients of the run, got some of hr/client_3"):
        look_up(config, ForgetRequest.of(records=path))
    path.write_text(json.dumps({"text": "nowhere"}))
    with pytest.raises(InputError, match="1 that are in no file"):
        look_up(config, ForgetRequest.of(records=path))


def test_what_the_run_leaves_out_already_stays_out(departments):
    config = parse_config(["--data", str(departments), "--clients-per-dept", "4", "--data.exclude", "[hr/client_2]"])
    removal = look_up(config, ForgetRequest.of(clients=["hr/client_0"]))
    assert removal.config.data.exclude == ["hr/client_2", "hr/client_0"]
    assert removal.gone == {"hr/client_0"}
    assert "hr/client_2" in removal.places
    assert "hr/client_2" not in removal.before
    with pytest.raises(InputError, match="hr/client_2"):
        look_up(config, ForgetRequest.of(clients=["hr/client_2"]))


def test_runs_that_cannot_be_computed_again_here_are_refused(sampled):
    request = ForgetRequest.of(clients=["hr/client_0"])
    (sampled / "network.json").write_text("{}")
    with pytest.raises(InputError, match="between machines.*data.exclude"):
        plan_forget(sampled, request)
    (sampled / "network.json").unlink()
    shutil.rmtree(sampled / "checkpoints" / "round_3")
    with pytest.raises(InputError, match="expected a finished run, got 2 of 3 rounds"):
        plan_forget(sampled, request)


def test_a_run_without_checkpoints_starts_anew(sampled):
    config = load_run_config(sampled)
    shutil.rmtree(sampled / "checkpoints")
    removal = look_up(config, ForgetRequest.of(clients=[late_client(sampled)[0]]))
    plan = make_plan(sampled, config, replace(removal))
    assert (plan.start_round, plan.seconds) == (0, None)
