import pytest
import torch

from fl_lightning.federation.journal import Journal
from fl_lightning.federation.protocol import ClientTask, ClientUpdate, Metrics
from fl_lightning.storage.background_writer import BackgroundWriter

IDS = ["hr/client_0", "hr/client_1"]


def update(client_id, round_num=3, value=0.1):
    state = {"w.lora_A.weight": torch.full((1, 2), value), "w.lora_B.weight": torch.tensor([[-0.0], [1e-40]])}
    return ClientUpdate(
        client_id, round_num, state, 8, 70, [2.5, 1 / 3], 0.5, Metrics(1.25, 3.0, 7, 2), signature="5e" * 64
    )


def task(client_id, round_num=3):
    return ClientTask(client_id, round_num, {}, 1234, True)


@pytest.fixture
def journal(tmp_path):
    """A journal whose every entry is on the disk as soon as it is asked for."""

    class AtOnce(BackgroundWriter):
        def submit(self, write):
            write()

    return Journal(tmp_path / "checkpoints", AtOnce())


def test_a_cohort_comes_back_bit_by_bit(journal):
    updates = [update(c, value=0.1 + i) for i, c in enumerate(IDS)]
    journal.record(updates)
    got = journal.replay([task(c) for c in IDS])
    for one, other in zip(got, updates, strict=True):
        assert {**vars(one), "state": None} == {**vars(other), "state": None}
        assert list(one.state) == list(other.state)
        for name, tensor in other.state.items():
            assert one.state[name].view(torch.int32).equal(tensor.view(torch.int32))


@pytest.mark.parametrize(
    "asked",
    [
        [task(IDS[0])],
        [task(IDS[1]), task(IDS[0])],
        [task(c, round_num=4) for c in IDS],
        [task(c) for c in [*IDS, "hr/client_2"]],
    ],
)
def test_another_cohort_or_round_is_not_known(journal, asked):
    journal.record([update(c) for c in IDS])
    assert journal.replay(asked) is None


def test_every_torn_or_changed_entry_is_taken_for_missing_and_named_in_the_log(journal, tmp_path, log_messages):
    journal.record([update(IDS[0])])
    (path,) = (tmp_path / "checkpoints" / "round_3_journal").iterdir()
    whole = path.read_bytes()
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        assert journal.replay([task(IDS[0])]) is None
    for place in range(0, len(whole), 11):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert journal.replay([task(IDS[0])]) is None
    assert str(path) in log_messages[-1]
    path.write_bytes(whole)
    assert journal.replay([task(IDS[0])]) is not None


def test_a_failed_write_leaves_the_entry_before(journal, tmp_path, monkeypatch):
    journal.note(3, "evaluation", {"loss": 1.5})

    def fail(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        journal.note(3, "evaluation", {"loss": 2.5})
    assert journal.look_up(3, "evaluation") == {"loss": 1.5}
    assert len(list((tmp_path / "checkpoints" / "round_3_journal").iterdir())) == 1


def test_entries_up_to_a_round_are_forgotten(journal, tmp_path):
    for number in (9, 10, 11):
        journal.note(number, "evaluation", number)
    (tmp_path / "checkpoints" / "round_10").mkdir()
    journal.truncate(10)
    assert [journal.look_up(number, "evaluation") for number in (9, 10, 11)] == [None, None, 11]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["round_10", "round_11_journal"]


def test_a_journal_without_a_folder_forgets_everything():
    journal = Journal(None, BackgroundWriter())
    journal.record([update(IDS[0])])
    journal.note(3, "evaluation", 1)
    journal.truncate(3)
    assert journal.replay([task(IDS[0])]) is None
    assert journal.look_up(3, "evaluation") is None
