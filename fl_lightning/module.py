"""The LightningModule around a PEFT causal language model.

It runs under this package's Fabric loop (`fl_lightning.training.local_clients`) and, unchanged, under
`lightning.Trainer` in another project with the batches of `FederatedDataModule`.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, NamedTuple, get_args

import lightning as L
import torch

from fl_lightning.data.packing import PackedBatch, pack
from fl_lightning.errors import InputError
from fl_lightning.modeling.attention import UnsupportedAttention, restore_attention, use_packed_attention
from fl_lightning.modeling.loss import token_cross_entropy
from fl_lightning.modeling.row_layout import (
    LAYOUTS,
    RowLayout,
    check_examples,
    layout_logits,
    layout_losses,
    tolerance,
)

log = logging.getLogger(__name__)

CHECKED_POSITIONS = 8
"""Positions of a chunk of the head in the check of a model."""


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
        self.layout: RowLayout = "packed"
        self._chunk_logits: int | None = None
        try:
            use_packed_attention(self._base())
        except UnsupportedAttention:
            self.layout = "padded"
        self._given_rates = {"learning_rate": learning_rate, "weight_decay": weight_decay}
        self.learning_rate = 2e-4 if learning_rate is None else learning_rate
        self.weight_decay = 0.0 if weight_decay is None else weight_decay
        self._last_loss: torch.Tensor | None = None

    def _base(self) -> Any:
        """The transformers model, without PEFT around it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def forward(self, batch: PackedBatch) -> ClientSums:
        """Losses and correct targets of each client in a row; the head sees supervised positions only."""
        if self.layout == "single" and len(batch.lengths) > 1:
            return ClientSums(*(torch.stack(sums).sum(0) for sums in zip(*map(self, batch.split()), strict=True)))
        losses = layout_losses(self.model, self._base(), batch, self.layout, self._chunk_logits)
        zeros = losses.loss.new_zeros(len(batch.client_targets))
        return ClientSums(
            zeros.index_add(0, batch.owners, losses.loss),
            zeros if torch.is_grad_enabled() else zeros.index_add(0, batch.owners, losses.correct),
            torch.zeros_like(zeros, dtype=torch.long).index_add(0, batch.owners, torch.ones_like(batch.owners)),
        )

    def logits(self, batch: PackedBatch) -> torch.Tensor:
        """Logits at the S targets of a row, shape (S, V), all of them at once."""
        return layout_logits(self.model, self._base(), batch, self.layout)

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

    def parts(self, batch: PackedBatch) -> list[PackedBatch]:
        """The batches of a batch's forward passes: itself, or its sequences if the model gets them one by one."""
        return batch.split() if self.layout == "single" else [batch]

    @torch.no_grad()
    def choose_layout(self) -> None:
        """Choose how the model gets the sequences of a batch: the first layout that gives each its loss alone.

        The loss alone is that of the model as transformers gave it, with its own attention. Call it in the precision of
        the run. If sequences do not share a row, the reason is logged.

        Raises:
            InputError: if there is no such layout.
        """
        base, embeddings, was_training = self._base(), self.model.get_input_embeddings(), self.model.training
        device = embeddings.weight.device
        self.model.eval()
        restore_attention(base)
        self._chunk_logits = sys.maxsize
        examples = check_examples(base.config, embeddings.num_embeddings)
        self._check_causal(examples[-1].ids.to(device))
        alone = torch.stack([self._loss_alone(example.ids.to(device)) for example in examples])
        bound = tolerance(embeddings.weight.dtype, device) * alone.abs()
        row, problems = pack([[example] for example in examples]).to(device), []
        for layout in get_args(RowLayout):
            try:
                difference = (self._losses(row, layout) - alone).abs()
                if bool((difference <= bound).all()):
                    break
                problems.append(f"{layout}: losses differ by {float((difference / alone.abs()).max()):.1%}")
            except (ValueError, TypeError, RuntimeError, IndexError, AttributeError) as error:
                problems.append(f"{layout}: {' '.join(str(error).split())[:100]}")
            restore_attention(base)
        else:
            raise InputError(
                f"model.name_or_path: expected the loss of each sequence alone, got another one from "
                f"{type(base).__name__} ({'; '.join(problems)}); choose another base model"
            )
        self._check_chunks(row, alone, bound)
        self.model.train(was_training)
        if problems:
            log.info(
                "%s trains %s, which is slower (%s)", type(base).__name__, LAYOUTS[self.layout], "; ".join(problems)
            )

    def _losses(self, row: PackedBatch, layout: RowLayout) -> torch.Tensor:
        """The summed loss of each client in a row, with a layout that the module then keeps."""
        self.layout = layout
        if layout == "packed":
            use_packed_attention(self._base())
        losses: torch.Tensor = self(row).loss
        return losses

    def _check_chunks(self, row: PackedBatch, alone: torch.Tensor, bound: torch.Tensor) -> None:
        """Compute all logits of a step at once if this model's losses are other ones in chunks of positions."""
        self._chunk_logits = CHECKED_POSITIONS * self.model.get_input_embeddings().num_embeddings
        try:
            is_equal = bool(((self._losses(row, self.layout) - alone).abs() <= bound).all())
        except (ValueError, TypeError, RuntimeError, IndexError, AttributeError) as error:
            log.info("all logits of a step are computed at once (%s)", " ".join(str(error).split())[:100])
            is_equal = False
        self._chunk_logits = None if is_equal else sys.maxsize

    def _loss_alone(self, ids: torch.Tensor) -> torch.Tensor:
        """The summed loss of a sequence, from a plain call of the model."""
        return token_cross_entropy(self.model(input_ids=ids[None], use_cache=False).logits[0, :-1], ids[1:]).sum()

    def _check_causal(self, ids: torch.Tensor) -> None:
        parts = (ids, ids[: len(ids) // 2])
        whole, half = (self.model(input_ids=part[None], use_cache=False).logits[0] for part in parts)
        if not whole.isfinite().all():
            raise InputError(
                f"model.name_or_path: expected finite logits, got NaN or infinity from {type(self._base()).__name__}; "
                "its weights are damaged, or too large for the precision: try fabric.precision: fp32"
            )
        # The mean, since rounding may choose another expert for a few tokens; ten times as much as for a whole loss.
        if not (whole[: len(half)] - half).abs().mean() <= 10 * tolerance(half.dtype, ids.device) * half.abs().mean():
            raise InputError(
                f"model.name_or_path: expected a causal language model, got {type(self._base()).__name__}, in which "
                "tokens see the ones behind them; choose another base model"
            )

    def on_fit_start(self) -> None:
        """Under `lightning.Trainer`: choose the layout before the first step."""
        with self.trainer.precision_plugin.forward_context():
            self.choose_layout()

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
