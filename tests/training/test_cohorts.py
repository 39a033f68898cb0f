import pytest

from fl_lightning.training.cohorts import cohorts_within_budget, fixed_size_cohorts


@pytest.mark.parametrize(
    ("tokens", "budget", "sizes"),
    [
        ([40, 40, 40, 40], 100, [2, 2]),  # 80 ≤ 100 < 120
        ([40, 40, 40, 40], 120, [3, 1]),  # exactly the budget
        ([400, 40, 40], 100, [1, 2]),  # above the budget: a cohort by itself
        ([40, 400, 40], 100, [1, 1, 1]),
        ([40] * 5, 10_000, [5]),
        ([], 100, []),
    ],
)
def test_cohorts_stay_within_the_budget_and_in_order(tokens, budget, sizes):
    cohorts = cohorts_within_budget(range(len(tokens)), tokens, budget)
    assert [item for cohort in cohorts for item in cohort] == list(range(len(tokens)))
    assert [len(cohort) for cohort in cohorts] == sizes


@pytest.mark.parametrize(("size", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (9, [5])])
def test_cohorts_of_a_fixed_size(size, sizes):
    cohorts = fixed_size_cohorts(range(5), size)
    assert [item for cohort in cohorts for item in cohort] == list(range(5))
    assert [len(cohort) for cohort in cohorts] == sizes
