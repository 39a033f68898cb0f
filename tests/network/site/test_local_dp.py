import dataclasses
import json
import math
import stat

import pytest
import torch

from fl_lightning.errors import InputError
from fl_lightning.federation.protocol import ClientUpdate, Metrics
from fl_lightning.network.site.local_dp import LocalLedger, local_epsilon, privatize, read_secret
from fl_lightning.state import distance, norm

SECRET = "5e" * 32
A, B = "q.lora_A.weight", "q.lora_B.weight"


def update(scale=1.0, seed=0, **other):
    draw = torch.Generator().manual_seed(seed)
    state = {A: torch.randn(8, 400, generator=draw) * scale, B: torch.randn(400, 8, generator=draw) * scale}
    given = {"client_id": "hr/client_0", "round_num": 3, "num_examples": 7, "num_tokens": 90, **other}
    return ClientUpdate(state=given.pop("state", state), **given)


START = {A: torch.ones(8, 400), B: torch.zeros(400, 8)}


def noisy(given=None, start=START, **other):
    options = {"clip": 1.0, "noise_multiplier": 1.0, "secret": SECRET, "run_id": "run", **other}
    return privatize(given or update(), start, **options)


def difference(state, start=START):
    return {n: state[n].double() - start[n].double() for n in state}


def test_a_longer_update_is_cut_to_the_norm_and_a_shorter_one_stays():
    long, short = update(10.0), update(state={n: t + 1e-4 for n, t in START.items()})
    got = noisy(long, noise_multiplier=0.0).update.state
    assert norm(difference(got)) == pytest.approx(1.0, rel=1e-4)
    cosine = sum((difference(got)[n] * difference(long.state)[n]).sum() for n in got) / norm(difference(long.state))
    assert cosine == pytest.approx(1.0, rel=1e-4)
    assert distance(noisy(short, noise_multiplier=0.0).update.state, short.state) < 1e-6


@pytest.mark.parametrize(("clip", "z"), [(1.0, 1.0), (0.5, 4.0), (2.0, 0.25)])
def test_noise_has_the_standard_deviation_it_should_have(clip, z):
    given = update(10.0)
    with_noise = difference(noisy(given, clip=clip, noise_multiplier=z).update.state)
    without = difference(noisy(given, clip=clip, noise_multiplier=0.0).update.state)
    values = torch.cat([(with_noise[n] - without[n]).flatten() for n in sorted(with_noise)]) / (z * clip)
    count = len(values)  # 6400 standard normal values, bounds of five standard errors
    assert abs(values.mean().item()) < 5 / math.sqrt(count)
    assert abs(values.std().item() - 1) < 5 / math.sqrt(2 * count)
    assert (values.abs() < 1).double().mean().item() == pytest.approx(
        0.6827, abs=5 * math.sqrt(0.6827 * 0.3173 / count)
    )


def test_mean_over_many_rounds_is_the_clipped_update():
    given = update(0.002, state={n: START[n] + 0.002 for n in START})
    rounds = 64
    total = sum(difference(noisy(dataclasses.replace(given, round_num=t)).update.state)[A] for t in range(rounds))
    assert (total / rounds).mean().item() == pytest.approx(0.002, abs=5 / math.sqrt(rounds * 3200))


def noise_of(**other):
    given = other.pop("given", None) or update()
    with_noise, without = noisy(given, **other), noisy(given, **{**other, "noise_multiplier": 0.0})
    return with_noise.update.state[A] - without.update.state[A]


def test_a_repeated_round_has_the_same_noise_and_is_one_release():
    first, again = noisy(), noisy(update(), {n: t.clone() for n, t in START.items()})
    assert all(torch.equal(first.update.state[n], again.update.state[n]) for n in START)
    assert first.release == again.release


@pytest.mark.parametrize(
    "other",
    [
        {"given": update(round_num=4)},
        {"given": update(client_id="hr/client_1")},
        {"given": update(seed=1)},
        {"run_id": "another"},
        {"secret": "5f" * 32},
        {"start": {**START, B: torch.full((400, 8), 1e-3)}},
    ],
    ids=["round", "client", "update", "run", "secret", "start"],
)
def test_anything_else_has_noise_of_its_own(other):
    plain, changed = noise_of().double().flatten(), noise_of(**other).double().flatten()
    correlation = torch.corrcoef(torch.stack([plain, changed]))[0, 1].item()
    assert abs(correlation) < 5 / math.sqrt(len(plain))
    given = other.pop("given", None)
    assert noisy(given, **other).release != noisy().release


