"""`UnlearnTrainer`: makes rows less likely, measured against the model before, and may keep others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from posttrain.losses.reductions import LossCounts, LossOutput, reduce_loss, sequence_sums
from posttrain.losses.supervised import nll_loss
from posttrain.losses.unlearning import (
    dpo_loss,
    embed_diff_loss,
    ga_loss,
    kl_loss,
    npo_loss,
    rmu_loss,
    simnpo_loss,
    steering_vector,
)
from posttrain.methods.unlearning_paths.config import UnlearnConfig
from posttrain.methods.unlearning_paths.forget_retain import ALTERNATE, FORGET, RETAIN, Partners, check_rows, partners
from posttrain.methods.unlearning_paths.names import chosen_weights
from posttrain.methods.unlearning_paths.reference import DECODER, LAYER, Reference
from posttrain.seam.frozen import chunked_forward_kl, linear_head
from posttrain.seam.reference_model import frozen_copy
from posttrain.seam.sharding import gathered_weights, is_sharded
from posttrain.seam.supervised.trainer import SupervisedTrainer

Metrics = dict[str, float | Tensor]
_COUNTED = (FORGET, RETAIN)


class UnlearnTrainer(SupervisedTrainer):
    """Unlearning of `train_dataset`, in one forward for each micro-batch on every rank.

    `prepare_batches` and `finish_batches` (once per optimizer step, every rank) put each row's partner and other
    answer into its micro-batch, and count sequences and tokens of each kind over all ranks: one all-reduce. Losses of
    tokens are divided by the tokens of the whole step, losses of sequences by its sequences.

    `unlearning/forget_loss` and `unlearning/retain_loss` are logged for every step, unweighted.

    A checkpoint holds the digest of the weights before unlearning, which the resumed run's must equal; with
    `reference: precomputed` also the log-probs that were measured then.

    Args:
        train_dataset: rows to forget, with `prompt` and the demonstration.
        retain_dataset: rows to keep; None where none is read. Rest as in `SupervisedTrainer`.

    Raises:
        ConfigError, DataError: see `check_rows` and `Reference`.
    """

    config_class = UnlearnConfig
    needs_row_index = True
    batch_keys = ("role", "forgotten")
    args: UnlearnConfig
    name = "unlearning"

    def __init__(
        self,
        model: Any,
        args: UnlearnConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        retain_dataset: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ):
        args = args or UnlearnConfig(output_dir="Unlearn")
        check_rows(args, train_dataset, retain_dataset)
        frozen = frozen_copy(model, args) if args.needs_reference and args.reference == "copy" else None
        self.partners: Partners = partners(args, processing_class, train_dataset, retain_dataset)
        super().__init__(
            model,
            args,
            train_dataset if args.anchor == "forget" else retain_dataset,
            eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self._num_forget = len(train_dataset)
        self.reference = Reference(self, frozen)
        self.steering: Tensor | None = None
        self._by_role: dict[int, LossCounts] = {}
        self._shares = torch.zeros(2)
        self._told: dict[str, Tensor] = {}  # (sum over sequences, sequences) since the last optimizer step
        self._choose_parameters()

    def _choose_parameters(self) -> None:
        """Freeze what `trainable_params_regex` does not name."""
        patterns = self.args.trainable_params_regex
        if patterns == [".*"]:
            return
        trained = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        chosen = chosen_weights(trained, patterns)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in chosen)

    # ---- rows of a step ----

    def prepare_batches(self, batches: list[dict[str, Any]]) -> None:
        for batch in batches:
            self.partners.note(batch, self.data_epoch)

    def finish_batches(self, batches: list[dict[str, Any]]) -> None:
        self._measure_reference()
        local = torch.zeros(len(_COUNTED), 2)
        for batch in batches:
            batch["forgotten"] = self.partners.join(batch, pad_id=int(self.tokenizer.pad_token_id or 0))
            for role in _COUNTED:
                mask = self._mask(batch, role)
                local[role] += torch.tensor([mask.any(dim=1).sum().item(), mask.sum().item()])
        device = self.accelerator.device
        dtype = torch.float64 if device.type == "cpu" else torch.float32
        found = self.accelerator.reduce(local.to(device, dtype), reduction="sum").tolist()
        self._by_role = {
            role: LossCounts(rows=rows, tokens=tokens, max_completion_length=1)
            for role, (rows, tokens) in zip(_COUNTED, found, strict=True)
        }

    def _mask(self, batch: Mapping[str, Any], role: int) -> Tensor:
        """(N, S-1) targets of a kind of row; for the divergence of whole rows every position that has a next one."""
        labels = batch["labels"][:, 1:] != -100
        rows = (batch["role"] == role).to(labels.device).unsqueeze(1)
        if role == RETAIN and self.reference.reads_divergence and self.args.kl_mask == "all":
            live = labels.any(dim=1, keepdim=True)
            return batch["attention_mask"][:, 1:].bool() & live & rows
        return labels & rows

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """As upstream's."""
        if resume_from_checkpoint is None and is_sharded(self.model):
            # deepspeed 0.19: forwards of the engine before the first that trains spoil the backward pass of that one.
            with gathered_weights(self.model):
                self._measure_reference()
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _measure_reference(self) -> None:
        """Fill the table of `reference: precomputed`, once in a run."""
        if self.args.needs_reference and self.args.reference == "precomputed" and self.reference.table is None:
            self.reference.table = self._measured()

    def _measured(self) -> Tensor:
        """(F, 2) sums under the model as it is now, for every row to forget and its other answer; collective."""
        accelerator, args = self.accelerator, self.args
        table = torch.zeros(self._num_forget, 2, device=accelerator.device)
        size, pad = args.per_device_train_batch_size, int(self.tokenizer.pad_token_id or 0)
        own = [(row["input_ids"], row["labels"]) for row in self._forget_rows()]
        for column, rows in enumerate((own, self.partners.alternates)):
            world, rank = accelerator.num_processes, accelerator.process_index
            for start in range(0, len(rows), size * world):
                places = list(range(len(rows)))[start + rank * size : start + (rank + 1) * size]
                # A rank without rows takes part in the forward all the same.
                batch = _padded([rows[p] for p in places or [0]], pad_id=pad, device=accelerator.device)
                sums = self.reference.sums(batch, torch.arange(len(batch["labels"])))
                if places:
                    table[places, column] = sums
        return accelerator.reduce(table, reduction="sum").cpu()

    def _forget_rows(self) -> list[dict[str, Any]]:
        if self.args.anchor == "forget":
            return list(self.train_dataset)
        return [{"input_ids": ids, "labels": labels} for ids, labels in self.partners.others]

    # ---- the loss ----

    def batch_loss(
        self, log_probs: Tensor, label_mask: Tensor, batch: dict[str, Any], counts: LossCounts
    ) -> tuple[Tensor, Metrics]:
        if "role" not in batch:
            return super().batch_loss(log_probs, label_mask, batch, counts)
        hidden = {place: tap.take() for place, tap in self.reference.taps.items()}
        output = self._forget_loss(log_probs, batch, hidden)
        forget = reduce_loss(output, self._mask(batch, FORGET).float(), counts=self._by_role[FORGET])
        retain = torch.zeros_like(forget)
        if self.args.retain_weight:
            kept = self._retain_loss(log_probs, batch, hidden)
            retain = reduce_loss(kept, self._mask(batch, RETAIN).float(), counts=self._by_role[RETAIN])
        self._shares = self._shares.to(forget.device) + torch.stack([forget, retain]).detach().float()
        # Losses on hidden states leave the head out of the graph, which data-parallel training would wait for.
        attached = log_probs.masked_fill(~label_mask, 0.0).sum() * 0.0
        total = self.args.forget_weight * forget + float(self.args.retain_weight or 0.0) * retain + attached
        rows = self._mask(batch, FORGET).any(dim=1).sum()
        for name, mean in output.metrics.items():
            part = torch.stack([torch.as_tensor(mean, device=rows.device).nan_to_num() * rows, rows]).detach().float()
            self._told[name] = self._told.get(name, torch.zeros_like(part)) + part
        return total, {}

    def _forget_loss(self, log_probs: Tensor, batch: dict[str, Any], hidden: dict[str, Tensor]) -> LossOutput:
        args, mask = self.args, self._mask(batch, FORGET)
        kind, beta = args.unlearn_loss, float(args.beta or 1.0)
        if kind in ("ga", "graddiff"):
            return ga_loss(log_probs, mask)
        if kind == "simnpo":
            return simnpo_loss(log_probs, mask, beta=beta, margin=args.margin, length_normalize=args.length_normalize)
        if kind == "rmu":
            states = hidden[LAYER]
            return rmu_loss(states[:, 1:], mask, self._steering(states.size(-1)))
        rows = (batch["role"] == FORGET).nonzero().squeeze(1)
        before = self._before(batch, rows, column=0)
        if kind == "npo":
            return npo_loss(log_probs, mask, before, beta=beta)
        others = (batch["role"] == ALTERNATE).nonzero().squeeze(1)
        label_mask = batch["labels"][:, 1:] != -100
        chosen = torch.zeros(len(mask), dtype=log_probs.dtype, device=log_probs.device)
        chosen = chosen.index_add(0, rows, sequence_sums(log_probs[others], label_mask[others]).to(chosen.dtype))
        better = self._before(batch, others, column=1, into=rows)
        return dpo_loss(chosen, log_probs, mask, better, before, beta=beta)

    def _before(self, batch: dict[str, Any], rows: Tensor, *, column: int, into: Tensor | None = None) -> Tensor:
        """(N,) sums of the reference for chosen rows of the batch, 0 elsewhere; `into`: rows they are written to."""
        if self.reference.table is not None:
            values = self.reference.table[batch["forgotten"].cpu(), column].to(rows.device)
        else:
            values = self.reference.sums(batch, rows)
        sums = torch.zeros(len(batch["role"]), device=rows.device, dtype=values.dtype)
        return sums.index_copy(0, rows if into is None else into, values)

    def _retain_loss(self, log_probs: Tensor, batch: dict[str, Any], hidden: dict[str, Tensor]) -> LossOutput:
        mask = self._mask(batch, RETAIN)
        if self.args.retain_loss == "nll":
            return nll_loss(log_probs, mask)
        place = LAYER if self.args.retain_loss == "embed_diff" else DECODER
        rows, states = (batch["role"] == RETAIN).nonzero().squeeze(1), hidden[place]
        known = self.reference.hidden(batch, rows, place).to(states.dtype)
        before = torch.zeros_like(states).index_copy(0, rows, known)
        if place == LAYER:
            return embed_diff_loss(states[:, 1:], mask, before[:, 1:])
        own = self.accelerator.unwrap_model(self.model)
        with self.accelerator.autocast():  # as in the forward of training
            found = chunked_forward_kl(
                states[:, :-1][mask],
                linear_head(own, where="method.retain_loss"),
                before[:, :-1][mask],
                self.reference.head(),
                logits_budget_bytes=self.args.logits_budget_bytes,
            )
        return kl_loss(
            torch.zeros(mask.shape, dtype=found.dtype, device=found.device).masked_scatter(mask, found), mask
        )

    def _steering(self, width: int) -> Tensor:
        if self.steering is None:
            self.steering = steering_vector(width, coefficient=self.args.steering_coeff, seed=self.args.unlearn_seed)
        return self.steering

    def on_grad_norm(self, norm: float) -> None:
        forget, retain = self.accelerator.reduce(self._shares.to(self.accelerator.device), reduction="sum").tolist()
        self.log_metric("unlearning/forget_loss", forget, training=True)
        if self.args.retain_weight:
            self.log_metric("unlearning/retain_loss", retain, training=True)
        for name, part in self._told.items():
            value, rows = self.accelerator.reduce(part, reduction="sum").tolist()
            self.log_metric(name, value / rows if rows else float("nan"), training=True)
        self._shares, self._told = torch.zeros(2), {}

    # ---- checkpoints ----

    def method_state(self) -> dict[str, Any]:
        return {"reference": self.reference.sha, "table": self.reference.table}

    def load_method_state(self, state: dict[str, Any]) -> None:
        self.reference.refuse_other(state["reference"])
        self.reference.table = None if state["table"] is None else state["table"].cpu()


def _padded(rows: list[tuple[list[int], list[int]]], *, pad_id: int, device: torch.device) -> dict[str, Tensor]:
    """(K, S) rows padded on the right."""
    width = max(len(ids) for ids, _ in rows)

    def column(values: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([[*value, *[fill] * (width - len(value))] for value in values], device=device)

    return {
        "input_ids": column([ids for ids, _ in rows], pad_id),
        "labels": column([labels for _, labels in rows], -100),
        "attention_mask": column([[1] * len(ids) for ids, _ in rows], 0),
    }
