"""Updates that wait in a buffer, on disk."""

import pytest
import torch

from fl_lightning.federation.arrival_journal import Arrival, ArrivalJournal
from fl_lightning.federation.protocol import ClientUpdate, Metrics
from fl_lightning.storage.background_writer import BackgroundWriter

UPDATE = ClientUpdate(
    "hr/a", 3, {"q.lora_A": torch.tensor([0.1, -2.0])}, 5, 90, [2.0, 1.5], 0.3, Metrics(1.0, 2.0, 3, 4)
)


@pytest.fixture
def journal(tmp_path):
    writer = BackgroundWriter()
    yield ArrivalJournal(tmp_path / "arrivals", writer), writer
    writer.close()


def test_an_arrival_comes_back_with_every_bit(journal):
    journal, writer = journal
    for number in (9, 10):
        journal.record(Arrival(number, UPDATE, (2, 1)))
    writer.flush()
    assert journal.numbers() == [9, 10]
    arrival = journal.read(10)
    assert (arrival.number, arrival.started) == (10, (2, 1))
    assert torch.equal(arrival.update.state.pop("q.lora_A"), UPDATE.state["q.lora_A"])
    assert {**vars(arrival.update), "state": None} == {**vars(UPDATE), "state": None}
    journal.remove([9, 11])
    writer.flush()
    assert journal.numbers() == [10]


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: b"", lambda data: b"x" * len(data)])
def test_a_damaged_one_counts_as_missing(journal, spoil, tmp_path, log_messages):
    journal, writer = journal
    journal.record(Arrival(1, UPDATE, (2, 1)))
    writer.flush()
    path = tmp_path / "arrivals" / "1"
    path.write_bytes(spoil(path.read_bytes()))
    assert journal.read(1) is None
    assert any("is damaged" in message and "its site is asked again" in message for message in log_messages)


def test_without_a_folder_nothing_is_kept():
    writer = BackgroundWriter()
    journal = ArrivalJournal(None, writer)
    journal.record(Arrival(1, UPDATE, (2, 1)))
    journal.remove([1])
    assert journal.numbers() == []
    assert journal.read(1) is None
