import os
import pickle

import pytest
import torch

from fl_lightning import checkpoint as checkpoint_module
from fl_lightning.checkpoint import checkpoints, load_checkpoint, newest_checkpoint, save_checkpoint
from fl_lightning.errors import InputError
from fl_lightning.federation import FederationState
from fl_lightning.files import write_manifest

A, B = "base_model.model.layers.0.q_proj.lora_A.weight", "base_model.model.layers.0.q_proj.lora_B.weight"


def federation(seed=0):
    draw = torch.Generator().manual_seed(seed)

    def state(*names):
        return {n: torch.randn(2, 3, generator=draw) for n in names}

    start = state(A)
    return FederationState(
        round_num=7,
        initial={**state(A), B: torch.zeros(2, 3)},
        departments={"hr": state(A, B), "customer_support": state(A, B)},
        client_starts={"hr/client_0": start, "hr/client_1": start},
        personal={"hr/client_10": state(B)},
        examples={"hr/client_0": 128, "hr/client_1": 5},
        cluster_assignments={"customer_support": 0, "hr": 1},
    )


def assert_equal_states(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype
        assert torch.equal(first[name].view(torch.uint8), second[name].view(torch.uint8))


def test_round_trip_is_bit_exact(tmp_path):
    saved, extra = federation(), {"history": [{"loss": 0.1 + 0.2}], "name": "θ"}
    save_checkpoint(tmp_path / "round_7", saved, extra)
    loaded, loaded_extra = load_checkpoint(tmp_path / "round_7")
    assert loaded.round_num == 7
    assert loaded.examples == saved.examples
    assert loaded.cluster_assignments == saved.cluster_assignments
    assert loaded_extra == extra
    assert_equal_states(loaded.initial, saved.initial)
    for kind in ("departments", "client_starts", "personal"):
        assert getattr(loaded, kind).keys() == getattr(saved, kind).keys()
        for owner, state in getattr(saved, kind).items():
            assert_equal_states(getattr(loaded, kind)[owner], state)


def test_odd_floats_survive(tmp_path):
    odd = torch.tensor([0.0, -0.0, 1e-45, 3.4028235e38, -1e-38, 0.1])
    save_checkpoint(tmp_path / "c", FederationState(0, {A: odd}, {"hr": {A: -odd}}), {})
    loaded, _ = load_checkpoint(tmp_path / "c")
    assert torch.equal(loaded.initial[A].view(torch.int32), odd.view(torch.int32))
    assert torch.equal(loaded.departments["hr"][A].view(torch.int32), (-odd).view(torch.int32))


def test_a_state_that_is_not_contiguous_can_be_saved(tmp_path):
    turned = torch.arange(6.0).reshape(2, 3).T
    save_checkpoint(tmp_path / "c", FederationState(0, {A: turned}, {"hr": {A: turned}}), {})
    assert torch.equal(load_checkpoint(tmp_path / "c")[0].departments["hr"][A], turned)


def test_round_zero_round_trips(tmp_path):
    save_checkpoint(tmp_path / "c", FederationState.begin({A: torch.ones(1)}, ["hr"]), {})
    loaded, extra = load_checkpoint(tmp_path / "c")
    assert (loaded.round_num, loaded.client_starts, loaded.personal, extra) == (0, {}, {}, {})


def test_saving_again_replaces_the_checkpoint(tmp_path):
    save_checkpoint(tmp_path / "c", federation(0), {})
    save_checkpoint(tmp_path / "c", federation(1), {})
    assert os.listdir(tmp_path) == ["c"]
    assert_equal_states(load_checkpoint(tmp_path / "c")[0].initial, federation(1).initial)


def test_a_save_that_fails_midway_leaves_the_old_checkpoint_and_no_temporary(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "c", federation(0), {"n": 0})

    def fail(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "write_json", fail)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path / "c", federation(1), {"n": 1})
    assert os.listdir(tmp_path) == ["c"]
    loaded, extra = load_checkpoint(tmp_path / "c")
    assert extra == {"n": 0}
    assert_equal_states(loaded.initial, federation(0).initial)


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.95])
def test_a_truncated_checkpoint_is_bad_input(tmp_path, name, keep):
    save_checkpoint(tmp_path / "c", federation(), {})
    path = tmp_path / "c" / name
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InputError, match=str(tmp_path / "c")):
        load_checkpoint(tmp_path / "c")


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
def test_a_missing_file_is_bad_input(tmp_path, name):
    save_checkpoint(tmp_path / "c", federation(), {})
    (tmp_path / "c" / name).unlink()
    with pytest.raises(InputError, match=str(tmp_path / "c")):
        load_checkpoint(tmp_path / "c")


