import inspect
import math
import re
from typing import get_args

import pytest
import torch

from fl_lightning.aggregation.registry import options_of
from fl_lightning.aggregation.robust import GUARDS, Selection, make_guard, weighted_center
from fl_lightning.config.federation import GuardName
from fl_lightning.errors import InputError
from fl_lightning.state import distance, norm
from fl_lightning.storage.offload import OffloadFolder

OPTIONS = {"krum": {"f": 2}, "multi_krum": {"f": 2}, "trimmed_mean": {"fraction": 0.25}}
ATTACKS = ["negated ten times", "noise of ten times the norm", "1e30 times", "copy of another negated"]
every_guard = pytest.mark.parametrize("name", GUARDS)


def guarded(name, residuals, weights=None, **options):
    weights = weights or dict.fromkeys(residuals, 1.0)
    result = make_guard(name, **(options or OPTIONS.get(name, {})))(residuals, weights)
    return weighted_center(residuals, result) if isinstance(result, Selection) else result


def plain_mean(residuals):
    """The mean without a guard."""
    equal = dict.fromkeys(residuals, 1.0)
    return weighted_center(residuals, Selection(equal, equal))


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def test_the_config_and_the_folder_name_the_same_guards():
    assert {"none", "dp", *GUARDS} == set(get_args(GuardName))


@every_guard
def test_every_guard_names_its_paper(name):
    assert re.search(r"arXiv \d{4}\.\d{5}|\(\d{4}\.\d{5}\)", " ".join(inspect.getmodule(GUARDS[name]).__doc__.split()))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("norm_clip", ["max_norm"]),
        ("outlier", ["min_cosine", "max_z"]),
        ("krum", ["f"]),
        ("multi_krum", ["f", "m"]),
        ("geometric_median", ["iterations", "smoothing"]),
        ("median", []),
        ("trimmed_mean", ["fraction"]),
    ],
)
def test_options(name, options):
    assert list(options_of(GUARDS[name])) == options


def test_an_unknown_guard_is_refused_with_the_nearest_name():
    with pytest.raises(
        InputError, match=r"guard: expected one of norm_clip, .*, got 'trimed_mean'; did you mean 'trimmed_mean'"
    ):
        make_guard("trimed_mean")


def test_an_unknown_option_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match=r"guard norm_clip: expected max_norm, got option 'maxnorm'; did you mean"):
        make_guard("norm_clip", maxnorm=1.0)
    with pytest.raises(InputError, match="guard median: expected no options, got option 'f'"):
        make_guard("median", f=1)


# how far from the mean of the honest, in norms of it, over 10 seeds; where 2 of 8 attack
BOUNDS = {
    "outlier": 1e-6,
    "multi_krum": 0.12,
    "geometric_median": 0.2,
    "median": 0.3,
    "trimmed_mean": 0.28,
    "krum": 0.5,  # one client's update: as far as honest clients are from their mean
}


@pytest.mark.parametrize("attack", ATTACKS[:3])
@every_guard
def test_one_long_update_does_not_move_the_center_of_any_guard(name, attack, attacked):
    for seed in range(10):
        residuals, _, clean = attacked(attack, 1, seed)
        assert distance(guarded(name, residuals), clean) < 0.5 * norm(clean)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", BOUNDS)
def test_attackers_do_not_move_the_center(name, attack, count, attacked):
    for seed in range(10):
        residuals, _, clean = attacked(attack, count, seed)
        assert distance(guarded(name, residuals), clean) < BOUNDS[name] * norm(clean)


@pytest.mark.parametrize(
    ("attack", "count", "least"),
    [
        *((attack, count, 1.0) for attack in ATTACKS[:3] for count in (1, 2)),
        (ATTACKS[3], 1, 0.2),
        (ATTACKS[3], 2, 0.45),
    ],
)
def test_the_same_attackers_move_the_plain_mean(attack, count, least, attacked):
    for seed in range(10):
        residuals, _, clean = attacked(attack, count, seed)
        assert distance(plain_mean(residuals), clean) > least * norm(clean)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("attack", ATTACKS[:3])
def test_clipping_bounds_what_long_updates_do(attack, count, attacked):
    for seed in range(10):
        residuals, _, clean = attacked(attack, count, seed)
        assert distance(guarded("norm_clip", residuals), clean) < 0.3 * count * norm(clean)


def test_clipping_does_not_see_a_negated_copy(attacked):
    residuals, _, clean = attacked("copy of another negated", 2)
    assert distance(guarded("norm_clip", residuals), clean) > 0.45 * norm(clean)


@pytest.mark.parametrize("seed", range(3))
@every_guard
def test_without_attackers_the_center_is_near_the_mean(name, seed, department):
    residuals = department(seed, spread=0.1)
    mean = plain_mean(residuals)
    assert distance(guarded(name, residuals), mean) < 0.12 * norm(mean)


@every_guard
def test_the_order_of_clients_and_tensors_does_not_matter(name, department):
    residuals = department(1)
    weights = {c: 1.0 + i for i, c in enumerate(residuals)}
    turned = {c: dict(reversed(residuals[c].items())) for c in reversed(residuals)}
    guard = make_guard(name, **OPTIONS.get(name, {}))
    first, second = guard(residuals, weights), guard(turned, dict(reversed(weights.items())))
    if isinstance(first, Selection):
        assert first == second
        first, second = weighted_center(residuals, first), weighted_center(turned, second)
    assert same(first, second)


