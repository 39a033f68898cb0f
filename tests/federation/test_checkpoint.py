import dataclasses
import json
import os
import pickle
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fl_lightning.errors import InputError
from fl_lightning.federation import checkpoint as checkpoint_module
from fl_lightning.federation.checkpoint import checkpoints, load_checkpoint, newest_checkpoint, save_checkpoint
from fl_lightning.federation.checkpoint_schema import CheckpointExtra
from fl_lightning.federation.history import HistoryEntry, HistoryFile, HistoryMark
from fl_lightning.federation.state import BestRound, FederationState
from fl_lightning.privacy.ledger import Ledger
from fl_lightning.storage.manifest import write_manifest

A, B = "base_model.model.layers.0.q_proj.lora_A.weight", "base_model.model.layers.0.q_proj.lora_B.weight"
GATE = "base_model.model.layers.0.q_proj.fedalt_gate.weight"


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
        own_adapters={"hr/client_1": state(A, B)},
        examples={"hr/client_0": 128, "hr/client_1": 5},
        cluster_assignments={"customer_support": 0, "hr": 1},
    )


def noted(number):
    """What a run keeps beside its state: a number."""
    return CheckpointExtra({"Counter": {"number": number}})


def assert_equal_states(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype
        assert torch.equal(first[name].view(torch.uint8), second[name].view(torch.uint8))


def test_round_trip_is_bit_exact(tmp_path):
    saved, extra = federation(), CheckpointExtra({"Θ": {"seen": 1}}, [(7, {"loss": 0.1 + 0.2})])
    save_checkpoint(tmp_path / "round_7", saved, extra)
    loaded, loaded_extra = load_checkpoint(tmp_path / "round_7")
    assert loaded.round_num == 7
    assert loaded.examples == saved.examples
    assert loaded.cluster_assignments == saved.cluster_assignments
    assert loaded_extra == extra
    assert_equal_states(loaded.initial, saved.initial)
    for kind in ("departments", "client_starts", "personal", "own_adapters"):
        assert getattr(loaded, kind).keys() == getattr(saved, kind).keys()
        for owner, state in getattr(saved, kind).items():
            assert_equal_states(getattr(loaded, kind)[owner], state)


def test_states_that_clients_in_flight_started_from_are_kept_and_written_once(tmp_path):
    state = federation()
    before = {name: tensor + 1 for name, tensor in state.departments["hr"].items()}
    flying = dataclasses.replace(state, past={"hr/3": before, "hr/5": before})
    save_checkpoint(tmp_path / "round_7", flying)
    loaded, _ = load_checkpoint(tmp_path / "round_7")
    assert loaded.past_versions() == {("hr", 3), ("hr", 5)}
    assert_equal_states(loaded.version("hr", 3), before)
    assert_equal_states(loaded.version("hr", 7), state.departments["hr"])
    assert sum(key.startswith("past|") for key in load_file(tmp_path / "round_7" / "state.safetensors")) == 2


def test_checkpoints_of_the_first_schema_still_load_and_those_of_later_ones_are_refused(tmp_path):
    """Before clients could be in flight, ``state.json`` had no schema and no past states."""
    folder = tmp_path / "round_7"
    save_checkpoint(folder, federation())
    header = json.loads((folder / "state.json").read_text())
    assert (header.pop("schema"), header["owners"].pop("past")) == (2, {})
    (folder / "state.json").write_text(json.dumps(header))
    write_manifest(folder)
    loaded, _ = load_checkpoint(folder)
    assert loaded.past == {}
    assert_equal_states(loaded.departments["hr"], federation().departments["hr"])
    (folder / "state.json").write_text(json.dumps({**header, "schema": 3}))
    write_manifest(folder)
    with pytest.raises(InputError, match="schema: expected at most 2, got 3"):
        load_checkpoint(folder)


def test_odd_floats_survive(tmp_path):
    odd = torch.tensor([0.0, -0.0, 1e-45, 3.4028235e38, -1e-38, 0.1])
    save_checkpoint(tmp_path / "c", FederationState(0, {A: odd}, {"hr": {A: -odd}}))
    loaded, _ = load_checkpoint(tmp_path / "c")
    assert torch.equal(loaded.initial[A].view(torch.int32), odd.view(torch.int32))
    assert torch.equal(loaded.departments["hr"][A].view(torch.int32), (-odd).view(torch.int32))


def test_a_state_that_is_not_contiguous_can_be_saved(tmp_path):
    turned = torch.arange(6.0).reshape(2, 3).T
    save_checkpoint(tmp_path / "c", FederationState(0, {A: turned}, {"hr": {A: turned}}))
    assert torch.equal(load_checkpoint(tmp_path / "c")[0].departments["hr"][A], turned)


def test_round_zero_round_trips(tmp_path):
    save_checkpoint(tmp_path / "c", FederationState.begin({A: torch.ones(1)}, ["hr"]))
    loaded, extra = load_checkpoint(tmp_path / "c")
    assert (loaded.round_num, loaded.client_starts, loaded.personal, extra) == (0, {}, {}, CheckpointExtra())


def test_saving_again_replaces_the_checkpoint(tmp_path):
    save_checkpoint(tmp_path / "c", federation(0))
    save_checkpoint(tmp_path / "c", federation(1))
    assert os.listdir(tmp_path) == ["c"]
    assert_equal_states(load_checkpoint(tmp_path / "c")[0].initial, federation(1).initial)


def test_a_save_that_fails_midway_leaves_the_old_checkpoint_and_no_temporary(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "c", federation(0), noted(0))

    def fail(path, value, secret):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "write_json", fail)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path / "c", federation(1), noted(1))
    assert os.listdir(tmp_path) == ["c"]
    loaded, extra = load_checkpoint(tmp_path / "c")
    assert extra == noted(0)
    assert_equal_states(loaded.initial, federation(0).initial)


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.95])
def test_a_truncated_checkpoint_is_bad_input(tmp_path, name, keep):
    save_checkpoint(tmp_path / "c", federation())
    path = tmp_path / "c" / name
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InputError, match=str(tmp_path / "c")):
        load_checkpoint(tmp_path / "c")


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
def test_a_missing_file_is_bad_input(tmp_path, name):
    save_checkpoint(tmp_path / "c", federation())
    (tmp_path / "c" / name).unlink()
    with pytest.raises(InputError, match=str(tmp_path / "c")):
        load_checkpoint(tmp_path / "c")


