import pytest

from fl_lightning.federation.retention import kept_rounds

ROWS = [(0, {"eval/loss": 0.1}), *((r, {"eval/loss": loss}) for r, loss in enumerate([4.0, 2.0, 3.0, 2.0, 5.0], 1))]


@pytest.mark.parametrize(
    ("last", "best", "kept"),
    [
        (0, 0, {1, 2, 3, 4, 5}),
        (0, 3, {1, 2, 3, 4, 5}),
        (1, 0, {5}),
        (2, 0, {4, 5}),
        (1, 1, {2, 5}),  # 2 and 4 are equally good: the earlier one; the base model's row is no round
        (1, 2, {2, 4, 5}),
        (1, 3, {2, 3, 4, 5}),
        (9, 9, {1, 2, 3, 4, 5}),
    ],
)
def test_last_and_best_rounds_are_kept(last, best, kept):
    assert kept_rounds([1, 2, 3, 4, 5], ROWS, last=last, best=best) == kept


def test_a_best_round_that_is_gone_is_not_kept():
    assert kept_rounds([3, 4, 5], ROWS, last=1, best=1) == {5}


def test_rounds_without_evaluation_go_by_their_number():
    assert kept_rounds([1, 2, 3], [(1, {}), (2, {"x": 1.0})], last=1, best=2) == {3}
