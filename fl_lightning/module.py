"""The LightningModule around a PEFT causal language model.

It runs under this package's Fabric loop (`fl_lightning.training.local_clients`) and, unchanged, under
`lightning.Trainer` in another project with the batches of `FederatedDataModule`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import lightning as L
import torch

from fl_lightning.data.packing import PackedBatch, pack
from fl_lightning.data.tokenization import Example
from fl_lightning.errors import InputError
from fl_lightning.modeling.attention import packed_kwargs, use_packed_attention
from fl_lightning.modeling.loss import token_cross_entropy
from fl_lightning.modeling.supervised_positions import last_mlp_on


class ClientSums(NamedTuple):
    """Results of a forward pass for each of the K clients in a packed row.

    Attributes:
        loss: sum of the cross-entropy over the client's targets, in nats, shape (K,).
        correct: number of targets that were the most likely token, shape (K,); 0 while gradients are recorded.
        targets: number of targets, shape (K,).
    """

    loss: torch.Tensor
    correct: torch.Tensor
    targets: torch.Tensor

    def mean_loss(self) -> torch.Tensor:
        """Mean cross-entropy over each client's targets, shape (K,); 0 for a client without targets."""
        return self.loss / self.targets.clamp(min=1)


class LoraClientModule(L.LightningModule):
    """Fine-tuning of a client: next-token cross-entropy on response tokens, AdamW on the LoRA factors.

    Args:
        model: a PEFT causal language model, see `create_lora_model`.
        learning_rate: of AdamW, constant; None takes that of the trainer's `TrainingConfig`, or 2e-4 without one.
        weight_decay: of AdamW; None takes that of the trainer's `TrainingConfig`, or 0 without one.

    Example:
        >>> import torch
        >>> from fl_lightning import FederatedDataModule, LoraClientModule, ModelConfig
        >>> from fl_lightning import create_lora_model, load_base_model
        >>> base, tokenizer = load_base_model(ModelConfig(), dtype=torch.float32)
        >>> module = LoraClientModule(create_lora_model(base), learning_rate=5e-3)
        >>> data = FederatedDataModule("bundled:departments", tokenizer, client="hr/client_0", max_records=2)
        >>> data.setup("fit")
        >>> bool(module.training_step(next(iter(data.train_dataloader())), 0) > 0)
        True
    """

    def __init__(self, model: Any, *, learning_rate: float | None = None, weight_decay: float | None = None) -> None:
        super().__init__()
        if learning_rate is not None and not learning_rate > 0:
            raise ValueError(f"learning_rate: expected a number above 0, got {learning_rate}")
        self.model = model
        use_packed_attention(self._base())
        self._given_rates = {"learning_rate": learning_rate, "weight_decay": weight_decay}
        self.learning_rate = 2e-4 if learning_rate is None else learning_rate
        self.weight_decay = 0.0 if weight_decay is None else weight_decay
        self._last_loss: torch.Tensor | None = None

    def _base(self) -> Any:
        """The transformers model, without PEFT around it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def forward(self, batch: PackedBatch) -> ClientSums:
        """Losses and correct targets of each client in a row; last MLP and head see supervised positions only."""
        with last_mlp_on(self._base(), batch.keep):
            logits = self.model(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                logits_to_keep=batch.keep,
                use_cache=False,
                **packed_kwargs(self.model.config, batch.lengths, batch.input_ids.device),
            ).logits[0]
        losses = token_cross_entropy(logits, batch.targets)
        zeros = losses.new_zeros(len(batch.client_targets))
        correct = zeros
        if not torch.is_grad_enabled():  # unused in training, and argmax costs as much as softmax
            correct = zeros.index_add(0, batch.owners, (logits.argmax(-1) == batch.targets).to(losses.dtype))
        return ClientSums(
            zeros.index_add(0, batch.owners, losses),
            correct,
            torch.tensor(batch.client_targets, device=losses.device),
        )

    def set_rates(self, learning_rate: float, weight_decay: float) -> None:
        """Train with the rates of a `TrainingConfig`.

        Raises:
            ValueError: if the module was made with other rates.
        """
        for name, value in (("learning_rate", learning_rate), ("weight_decay", weight_decay)):
            if self._given_rates[name] not in (None, value):
                raise ValueError(
                    f"training.{name}: expected {self._given_rates[name]}, with which the module was made, "
                    f"got {value}; give {name} to TrainingConfig only"
                )
        self.learning_rate, self.weight_decay = learning_rate, weight_decay

    @torch.no_grad()
    def check_packing(self) -> None:
        """Check that this architecture keeps the sequences of a packed row separate.

        Raises:
            InputError: if the loss of a sequence changes when it follows another one in the row, as in recurrent and
                ALiBi models.
        """
        was_training, device = self.model.training, next(self.model.parameters()).device
        self.model.eval()
        vocabulary = self.model.get_input_embeddings().num_embeddings
        draws = torch.Generator().manual_seed(0)
        first, second = (
            Example(torch.randint(vocabulary, (length,), generator=draws), torch.arange(length) > 0)
            for length in (12, 3)
        )
        # Only the later sequence can see the other one, and its first tokens are affected most.
        packed_loss = float(self(pack([[first], [second]]).to(device)).loss[1])
        ids = second.ids.to(device)
        separate_loss = float(
            token_cross_entropy(self.model(input_ids=ids[None], use_cache=False).logits[0, :-1], ids[1:]).sum()
        )
        self.model.train(was_training)
        # In half precision, GPU kernels round differently for rows of different lengths.
        half = self.model.get_input_embeddings().weight.dtype in (torch.bfloat16, torch.float16)
        if not abs(packed_loss - separate_loss) <= (1e-2 if half else 1e-3) * abs(separate_loss):
            raise InputError(
                f"model.name_or_path: {type(self.model.get_base_model()).__name__} mixes the sequences of a packed row "
                f"(expected loss {separate_loss:.4f}, got {packed_loss:.4f}); use a model with attention and rotary or "
                "learned positions"
            )

    def on_fit_start(self) -> None:
        """Under `lightning.Trainer`: reject architectures that mix packed sequences."""
        self.check_packing()

    def training_step(self, batch: PackedBatch, batch_idx: int = 0) -> torch.Tensor:
        """Each client's mean loss, summed over the clients of the row; one client under `lightning.Trainer`."""
        loss: torch.Tensor = self(batch).mean_loss().sum()
        self._last_loss = loss.detach()
        return loss

    def on_train_batch_end(self, outputs: Any, batch: PackedBatch, batch_idx: int) -> None:
        """Log the step's loss. Here, not in the step, so that Trainer and Fabric log alike."""
        if self._last_loss is not None:
            self.log("train/loss", self._last_loss, prog_bar=True, batch_size=1)

    def validation_step(self, batch: PackedBatch, batch_idx: int = 0) -> torch.Tensor:
        """Mean loss on held-out records, logged as ``eval/loss`` with ``eval/token_accuracy``."""
        sums = self(batch)
        loss: torch.Tensor = sums.loss.sum() / sums.targets.sum()
        weight = sum(batch.client_targets)
        self.log("eval/loss", loss, prog_bar=True, batch_size=weight)
        self.log("eval/token_accuracy", sums.correct.sum() / sums.targets.sum(), batch_size=weight)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW on the parameters that require gradients: the LoRA factors."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        return self.make_optimizer(parameters)

    def make_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """A new AdamW for these parameters, with this module's learning rate and weight decay."""
        return torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)