@pytest.mark.parametrize("text", ["[]", "{}", "3", '{"round": 1}', "null"])
def test_json_of_another_form_is_bad_input(tmp_path, text):
    save_checkpoint(tmp_path / "c", federation())
    (tmp_path / "c" / "state.json").write_text(text)
    write_manifest(tmp_path / "c")
    with pytest.raises(InputError, match="not a complete checkpoint"):
        load_checkpoint(tmp_path / "c")


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_pickle_in_place_of_the_tensors_is_not_run(tmp_path):
    save_checkpoint(tmp_path / "c", federation())
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
    none = torch.zeros(50, 50)
    states = FederationState(1, {A: none}, {"hr": {A: none}}, {f"hr/c{i}": start for i in range(40)})
    save_checkpoint(tmp_path / "c", states)
    assert (tmp_path / "c" / "state.safetensors").stat().st_size < 4 * 50 * 50 * 4
    loaded, _ = load_checkpoint(tmp_path / "c")
    assert all(torch.equal(loaded.client_starts[f"hr/c{i}"][A], start[A]) for i in range(40))


def test_what_clients_have_for_themselves_may_go_to_disk_when_it_is_loaded(tmp_path):
    from fl_lightning.storage.offload import OffloadedState, OffloadFolder

    saved = federation()
    save_checkpoint(tmp_path / "c", saved)
    offload = OffloadFolder(tmp_path)
    loaded, _ = load_checkpoint(tmp_path / "c", offload.store)
    assert isinstance(loaded.personal["hr/client_10"], OffloadedState)
    assert torch.equal(loaded.personal["hr/client_10"][B], saved.personal["hr/client_10"][B])
    save_checkpoint(tmp_path / "d", loaded)
    files = [{p.relative_to(tmp_path / name): p for p in (tmp_path / name).rglob("*.*")} for name in "cd"]
    assert {name: p.read_bytes() for name, p in files[0].items()} == {n: p.read_bytes() for n, p in files[1].items()}
    one = tmp_path / "d" / "personal" / "hr" / "client_10.safetensors"
    assert one.stat().st_nlink == 2  # not written again: what most clients have does not change in a round
    del loaded
    assert load_checkpoint(tmp_path / "d")[0].personal["hr/client_10"][B].isfinite().all()


