"""What each theme says of a run, before anything is drawn."""

import json

import pytest

from fl_lightning.report.audit import audit
from fl_lightning.report.cluster_count import cluster_count
from fl_lightning.report.clusters import clusters
from fl_lightning.report.comparison import comparison, loss_rows
from fl_lightning.report.costs import costs
from fl_lightning.report.elements import Table
from fl_lightning.report.losses import losses
from fl_lightning.report.personal import personal
from fl_lightning.report.run_summary import config, excluded_updates, overview, progress
from fl_lightning.report.similarity import similarity
from fl_lightning.runs.artifact_reader import read_artifacts

TWO = {"finance": ["a", "b"], "hr": ["c"]}


@pytest.fixture
def run(make_run):
    return read_artifacts(make_run(TWO, rounds=2, planned=5, left_out=[(2, "hr", "c", "w: not finite")]))


@pytest.fixture
def empty(tmp_path):
    return read_artifacts(tmp_path)


def test_losses_of_everybody_are_in_the_table(run):
    mean, panels = losses(run).pictures
    assert mean.table.rows == [["0", "5.9500"], ["1", "5.9400"], ["2", "5.9300"]]
    assert panels.table.head == ["adapter", "round 0", "round 1", "round 2"]
    assert panels.table.rows[0] == ["finance", "6.000", "5.990", "5.980"]
    assert panels.table.rows[1] == ["finance/a", "–", "4.990", "4.980"]
    assert "finance from 6.000 to 5.980; hr from 5.900 to 5.880" in panels.alt


def test_losses_over_virtual_hours_are_drawn_if_clients_have_profiles(run):
    run.virtual_hours = {1: 0.5, 2: 1.25}
    mean, hours, _ = losses(run).pictures
    assert hours.table.rows == [["0", "0.0000", "5.9500"], ["1", "0.5000", "5.9400"], ["2", "1.2500", "5.9300"]]
    assert hours.alt.endswith("5.950 at 0.00 hours, 5.930 at 1.25 hours.")


def test_very_many_clients_are_shown_as_quantiles(run):
    run.client_losses["hr"] = {f"c{k}": {1: float(k)} for k in range(301)}
    rows = {row[0]: row[1:] for row in losses(run).pictures[1].table.rows}
    assert rows["hr/p50 of clients"] == ["–", "150.000", "–"]
    assert "hr/c7" not in rows


def test_every_clients_weights_are_in_one_table_by_level(make_run):
    folder = make_run(TWO, rounds=2)
    losses_of = {"own": 2.0, "level": 1.9, "mixture": 1.75, "adapter": 1.8}
    clients = {
        "hr/c": {**losses_of, "chosen": "root", "weights": {"own": 0.2, "department": 0.3, "root": 0.5}},
        "finance/a": {
            **losses_of, "own": 1.0, "chosen": "own", "weights": {"own": 0.9, "department": 0.1, "cluster": 0.0},
        },
        "finance/b": {"own": None, "level": None, "mixture": None, "adapter": None, "weights": {"own": 1.0}},
        "<b>": {"weights": "all"},
    }  # fmt: skip
    (folder / "personal_eval.json").write_text(json.dumps({"clients": clients}))
    weights, losses_table = personal(read_artifacts(folder)).tables
    assert weights.head == ["client", "own", "department", "cluster", "root", "best level"]
    assert weights.rows == [
        ["finance/a", "90%", "10%", "0%", "–", "own"],
        ["finance/b", "100%", "–", "–", "–", ""],
        ["hr/c", "20%", "30%", "–", "50%", "root"],
    ]
    assert losses_table.rows[0] == ["finance/a", "1.000", "1.900", "1.750", "1.800"]
    assert losses_table.rows[1] == ["finance/b", "–", "–", "–", "–"]
    assert losses_table.rows[-1] == ["mean", "1.500", "1.900", "1.750", "1.800"]


