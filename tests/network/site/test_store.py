import torch

from fl_lightning.network.site.store import KEEP_ROUNDS, SiteStore


def state(value):
    return {"own": {"q.lora_B": torch.full((2, 2), float(value))}}


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
    assert float(store.load_before(2)[1]["own"]["q.lora_B"][0, 0]) == 7.0


def test_a_torn_file_gives_way_to_the_round_before(tmp_path):
    store = SiteStore(tmp_path)
    store.save(1, state(1))
    store.save(2, state(2))
    path = tmp_path / "round_2" / "own.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    assert store.load_before(3)[0] == 1


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