@pytest.mark.parametrize("kind", ["personal", "own"])
def test_a_client_id_that_leads_out_of_the_checkpoint_is_refused(tmp_path, kind):
    save_checkpoint(tmp_path / "c", federation())
    facts = json.loads((tmp_path / "c" / "state.json").read_text())
    facts[kind] = ["../../secret"]
    (tmp_path / "c" / "state.json").write_text(json.dumps(facts))
    with pytest.raises(InputError):
        load_checkpoint(tmp_path / "c")


@pytest.mark.parametrize(
    ("learned", "wrong"),
    [
        ({"apfl_alpha": torch.tensor([0.3])}, {"apfl_alpha": torch.ones(2)}),
        ({GATE: torch.ones(2, 3)}, {GATE: torch.ones(1, 3)}),
        ({}, {"q.other.weight": torch.ones(1)}),
    ],
)
def test_own_adapters_are_saved_with_the_weights_that_they_have_learned(tmp_path, learned, wrong):
    saved = federation()
    own = dict(saved.own_adapters["hr/client_1"])
    for name, more in (("right", learned), ("wrong", wrong)):
        changed = dataclasses.replace(saved, own_adapters={"hr/client_1": {**own, **more}})
        save_checkpoint(tmp_path / name, changed)
    assert_equal_states(load_checkpoint(tmp_path / "right")[0].own_adapters["hr/client_1"], {**own, **learned})
    with pytest.raises(InputError, match="not a complete checkpoint"):
        load_checkpoint(tmp_path / "wrong")


def test_half_an_own_adapter_is_refused(tmp_path):
    saved = federation()
    half = {"hr/client_1": {A: saved.own_adapters["hr/client_1"][A]}}
    save_checkpoint(tmp_path / "c", dataclasses.replace(saved, own_adapters=half))
    with pytest.raises(InputError, match="hr/client_1"):
        load_checkpoint(tmp_path / "c")


def test_any_changed_byte_of_a_checkpoint_is_noticed(tmp_path):
    save_checkpoint(tmp_path / "c", federation())
    path = tmp_path / "c" / "state.safetensors"
    whole = path.read_bytes()
    for place in range(0, len(whole), 13):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
        with pytest.raises(InputError, match="state.safetensors: expected .* by manifest.json, got "):
            load_checkpoint(tmp_path / "c")


def test_the_newest_whole_checkpoint_is_taken_and_torn_ones_are_named(tmp_path, log_messages):
    assert newest_checkpoint(tmp_path) is None
    for number in (2, 9, 10):
        save_checkpoint(tmp_path / "checkpoints" / f"round_{number}", federation(), noted(number))
    assert newest_checkpoint(tmp_path)[1] == noted(10)
    (tmp_path / "checkpoints" / "round_10" / "state.json").unlink()
    assert newest_checkpoint(tmp_path)[1] == noted(9)
    assert "round_10/state.json: missing" in log_messages[-1]
    for number in (2, 9):
        (tmp_path / "checkpoints" / f"round_{number}" / "manifest.json").write_text("")
    with pytest.raises(InputError, match="got 3 incomplete ones; the newest: .*round_10"):
        newest_checkpoint(tmp_path)


