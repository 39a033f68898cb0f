from __future__ import annotations

import pytest
import torch

from fl_lightning.data.packing import PackedBatch
from fl_lightning.datamodule import FederatedDataModule
from fl_lightning.errors import InputError


@pytest.fixture
def root(tmp_path, write_jsonl):
    for place, count in {"hr/client_0": 5, "hr/client_1": 6, "sales/client_0": 7}.items():
        records = [{"prompt": f"question {i} {place}", "completion": "yes"} for i in range(count)]
        write_jsonl(tmp_path / place / "train.jsonl", records)
        write_jsonl(tmp_path / place / "eval.jsonl", records[:2])
    return tmp_path


def sequences(loader):
    return [ids.tolist() for batch in loader for ids in batch.input_ids[0].split(list(batch.lengths))]


def test_whole_federation_is_the_default(root, tokenizer):
    data = FederatedDataModule(root, tokenizer)
    data.setup("fit")
    assert list(data.federation()) == ["hr/client_0", "hr/client_1", "sales/client_0"]
    assert len(sequences(data.train_dataloader())) == 18
    assert len(sequences(data.val_dataloader())) == 6


@pytest.mark.parametrize(
    ("chosen", "count"), [({"department": "hr"}, 11), ({"client": "sales/client_0"}, 7), ({"max_records": 2}, 6)]
)
def test_department_client_and_limits_choose_the_records(root, tokenizer, chosen, count):
    assert len(sequences(FederatedDataModule(root, tokenizer, **chosen).train_dataloader())) == count


@pytest.mark.parametrize(
    ("chosen", "said"), [({"client": "hr/client_9"}, "hr/client_9.*did you mean"), ({"department": "sale"}, "'sales'")]
)
def test_unknown_choice_is_refused_with_a_hint(root, tokenizer, chosen, said):
    with pytest.raises(InputError, match=said):
        FederatedDataModule(root, tokenizer, **chosen).setup("fit")


@pytest.mark.parametrize(
    ("chosen", "broken"),
    [
        ({"client": "hr/client_0"}, ["hr/client_1", "sales/client_0"]),
        ({"client": "hr/client_1", "clients_per_dept": 2}, ["hr/client_0", "sales/client_0"]),
        ({"department": "hr"}, ["sales/client_0"]),
    ],
)
def test_records_of_clients_that_are_not_chosen_are_not_read(root, tokenizer, chosen, broken):
    for client in broken:
        (root / client / "train.jsonl").write_text("not JSON")
    FederatedDataModule(root, tokenizer, **chosen).setup("fit")
    (root / "sales").rename(root / "no name for a folder")
    FederatedDataModule(root, tokenizer, **{**chosen, "clients_per_dept": None}).setup("fit")


def test_a_client_beyond_the_first_of_its_department_is_not_one_of_the_chosen(root, tokenizer):
    with pytest.raises(InputError, match="got 'hr/client_1'"):
        FederatedDataModule(root, tokenizer, client="hr/client_1", clients_per_dept=1).setup("fit")


def test_batches_are_packed_rows_of_batch_size_records(root, tokenizer):
    batches = list(FederatedDataModule(root, tokenizer, client="sales/client_0", batch_size=3).train_dataloader())
    assert all(isinstance(batch, PackedBatch) for batch in batches)
    assert [len(batch.lengths) for batch in batches] == [3, 3, 1]


def test_training_order_follows_the_seed_and_holds_each_record_once(root, tokenizer):
    def order(seed):
        torch.manual_seed(seed * 13)
        return sequences(FederatedDataModule(root, tokenizer, seed=seed).train_dataloader())

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert sorted(order(1)) == sorted(order(2))


def test_second_epoch_has_another_order(root, tokenizer):
    loader = FederatedDataModule(root, tokenizer).train_dataloader()
    first, second = sequences(loader), sequences(loader)
    assert first != second
    assert sorted(first) == sorted(second)


def test_validation_is_in_file_order(root, tokenizer):
    data = FederatedDataModule(root, tokenizer)
    wanted = [e.ids.tolist() for client in data.federation().values() for e in client.eval]
    assert sequences(data.val_dataloader()) == wanted


def test_records_are_read_once(root, tokenizer):
    data = FederatedDataModule(root, tokenizer)
    data.setup("fit")
    assert data.federation() is data.federation()


def test_missing_root_is_an_input_error(tmp_path, tokenizer):
    with pytest.raises(InputError, match=r"data\.root"):
        FederatedDataModule(tmp_path / "none", tokenizer).setup("fit")
