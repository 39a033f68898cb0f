"""Rounds of a finished run are computed again and compared with its ledger."""

import shutil
from pathlib import Path

import pytest
from signed_runs import forge

from fl_lightning.errors import InputError
from fl_lightning.provenance.chain import ChainError
from fl_lightning.runs.build import load_run_config
from fl_lightning.runs.replay import replay
from fl_lightning.runs.verify import verify_chain

CONFIGS = Path(__file__).parents[2] / "configs" / "methods"


def again(run, *rounds, **places):
    config = load_run_config(run)
    for block, values in places.items():
        for key, value in values.items():
            setattr(getattr(config, block), key, value)
    return replay(run, config, verify_chain(run).chain, rounds)


def files(run):
    return {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def test_rounds_come_from_the_checkpoint_before_or_from_an_earlier_one(copied):
    before = files(copied)
    assert again(copied, 2).rounds == [2]
    assert again(copied, 1, 2).has_secret
    shutil.rmtree(copied / "checkpoints" / "round_1")
    assert again(copied, 2).rounds == [1, 2]
    assert files(copied) == {path: data for path, data in before.items() if "round_1" not in path.parts}


def test_without_the_secret_states_are_compared(copied):
    (copied / "ledger_secret").unlink()
    replayed = again(copied, 2)
    assert (replayed.rounds, replayed.has_secret) == ([2], False)


def test_other_records_are_found_and_the_client_is_named(copied, root, tmp_path):
    data = shutil.copytree(root, tmp_path / "data")
    train = next(data.glob("hr*")) / "client_1" / "train.jsonl"
    lines = train.read_text().splitlines(keepends=True)
    train.write_text("".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(ChainError, match=r"ledger.jsonl:3: round 2: hr/client_1: records: expected"):
        again(copied, 2, data={"root": str(data)})


def test_an_invented_update_is_found(copied):
    forge(copied, lambda lines: lines[2]["clients"]["hr/client_0"].update(update="0" * 64))
    with pytest.raises(ChainError, match=r"ledger.jsonl:3: round 2: hr/client_0: update: expected \"0000"):
        again(copied, 2)


def test_invented_states_are_found_where_there_is_no_checkpoint(copied):
    shutil.rmtree(copied / "checkpoints")
    forge(copied, lambda lines: lines[1]["departments"]["finance"].update(aggregated="0" * 64))
    with pytest.raises(ChainError, match=r"ledger.jsonl:2: round 1: departments: finance: aggregated: expected"):
        again(copied, 2)


def test_what_cannot_be_computed_here_is_bad_input(copied):
    with pytest.raises(InputError, match="expected rounds from 1 to 2, got 3"):
        again(copied, 1, 3)
    with pytest.raises(InputError, match="expected the base of the run"):
        again(copied, 2, model={"name_or_path": "bundled:tiny_base"})
    (copied / "network.json").write_text("{}")
    with pytest.raises(InputError, match="is a run between machines"):
        again(copied, 1)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fedsa_lora", "fedex_lora", "fedbuff", "ditto", "dp_fedavg"])
def test_rounds_of_other_methods_are_computed_again(fit, tmp_path, method):
    if method == "dp_fedavg":
        pytest.importorskip("dp_accounting", reason="dp-accounting is not installed; the privacy extra has it")
    options = ["--federation.clients_per_round", "1"] if method in ("fedsa_lora", "fedex_lora") else []
    run = fit(tmp_path, "--config", str(CONFIGS / f"{method}.yaml"), "--rounds", "3", *options)
    assert again(run, 3).rounds == [3]
    if method == "dp_fedavg":  # the key of the noise is in the checkpoints only
        shutil.rmtree(run / "checkpoints")
        with pytest.raises(InputError, match="the secret key of the noise"):
            again(run, 1)