FILES = (
    "state.json",
    "state.safetensors",
    "personal/hr/client_10.safetensors",
    "own/hr/client_1.safetensors",
    "manifest.json",
)


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    """A checkpoint that tests copy and never change."""
    folder = tmp_path_factory.mktemp("saved") / "c"
    save_checkpoint(folder, federation(), CheckpointExtra(history=[(1, {"loss": 0.5})]))
    return folder


def loaded_or_refused(source, change, sealed):
    """What a copy of a checkpoint holds after `change(folder)`, or None where it is refused by its folder's name."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "c"
        shutil.copytree(source, folder)
        change(folder)
        if sealed:
            write_manifest(folder)
        try:
            return load_checkpoint(folder)
        except InputError as error:
            said = str(error)
        assert str(folder) in said or "manifest.json" in said
        return None


def assert_consistent_layout(state):
    """Every department has the tensors of the start, every client's own are among them."""
    state.check()
    wanted = {name: tensor.shape for name, tensor in state.initial.items()}
    for own in (*state.client_starts.values(), *state.personal.values()):
        assert {name: tensor.shape for name, tensor in own.items()}.items() <= wanted.items()
    for own in state.own_adapters.values():
        assert {name: tensor.shape for name, tensor in own.items()} == wanted
    for client_id in (*state.client_starts, *state.personal, *state.own_adapters):
        assert client_id.split("/")[0] in state.departments


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(FILES),
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=4), st.integers(0, 4)), min_size=1, max_size=2
    ),
    st.booleans(),
)
def test_a_checkpoint_with_changed_bytes_is_consistent_or_bad_input(saved_once, name, changes, sealed):
    changed = []

    def change(folder):
        whole = data = (folder / name).read_bytes()
        for share, new, dropped in changes:
            place = int(share * len(data))
            data = data[:place] + new + data[place + dropped :]
        (folder / name).write_bytes(data)
        changed.append(data != whole)

    loaded = loaded_or_refused(saved_once, change, sealed)
    if loaded is not None:
        assert_consistent_layout(loaded[0])
    if not sealed and name != "manifest.json":
        assert (loaded is None) == changed[-1]


def test_clients_of_a_department_that_is_not_there_are_refused(saved_once):
    def rename(folder):
        facts = json.loads((folder / "state.json").read_text())
        departments = facts["owners"]["departments"]
        departments["r"] = departments.pop("hr")
        facts["examples"], facts["cluster_assignments"] = {}, {}
        (folder / "state.json").write_text(json.dumps(facts))

    assert loaded_or_refused(saved_once, rename, sealed=True) is None


def with_fact(key, value):
    def change(folder):
        facts = json.loads((folder / "state.json").read_text())
        facts[key] = value
        (folder / "state.json").write_text(json.dumps(facts))

    return change


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.floats(allow_nan=False)
    | st.sampled_from(["hr", "hr/client_0", "..", ""]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["hr", "hr/client_0", "it", A]), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["round", "examples", "cluster_assignments", "owners", "personal", "extra"]), JSON)
def test_a_checkpoint_with_another_value_of_a_fact_is_consistent_or_bad_input(saved_once, key, value):
    loaded = loaded_or_refused(saved_once, with_fact(key, value), sealed=True)
    if loaded is None:
        return
    state, extra = loaded
    assert_consistent_layout(state)
    assert isinstance(extra, CheckpointExtra)
    assert type(state.round_num) is int
    assert state.round_num >= 0
    assert all(type(number) is int for number in (*state.examples.values(), *state.cluster_assignments.values()))
    assert {client_id.split("/")[0] for client_id in state.examples} <= state.departments.keys()


def renamed(tensors, old, new):
    return {name.replace(old, new): tensor for name, tensor in tensors.items()}


