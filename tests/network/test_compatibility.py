import pytest

from fl_lightning.config import LoraProfile, RunConfig
from fl_lightning.config.parsing import parse_config
from fl_lightning.errors import InputError
from fl_lightning.network.compatibility import (
    MUST_MATCH,
    PROTOCOL_VERSION,
    SharedSettings,
    SiteInfo,
    check_between_machines,
    find_mismatch,
)

FACTS = {"client_id": "hr/a", "train": 3, "eval": 2, "selection": 1, "tokens": 90, "records": "ab", "r": 8, "kept": 0}
FACTS |= {"lend": "department", "mates": "off", "public_key": "5e" * 32}


def made(form="fp32", base="ab", **lora):
    config = RunConfig()
    for name, value in lora.items():
        setattr(config.lora, name, value)
    return SharedSettings.of(config, form, base)


def test_equal_sides_agree():
    assert find_mismatch(made(), made().to_dict()) is None
    assert set(made().values) == set(MUST_MATCH)


def test_the_key_is_named_on_both_sides():
    said = find_mismatch(made(lora_alpha=4), made().to_dict())
    assert said == "lora.lora_alpha: expected the same on both sides, got 16.0 on the server, 4 at the site"


def test_profiles_travel_as_json():
    import json

    both = made(profiles={"hr": LoraProfile(4)})
    assert find_mismatch(both, json.loads(json.dumps(both.to_dict()))) is None


def test_another_base_is_refused_where_it_can_be_compared():
    assert "base model with SHA-256 ab… on the server, cd… at the site" in find_mismatch(
        made(base="cd"), made().to_dict()
    )
    assert find_mismatch(made("4bit", "cd"), made().to_dict()) is None


@pytest.mark.parametrize(
    "server",
    [None, {}, {"values": 3}, {"values": {}, "protocol": PROTOCOL_VERSION}, {**made().to_dict(), "protocol": 1}],
)
def test_another_version_is_refused(server):
    assert "version of fl_lightning" in find_mismatch(made(), server)


def test_facts_are_read_as_they_are():
    assert vars(SiteInfo.from_dict(FACTS)) == FACTS


@pytest.mark.parametrize(
    "change",
    [
        {"lend": "x"},
        {"mates": None},
        {"public_key": "x"},
        {"public_key": "5E" * 32},
        {"train": -1},
        {"train": True},
        {"train": 3.0},
        {"tokens": 10**13},
        {"records": 5},
        {"client_id": "x" * 600},
    ],
)
def test_facts_that_are_none_are_refused(change):
    with pytest.raises(ValueError, match="a site's"):
        SiteInfo.from_dict({**FACTS, **change})


@pytest.mark.parametrize("values", [None, [], {}, {**FACTS, "more": 1}])
def test_facts_of_another_form_are_refused(values):
    with pytest.raises(ValueError, match="a site's values"):
        SiteInfo.from_dict(values)


