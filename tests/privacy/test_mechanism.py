import hashlib
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_lightning.privacy import noisy_mean
from fl_lightning.privacy.noise import gaussian
from fl_lightning.state import distance, norm

KEY = "5e" * 32
N = 200_000


def state(*values):
    """Two tensors that together are one vector of these values."""
    return {"y": torch.tensor(values[:1]), "x": torch.tensor([values[1:]])}


def total(residuals, clip, **options):
    """The sum without noise, as if one had been asked."""
    found = noisy_mean(residuals, clip=clip, noise_multiplier=0.0, asked=len(residuals) or 1, seed=KEY, **options)
    return {n: t * (len(residuals) or 1) for n, t in found.mean.items()}


class Counted(dict):
    """A state that counts how often each tensor is read."""

    def __init__(self, tensors):
        super().__init__(tensors)
        self.reads = dict.fromkeys(tensors, 0)

    def __getitem__(self, name):
        self.reads[name] += 1
        return super().__getitem__(name)

    def values(self):
        return [self[name] for name in self]


def test_longer_updates_are_clipped_over_all_tensors_and_the_sum_divided_by_how_many_were_asked():
    residuals = {"hr/a": state(6.0, 8.0), "hr/b": state(0.0, 1.0)}
    found = noisy_mean(residuals, clip=5.0, noise_multiplier=0.0, asked=8, seed=KEY)
    assert found.mean["y"].tolist() == [0.375]  # (6 · 0.5 + 0) / 8
    assert found.mean["x"].tolist() == [[0.625]]  # (8 · 0.5 + 1) / 8
    assert found.clipped == {"hr/a": 0.5}
    assert found.below == 1
    assert list(found.mean) == ["x", "y"]
    assert {t.dtype for t in found.mean.values()} == {torch.float64}


def test_an_update_as_long_as_the_clip_is_below():
    found = noisy_mean({"hr/a": state(3.0, 4.0)}, clip=5.0, noise_multiplier=0.0, asked=1, seed=KEY)
    assert (found.clipped, found.below) == ({}, 1)
    assert found.mean["y"].item() == 3.0


def test_the_noise_is_the_clip_times_the_multiplier_on_the_sum():
    residuals = {c: {"x": torch.zeros(4)} for c in ("hr/a", "hr/b")}
    found = noisy_mean(residuals, clip=3.0, noise_multiplier=2.0, asked=5, seed=KEY)
    wanted = gaussian(KEY, "tensor x", 4) * 6.0 / 5
    assert found.mean["x"].tolist() == wanted.tolist()


def test_the_noise_does_not_depend_on_who_answered():
    like = {"x": torch.zeros(3), "y": torch.zeros(2, 2)}
    options = {"clip": 1.0, "noise_multiplier": 1.0, "asked": 4, "seed": KEY, "like": like}
    nobody = noisy_mean({}, **options)
    assert nobody.below == 0
    assert norm(nobody.mean) > 0
    update = {"x": torch.tensor([0.5, 0.0, 0.0]), "y": torch.zeros(2, 2)}
    one = noisy_mean({"hr/a": update}, **options)
    assert (one.mean["x"] - nobody.mean["x"]).tolist() == pytest.approx([0.125, 0.0, 0.0])
    assert one.mean["y"].equal(nobody.mean["y"])


def test_the_order_of_clients_and_tensors_does_not_matter():
    draw = torch.Generator().manual_seed(0)
    residuals = {f"hr/{i}": {n: torch.randn(7, generator=draw) for n in "abc"} for i in range(5)}
    turned = {c: dict(reversed(list(u.items()))) for c, u in reversed(list(residuals.items()))}
    options = {"clip": 2.0, "noise_multiplier": 0.5, "asked": 6, "seed": KEY}
    first, second = noisy_mean(residuals, **options), noisy_mean(turned, **options)
    assert list(first.mean) == list(second.mean) == ["a", "b", "c"]
    assert all(first.mean[n].equal(second.mean[n]) for n in "abc")
    assert first.clipped == second.clipped