LAYOUTS = {
    "department lacks a tensor": (FILES[1], lambda t: {n: v for n, v in t.items() if n != f"departments|0|{B}"}),
    "department has one more": (FILES[1], lambda t: {**t, "departments|1|x.lora_A": torch.zeros(2, 3)}),
    "department of another shape": (FILES[1], lambda t: {**t, f"departments|1|{A}": torch.zeros(3, 2)}),
    "department flattened": (FILES[1], lambda t: {**t, f"departments|0|{A}": torch.zeros(6)}),
    "department of another name": (FILES[1], lambda t: renamed(t, "departments|0|base", "departments|0|bose")),
    "no department": (FILES[1], lambda t: {n: v for n, v in t.items() if "departments" not in n}),
    "start lacks a tensor": (FILES[1], lambda t: {n: v for n, v in t.items() if n != f"initial||{A}"}),
    "no start": (FILES[1], lambda t: {n: v for n, v in t.items() if "initial" not in n}),
    "start of another shape": (FILES[1], lambda t: {**t, f"initial||{B}": torch.zeros(3, 2)}),
    "cluster start of another shape": (FILES[1], lambda t: {**t, f"client_starts|0|{A}": torch.zeros(1, 3)}),
    "cluster start of another name": (FILES[1], lambda t: renamed(t, f"client_starts|0|{A}", "client_starts|0|x")),
    "another kind": (FILES[1], lambda t: {**t, f"other|0|{A}": torch.zeros(2, 3)}),
    "no kind": (FILES[1], lambda t: {**t, A: torch.zeros(2, 3)}),
    "integers": (FILES[1], lambda t: {n: v.long() for n, v in t.items()}),
    "nothing": (FILES[1], lambda t: {}),
    "own B of another shape": (FILES[2], lambda t: {B: torch.zeros(3, 3)}),
    "own B of another name": (FILES[2], lambda t: {"x.lora_B.weight": t[B]}),
    "own B of integers": (FILES[2], lambda t: {B: t[B].long()}),
}


@pytest.mark.parametrize(("name", "change"), LAYOUTS.values(), ids=LAYOUTS)
def test_tensors_that_do_not_fit_together_are_bad_input(saved_once, name, change):
    def rewrite(folder):
        save_file(change(load_file(folder / name)), folder / name)

    assert loaded_or_refused(saved_once, rewrite, sealed=True) is None


def test_tensors_that_are_written_again_are_loaded(saved_once):
    def rewrite(folder):
        for name in FILES[1:3]:
            save_file(load_file(folder / name), folder / name)

    state, _ = loaded_or_refused(saved_once, rewrite, sealed=True)
    assert_equal_states(state.personal["hr/client_10"], federation().personal["hr/client_10"])


@pytest.mark.parametrize(
    ("key", "value"),
    [("examples", {"hr/client_0": 0}), ("cluster_assignments", {"law": 0})],
)
def test_facts_that_no_run_writes_are_bad_input(saved_once, key, value):
    assert loaded_or_refused(saved_once, with_fact(key, value), sealed=True) is None


@pytest.mark.parametrize("name", ["state.json", "manifest.json"])
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 5000, "9" * 5000, "NaN", '"\\ud800"', "\0"])
def test_json_that_no_reader_takes_is_bad_input(saved_once, name, text):
    sealed = name != "manifest.json"
    assert loaded_or_refused(saved_once, lambda folder: (folder / name).write_text(text), sealed) is None


@pytest.mark.parametrize("private", [True, False])
def test_only_the_owner_may_read_the_key_of_the_noise(tmp_path, private):
    """Whatever the umask is, and when a checkpoint is written again too."""
    state = dataclasses.replace(federation(), privacy=Ledger.begin(["hr"], 1.0) if private else None)
    umask = os.umask(0)
    try:
        for _ in range(2):
            save_checkpoint(tmp_path / "c", state)
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "c" / "state.json").stat().st_mode) == (0o600 if private else 0o666)
    if private:
        others = [p for p in (tmp_path / "c").rglob("*") if p.is_file() and p.name != "state.json"]
        assert all(state.privacy.key.encode() not in p.read_bytes() for p in others)


