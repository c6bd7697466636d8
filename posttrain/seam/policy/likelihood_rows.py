"""Policy training with rows that are learnt by likelihood in the same forward pass as the rollouts.

Such a row is one of the batch like any other: it takes the place of a rollout, or it is added. So no second forward is
needed, and a micro-batch or a rank without them is nothing special. Demonstrations are written this way, and so is the
raw text of next-token prediction.

Axes: B rows of a rank's generation batch or of a micro-batch, T completion tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from posttrain.errors import SupportError
from posttrain.losses.reductions import LossCounts, LossOutput
from posttrain.losses.upge import upge_loss
from posttrain.seam.policy.batches import PolicyBatch, RolloutBatch, is_left_out, select_rows, trainable_mask, widen
from posttrain.seam.policy.trainer import PolicyTrainer


class LikelihoodRowsTrainer(PolicyTrainer):
    """Policy trainer whose batches may hold rows that are learnt by likelihood ("demonstrations").

    Row-aligned keys it adds to the batch: `is_demonstration (B,)` and `row_weight (B,)`, 0 for rows that fill up.

    Methods set both keys and call `add_rows` and `write_demonstration` in `prepare_rollouts`, give `loss_weights`, and
    override `rollout_loss` and `demonstration_loss`, both once per micro-batch.
    """

    def prepare_evaluation(self, tensors: dict[str, Any]) -> None:
        """Upstream's evaluation loss: every row is a rollout."""
        tensors["is_demonstration"] = torch.zeros_like(tensors["advantages"], dtype=torch.bool)
        tensors["row_weight"] = torch.ones_like(tensors["advantages"])

    # ---- once per generation batch ----

    def add_rows(self, rollouts: RolloutBatch) -> None:
        """Add one spare row per prompt of this rank, and as many blanks as an equal split on all ranks needs."""
        tensors, n = rollouts.tensors, rollouts.num_generations
        if "pixel_values" in tensors:
            raise SupportError("rows with images cannot be added to a batch", where="method.name", got=self.name)
        firsts = first_rows(rollouts)
        # Ranks hold at most this many first rows; a multiple of the slices keeps them equally long.
        spare = -(-rollouts.num_rows // n)
        spare = -(-spare // self.args.steps_per_generation) * self.args.steps_per_generation
        source = torch.tensor([*range(rollouts.num_rows), *(firsts + [0] * spare)[:spare]])
        tensors.update(select_rows(tensors, source))
        tensors["trainable_mask"] = tensors["trainable_mask"].clone()
        tensors["trainable_mask"][rollouts.num_rows :] = 0
        tensors["row_weight"][rollouts.num_rows :] = 0.0

    def write_demonstration(
        self,
        rollouts: RolloutBatch,
        group: int,
        ids: list[int],
        *,
        weight: float | Tensor,
        advantage: float | Tensor,
        prompt_ids: Sequence[int] | None = None,
        untrained: Sequence[int] = (),
    ) -> None:
        """Put a demonstration in the row that `add_rows` made for its prompt, or in the prompt's first row.

        Args:
            group: the prompt's group; this rank has its first row.
            ids: tokens to learn. weight, advantage: of the row.
            prompt_ids: replace the row's prompt, at most as long as the widest one; None = the prompt stays.
            untrained: places in `ids` that are read but not learnt.
        """
        tensors = rollouts.tensors
        row = group * rollouts.num_generations - rollouts.row_offset
        if len(tensors["row_weight"]) > rollouts.num_rows:
            row = rollouts.num_rows + first_rows(rollouts).index(row)
        width = max(len(ids), tensors["completion_ids"].size(1))
        fills = {
            "completion_ids": self.tokenizer.pad_token_id,
            "completion_mask": 0,
            "trainable_mask": 0,
            "tool_mask": 1,
        }
        fills |= dict.fromkeys(("old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps"), 0.0)
        for key, fill in fills.items():
            if tensors.get(key) is not None:
                tensors[key] = widen(tensors[key], width, fill)
                tensors[key][row] = fill
        ratio = tensors.get("importance_sampling_ratio")
        if ratio is not None:
            tensors["importance_sampling_ratio"] = widen(ratio, width, 1.0) if ratio.size(1) > 1 else ratio
            tensors["importance_sampling_ratio"][row] = 1.0
        for key, value in (("completion_ids", ids), ("completion_mask", 1), ("trainable_mask", 1)):
            tensors[key][row, : len(ids)] = torch.as_tensor(
                value, dtype=tensors[key].dtype, device=tensors[key].device
            )
        tensors["trainable_mask"][row, list(untrained)] = 0
        if prompt_ids is not None:
            width = tensors["prompt_ids"].size(1)
            tensors["prompt_ids"][row], tensors["prompt_mask"][row] = self.tokenizer.pad_token_id, 0
            tensors["prompt_ids"][row, width - len(prompt_ids) :] = torch.as_tensor(
                prompt_ids, dtype=tensors["prompt_ids"].dtype, device=tensors["prompt_ids"].device
            )
            tensors["prompt_mask"][row, width - len(prompt_ids) :] = 1
        tensors["advantages"][row] = advantage
        tensors["is_demonstration"][row], tensors["row_weight"][row] = True, weight

    # ---- once per optimizer step ----

    def count_rows(self, window: list[dict[str, Any]]) -> tuple[LossCounts, LossCounts, float]:
        """Counts of an optimizer step over all ranks, and the log's and the costs' share of them; one all-reduce.

        Returns:
            Rollouts, demonstrations (neither with rows of weight 0, nor with those that a reward failed on), and how
            many rollouts a reward failed on.
        """
        sums = []
        for tensors in window:
            is_row, is_demo, is_failed = tensors["row_weight"] > 0, tensors["is_demonstration"], is_left_out(tensors)
            tokens = trainable_mask(tensors).sum(dim=1)
            for kind in (is_row & ~is_failed & ~is_demo, is_row & ~is_failed & is_demo, is_row & is_failed):
                sums.append(torch.stack([kind.sum(), tokens[kind].sum()]).double())
        local = torch.stack(sums).view(len(window), 3, 2).sum(dim=0)
        rollouts, demos, failed = self.accelerator.reduce(local, reduction="sum").tolist()
        self.log_metric("gate/rl_tokens", rollouts[1])
        self.log_metric("gate/sft_tokens", demos[1])
        if self.model.training:
            self.add_cost("demonstrations", demos[0])
            self.add_cost("demonstration_tokens", demos[1])
        length = self.args.max_completion_length
        return LossCounts(rollouts[0], rollouts[1], length), LossCounts(demos[0], demos[1], length), failed[0]

    def contributes(self, tensors: Mapping[str, Any]) -> Tensor:
        """As in the parent; a demonstration counts by its weight alone: its loss survives a zero advantage."""
        demonstrated = tensors["is_demonstration"] & (tensors["loss_weights"].sum(dim=1) > 0)
        return super().contributes(tensors) | demonstrated

    def entropy_mask(self, tensors: Mapping[str, Any]) -> Tensor:
        """Rollout tokens only: a demonstration is not the policy's own choice."""
        return super().entropy_mask(tensors) * (~tensors["is_demonstration"]).unsqueeze(1)

    # ---- once per micro-batch ----

    def rollout_loss(self, batch: PolicyBatch) -> LossOutput:
        """Per-token loss of the rollout rows; the others' values are not used. Default: the configured estimator."""
        return upge_loss(batch.logps, batch.old_logps, batch.advantages, batch.mask, config=self.args.upge)

    def demonstration_loss(self, batch: PolicyBatch) -> Tensor:
        """(B, T) loss of the demonstration rows; the others' values are not used. Default: - log pi."""
        return -batch.logps

    def policy_loss(self, batch: PolicyBatch) -> LossOutput:
        is_demo = batch.extras["is_demonstration"].unsqueeze(1)
        # No rollout policy wrote a demonstration, and its divergence from the reference is not penalised.
        batch.old_logps = torch.where(is_demo, batch.logps.detach(), batch.old_logps)
        if batch.ref_logps is not None:
            batch.ref_logps = torch.where(is_demo, batch.logps.detach(), batch.ref_logps)
        output = self.rollout_loss(batch)
        output.values = torch.where(is_demo, self.demonstration_loss(batch), output.values)
        weights = batch.extras.get("loss_weights")
        if weights is not None:
            shares = output.values.detach() * weights * self.args.gradient_accumulation_steps
            output.metrics["sft/loss"] = self._over_ranks((shares * is_demo).sum())
            output.metrics["rl/loss"] = self._over_ranks((shares * ~is_demo).sum())
        return output

    def _over_ranks(self, value: Tensor) -> float:
        return float(self.accelerator.reduce(value, reduction="sum"))


def first_rows(rollouts: RolloutBatch) -> list[int]:
    """Rows of this rank that are the first of their prompt's group."""
    n = rollouts.num_generations
    return [row for row in range(rollouts.num_rows) if (rollouts.row_offset + row) % n == 0]
