import pytest
import torch

from fl_lightning.errors import InputError
from fl_lightning.network.site.store import KEEP_ROUNDS, SiteStore


def break_off(round_folder):
    path = round_folder / "kept.safetensors"
    path.write_bytes(path.read_bytes()[:40])


def state(value):
    return {"private": {"q.lora_B": torch.full((2, 2), float(value))}}


def test_the_last_round_before_is_found(tmp_path):
    store = SiteStore(tmp_path / "run")
    assert store.load_before(5) == (0, {})
    for round_num in (1, 2, 4):
        store.save(round_num, state(round_num))
    assert [SiteStore(tmp_path / "run").load_before(r)[0] for r in (1, 2, 3, 4, 5, 9)] == [0, 1, 2, 2, 4, 4]


def test_a_round_that_is_done_again_takes_its_own_place(tmp_path):
    store = SiteStore(tmp_path)
    store.save(1, state(1))
    store.save(1, state(7))
    assert float(store.load_before(2)[1]["private"]["q.lora_B"][0, 0]) == 7.0


def test_an_unreadable_file_is_logged_and_the_round_before_is_used_without_its_rounding_error(tmp_path, log_messages):
    store = SiteStore(tmp_path)
    for round_num in (1, 2):
        store.save(round_num, {**state(round_num), "rest": {"q.lora_A": torch.ones(1)}})
    break_off(tmp_path / "round_2")
    saved_round, states = store.load_before(3)
    assert (saved_round, list(states)) == (1, ["private"])
    assert float(states["private"]["q.lora_B"][0, 0]) == 1.0
    first, second = log_messages
    assert first.startswith("WARNING this site's tensors after round 2 cannot be read: ")
    assert "round_2" in first
    assert second == "WARNING its tensors after round 1 are used instead, without their rounding error"


def test_no_readable_file_is_an_error_that_says_what_to_do(tmp_path):
    store = SiteStore(tmp_path)
    store.save(2, state(2))
    break_off(tmp_path / "round_2")
    with pytest.raises(
        InputError, match=r"expected a readable kept\.safetensors of a round before 3, got none.*remove"
    ):
        store.load_before(3)
    assert store.load_before(2) == (0, {})


def test_a_round_that_was_being_written_is_as_if_it_were_not(tmp_path):
    (tmp_path / ".round_3.x.tmp").mkdir()
    store = SiteStore(tmp_path)
    assert store.load_before(9) == (0, {})
    assert list(tmp_path.iterdir()) == []


def test_old_rounds_go(tmp_path):
    store = SiteStore(tmp_path)
    for round_num in range(1, KEEP_ROUNDS + 4):
        store.save(round_num, state(round_num))
    assert len(list(tmp_path.glob("round_*"))) == KEEP_ROUNDS
    assert store.load_before(5)[0] == 4
    assert store.load_before(4) == (0, {})


def test_a_round_that_is_gone_on_from_stays_however_old_it_is(tmp_path):
    store = SiteStore(tmp_path)
    for round_num in range(1, KEEP_ROUNDS + 4):
        store.save(round_num, state(round_num), keep=2)
    assert store.load_before(4)[0] == 2
    assert len(list(tmp_path.glob("round_*"))) == KEEP_ROUNDS + 1