@every_guard
def test_the_names_of_clients_do_not_matter(name, department):
    residuals = department(2)
    weights = {c: 1.0 + i for i, c in enumerate(residuals)}
    names = dict(zip(residuals, torch.randperm(8, generator=torch.Generator().manual_seed(0)).tolist(), strict=True))
    renamed = {f"it/{names[c]}": residuals[c] for c in residuals}
    found = guarded(name, renamed, {f"it/{names[c]}": weights[c] for c in residuals})
    assert distance(found, guarded(name, residuals, weights)) < 1e-7


@pytest.mark.parametrize("name", [name for name in GUARDS if "krum" not in name])
def test_one_client_is_given_back(name):
    residuals = {"hr/a": {"x": torch.tensor([[0.1, -2.0]]), "y": torch.tensor(3.0)}}
    assert same({n: t.float() for n, t in guarded(name, residuals, {"hr/a": 7.0}).items()}, residuals["hr/a"])


@every_guard
def test_identical_updates_are_given_back(name, department):
    update = department()["hr/a"]
    found = guarded(name, {f"hr/{i}": update for i in range(8)})
    assert distance(found, update) < 1e-7 * norm(update)


@every_guard
def test_zero_updates_give_zero(name):
    found = guarded(name, {f"hr/{i}": {"x": torch.zeros(2, 3)} for i in range(7)})
    assert found["x"].tolist() == [[0.0] * 3] * 2


@every_guard
def test_every_client_is_kept_or_left_out_with_a_reason(name, attacked):
    residuals, _, _ = attacked("negated ten times", 2)
    found = make_guard(name, **OPTIONS.get(name, {}))(residuals, {c: i + 1 for i, c in enumerate(residuals)})
    if isinstance(found, Selection):
        assert list(found.weights) == sorted(found.weights) == list(found.scales)
        assert list(found.rejected) == sorted(found.rejected)
        assert sorted([*found.weights, *found.rejected]) == sorted(residuals)
        assert all(weight > 0 for weight in found.weights.values())
        assert all(0 <= scale <= 1 for scale in found.scales.values())
        assert all(any(sign.isdigit() for sign in why) for why in found.rejected.values())


@every_guard
def test_each_tensor_is_read_once_and_left_as_it_was(name, department, counting):
    residuals = {c: counting(state) for c, state in department().items()}
    make_guard(name, **OPTIONS.get(name, {}))(residuals, dict.fromkeys(residuals, 1.0))
    for state in residuals.values():
        assert set(state.reads.values()) == {1}
    assert all(same(dict(residuals[c]), state) for c, state in department().items())


@every_guard
def test_updates_on_disk_do_as_well(name, department, tmp_path):
    residuals, offload = department(), OffloadFolder(tmp_path)
    kept = {c: offload.store(state) for c, state in residuals.items()}
    assert same(guarded(name, kept), guarded(name, residuals))


@every_guard
def test_blocks_of_columns_make_up_the_whole(name, department, monkeypatch):
    residuals = department()
    whole = guarded(name, residuals)
    monkeypatch.setattr("fl_lightning.linalg.client_matrix._BLOCK", 8 * 7)  # 30 columns: 7 + 7 + 7 + 7 + 2
    assert distance(guarded(name, residuals), whole) < 1e-12


@every_guard
def test_half_precision_is_computed_in_fp64(name, department):
    residuals = {c: {n: t.bfloat16() for n, t in state.items()} for c, state in department().items()}
    single = {c: {n: t.float() for n, t in state.items()} for c, state in residuals.items()}
    assert same(guarded(name, residuals), guarded(name, single))


@every_guard
def test_a_state_without_tensors_has_an_empty_center(name):
    assert guarded(name, {f"hr/{i}": {} for i in range(7)}) == {}


@every_guard
def test_no_clients_are_refused(name):
    with pytest.raises(ValueError, match="residuals: expected at least one client, got none"):
        make_guard(name)({}, {})


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
@every_guard
def test_a_weight_that_is_not_positive_is_refused(name, weight):
    with pytest.raises(ValueError, match=f"hr/b: expected a positive finite weight, got {weight}"):
        make_guard(name)({"hr/a": {}, "hr/b": {}}, {"hr/a": 1.0, "hr/b": weight})


@every_guard
def test_weights_of_other_clients_are_refused(name):
    with pytest.raises(
        ValueError, match="hr/c: expected the same clients in residuals and weights, got it in weights only"
    ):
        make_guard(name)({"hr/a": {}}, {"hr/a": 1.0, "hr/c": 1.0})


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", GUARDS)
def test_an_update_that_is_not_finite_is_refused_by_name(name, value, department):
    residuals = department()
    residuals["hr/c"]["layer.q.lora_B.weight"][2, 1] = value
    with pytest.raises(ValueError, match="hr/c: .* not finite"):
        guarded(name, residuals)


@pytest.mark.parametrize("name", [name for name in GUARDS if name != "norm_clip"])
def test_updates_of_other_layouts_are_refused(name):
    residuals = {f"hr/{i}": {"x": torch.ones(2, 3)} for i in range(7)}
    with pytest.raises(ValueError, match=r"hr/4: x: expected shape \(2, 3\) as for hr/0, got \(3, 2\)"):
        guarded(name, {**residuals, "hr/4": {"x": torch.ones(3, 2)}})
    with pytest.raises(ValueError, match="y: expected equal names in all updates, got it in hr/0 or hr/4 only"):
        guarded(name, {**residuals, "hr/4": {"x": torch.ones(2, 3), "y": torch.ones(1)}})