def test_departments_weights_are_drawn_beside_their_clusters(make_run):
    folder = make_run(TWO, rounds=2)
    losses_of = {"department": 2.0, "root": 3.0, "mixture": 1.9}
    departments = {
        "hr": {"weights": {"department": 0.75, "root": 0.25}, "losses": losses_of},
        "finance": {"weights": {"department": 0.5, "cluster": 0.5, "root": 0.0}},
        "<b>": {"weights": "all"},
    }
    (folder / "department_mixtures.json").write_text(json.dumps({"departments": departments}))
    section = clusters(read_artifacts(folder))
    picture = section.pictures[1]
    assert picture.table.head == ["department", "department", "cluster", "root"]
    assert picture.table.rows == [["finance", "50%", "50%", "0%"], ["hr", "75%", "–", "25%"]]
    assert "finance: department 50%, cluster 50%, root 0%; hr: department 75%" in picture.alt
    assert section.tables[0].rows[1] == ["hr", "2.000", "–", "3.000", "1.900"]


def test_bounds_of_an_audit_stand_beside_what_they_can_prove(make_run):
    folder = make_run(TWO)
    bound = {"kind": "mixed", "owner": "hr", "guesses": 20, "correct": 18, "epsilon": 0.912, "provable": 1.82}
    ends = {f"{name}_{end}": value for name in ("auc", "tpr") for end, value in (("low", 0.1), ("high", 0.9))}
    test = {
        "kind": "client",
        "owner": "hr/c",
        "score": "base",
        "auc": 0.75,
        "tpr": 0.5,
        "members": 8,
        "others": 4,
        **ends,
    }
    result = {"delta": 1e-5, "canaries": {"bounds": [bound, {**bound, "upper": 4.2}]}, "membership": [test]}
    (folder / "audit.json").write_text(json.dumps(result))
    section = audit(read_artifacts(folder))
    bounds, tests = section.tables
    assert bounds.rows[0] == ["mixed", "hr", "18", "20", "0.912", "1.820", "–"]
    assert bounds.rows[1][-1] == "4.200"
    assert tests.rows == [["client", "hr/c", "base", "0.750", "0.10–0.90", "0.500", "0.10–0.90", "8", "4"]]
    assert "a low bound is no proof of privacy" in section.text[0]
    assert "δ = 1e-05" in section.text[0]


def test_a_run_that_was_not_audited_has_no_such_section(run):
    assert run.audit is None
    assert audit(run).tables == []


def test_a_run_that_was_not_personalized_misses_nothing(run):
    assert run.personal == {}
    assert not any("personal_eval" in line for line in run.missing)


def test_comparison_has_base_clients_department_and_cluster(run):
    first, second = loss_rows(run)
    assert (first.base, first.department) == pytest.approx((6.0, 5.98))
    assert first.clients == pytest.approx((4.98 + 4.88) / 2)
    assert (first.cluster_id, first.cluster) == (0, pytest.approx(5.98))  # alone in its cluster
    assert (second.cluster_id, second.cluster) == (1, pytest.approx(5.88))
    assert comparison(run).pictures[0].table.rows[1][:5] == ["hr", "5.900", "4.880", "5.880", "-0.020"]


def test_cluster_of_several_is_their_mean(make_run):
    found = loss_rows(read_artifacts(make_run({name: ["x"] for name in ("a", "b", "c", "d")}, rounds=1)))
    assert [row.cluster_id for row in found] == [0, 0, 1, 1]
    assert [row.cluster for row in found] == pytest.approx([5.94, 5.94, 5.74, 5.74])


def test_members_of_a_group_are_compared_with_their_cluster_there(make_run):
    folder = make_run({name: ["x"] for name in ("a", "b", "c")}, rounds=1, clusters=False)
    group = {"assignments": {"a": 0, "b": 0}}
    place = folder / "cluster_metadata" / "round_1_hierarchy.json"
    place.write_text(json.dumps({"groups": {"g": group}}))
    found = {row.name: row.cluster for row in loss_rows(read_artifacts(folder))}
    assert found == {"a": pytest.approx(5.94), "b": pytest.approx(5.94), "c": None, "g": None}


def test_strip_has_a_column_for_each_round(run):
    section = clusters(run)
    assert section.pictures[0].table.rows == [["finance", "0", "0"], ["hr", "1", "1"]]
    assert "Clusters in round 2: 0: finance; 1: hr." in section.pictures[0].alt
    assert section.collapsed[0].rows == [["finance/a", "0", "0"], ["finance/b", "1", "1"], ["hr/c", "0", "0"]]