@pytest.mark.parametrize("text", ["[]", "{}", "3", '{"round": 1}', "null"])
def test_json_of_another_form_is_bad_input(tmp_path, text):
    save_checkpoint(tmp_path / "c", federation(), {})
    (tmp_path / "c" / "state.json").write_text(text)
    write_manifest(tmp_path / "c")
    with pytest.raises(InputError, match="not a whole checkpoint"):
        load_checkpoint(tmp_path / "c")


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_pickle_in_place_of_the_tensors_is_not_run(tmp_path):
    save_checkpoint(tmp_path / "c", federation(), {})
    (tmp_path / "c" / "state.safetensors").write_bytes(pickle.dumps(Trap(str(tmp_path / "run"))))
    write_manifest(tmp_path / "c")
    with pytest.raises(InputError, match="state.safetensors: not readable"):
        load_checkpoint(tmp_path / "c")
    assert not (tmp_path / "run").exists()


def test_checkpoints_are_listed_by_number(tmp_path):
    for name in ("round_10", "round_2", "round_x", ".round_3.abc.tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert list(checkpoints(tmp_path)) == [2, 10]
    assert checkpoints(tmp_path)[2] == tmp_path / "checkpoints" / "round_2"


def test_a_run_without_checkpoints_has_none(tmp_path):
    assert checkpoints(tmp_path) == {}


def test_starts_that_clients_share_are_written_once(tmp_path):
    start = {A: torch.randn(50, 50)}
    states = FederationState(
        1, {A: torch.zeros(2)}, {"hr": {A: torch.zeros(2)}}, {f"hr/c{i}": start for i in range(40)}
    )
    save_checkpoint(tmp_path / "c", states, {})
    assert (tmp_path / "c" / "state.safetensors").stat().st_size < 2 * 50 * 50 * 4
    loaded, _ = load_checkpoint(tmp_path / "c")
    assert all(torch.equal(loaded.client_starts[f"hr/c{i}"][A], start[A]) for i in range(40))


def test_what_clients_have_for_themselves_may_go_to_disk_when_it_is_loaded(tmp_path):
    from fl_lightning.spill import Spill, SpilledState

    saved = federation()
    save_checkpoint(tmp_path / "c", saved, {})
    spill = Spill(tmp_path)
    loaded, _ = load_checkpoint(tmp_path / "c", spill.keep)
    assert isinstance(loaded.personal["hr/client_10"], SpilledState)
    assert torch.equal(loaded.personal["hr/client_10"][B], saved.personal["hr/client_10"][B])


def test_a_client_id_that_leads_out_of_the_checkpoint_is_refused(tmp_path):
    import json

    save_checkpoint(tmp_path / "c", federation(), {})
    facts = json.loads((tmp_path / "c" / "state.json").read_text())
    facts["personal"] = ["../../secret"]
    (tmp_path / "c" / "state.json").write_text(json.dumps(facts))
    with pytest.raises(InputError):
        load_checkpoint(tmp_path / "c")


def test_any_changed_byte_of_a_checkpoint_is_noticed(tmp_path):
    save_checkpoint(tmp_path / "c", federation(), {})
    path = tmp_path / "c" / "state.safetensors"
    whole = path.read_bytes()
    for place in range(0, len(whole), 13):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
        with pytest.raises(InputError, match="state.safetensors: got .* wanted .* by manifest.json"):
            load_checkpoint(tmp_path / "c")


def test_the_newest_whole_checkpoint_is_taken_and_torn_ones_are_named(tmp_path, log_messages):
    assert newest_checkpoint(tmp_path) is None
    for number in (2, 9, 10):
        save_checkpoint(tmp_path / "checkpoints" / f"round_{number}", federation(), {"number": number})
    assert newest_checkpoint(tmp_path)[1] == {"number": 10}
    (tmp_path / "checkpoints" / "round_10" / "state.json").unlink()
    assert newest_checkpoint(tmp_path)[1] == {"number": 9}
    assert "round_10/state.json: missing" in log_messages[-1]
    for number in (2, 9):
        (tmp_path / "checkpoints" / f"round_{number}" / "manifest.json").write_text("")
    with pytest.raises(InputError, match="none of its 3 checkpoints is whole; the newest: .*round_10"):
        newest_checkpoint(tmp_path)