def test_each_tensor_is_read_twice():
    residuals = {"hr/a": Counted(state(1.0, 2.0)), "hr/b": Counted(state(3.0, 4.0))}
    noisy_mean(residuals, clip=1.0, noise_multiplier=1.0, asked=2, seed=KEY, like=state(0.0, 0.0))
    assert [u.reads for u in residuals.values()] == [{"x": 2, "y": 2}] * 2


def test_low_precision_is_added_in_fp64():
    residuals = {"hr/a": {"x": torch.tensor([256.0]).bfloat16()}, "hr/b": {"x": torch.tensor([1.0]).bfloat16()}}
    assert total(residuals, 1000.0)["x"].item() == 257.0


sizes = st.one_of(st.just(0.0), st.floats(-(2.0**127), 2.0**127, width=32), st.floats(-10, 10, width=32))
updates = st.lists(st.tuples(sizes, sizes, sizes), min_size=1, max_size=5)


@given(updates, st.floats(1e-6, 1e6), st.data())
def test_one_client_less_moves_the_sum_by_no_more_than_the_clip(given_, clip, data):
    residuals = {f"hr/{i}": state(*values) for i, values in enumerate(given_)}
    less = dict(residuals)
    del less[data.draw(st.sampled_from(sorted(residuals)))]
    like = state(0.0, 0.0, 0.0)
    moved = distance(total(residuals, clip, like=like), total(less, clip, like=like))
    assert moved <= clip * (1 + 1e-12)


@given(updates, st.tuples(sizes, sizes, sizes), st.floats(1e-6, 1e6), st.data())
def test_another_update_of_one_client_moves_the_sum_by_no_more_than_two_clips(given_, other, clip, data):
    residuals = {f"hr/{i}": state(*values) for i, values in enumerate(given_)}
    changed = {**residuals, data.draw(st.sampled_from(sorted(residuals))): state(*other)}
    assert distance(total(residuals, clip), total(changed, clip)) <= 2 * clip * (1 + 1e-12)


def test_the_bounds_are_reached():
    like, one, opposite = state(0.0, 0.0), state(3e38, 3e38), state(-3e38, -3e38)
    none, up, down = total({}, 0.5, like=like), total({"hr/a": one}, 0.5), total({"hr/a": opposite}, 0.5)
    assert distance(up, none) == pytest.approx(0.5, rel=1e-12)
    assert distance(up, down) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_is_refused_by_name(value):
    residuals = {"hr/a": state(1.0, 2.0), "hr/b": state(1.0, value)}
    with pytest.raises(ValueError, match="hr/b: expected an update of finite norm, got (nan|inf)"):
        noisy_mean(residuals, clip=1.0, noise_multiplier=1.0, asked=2, seed=KEY)


