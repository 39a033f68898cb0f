"""The LightningDataModule over one client, one department or the whole federation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from fl_lightning.data.client_data import ClientData, load_federation
from fl_lightning.data.packing import PackedBatch, pack_one
from fl_lightning.data.tokenization import Example
from fl_lightning.errors import InputError, nearest


class FederatedDataModule(L.LightningDataModule):
    """Records of a folder of departments, for `lightning.Trainer` and for `FederatedTrainer`.

    Args:
        root: folder of departments, or ``bundled:departments``.
        tokenizer: a transformers tokenizer.
        department: only this department's clients.
        client: only this client, as ``department/client``.
        clients_per_dept: the first so many clients of each department; None takes all.
        max_records: at most so many training records a client.
        max_length: at most so many tokens a record.
        batch_size: records in a batch.
        eval_fraction: share held out where a client has no eval file.
        seed: of that split and of the order of the training batches.

    Raises:
        InputError: on use, naming folder, file or line.
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
        seed: int = 1234,
    ) -> None:
        super().__init__()
        self.root, self.tokenizer = root, tokenizer
        self.department, self.client = department, client
        self.clients_per_dept, self.max_records = clients_per_dept, max_records
        self.max_length, self.batch_size = max_length, batch_size
        self.eval_fraction, self.seed = eval_fraction, seed
        self._federation: dict[str, ClientData] | None = None

    def federation(self) -> dict[str, ClientData]:
        """{client_id: tokenised records} of the chosen clients; read once."""
        if self._federation is None:
            data = load_federation(
                self.root,
                self.tokenizer,
                clients_per_dept=self.clients_per_dept,
                max_records=self.max_records,
                max_length=self.max_length,
                eval_fraction=self.eval_fraction,
                seed=self.seed,
            )
            self._federation = self._choose(data)
        return self._federation

    def _choose(self, data: dict[str, ClientData]) -> dict[str, ClientData]:
        if self.client is not None:
            if self.client not in data:
                raise InputError(f"client: no {self.client!r} in {self.root}{nearest(self.client, data)}")
            return {self.client: data[self.client]}
        if self.department is not None:
            chosen = {c: d for c, d in data.items() if d.department == self.department}
            if not chosen:
                hint = nearest(self.department, {d.department for d in data.values()})
                raise InputError(f"department: no {self.department!r} in {self.root}{hint}")
            return chosen
        return data

    def setup(self, stage: str) -> None:
        """Read and tokenise the records."""
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
        made: DataLoader[PackedBatch] = loader(
            examples, batch_size=self.batch_size, collate_fn=pack_one, num_workers=0, **arguments
        )
        return made
