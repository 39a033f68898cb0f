from dataclasses import replace

import pytest
import torch

from fl_lightning.data.client_data import ClientData
from fl_lightning.data.tokenization import Example
from fl_lightning.federation.journal import Journal
from fl_lightning.federation.protocol import ClientTask, ClientUpdate, Metrics
from fl_lightning.federation.update_archive import UpdateArchive, archived_cohorts
from fl_lightning.storage.background_writer import BackgroundWriter


def example(*ids):
    return Example(torch.tensor(ids), torch.ones(len(ids), dtype=torch.bool))


def data():
    return {c: ClientData("hr", c[3:], [example(1, 2), example(3)], [example(4)]) for c in ("hr/a", "hr/b")}


def tasks():
    start = {"lora_A": torch.ones(2, 3)}
    return [ClientTask(c, 3, dict(start), 7, evaluate=True) for c in ("hr/a", "hr/b")]


def updates():
    metrics = Metrics(1.5, 2.0, 3, 1)
    return [ClientUpdate(c, 3, {"lora_A": torch.rand(2, 3)}, 2, 6, [0.5], 0.1, metrics) for c in ("hr/a", "hr/b")]


@pytest.fixture
def kept(tmp_path):
    """(folder, updates) of an archive with one cohort."""
    writer, sent = BackgroundWriter(), updates()
    archive = UpdateArchive(tmp_path / "updates", writer, data(), {"base": "x"})
    assert archive.look_up(tasks()) is None
    archive.record(sent)
    writer.close()
    return tmp_path / "updates", sent


def look_up(folder, cohort, records=None, context=None):
    writer = BackgroundWriter()
    archive = UpdateArchive(None, writer, records or data(), context or {"base": "x"}, folder)
    found = archive.look_up(cohort)
    writer.close()
    assert archive.reused == len(found or ())
    return found


def test_the_same_cohort_is_found_with_the_same_bytes(kept):
    folder, sent = kept
    found = look_up(folder, tasks())
    assert [replace(update, state={}) for update in found] == [replace(update, state={}) for update in sent]
    assert all(torch.equal(f.state["lora_A"], s.state["lora_A"]) for f, s in zip(found, sent, strict=True))
    assert archived_cohorts(folder, 3) == [["hr/a", "hr/b"]]
    assert archived_cohorts(folder, 2) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t[:1],
        lambda t: t[::-1],
        lambda t: [t[0], replace(t[1], start={"lora_A": torch.ones(2, 3) + 1e-7})],
        lambda t: [t[0], replace(t[1], anchor={"lora_A": torch.ones(2, 3)})],
        lambda t: [t[0], replace(t[1], frozen_product={"lora_A": torch.ones(2, 3)})],
        lambda t: [replace(task, round_num=4) for task in t],
        lambda t: [replace(task, run_seed=8) for task in t],
        lambda t: [replace(t[0], evaluate=False), t[1]],
        lambda t: [replace(t[0], relative_scaling=0.5), t[1]],
        lambda t: [replace(task, is_own=True) for task in t],
    ],
)
def test_another_task_is_not_found(kept, change):
    assert look_up(kept[0], change(tasks())) is None


@pytest.mark.parametrize("field", ["train", "eval"])
def test_other_records_are_not_found(kept, field):
    records = data()
    records["hr/b"] = replace(records["hr/b"], **{field: [example(1, 2), example(9)]})
    assert look_up(kept[0], tasks(), records) is None


def test_another_base_is_not_found(kept):
    assert look_up(kept[0], tasks(), context={"base": "y"}) is None


def test_damage_is_done_again(kept):
    (path,) = kept[0].glob("round_3/*")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert look_up(kept[0], tasks()) is None
    path.write_bytes(b"")
    assert archived_cohorts(kept[0], 3) == []


def test_the_journal_asks_the_archive_and_keeps_what_it_gives(kept, tmp_path):
    folder, sent = kept
    writer = BackgroundWriter()
    archive = UpdateArchive(tmp_path / "again", writer, data(), {"base": "x"}, folder)
    journal = Journal(tmp_path / "journal", writer, archive)
    found = journal.replay(tasks())
    assert torch.equal(found[1].state["lora_A"], sent[1].state["lora_A"])
    other = [replace(task, round_num=4) for task in tasks()]
    assert journal.replay(other) is None
    journal.record([replace(update, round_num=4) for update in sent])
    writer.close()
    files = {p.relative_to(tmp_path / "again").as_posix() for p in (tmp_path / "again").rglob("*") if p.is_file()}
    assert {name.split("/")[0] for name in files} == {"round_3", "round_4"}
    assert next((tmp_path / "again").glob("round_3/*")).read_bytes() == next(folder.glob("round_3/*")).read_bytes()