def test_an_update_too_long_for_fp64_is_refused():
    residuals = {"hr/a": {"x": torch.tensor([1e200], dtype=torch.float64)}}
    with pytest.raises(ValueError, match="hr/a: expected an update of finite norm, got inf"):
        noisy_mean(residuals, clip=1.0, noise_multiplier=1.0, asked=1, seed=KEY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 0.0}, "clip: expected a positive finite number, got 0.0"),
        ({"clip": math.inf}, "clip: expected .*, got inf"),
        ({"noise_multiplier": -1.0}, "noise_multiplier: expected a finite number of at least 0, got -1.0"),
        ({"noise_multiplier": math.nan}, "noise_multiplier: expected .*, got nan"),
        ({"asked": 1}, r"asked: expected .* updates \(2\), got 1"),
        ({"asked": 0}, r"asked: expected .* updates \(2\), got 0"),
        ({"seed": "5e"}, "seed: expected a key of 64 hexadecimal digits .*, got 2 characters"),
        ({"seed": "g" * 64}, "seed: expected .*, got 64 characters"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    residuals = {"hr/a": state(1.0, 2.0), "hr/b": state(1.0, 2.0)}
    with pytest.raises(ValueError, match=message):
        noisy_mean(residuals, **{"clip": 1.0, "noise_multiplier": 1.0, "asked": 2, "seed": KEY, **options})


def test_a_bad_key_is_not_shown():
    with pytest.raises(ValueError) as caught:
        gaussian("secret", "x", 1)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("residuals", "like", "message"),
    [
        ({}, None, "residuals: expected at least one"),
        (
            {"a": state(1.0, 2.0), "b": {"x": torch.zeros(1, 1)}},
            None,
            "b: expected equal names .*, got y in the shared factor only",
        ),
        ({"a": state(1.0, 2.0)}, {"x": torch.zeros(1, 1)}, "a: expected equal names .*, got y in the update only"),
        ({"a": state(1.0, 2.0), "b": state(1.0, 2.0, 3.0)}, None, r"b: x: expected shape \(1, 1\), got \(1, 2\)"),
    ],
)
def test_updates_that_do_not_fit_are_refused(residuals, like, message):
    with pytest.raises(ValueError, match=message):
        noisy_mean(residuals, clip=1.0, noise_multiplier=1.0, asked=2, seed=KEY, like=like)


def test_noise_by_hand():
    digest = hashlib.shake_256(b"\x5e" * 32 + b"tensor x").digest(32)
    u1, u2, v1, v2 = ((int.from_bytes(digest[i : i + 8], "little") >> 11) * 2.0**-53 + 2.0**-54 for i in (0, 8, 16, 24))
    wanted = [
        f(2 * math.pi * v) * math.sqrt(-2 * math.log(u)) for f in (math.cos, math.sin) for u, v in ((u1, v1), (u2, v2))
    ]
    assert gaussian(KEY, "tensor x", 4).tolist() == pytest.approx(wanted, rel=1e-12)
    assert gaussian(KEY, "tensor x", 3).tolist() == pytest.approx(wanted[:3], rel=1e-12)


def test_no_values_are_no_values():
    assert gaussian(KEY, "x", 0).shape == (0,)


def test_noise_has_the_moments_of_a_normal_distribution():
    values = gaussian(KEY, "x", N)
    assert abs(values.mean().item()) < 4 / math.sqrt(N)
    # (N - 1) s² is chi-square with N - 1 degrees of freedom: s² has standard deviation √(2 / N); kurtosis √(96 / N)
    assert abs(values.var().item() - 1) < 4 * math.sqrt(2 / N)
    assert abs(values.pow(4).mean().item() - 3) < 4 * math.sqrt(96 / N)


def test_noise_has_the_distribution_function_of_a_normal_distribution():
    ranks = torch.special.ndtr(gaussian(KEY, "x", N).sort().values)
    away = (ranks - (torch.arange(N, dtype=torch.float64) + 0.5) / N).abs().max().item()
    assert away < 1.95 / math.sqrt(N)  # Kolmogorov and Smirnov at 0.1 %


def test_noise_of_another_tensor_or_key_is_independent():
    values = gaussian(KEY, "x", N)
    for other in (gaussian(KEY, "y", N), gaussian("5f" + "5e" * 31, "x", N), gaussian("5e" * 31 + "5f", "x", N)):
        assert abs((values * other).mean().item()) < 4 / math.sqrt(N)
    halves = values.view(2, -1)  # the cosines and the sines
    assert abs((halves[0] * halves[1]).mean().item()) < 4 / math.sqrt(N / 2)
    assert abs((values[1:] * values[:-1]).mean().item()) < 4 / math.sqrt(N)


def test_the_noise_on_the_mean_has_the_variance_it_should():
    found = noisy_mean({"hr/a": {"x": torch.zeros(N)}}, clip=0.5, noise_multiplier=3.0, asked=10, seed=KEY)
    assert found.mean["x"].var().item() == pytest.approx(0.15**2, rel=4 * math.sqrt(2 / N))  # 3 · 0.5 / 10
