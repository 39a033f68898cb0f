"""`audit.json` as report and model cards read it, whole or broken."""

from fl_lightning.runs.artifact_reader import read_artifacts
from fl_lightning.runs.audit_reader import parse_audit

BOUND = {"kind": "mixed", "owner": "hr", "canaries": 40, "guesses": 20, "correct": 18, "epsilon": 0.9, "provable": 1.8}
TEST = {
    "auc": 0.7,
    "auc_low": 0.6,
    "auc_high": 0.8,
    "tpr": 0.1,
    "tpr_low": 0.0,
    "tpr_high": 0.2,
    "members": 8,
    "others": 4,
}


def test_lines_are_read_and_broken_ones_left_out():
    result = parse_audit(
        {
            "delta": 1e-5,
            "canaries": {
                "bounds": [{**BOUND, "upper": None}, {**BOUND, "epsilon": "much"}, 3, {**BOUND, "upper": 9.5}]
            },
            "membership": [
                {"kind": "client", "owner": "hr/a", "score": "base", **TEST},
                {"kind": "client", "auc": 0.5},
            ],
        }
    )
    assert result.delta == 1e-5
    assert [(b.kind, b.owner, b.guesses, b.correct, b.epsilon, b.provable, b.upper) for b in result.bounds] == [
        ("mixed", "hr", 20, 18, 0.9, 1.8, None),
        ("mixed", "hr", 20, 18, 0.9, 1.8, 9.5),
    ]
    (test,) = result.tests
    assert (test.owner, test.score, test.values) == ("hr/a", "base", TEST)


def test_nothing_usable_is_no_audit():
    for value in (None, [], {"canaries": 3, "membership": {}}, {"canaries": {"bounds": [None]}}):
        assert parse_audit(value) is None


def test_a_run_has_it_if_the_file_is_there(tmp_path):
    assert read_artifacts(tmp_path).audit is None
    assert not any("audit" in line for line in read_artifacts(tmp_path).missing)
    (tmp_path / "audit.json").write_text("{")
    run = read_artifacts(tmp_path)
    assert run.audit is None
    assert any(line.startswith("audit.json cannot be used") for line in run.missing)
