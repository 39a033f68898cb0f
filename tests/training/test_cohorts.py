import pytest

from fl_lightning.training.cohorts import STEP_TOKENS, cohorts_within_budget, fixed_size_cohorts, row_tokens


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


@pytest.mark.parametrize(
    ("card_gib", "tokens"),
    [(80, 16384), (24, 8192), (15.9, 4096), (16.0, 4096), (8, 1024), (1, 1)],
)
def test_row_on_a_gpu_is_halved_until_it_fits_the_card(card_gib, tokens):
    # 2 MB for each token and 5 GiB for the rest: 16,384 tokens are 32 GiB, 4,096 are 8 GiB; nine tenths are used
    assert row_tokens("cuda", 2 * 2**20, 5 * 2**30, int(card_gib * 2**30)) == tokens


def test_row_without_a_card_is_the_one_that_keeps_the_device_busy():
    assert row_tokens("cpu", 10**9, 10**12, None) == STEP_TOKENS["cpu"]
    assert row_tokens("mps", 10**9, 10**12, None) == STEP_TOKENS["cpu"]
