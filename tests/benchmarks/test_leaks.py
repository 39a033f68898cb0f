"""The benchmark of what leaks where: a small run of all rows, and its table from figures that are given."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from fl_lightning.privacy.audit.one_run import epsilon_lower_bound

ROOT = Path(__file__).parents[2]
SMALL = "--seeds 4 --clients 6 --records 2 --held-out 2 --canaries 4 --rounds 1 --epochs 1 --sums 3 --epsilons 8"
ROWS = ["raw", "bf16", "int8", "A alone", "B alone", "local 8", "sum 3", "department", "B alone, department", "dp 8"]
ROWS += ["before mixing", "after mixing", "elsewhere", "control"]


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module


def test_a_small_run_has_all_rows_and_is_not_made_twice(module, micro_base, tmp_path, monkeypatch):
    for name in ("cryptography", "Crypto", "dp_accounting"):
        pytest.importorskip(name)
    leaks = module("benchmarks.methods.leaks")
    call = [*SMALL.split(), "--local-epsilons", "8", "--base", micro_base, "--output", str(tmp_path)]
    text = leaks.main(call)
    rows = json.loads((tmp_path / "leaks.json").read_text())["rows"]
    assert list(rows) == ROWS
    assert len(text.split("\n\n")[0].splitlines()) == 2 + len(ROWS)
    for name, row in rows.items():
        assert (row["canaries"], row["guesses"]) == (24, 12)
        assert (row["membership"]["members"], row["membership"]["others"]) == (12, 12)
        assert (row["upper"] is None) == (not name.startswith(("local", "dp")))
    numbers = 3 * 8 * ((32 + 32) + (32 + 16))  # three layers at rank 8: q is 32 × 32, v is 16 × 32
    assert rows["raw"]["kib"] == 4 * numbers / 1024
    assert rows["bf16"]["kib"] == rows["raw"]["kib"] / 2
    assert rows["raw"]["kib"] < rows["sum 3"]["kib"] < rows["raw"]["kib"] + 2
    assert rows["A alone"]["kib"] == 4 * 3 * 2 * 8 * 32 / 1024
    assert rows["B alone"]["kib"] == 4 * 3 * 4 * (32 + 16) / 1024
    assert rows["sum 3"]["loss"]["mean"] == pytest.approx(0, abs=1e-5)
    assert "kib" not in rows["before mixing"]  # they are those of the run that is mixed
    assert rows["local 8"]["upper"] == pytest.approx(8, rel=1e-3)
    assert rows["dp 8"]["upper"] > 16  # of a record; a client's is 8
    monkeypatch.setattr(leaks, "measure", None)
    page = tmp_path / "page.md"
    page.write_text("<!-- table leaks -->\n<!-- end leaks -->\n")
    assert leaks.main([*call, "--docs", str(page)]) == text
    assert text.split("\n\n")[0] in page.read_text()
    with pytest.raises(SystemExit, match="take another --output"):
        leaks.main([*call, "--rounds", "2"])


def test_counts_of_seeds_are_added_before_they_are_bounded(module):
    attacks = module("benchmarks.methods.leak_attacks")
    found = attacks.Found()
    for correct in (9, 10):
        found.add(attacks.Found(20, 10, correct, [2.0, 1.0], [0.0], [list(np.arange(20.0))]))
    row = found.to_dict(0.0)
    assert (row["canaries"], row["guesses"], row["correct"]) == (40, 20, 19)
    assert row["epsilon"] == epsilon_lower_bound(40, 20, 19)
    assert row["membership"]["auc"] == 1.0
    anew = found.coins_drawn_anew(2000, 0.0)
    assert anew["correct"] == pytest.approx(0.5, abs=0.01)
    # 20 fair guesses: P[X >= 15] = 21700 / 2^20 = 0.0207; with 14 right it is 0.0577, above 0.05
    assert anew["above_zero"] == pytest.approx(0.0207, abs=0.01)


def test_an_attack_finds_what_was_learned_by_heart_and_nothing_in_other_adapters(module):
    """Losses are given: canaries that are in fall by 3, records that have trained by 1."""
    import torch

    from fl_lightning.data.canaries import ClientCanaries
    from fl_lightning.data.client_data import ClientData
    from fl_lightning.data.tokenization import Example

    attacks = module("benchmarks.methods.leak_attacks")

    def example(token):
        return Example(torch.tensor([token, token]), torch.tensor([False, True]))

    class Known:
        def evaluate_records(self, state, records):
            tokens = np.array([int(e.ids[0]) for e in records])
            falls = np.where(tokens < 4, 3.0, np.where(tokens >= 20, 1.0, 0.0)) * state["learned"]
            return np.stack([2 * (5.0 - falls), np.zeros(len(tokens)), np.full(len(tokens), 2.0)], 1)

    canaries = ClientCanaries(tuple(map(example, range(8))), (True,) * 4 + (False,) * 4)
    trained = [*map(example, (20, 21)), *canaries.included]
    data = {"hr/a": ClientData("hr", "a", trained, [example(10), example(11)])}
    attacker = attacks.Attacker(Known(), None, data, {"hr/a": canaries}, initial={"learned": 0.0})
    found = attacker.attack([(["hr/a"], {"learned": 1.0})])
    assert (found.canaries, found.guesses, found.correct) == (8, 4, 4)
    assert (found.members, found.others) == ([1.0, 1.0], [0.0, 0.0])
    assert attacker.attack([(["hr/a"], {"learned": 0.0})]).members == [0.0, 0.0]
    assert attacker.held_out_loss([(["hr/a"], {"learned": 1.0})]) == 5.0
