"""A whole round in memory: the mean, clients that drop out, what it costs, what the server sees."""

import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from fl_lightning.privacy.secure_aggregation.randomness import seeded_random, system_random
from fl_lightning.privacy.secure_aggregation.session import aggregate_in_memory, simulated_members
from fl_lightning.privacy.secure_aggregation.terms import SecureAggregationError, Terms

NAMES = [f"hr/client_{i}" for i in range(4)]


def aggregate(inputs, seed=7, terms=None, random=None, **options):
    size = len(next(iter(inputs.values()))[0])
    terms = terms or Terms("run", "hr", 1, invited=len(inputs), size=size)
    random = random or (lambda name: seeded_random(seed, name))
    return aggregate_in_memory(terms, simulated_members(list(inputs), 7), inputs, random, **options)


def draw(names=NAMES, size=100, seed=0):
    generator = np.random.default_rng(seed)
    return {name: (generator.normal(scale=0.01, size=size), int(generator.integers(1, 200))) for name in names}


def plain_mean(inputs, names):
    return np.average([inputs[n][0] for n in names], axis=0, weights=[inputs[n][1] for n in names])


@pytest.mark.parametrize("clients", [3, 4, 16])
def test_equals_the_plain_mean_within_the_stated_error(clients):
    inputs = draw([f"hr/{i}" for i in range(clients)])
    result = aggregate(inputs)
    assert np.abs(result.mean - plain_mean(inputs, inputs)).max() <= result.error < 1e-6
    assert result.weight == sum(weight for _, weight in inputs.values())
    assert result.clients == sorted(inputs)


@pytest.mark.slow
def test_on_the_sparse_graph_with_some_who_drop_out():
    inputs = draw([f"hr/{i:02}" for i in range(44)], size=10)
    drops = dict(zip(("hr/03", "hr/20", "hr/21", "hr/40"), ("keys", "shares", "input", "unmask"), strict=True))
    result = aggregate(inputs, drops=drops)
    left = [name for name in inputs if name not in ("hr/03", "hr/20", "hr/21")]
    assert result.clients == left
    assert np.abs(result.mean - plain_mean(inputs, left)).max() <= result.error


@pytest.mark.parametrize(
    ("step", "in_sum"), [("keys", False), ("shares", False), ("input", False), ("signature", True), ("unmask", True)]
)
def test_one_of_four_drops_out_at_any_step(step, in_sum):
    inputs = draw()
    result = aggregate(inputs, drops={NAMES[1]: step})
    left = NAMES if in_sum else [NAMES[0], *NAMES[2:]]
    assert result.clients == left
    assert np.abs(result.mean - plain_mean(inputs, left)).max() <= result.error


@pytest.mark.parametrize("step", ["keys", "shares", "input", "signature", "unmask"])
def test_below_the_threshold_the_round_fails(step):
    with pytest.raises(SecureAggregationError, match="got 2"):
        aggregate(draw(), drops={NAMES[1]: step, NAMES[3]: step})


def test_fails_when_two_go_at_different_steps():
    with pytest.raises(SecureAggregationError, match="nothing is learned"):
        aggregate(draw(), drops={NAMES[0]: "keys", NAMES[1]: "input"})
    with pytest.raises(SecureAggregationError, match="mask of .* stays|got 2"):
        aggregate(draw(), drops={NAMES[0]: "input", NAMES[1]: "unmask"})


def test_two_clients_are_too_few_by_default():
    with pytest.raises(SecureAggregationError, match="expected at least 3 clients"):
        aggregate(draw(NAMES[:2]))


def test_the_result_does_not_depend_on_the_secrets():
    inputs = draw()
    means = [aggregate(inputs, seed=seed).mean for seed in (1, 2)]
    means.append(aggregate(inputs, random=lambda name: system_random).mean)
    assert means[0].tobytes() == means[1].tobytes() == means[2].tobytes()


def test_the_order_of_the_clients_does_not_matter():
    inputs = draw()
    backwards = dict(reversed(inputs.items()))
    assert aggregate(inputs).mean.tobytes() == aggregate(backwards).mean.tobytes()


def test_bytes_of_a_client():
    result = aggregate(draw(size=1000))
    # Keys and signature; shares and names of three, and a digest; 1,001 elements; a signature; four shares with names.
    assert result.bytes_up[NAMES[0]] == 128 + 3 * (12 + 64 + 16 + 11) + 32 + 4 * 1001 + 64 + 4 * (32 + 11)
    down = 4 * (128 + 11) + 3 * (12 + 64 + 16 + 11) + 4 * 11 + 4 * 11 + 4 * (64 + 11)
    assert result.bytes_down[NAMES[0]] == down


def transcript(inputs, seed):
    messages = []
    result = aggregate(inputs, seed=seed, record=lambda step, client, message: messages.append((step, client, message)))
    return result, messages


def test_other_updates_of_the_same_sum_look_the_same_to_the_server():
    size = 50_000
    zeros = {name: (np.zeros(size), 100) for name in NAMES}
    large = {name: (np.full(size, value), 100) for name, value in zip(NAMES, (3.5, -3.5, 1.25, -1.25), strict=True)}
    (result, messages), (other, other_messages) = transcript(zeros, 1), transcript(large, 1)
    assert result.mean.tobytes() == other.mean.tobytes()
    assert (result.weight, result.clients) == (other.weight, other.clients)
    assert (result.bytes_up, result.bytes_down) == (other.bytes_up, other.bytes_down)
    assert [(step, client) for step, client, _ in messages] == [(step, client) for step, client, _ in other_messages]
    # The same secrets: all that does not depend on the updates is equal but for the random shares and nonces.
    assert [m for s, _, m in messages if s in ("keys", "signature")] == [
        m for s, _, m in other_messages if s in ("keys", "signature")
    ]
    for heard in (messages, other_messages):
        masked = {client: message for step, client, message in heard if step == "input"}
        for vector in masked.values():
            counts = np.bincount(np.frombuffer(vector.tobytes(), dtype=np.uint8), minlength=256)
            assert chisquare(counts).pvalue > 1e-5
            assert kstest(vector / 2**32, "uniform").pvalue > 1e-5
        # Neither do any three together tell more: their sum is uniform, and only that of all four is the result.
        for left_out in NAMES:
            partial = sum(masked[name] for name in NAMES if name != left_out)
            assert kstest(partial / 2**32, "uniform").pvalue > 1e-5


@pytest.mark.slow
def test_masked_inputs_of_two_sets_of_updates_have_one_distribution():
    """The same element over many rounds: an update of 3.5 cannot be told from one of 0 by what the server gets."""
    values = {name: [] for name in ("zero", "large")}
    for seed in range(40):
        for kind, value in (("zero", 0.0), ("large", 3.5)):
            inputs = {name: (np.full(20, sign * value), 10) for name, sign in zip(NAMES, (1, -1, 1, -1), strict=True)}
            _, messages = transcript(inputs, seed if kind == "zero" else 1000 + seed)
            values[kind] += [v for step, client, v in messages if step == "input" and client == NAMES[0]]
    zero, large = (np.concatenate(values[kind]) / 2**32 for kind in ("zero", "large"))
    assert kstest(zero, large).pvalue > 1e-4
