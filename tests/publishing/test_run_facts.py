import json
import shutil

from fl_lightning.publishing.run_facts import AdapterFacts, collect_facts

GROUPS = {"office": ["finance", "hr"]}


def figures(loss):
    return {"loss": loss, "perplexity": 10 * loss, "token_accuracy": loss / 10}


def test_department(make_run):
    assert collect_facts(make_run(), "hr", GROUPS) == AdapterFacts(
        "hr",
        "department",
        rounds=2,
        planned_rounds=2,
        departments=2,
        clients=3,
        examples=100 + 20 + 3,
        base=figures(4.0),
        final=figures(3.0),
        held_out=3 * 8,
        rejected=1,
        epsilon=3.25,
    )


def test_group_is_all_its_departments(make_run):
    facts = collect_facts(make_run(), "office", GROUPS)
    assert (facts.kind, facts.departments, facts.clients, facts.examples) == ("group", 2, 5, 134)
    assert (facts.held_out, facts.rejected, facts.epsilon) == (3 * 8 + 2 * 4, 1, 7.5)
    assert facts.final == figures(4.5)


def test_client_has_its_own_figures_and_no_epsilon(make_run):
    facts = collect_facts(make_run(), "hr/client_2", GROUPS)
    assert (facts.kind, facts.rounds, facts.clients, facts.examples) == ("client", 2, 1, 3)
    assert (facts.base, facts.final, facts.held_out) == ({}, figures(2.5), 8)
    assert (facts.rejected, facts.epsilon) == (1, None)


def test_what_a_run_does_not_say_is_left_out(make_run):
    run = make_run()
    for name in ("checkpoints", "cluster_metadata"):
        shutil.rmtree(run / name)
    (run / "federated_eval.json").write_text("[")
    facts = collect_facts(run, "hr", GROUPS)
    assert (facts.clients, facts.examples, facts.base, facts.epsilon) == (3, None, {}, None)
    (run / "client_eval_all_rounds.json").unlink()
    assert collect_facts(run, "hr", GROUPS) == AdapterFacts("hr", "department", rounds=0, planned_rounds=2)


def test_under_early_stopping_the_figures_are_those_of_the_round_that_was_taken(make_run):
    run = make_run()
    best = {"hr": {"round": 1, "loss": 1.0}, "hr/client_2": {"round": 1, "loss": 1.0}}
    (run / "early_stopping.json").write_text(json.dumps(best))
    values = json.loads((run / "client_eval_all_rounds.json").read_text())
    values["rounds"]["1"]["hr"]["client_2"]["loss"] = 1.5
    (run / "client_eval_all_rounds.json").write_text(json.dumps(values))
    client, department = (collect_facts(run, name, GROUPS) for name in ("hr/client_2", "hr"))
    assert client.final["loss"] == 1.5
    assert (client.best_round, client.rounds) == (1, 2)
    assert (department.best_round, department.rounds) == (1, 2)
    assert collect_facts(run, "finance", GROUPS).best_round is None