def test_heatmap_of_every_round(run):
    section = similarity(run)
    assert [frame.label for frame in section.frames] == ["round 1", "round 2"]
    (heatmap,) = section.frames[0].heatmaps
    assert heatmap.names == ["finance", "hr"]
    assert [[value for value, _, _ in row] for row in heatmap.cells] == [["1.00", "-0.25"], ["-0.25", "1.00"]]
    assert [picture.on_page for picture in section.pictures] == [False]  # the page has the tables


def test_large_similarities_are_a_picture(make_run):
    section = similarity(read_artifacts(make_run({f"d{i}": [] for i in range(41)}, rounds=1)))
    assert section.frames == []
    assert [picture.on_page for picture in section.pictures] == [True]


def test_many_rounds_of_many_departments_are_thinned(make_run):
    section = similarity(read_artifacts(make_run({f"d{i}": [] for i in range(40)}, rounds=20)))
    labels = [frame.label for frame in section.frames]
    assert len(labels) == 20_000 // 40**2
    assert (labels[0], labels[-1]) == ("round 1", "round 20")
    assert "12 of 20 rounds are shown" in section.missing[0]


def test_choice_marks_the_chosen_k(run):
    section = cluster_count(run)
    assert "chose k = 2" in section.text[0]
    assert section.pictures[0].table.rows == [["1", "4.0000", ""], ["2", "1.0000", "chosen"], ["3", "0.5000", ""]]
    assert section.collapsed[0].rows == [["1", "2", "elbow"], ["2", "2", "elbow"]]


def test_costs_add_up(run):
    sent, seconds = costs(run).pictures
    assert sent.table.rows[-1] == ["all", "4.0 KiB", "8.0 KiB", "2.0 KiB", "2.0 KiB", "16.0 KiB"]
    assert seconds.table.rows == [
        ["1", "2.00", "0.50", "1.00", "0.20"],
        ["2", "2.00", "0.50", "1.00", "0.20"],
        ["all", "4.00", "1.00", "2.00", "0.40"],
    ]


def test_left_out_says_who_when_and_why(run):
    assert excluded_updates(run).tables[0].rows == [["2", "hr", "c", "w: not finite"]]


def test_nobody_left_out_is_said(make_run):
    assert excluded_updates(read_artifacts(make_run(TWO, rounds=1))).text == ["No update was excluded in any round."]


def test_guard_and_privacy_are_reported(make_run):
    folder = make_run(TWO, rounds=1)
    path = folder / "cluster_metadata" / "round_1_aggregation.json"
    facts = {"left_out": {}, "scaled": {"a": 0.25}, "epsilon": 3.5}
    path.write_text(json.dumps({"departments": {"finance": facts}}))
    section = excluded_updates(read_artifacts(folder))
    assert section.collapsed[0].rows == [["1", "finance", "a", "scaled to 0.25 of its length"]]
    assert section.tables[0].rows == [["finance", "3.500"]]


def test_glance_and_state_of_an_interrupted_run(run, empty):
    found = dict(overview(run))
    assert found == {
        "rounds": "2 of 5",
        "departments": "2",
        "clients": "3",
        "mean loss": "5.950 → 5.930",
        "clusters": "2",
        "sent": "16.0 KiB",
        "fit, seconds": "4",
        "excluded": "1",
    }
    assert progress(run).startswith("2 of 5 rounds are finished")
    assert progress(empty).startswith("No round")


def test_finished_run_has_no_state_to_tell(make_run):
    assert progress(read_artifacts(make_run(TWO, rounds=2))) == ""


@pytest.mark.parametrize(
    "theme", [losses, comparison, clusters, similarity, cluster_count, costs, excluded_updates, config]
)
def test_every_theme_says_what_it_has_not(theme, empty):
    section = theme(empty)
    assert section.missing
    assert not section.pictures


def test_long_tables_are_cut_and_say_so():
    table = Table("t", ["a"], [[str(i)] for i in range(500)])
    assert (len(table.visible_rows), table.num_hidden) == (400, 100)