ALONE = ["--no-dept-clustering", "--num-clusters", "1", "--federation.combiner", "fedavg"]
STOP = ["--training.early_stopping", "true", "--data.selection_fraction", "0.2"]
DURING = ["--personal.own", "during"]
BUFFERED = [
    *("--federation.schedule.mode", "buffered", "--num-clusters", "1"),
    *("--federation.dept_clusters.enabled", "false"),
]
MASKED = ["--federation.secure_aggregation", "true", "--num-clusters", "1"]
PRIVATE = ["--federation.guard.name", "dp", "--federation.weighting", "uniform"]
NOISE = ["--network.local_privacy.clip", "1.0", "--network.local_privacy.noise_multiplier", "4.0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([*ALONE, "--federation.share", "central"], "federation.share: expected a share without central training"),
        ([*ALONE, *STOP, "--federation.share", "a"], "training.early_stopping: .* with share a, .* stays at each site"),
        ([*ALONE, *STOP, "--federation.share_layers", "[0]"], "training.early_stopping: .* with share_layers"),
        (
            [*MASKED, "--network.transport", "bf16"],
            "network.transport: masked numbers are random, .*; expected fp32 between machines with "
            "federation.secure_aggregation: true, got bf16",
        ),
        ([*MASKED, *DURING, "--network.lend", "all"], "network.lend: own adapters are lent as they are, .*got all"),
        (["--personal.root", "trained"], "personal.root: expected mean between machines, got trained"),
        (["--data.exclude", "[hr/client_1]"], "data.exclude: expected no names between machines, got hr/client_1"),
        (
            ["--network.lend", "all"],
            "network.lend: expected off, or personal.own: during .*own: after has no own adapter",
        ),
        (
            [*DURING, "--network.lend", "all", *NOISE],
            "network.lend: expected off with network.local_privacy.noise_multiplier 4, .* got all",
        ),
        (["--audit.canaries", "8"], "audit.canaries: expected 0 between machines, .* got 8; use fit"),
        ([*DURING, "--personal.fedalt_weight", "0.5"], "personal.fedalt_weight: expected 0 between machines"),
        ([*DURING, "--personal.fedalt_gate", "true"], "personal.fedalt_gate: expected false between machines"),
        (
            [*ALONE, *DURING, "--personal.ditto_lambda", "1", "--federation.share", "a"],
            "personal.ditto_lambda: .*share a",
        ),
        ([*DURING, "--personal.apfl_alpha", "0.5", "--num-clusters", "2"], "personal.apfl_alpha: .* num_clusters 2"),
        (["--federation.schedule.clients.speed", "constant"], "schedule.clients.speed: expected null between machines"),
        ([*BUFFERED, *STOP], "training.early_stopping: true has all sites evaluate .*mode: buffered, .*got true"),
        ([*BUFFERED, "--federation.weighting", "contribution"], "federation.weighting: contribution has all sites"),
        (
            [*BUFFERED[:-1], "true", "--federation.dept_clusters.representation", "cross_loss"],
            "federation.dept_clusters.representation: cross_loss has all sites",
        ),
    ],
)
def test_what_would_need_a_sites_private_tensors_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        check_between_machines(parse_config(options))


@pytest.mark.parametrize(
    "options",
    [
        [],
        BUFFERED,
        MASKED,
        [*MASKED, *DURING, *STOP, *NOISE, "--federation.share", "alternate"],
        STOP,
        DURING,
        [*ALONE, "--federation.share_layers", "[0]", *DURING],
        [*ALONE, *STOP, *DURING, "--personal.ditto_lambda", "1"],
        [*ALONE, *DURING, "--personal.apfl_alpha", "0.5"],
        [*DURING, "--network.lend", "department"],
        ["--personal.mates", "all"],
        [*DURING, "--network.lend", "off", *NOISE],
    ],
)
def test_what_sites_decide_or_answer_with_a_loss_is_not_refused(options):
    check_between_machines(parse_config(options))


def test_noise_in_shares_is_each_sites_own():
    check_between_machines(parse_config([*MASKED, *PRIVATE]))
    options = [*MASKED, *PRIVATE, "--federation.privacy.noise_seed", "5"]
    with pytest.raises(InputError, match="federation.privacy.noise_seed: all sites .* expected null .*got 5"):
        check_between_machines(parse_config(options))
    without, noisy = (
        SharedSettings.of(parse_config([*MASKED, *choices]), "fp32", "ab") for choices in (PRIVATE[2:], PRIVATE)
    )
    assert find_mismatch(noisy, without.to_dict()).startswith("federation.guard.name: expected the same on both sides")


@pytest.mark.parametrize(("server", "site"), [(True, False), (False, True)])
def test_secure_aggregation_is_on_at_both_sides_or_at_none(server, site):
    def settings(is_on):
        return SharedSettings.of(parse_config(MASKED if is_on else ["--num-clusters", "1"]), "fp32", "ab")

    reason = find_mismatch(settings(site), settings(server).to_dict())
    expected = f"federation.secure_aggregation: expected the same on both sides, got {server} on the server, {site} at"
    assert reason.startswith(expected)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (["--federation.masking.min_clients", "2"], "federation.masking"),
        (["--federation.masking.threshold", "0.5"], "federation.masking"),
        (["--federation.weighting", "uniform"], "federation.weighting"),
        (["--federation.privacy.noise_multiplier", "0.5"], "federation.privacy"),
    ],
)
def test_a_site_takes_no_limits_from_the_server(change, key):
    site, server = (SharedSettings.of(parse_config(options), "fp32", "ab") for options in (MASKED, [*MASKED, *change]))
    assert find_mismatch(site, server.to_dict()).startswith(f"{key}: expected the same on both sides, got ")
    plain = [SharedSettings.of(parse_config(options), "fp32", "ab") for options in ([], change)]
    assert find_mismatch(plain[0], plain[1].to_dict()) is None  # without masks they are the server's alone
