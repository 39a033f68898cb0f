"""The LightningDataModule over one client, one department or the whole federation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from fl_lightning.data.client_data import ClientData, load_clients
from fl_lightning.data.packing import PackedBatch, pack_examples
from fl_lightning.data.tokenization import Example


class FederatedDataModule(L.LightningDataModule):
    """Records of a folder of departments, for `lightning.Trainer` and for `FederatedTrainer`.

    Args:
        root: folder of departments, or ``bundled:departments``.
        tokenizer: a transformers tokenizer.
        department: use this department's clients only; no other client's records are read.
        client: use this client only, as ``department/client``.
        clients_per_dept: use the first n clients of each department, in natural sort order; None uses all.
        max_records: at most n training records per client.
        max_length: at most n tokens per record.
        batch_size: records per batch.
        eval_fraction: share held out if a client has no eval file.
        selection_fraction: share of the training records that do not train, or from 1 on their number.
        seed: of these splits and of the order of the training batches.

    Raises:
        InputError: on first use, naming folder, file or line.
    """

    def __init__(
        self,
        root: str | Path,
        tokenizer: Any,
        *,
        department: str | None = None,
        client: str | None = None,
        clients_per_dept: int | None = None,
        max_records: int | None = None,
        max_length: int = 512,
        batch_size: int = 4,
        eval_fraction: float = 0.2,
        selection_fraction: float = 0.0,
        seed: int = 1234,
    ) -> None:
        super().__init__()
        self.root, self.tokenizer = root, tokenizer
        self.department, self.client = department, client
        self.clients_per_dept, self.max_records = clients_per_dept, max_records
        self.max_length, self.batch_size = max_length, batch_size
        self.eval_fraction, self.selection_fraction, self.seed = eval_fraction, selection_fraction, seed
        self._federation: Mapping[str, ClientData] | None = None

    def federation(self) -> Mapping[str, ClientData]:
        """{client_id: tokenized records} of the chosen clients, and of no others; read once."""
        if self._federation is None:
            self._federation = load_clients(
                self.root,
                self.tokenizer,
                department=self.department,
                client_id=self.client,
                clients_per_dept=self.clients_per_dept,
                max_records=self.max_records,
                max_length=self.max_length,
                eval_fraction=self.eval_fraction,
                selection=self.selection_fraction,
                seed=self.seed,
            )
        return self._federation

    def setup(self, stage: str) -> None:
        """Read and tokenize the records."""
        self.federation()

    def train_dataloader(self) -> DataLoader[PackedBatch]:
        """Shuffled batches of the chosen clients' training records, packed into rows."""
        examples = [e for c in self.federation().values() for e in c.train]
        generator = torch.Generator().manual_seed(self.seed)
        return self._loader(examples, shuffle=True, generator=generator)

    def val_dataloader(self) -> DataLoader[PackedBatch]:
        """Batches of the chosen clients' held-out records, in file order."""
        return self._loader([e for c in self.federation().values() for e in c.eval])

    def _loader(self, examples: list[Example], **arguments: Any) -> DataLoader[PackedBatch]:
        loader: Any = DataLoader
        batches: DataLoader[PackedBatch] = loader(
            examples, batch_size=self.batch_size, collate_fn=pack_examples, num_workers=0, **arguments
        )
        return batches
