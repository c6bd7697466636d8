"""What DoReMi and DoGE read at every optimizer step: losses of groups against a reference, and inner products of
gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM

from posttrain.errors import ConfigError, DataError, SupportError
from posttrain.seam.frozen import model_inputs
from posttrain.seam.groups.log import GROUP_IDS, group_numbers


class ExcessLoss:
    """Loss of each group on the rows of an optimizer step, of the model and of a frozen reference.

    Both are means over the group's trained tokens of the step, over all ranks. The model is scored without gradient,
    before the step, so this costs two forwards on top of the step's own.
    Deviation: of arXiv 2305.10429, which clips the excess at 0 for each token; here, as in arXiv 2411.05735, the
    controller clips the mean of the group.

    Args:
        trainer: the run. path: folder or Hub id of the reference, which must have the model's tokenizer.
    """

    def __init__(self, trainer: Any, path: str):
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            raise SupportError(
                "the reference is held whole by every process", where="method.controller", got="doremi", fix="Use ddp"
            )
        self.trainer = trainer
        own = trainer.accelerator.unwrap_model(trainer.model)
        try:
            reference = AutoModelForCausalLM.from_pretrained(path, dtype=own.dtype)
        except (OSError, ValueError) as problem:
            told = " ".join(str(problem).split())[:200]
            raise ConfigError(
                f"the reference model cannot be read: {told}", where="method.reference_model", got=path
            ) from None
        if reference.config.vocab_size != own.config.vocab_size:
            raise ConfigError(
                "the reference has another vocabulary",
                where="method.reference_model",
                got=reference.config.vocab_size,
                allowed=own.config.vocab_size,
            )
        self.reference = reference.to(trainer.accelerator.device).eval().requires_grad_(False)

    @torch.no_grad()
    def losses(self, batches: Iterable[dict[str, Any]], num_groups: int) -> tuple[np.ndarray, np.ndarray]:
        """(m,) losses of the model and of the reference, NaN for groups without a trained token in the step."""
        accelerator = self.trainer.accelerator
        own = accelerator.unwrap_model(self.trainer.model)
        device = accelerator.device
        dtype = torch.float64 if device.type == "cpu" else torch.float32
        sums = torch.zeros(num_groups, 3, dtype=dtype, device=device)
        was_training = own.training
        own.eval()
        for batch in batches:
            labels = batch["labels"][:, 1:]
            learnt = labels != -100
            groups = batch[GROUP_IDS][:, 1:][learnt]
            columns = [_nll(model, batch)[learnt].to(dtype) for model in (own, self.reference)]
            sums.index_add_(0, groups, torch.stack([*columns, torch.ones_like(columns[0])], dim=1))
        own.train(was_training)
        totals = accelerator.reduce(sums, reduction="sum").cpu().double().numpy()
        for group in np.flatnonzero(totals[:, 2]):
            _refuse_broken(self.trainer, int(group), totals[group])
        with np.errstate(invalid="ignore", divide="ignore"):
            return totals[:, 0] / totals[:, 2], totals[:, 1] / totals[:, 2]


class GradientAlignment:
    """Inner products of the validation gradient with each group's training gradient, and the latter's norms.

    One forward and backward pass for each group with rows in the step, and one for the validation rows, on top of the
    step's own; with adapters over their parameters alone.

    Args:
        trainer: the run. rows: validation rows with `input_ids`, `labels`. column, names: of their groups.
        batch_size: validation rows of a step over all ranks, of which each group has as many. seed: of their order.
    """

    def __init__(self, trainer: Any, rows: Dataset, *, column: str, names: list[str], batch_size: int, seed: int):
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            raise SupportError(
                "inner products of gradients need every process to hold them whole",
                where="method.controller",
                got="doge",
                fix="Use ddp",
            )
        self.trainer, self.rows, self.batch_size = trainer, rows, batch_size
        numbers = group_numbers(rows, column, names=names)[1]
        self.orders = [
            np.random.default_rng([seed, 4, group]).permutation((numbers == group).nonzero()[0])
            for group in range(len(names))
        ]
        self.num_groups = len(names)

    def measure(self, batches: Iterable[dict[str, Any]], step: int) -> tuple[np.ndarray, np.ndarray]:
        """(m,) <validation gradient, gradient of group j>, and (m,) norms; NaN for groups without rows in the step."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        parameters = [value for value in model.parameters() if value.requires_grad]
        target = self._gradient(parameters, self._validation(step))
        products, norms = np.full(self.num_groups, np.nan), np.full(self.num_groups, np.nan)
        batches = list(batches)
        for group in range(self.num_groups):
            found = self._gradient(parameters, self._of_group(batches, group))
            if found is not None and target is not None:
                products[group], norms[group] = float(target @ found), float(found.norm())
                _refuse_broken(self.trainer, group, np.array([products[group], norms[group]]))
        return products, norms

    def _validation(self, step: int) -> Iterator[tuple[dict[str, Any], Tensor]]:
        world, rank = self.trainer.accelerator.num_processes, self.trainer.accelerator.process_index
        # Groups take turns, so that the gradient is of their mean, however many rows each has.
        turns = [divmod(step * self.batch_size + i, self.num_groups) for i in range(self.batch_size)]
        places = [int(self.orders[group][turn % len(self.orders[group])]) for turn, group in turns]
        device = self.trainer.accelerator.device
        for place in places[rank::world]:
            row = self.rows[place]
            batch = {key: torch.tensor([row[key]], device=device) for key in ("input_ids", "labels")}
            yield batch, batch["labels"][:, 1:] != -100

    def _of_group(self, batches: list[dict[str, Any]], group: int) -> Iterator[tuple[dict[str, Any], Tensor]]:
        for batch in batches:
            own = (batch["labels"][:, 1:] != -100) & (batch[GROUP_IDS][:, 1:] == group)
            if bool(own.any()):
                yield batch, own

    def _gradient(self, parameters: list[Tensor], parts: Iterator[tuple[dict[str, Any], Tensor]]) -> Tensor | None:
        """Gradient of the mean loss over the parts' tokens of all ranks, flat float32; None if there is no token."""
        accelerator = self.trainer.accelerator
        model = accelerator.unwrap_model(self.trainer.model)
        flat = torch.zeros(sum(p.numel() for p in parameters), device=accelerator.device)
        count = torch.zeros(1, device=accelerator.device)
        was_training = model.training
        model.eval()
        for batch, learnt in parts:
            loss = _nll(model, batch)[learnt].sum()
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            flat += torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).flatten().float()
                    for p, g in zip(parameters, found, strict=True)
                ]
            )
            count += learnt.sum()
        model.train(was_training)
        tokens = accelerator.reduce(count, reduction="sum")
        flat = accelerator.reduce(flat, reduction="sum")
        return flat / tokens if bool(tokens > 0) else None


def _refuse_broken(trainer: Any, group: int, values: np.ndarray) -> None:
    """Stop where a group that the step has gives no finite number: NaN would read as a group that it lacks."""
    if not np.isfinite(values).all():
        raise DataError(
            "what the proportions follow from is not finite",
            where=f"group {trainer.groups[group]!r}, after optimizer step {trainer.state.global_step}",
            got=values.tolist(),
            fix="Lower trainer.learning_rate, or check the group's rows and the reference model",
        )


def _nll(model: Any, batch: dict[str, Any]) -> Tensor:
    """(B, S-1) negative log-likelihood of the next token, 0 where it is no target."""
    logits = model(**model_inputs(model, batch), use_cache=False).logits[:, :-1].float()
    targets = batch["labels"][:, 1:]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-100, reduction="none")