@pytest.mark.parametrize("other", [{"clip": 2.0}, {"noise_multiplier": 2.0}])
def test_two_strengths_of_noise_do_not_cancel_out(other):
    plain, changed = noise_of().double().flatten(), noise_of(**other).double().flatten()
    assert abs(torch.corrcoef(torch.stack([plain, changed]))[0, 1].item()) < 5 / math.sqrt(len(plain))


def test_private_figures_are_taken_out_and_counts_stay():
    given = update(losses=[2.5, 2.0], seconds=3.0, metrics=Metrics(1.0, 2.0, 3, 4))
    got = noisy(given).update
    assert (got.losses, got.seconds, got.metrics) == ([], 0.0, None)
    assert (got.client_id, got.round_num, got.num_examples, got.num_tokens) == ("hr/client_0", 3, 7, 90)
    assert all(t.dtype == torch.float32 for t in got.state.values())


def test_only_what_is_sent_counts():
    given = update(10.0)
    only = dataclasses.replace(given, state={A: given.state[A]})
    assert set(noisy(only).update.state) == {A}
    assert norm(difference(noisy(only, noise_multiplier=0.0).update.state)) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_update_that_is_not_finite_is_refused(value):
    state = {**START, A: torch.full((8, 400), value)}
    with pytest.raises(ValueError, match="hr/client_0: expected an update of finite norm"):
        noisy(update(state=state))


def test_other_layouts_and_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match=f"{A}: expected a tensor of the same shape in the start"):
        noisy(start={B: START[B]})
    with pytest.raises(ValueError, match=r"clip: expected a positive finite number, got 0\.0"):
        noisy(clip=0.0)
    with pytest.raises(ValueError, match=r"noise_multiplier: expected .*, got -1\.0"):
        noisy(noise_multiplier=-1.0)


def test_secret_is_made_once_from_entropy_and_nobody_else_reads_it(tmp_path):
    path = tmp_path / "site" / "secret"
    secret = read_secret(path)
    assert len(secret) == 64
    assert read_secret(path) == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["secret"]
    assert read_secret(tmp_path / "other") != secret


@pytest.mark.parametrize("text", ["", "5e" * 31, "5e" * 33, "zz" * 32, " ".join(["5e"] * 32), "\xff" * 64])
def test_a_secret_that_is_none_is_refused_and_not_shown(text, tmp_path):
    path = tmp_path / "secret"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(InputError, match="expected 64 hexadecimal digits") as caught:
        read_secret(path)
    assert "5e" not in str(caught.value).replace(str(path), "")


def test_a_secret_that_others_may_read_and_one_behind_a_link_are_refused(tmp_path):
    path = tmp_path / "secret"
    read_secret(path)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(InputError, match="not a regular file"):
        read_secret(tmp_path / "link")
    path.chmod(0o640)
    with pytest.raises(InputError, match="others may read it; expected mode 0600"):
        read_secret(path)


def test_the_account_counts_each_release_once_and_is_on_the_disk(tmp_path):
    path = tmp_path / "ledger.json"
    ledger = LocalLedger(path)
    assert ledger.epsilon(1e-5) == 0.0
    for release in ("a", "b", "a"):
        ledger.record(release, 8.0)
    assert json.loads(path.read_text()) == {"releases": {"a": 8.0, "b": 8.0}}
    again = LocalLedger(path)
    pytest.importorskip("dp_accounting", reason="dp-accounting is not installed: the privacy extra")
    assert again.epsilon(1e-5) == pytest.approx(local_epsilon(8.0, 2, 1e-5), rel=1e-6)
    again.record("c", 4.0)  # 2 / 64 + 1 / 16 = 6 / 64: as six rounds with 8
    assert again.epsilon(1e-5) == pytest.approx(local_epsilon(8.0, 6, 1e-5), rel=1e-6)
    again.record("d", 0.0)
    assert again.epsilon(1e-5) == math.inf


def test_any_two_updates_are_twice_as_far_apart_as_one_and_none():
    pytest.importorskip("dp_accounting", reason="dp-accounting is not installed: the privacy extra")
    from fl_lightning.privacy import epsilon

    assert local_epsilon(2.0, 5, 1e-5) == epsilon(1.0, 5, 1e-5, clients=1, asked=1)
    assert local_epsilon(0.0, 5, 1e-5) == math.inf
    assert local_epsilon(1.0, 0, 1e-5) == 0.0


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"releases": []}', '{"releases": {"a": -1}}', '{"releases": {"a": true}}']
)
def test_an_account_that_is_none_is_refused(text, tmp_path):
    path = tmp_path / "ledger.json"
    path.write_text(text)
    with pytest.raises(InputError, match="expected a ledger of releases"):
        LocalLedger(path)
