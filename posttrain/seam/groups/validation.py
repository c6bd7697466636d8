"""Validation losses of groups, measured between optimizer steps of a supervised run."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from posttrain.errors import DataError
from posttrain.seam.groups.log import group_numbers


def validation_groups(rows: Any, *, names: Sequence[str], column: str) -> np.ndarray:
    """(N,) group number of every validation row.

    Raises:
        DataError: no validation rows, no column of groups, a group that is not in `names`, or none of some group.
    """
    if not isinstance(rows, Dataset):
        raise DataError(
            "the groups are measured on validation rows, and there are none",
            where="data.validation",
            got=rows if rows is None else type(rows).__name__,
            fix="Name held-out rows of every group",
        )
    if column not in rows.column_names:
        raise DataError(
            "the validation rows have no group",
            where="data.validation",
            got=", ".join(rows.column_names),
            allowed=f"a column {column!r}",
            fix="Give them the groups of the training rows",
        )
    _, numbers = group_numbers(rows, column, names=names, split="data.validation")
    for group, name in enumerate(names):
        if not (numbers == group).any():
            raise DataError("a group has no validation row", where="data.validation", got=name, fix="Add some")
    return numbers


class GroupValidation:
    """A fixed set of validation rows of each group, and the model's loss on them.

    The same rows serve every measurement of a run, so that differences between two of them are paired.

    Args:
        trainer: the `SupervisedTrainer`; its `eval_dataset` has `input_ids`, `labels` and the column of groups.
        names: groups in order.
        column: that tells a row's group.
        per_group: most rows of a group; None = all. seed: of their choice.
        held_back: rows of each group that are left alone until `test_losses`.

    Raises:
        DataError: no validation rows, or none of some group.
    """

    def __init__(
        self, trainer: Any, *, names: Sequence[str], column: str, per_group: int | None, seed: int, held_back: int = 0
    ):
        rows = trainer.eval_dataset
        numbers = validation_groups(rows, names=names, column=column)
        self.trainer, self.names = trainer, list(names)
        self.chosen: list[tuple[int, int]] = []  # (group, row)
        self.held_back: list[tuple[int, int]] = []
        self.seconds, self.measurements = 0.0, 0
        for group in range(len(names)):
            own = (numbers == group).nonzero()[0]
            drawn = np.random.default_rng([seed, 2, group]).permutation(own)
            if len(own) <= held_back:
                raise DataError(
                    "no validation row is left to decide on",
                    where="method.mixing_test_examples",
                    got=held_back,
                    allowed=f"below {len(own)}, the validation rows of {names[group]!r}",
                )
            self.held_back += [(group, int(row)) for row in np.sort(drawn[:held_back])]
            self.chosen += [(group, int(row)) for row in np.sort(drawn[held_back:][:per_group])]
        self._rows = rows.select_columns(["input_ids", "labels"])

    def losses(self) -> np.ndarray:
        """(m,) loss of each group in nats: mean over its rows of the mean over a row's trained tokens.

        Collective: every rank scores its share of the rows in the same number of forwards. Equal on all ranks.

        Raises:
            DataError: a loss that is not finite; names the group.
        """
        begun = time.perf_counter()
        found = self._means(self.chosen)
        self.seconds += time.perf_counter() - begun
        self.measurements += 1
        return found

    def test_losses(self) -> np.ndarray:
        """(m,) the same on the rows that were held back. Collective."""
        return self._means(self.held_back)

    def _means(self, rows: list[tuple[int, int]]) -> np.ndarray:
        trainer = self.trainer
        world, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
        size = int(trainer.args.per_device_eval_batch_size)
        device = trainer.accelerator.device
        dtype = torch.float64 if device.type == "cpu" else torch.float32
        sums = torch.zeros(len(self.names), 2, dtype=dtype, device=device)
        model = trainer.model_wrapped
        was_training = model.training
        model.eval()
        for start in range(0, len(rows), size * world):
            own = rows[start + rank * size : start + (rank + 1) * size]
            scored = own or rows[:1]  # a rank without rows takes part in the forward all the same
            with torch.no_grad(), trainer.accelerator.autocast():
                values = self._row_losses(model, [row for _, row in scored]).to(dtype)
            if own:
                groups = torch.tensor([group for group, _ in own], device=device)
                sums.index_add_(0, groups, torch.stack([values, torch.ones_like(values)], dim=1))
        model.train(was_training)
        totals = trainer.accelerator.reduce(sums, reduction="sum").cpu().double().numpy()
        found = totals[:, 0] / totals[:, 1]
        for name, loss in zip(self.names, found.tolist(), strict=True):
            if not math.isfinite(loss):
                raise DataError(
                    "the validation loss of a group is not finite",
                    where=f"group {name!r}, after optimizer step {trainer.state.global_step}",
                    got=loss,
                    fix="Lower trainer.learning_rate, or check the group's rows",
                )
        return found

    def _row_losses(self, model: Any, places: list[int]) -> Tensor:
        """(len(places),) mean negative log-likelihood of the rows' trained tokens."""
        examples = [self._rows[place] for place in places]
        width = max(len(example["input_ids"]) for example in examples)
        fill = self.trainer.tokenizer.pad_token_id or 0
        device = self.trainer.accelerator.device

        def padded(key: str, value: int) -> Tensor:
            return torch.tensor([[*e[key], *[value] * (width - len(e[key]))] for e in examples], device=device)

        mask = torch.tensor([[i < len(e["input_ids"]) for i in range(width)] for e in examples], device=device).long()
        self.trainer._scoring.outputs = ("log_probs",)
        outputs = model(
            input_ids=padded("input_ids", fill),
            attention_mask=mask,
            labels=padded("labels", -100),
            use_cache=False,
            fused_lm_head=True,
        )
        learnt = outputs.label_mask
        nll = -outputs.log_probs.float().masked_fill(~learnt, 0.0)
        return nll.sum(dim=1) / learnt.sum(dim=1).clamp(min=1)