def test_rows_and_records_come_from_the_history_up_to_the_mark(tmp_path):
    history = HistoryFile(tmp_path / "history.jsonl")
    history.replace([])
    marks = [history.append(HistoryEntry(n, [(n, {"loss": 1.0 - n})], {"Keeper": n}).line()) for n in range(3)]
    for number, mark in enumerate(marks):
        save_checkpoint(tmp_path / f"round_{number}", federation(), CheckpointExtra({"Keeper": {"a": 1}}), mark)
    for number in range(3):
        _, extra = load_checkpoint(tmp_path / f"round_{number}")
        assert extra.history == [(n, {"loss": 1.0 - n}) for n in range(number + 1)]
        assert extra.records == {"Keeper": {n: n for n in range(number + 1)}}
        assert extra.callbacks == {"Keeper": {"a": 1}}


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: data.replace(b"0.5", b"0.7"), lambda data: b"x" + data[1:]]
)
def test_a_checkpoint_whose_history_has_changed_is_not_complete(tmp_path, change):
    history = HistoryFile(tmp_path / "history.jsonl")
    history.replace([])
    mark = history.append(HistoryEntry(0, [(0, {"loss": 0.5})]).line())
    save_checkpoint(tmp_path / "c", federation(), mark=mark)
    history.path.write_bytes(change(history.path.read_bytes()))
    with pytest.raises(InputError, match=r"history\.jsonl: its first \d+ bytes have changed or are missing"):
        load_checkpoint(tmp_path / "c")
    history.path.unlink()
    with pytest.raises(InputError, match="not a complete checkpoint"):
        load_checkpoint(tmp_path / "c")


def test_a_mark_without_end_is_bad_input(tmp_path):
    save_checkpoint(tmp_path / "c", federation(), mark=HistoryMark(10**30, "0" * 64))
    with pytest.raises(InputError, match="not a complete checkpoint"):
        load_checkpoint(tmp_path / "c")


def stopped(rank=2, owner="hr/client_0"):
    """A state with a best round, whose adapter may be of another rank than the run's."""
    draw = torch.Generator().manual_seed(0)
    initial = {A: torch.randn(2, 3, generator=draw), B: torch.zeros(5, 2)}
    best = {A: torch.randn(rank, 3, generator=draw), B: torch.randn(5, rank, generator=draw)}
    rounds = {"hr": BestRound(3, 0.1 + 0.2, best), owner: BestRound(4, None, best)}
    return FederationState(7, initial, {"hr": initial}, best=rounds)


def test_best_rounds_come_back_bit_exact_at_any_rank(tmp_path):
    save_checkpoint(tmp_path / "round_7", stopped(rank=3))
    loaded, _ = load_checkpoint(tmp_path / "round_7")
    for owner, best in stopped(rank=3).best.items():
        assert (loaded.best[owner].round_num, loaded.best[owner].loss) == (best.round_num, best.loss)
        assert_equal_states(loaded.best[owner].adapter, best.adapter)


@pytest.mark.parametrize(
    "broken",
    [
        lambda values: values["best"]["hr"].update(round="3"),
        lambda values: values["best"]["hr"].pop("loss"),
        lambda values: values["best"].update({"../../hr": {"round": 1, "loss": 1.0}}),
        lambda values: values["best"].update({"it": {"round": 1, "loss": 1.0}}),
        lambda values: values.update(best=["hr"]),
    ],
)
def test_best_rounds_of_another_form_are_refused(tmp_path, broken):
    folder = tmp_path / "round_7"
    save_checkpoint(folder, stopped())
    values = json.loads((folder / "state.json").read_text())
    broken(values)
    (folder / "state.json").write_text(json.dumps(values))
    write_manifest(folder)
    with pytest.raises(InputError, match="round_7"):
        load_checkpoint(folder)


def test_a_best_adapter_without_a_factor_is_refused(tmp_path):
    folder = tmp_path / "round_7"
    save_checkpoint(folder, stopped())
    save_file({A: torch.zeros(2, 3)}, folder / "best" / "hr.safetensors")
    write_manifest(folder)
    with pytest.raises(InputError, match=f"hr: .*{B}"):
        load_checkpoint(folder)
