import json
import os
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from fl_lightning.errors import InputError
from fl_lightning.storage import tensors
from fl_lightning.storage.tensors import read_state, write_state

A, B = "w.lora_A.weight", "w.lora_B.weight"
HEADER_KEYS = [A, "dtype", "shape", "data_offsets", "__metadata__"]
STATE = {A: torch.tensor([[1.0, -0.0]]), B: torch.tensor([[1e-40], [3.0]])}


@pytest.fixture
def path(tmp_path):
    write_state(tmp_path / "state.safetensors", STATE)
    return tmp_path / "state.safetensors"


def with_header(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_a_state_comes_back_bit_by_bit_and_is_plain_safetensors(path):
    got = read_state(path, STATE)
    for name, tensor in STATE.items():
        assert got[name].view(torch.int32).equal(tensor.view(torch.int32))
    assert sorted(load_file(path)) == [A, B]


def test_views_and_tensors_that_lie_in_memory_twice_are_written_whole(tmp_path):
    table = torch.arange(6.0).view(2, 3)
    write_state(tmp_path / "x", {A: table.T, B: table[:, 1:]})
    got = read_state(tmp_path / "x")
    assert got[A].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert got[B].tolist() == [[1.0, 2.0], [4.0, 5.0]]


def test_what_was_read_does_not_change_with_the_file(path):
    got = read_state(path)
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\xff\xff\xff\xff")
    assert got[B][1].item() == 3.0


BROKEN = {
    "empty": b"",
    "short": b"\x01\x02",
    "header longer than the file": (10**6).to_bytes(8, "little") + b"{}",
    "header of 2**63 bytes": (2**63).to_bytes(8, "little") + b"{}",
    "not JSON": with_header(b"{{{"),
    "not an object": with_header([1]),
    "not UTF-8": with_header(b"\xff\xfe"),
    "data missing": with_header({A: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),
    "data left over": with_header({A: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(8)),
    "shape and offsets disagree": with_header({A: {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, bytes(8)),
    "offsets overlap": with_header(
        {n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in (A, B)}, bytes(8)
    ),
    "offsets run backwards": with_header({A: {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, bytes(8)),
    "negative shape": with_header({A: {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, bytes(8)),
    "shape that overflows": with_header(
        {A: {"dtype": "F32", "shape": [2**33, 2**33], "data_offsets": [0, 8]}}, bytes(8)
    ),
    "unknown dtype": with_header({A: {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "integers": save({A: torch.tensor([1, 2])}),
    "name with a separator upwards": save({"../../w\n": torch.ones(1)}),
    "name without end": save({"w" * 600: torch.ones(1)}),
    "pickle": pickle.dumps({A: [1.0]}),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_or_odd_file_is_refused_by_its_path(tmp_path, how):
    (tmp_path / "x.safetensors").write_bytes(BROKEN[how])
    with pytest.raises(InputError) as caught:
        read_state(tmp_path / "x.safetensors")
    assert str(caught.value).startswith(f"{tmp_path}/x.safetensors: ")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({A: STATE[A]}, "1 tensors missing, first w.lora_B.weight"),
        ({**STATE, "x.lora_A.weight": STATE[A]}, "1 unknown tensors, first x.lora_A.weight"),
        ({**STATE, A: torch.zeros(2, 1)}, r"w.lora_A.weight: expected shape \(1, 2\), got \(2, 1\)"),
    ],
)
def test_a_state_unlike_the_wanted_one_is_refused(tmp_path, other, message):
    write_state(tmp_path / "x", other)
    with pytest.raises(InputError, match=message):
        read_state(tmp_path / "x", STATE)


def test_links_and_what_is_no_regular_file_are_refused(path, tmp_path):
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "nothing", "."):
        with pytest.raises(InputError, match="expected a safetensors file"):
            read_state(tmp_path / name)


def test_a_file_above_the_bound_is_not_opened(path, monkeypatch):
    monkeypatch.setattr(tensors, "MAX_BYTES", 10)
    monkeypatch.setattr(tensors, "safe_open", None)
    with pytest.raises(InputError, match="expected at most 10 bytes"):
        read_state(path)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([None, False, True]), st.integers(0, 300))
def test_any_bytes_give_a_state_or_a_refusal(tmp_path_factory, noise, overwrite, place):
    whole = save(STATE)
    data = noise if overwrite is None else whole[:place] + noise + whole[place + (len(noise) if overwrite else 0) :]
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(data)
    try:
        got = read_state(path, STATE)
    except InputError:
        return
    assert {n: t.shape for n, t in got.items()} == {n: t.shape for n, t in STATE.items()}


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(HEADER_KEYS), inner),
        max_leaves=12,
    )
)
def test_any_header_gives_a_state_or_a_refusal(tmp_path_factory, header):
    path = tmp_path_factory.getbasetemp() / "fuzzed_header.safetensors"
    path.write_bytes(with_header(header, bytes(8)))
    try:
        read_state(path)
    except InputError:
        return
