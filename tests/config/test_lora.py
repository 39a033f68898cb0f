import math

import pytest

from fl_lightning import InputError
from fl_lightning.config import FederationConfig, LoraConfig, LoraProfile, RunConfig
from fl_lightning.config.parsing import parse_config, to_yaml

PHONES = {"hr": LoraProfile(4), "hr/client_1": LoraProfile(32, 16), "it/client_0": LoraProfile(8, 4)}


@pytest.mark.parametrize(
    ("client", "rank", "scale", "rs_scale"),
    [
        ("ops/client_0", 8, 2.0, 16 / math.sqrt(8)),
        ("hr/client_0", 4, 4.0, 8.0),
        ("hr/client_1", 32, 0.5, 16 / math.sqrt(32)),
        ("it/client_0", 8, 0.5, 4 / math.sqrt(8)),
        ("it/client_1", 8, 2.0, 16 / math.sqrt(8)),
    ],
)
def test_a_client_has_its_own_profile_or_its_departments_or_what_all_have(client, rank, scale, rs_scale):
    lora = LoraConfig(r=8, lora_alpha=16, profiles=PHONES)
    assert lora.rank(client) == rank
    assert lora.relative_scaling(client) == pytest.approx(scale / 2.0)
    stable = LoraConfig(r=8, lora_alpha=16, profiles=PHONES, use_rslora=True)
    assert stable.relative_scaling(client) == pytest.approx(rs_scale / (16 / math.sqrt(8)))


@pytest.mark.parametrize(
    ("profile", "mixed"), [(LoraProfile(8), False), (LoraProfile(8, 16), False), (LoraProfile(8, 8), True)]
)
def test_only_another_rank_or_scale_makes_a_federation_mixed(profile, mixed):
    assert LoraConfig(profiles={"hr": profile}).is_mixed() == mixed
    assert LoraConfig(profiles={"hr": LoraProfile(4)}).is_mixed()
    assert not LoraConfig().is_mixed()


def test_a_profile_of_nobody_is_refused_with_the_nearest_name():
    lora = LoraConfig(profiles={"hrr": LoraProfile(4)})
    with pytest.raises(InputError, match=r"lora\.profiles: expected a department .*, got 'hrr'; did you mean 'hr'"):
        lora.check_names(["hr/client_0", "it/client_0"])
    LoraConfig(profiles=PHONES).check_names(["hr/client_1", "it/client_0"])


@pytest.mark.parametrize("values", [{"r": 0}, {"r": None}, {"lora_alpha": 0.0}, {"lora_alpha": math.nan}])
def test_bad_profiles_are_refused_by_their_key(values):
    with pytest.raises(InputError, match=f"lora.profiles.{next(iter(values))}"):
        LoraProfile(**values)


@pytest.mark.parametrize("combiner", ["flora", "fedavg", "residual"])
def test_mixed_ranks_need_a_combiner_that_takes_them(combiner):
    arguments = ["--lora.profiles={hr: {r: 4}}", "--num-clusters", "1", "--no-dept-clustering"]
    with pytest.raises(InputError, match=rf"lora\.profiles: .*expected .*combiner: stack or svd.*got {combiner}"):
        parse_config([*arguments, f"--federation.combiner={combiner}"])
    assert parse_config([*arguments, "--federation.combiner=svd"]).lora.rank("hr/a") == 4


def test_profiles_go_through_yaml_and_back(tmp_path):
    arguments = ["--num-clusters", "1", "--no-dept-clustering", "--federation.combiner=stack"]
    config = parse_config([*arguments, "--lora.profiles={hr: {r: 4, lora_alpha: 8}, hr/client_1: {r: 32}}"])
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert parse_config(["--config", str(path)]) == config
    assert config.lora.profiles == {"hr": LoraProfile(4, 8), "hr/client_1": LoraProfile(32)}


def test_unknown_keys_of_a_profile_are_refused(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("lora:\n  profiles:\n    hr: {rank: 4}\n")
    with pytest.raises(InputError, match="rank"):
        parse_config(["--config", str(path)])


def test_a_plain_run_config_is_not_mixed():
    assert RunConfig(federation=FederationConfig()).lora.profiles == {}
