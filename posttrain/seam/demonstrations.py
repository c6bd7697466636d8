"""Policy methods that train on demonstrations in the same forward pass as on rollouts.

A demonstration is a row of the batch like any other: it takes the place of a rollout, or a row is added for it. So no
second forward is needed, and a micro-batch or a rank without demonstrations is nothing special.

Axes: B rows of a rank's generation batch or of a micro-batch, N prompts of a generation batch, G rollouts per prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from datasets import Dataset
from torch import Tensor

from posttrain.data.demonstrations import encode_demonstration
from posttrain.errors import DataError, SupportError
from posttrain.losses.reductions import LossCounts, LossOutput
from posttrain.losses.upge import group_advantages, upge_loss
from posttrain.losses.upge_config import UPGEConfig
from posttrain.seam.arguments import option
from posttrain.seam.batches import PolicyBatch, RolloutBatch, is_left_out, select_rows, trainable_mask, widen
from posttrain.seam.policy import PolicyConfig, PolicyTrainer


@dataclass
class DemonstrationConfig(PolicyConfig):
    """A policy method with demonstrations: where they are and what becomes of long ones."""

    demonstration_column: str = option("solution", help="Column with the demonstration text of a prompt.")
    overlong_demonstration: Literal["error", "drop", "truncate"] = option(
        "error",
        help="A demonstration longer than max_completion_length: stop, go on without it (counted), or cut it.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature != 1.0 and self.uses_demonstrations:
            raise SupportError(
                "demonstrations would be learnt at the sampling temperature, which is another loss than SFT",
                where="rollout.temperature",
                got=self.temperature,
                allowed="1.0 while demonstrations are used",
            )

    @property
    def uses_demonstrations(self) -> bool:
        """Whether any prompt can be trained on its demonstration."""
        return True


class DemonstrationTrainer(PolicyTrainer):
    """Policy trainer whose batches may hold demonstrations; base of HPT, LUFFY and SRFT.

    Row-aligned keys it adds to the batch: `is_demonstration (B,)` and `row_weight (B,)`, 0 for rows that fill up.

    Methods call `find_demonstrations`, `add_rows` and `write_demonstration` in `prepare_rollouts`, give
    `loss_weights`, and override `rollout_loss` and `demonstration_loss`, both once per micro-batch.
    """

    config_class = DemonstrationConfig
    args: DemonstrationConfig

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        column = self.args.demonstration_column
        names = getattr(self.train_dataset, "column_names", None)
        if names is None or not self.args.uses_demonstrations:
            return
        if column not in names:
            raise DataError(
                "the demonstration column is missing",
                where="train dataset",
                got=sorted(names),
                allowed=f"a column {column!r}",
                fix="Name it in data.train.columns, or set method.demonstration_column, or train with method grpo",
            )
        self._refuse_empty_demonstrations(column)

    def _refuse_empty_demonstrations(self, column: str) -> None:
        if not isinstance(self.train_dataset, Dataset):
            return
        empty = sum(not str(text or "").strip() for text in self.train_dataset[column])
        if empty > len(self.train_dataset) / 2:
            raise DataError(
                "more than half of the rows have no demonstration",
                where=f"train dataset, column {column!r}",
                got=f"{empty} of {len(self.train_dataset)} empty",
                fix="Name the right column as method.demonstration_column, or train with method grpo",
            )

    def prepare_evaluation(self, tensors: dict[str, Any]) -> None:
        """Upstream's evaluation loss: every row is a rollout."""
        tensors["is_demonstration"] = torch.zeros_like(tensors["advantages"], dtype=torch.bool)
        tensors["row_weight"] = torch.ones_like(tensors["advantages"])

    # ---- once per generation batch ----

    def find_demonstrations(self, rollouts: RolloutBatch, wanted: Tensor) -> tuple[dict[int, list[int]], Tensor]:
        """Demonstrations of the prompts that are to be trained on theirs; one all-reduce.

        Args:
            wanted: (N,) bool, equal on all ranks.

        Returns:
            Token ids by prompt group, of those groups whose first row this rank has; and (N,) bool, equal on all
            ranks: wanted, but there is none (empty, or left out because too long).

        Raises:
            DataError: one is too long and `overlong_demonstration` is error.
        """
        found: dict[int, list[int]] = {}
        for row in first_rows(rollouts):
            group = rollouts.group_of(row)
            if wanted[group] and (ids := self._encoded_demonstration(rollouts, row)):
                found[group] = ids
        present = torch.zeros(len(wanted), device=self.accelerator.device)
        present[list(found)] = 1.0
        missing = wanted & (self.accelerator.reduce(present, reduction="sum") == 0).to(wanted.device)
        self.record("gate/missing_demonstration_fraction", missing.float().mean().item())
        return found, missing

    def _encoded_demonstration(self, rollouts: RolloutBatch, row: int) -> list[int] | None:
        example = rollouts.rows[row]
        text = example.get(self.args.demonstration_column)
        if not isinstance(text, str) or not text.strip():
            return None
        prompt = rollouts.tensors["prompt_ids"][row][rollouts.tensors["prompt_mask"][row].bool()].tolist()
        ids = encode_demonstration(self.tokenizer, text, prompt_ids=prompt)
        limit = self.args.max_completion_length
        if len(ids) <= limit:
            return ids
        if self.args.overlong_demonstration == "error":
            raise DataError(
                "the demonstration is longer than a completion may be",
                where=f"prompt {str(example['prompt'])[-80:]!r}",
                got=f"{len(ids)} tokens",
                allowed=f"at most {limit} (rollout.max_completion_length)",
                fix="Raise the limit, drop the row, or set method.overlong_demonstration",
            )
        return None if self.args.overlong_demonstration == "drop" else ids[:limit]

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
        self, rollouts: RolloutBatch, group: int, ids: list[int], *, weight: float | Tensor, advantage: float | Tensor
    ) -> None:
        """Put a demonstration in the row that `add_rows` made for its prompt, or in the prompt's first row."""
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
        self.record("gate/rl_tokens", rollouts[1])
        self.record("gate/sft_tokens", demos[1])
        if self.model.training:
            self.spend("demonstrations", demos[0])
            self.spend("demonstration_tokens", demos[1])
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


class GroupedDemonstrationTrainer(DemonstrationTrainer):
    """Every prompt's demonstration is one more row of its group, beside all of its rollouts; base of LUFFY and SRFT.

    Rollouts and demonstration are compared within that group, see `union_advantages`. The demonstration's reward is
    full marks, 1 from every reward function. A prompt without demonstration keeps its rollouts and is counted.
    """

    def prepare_rollouts(self, rollouts: RolloutBatch) -> RolloutBatch:
        tensors, n = rollouts.tensors, rollouts.num_generations
        totals = self.total_rewards(rollouts.rewards)
        demonstrations, missing = self.find_demonstrations(rollouts, torch.ones_like(totals[::n], dtype=torch.bool))
        full_marks = self.reward_weights.sum().to(totals)
        advantages, of_demonstrations = union_advantages(
            totals,
            torch.where(missing, torch.nan, full_marks),
            config=self.args.upge,
            num_generations=n,
        )
        tensors["advantages"] = rollouts.local(advantages)
        tensors["row_weight"] = torch.ones_like(tensors["advantages"])
        tensors["is_demonstration"] = torch.zeros_like(tensors["advantages"], dtype=torch.bool)
        self.record("gate/sft_fraction", 1.0 - missing.float().mean().item())
        self.add_rows(rollouts)
        for group, ids in demonstrations.items():
            self.write_demonstration(rollouts, group, ids, weight=1.0, advantage=of_demonstrations[group])
        return rollouts


def first_rows(rollouts: RolloutBatch) -> list[int]:
    """Rows of this rank that are the first of their prompt's group."""
    n = rollouts.num_generations
    return [row for row in range(rollouts.num_rows) if (rollouts.row_offset + row) % n == 0]


def union_advantages(
    rewards: Tensor, demonstration_rewards: Tensor, *, config: UPGEConfig, num_generations: int
) -> tuple[Tensor, Tensor]:
    """Advantages where each prompt's demonstration is one more row of its group.

    Args:
        rewards: (N*G,) rewards of the rollouts; NaN = not scored.
        demonstration_rewards: (N,) reward of each prompt's demonstration; NaN = there is none.
        config: `advantage_group: all` lets the demonstration into the group's mean and deviation.
        num_generations: G.

    Returns:
        (N*G,) and (N,), see `group_advantages`.

    Source: arXiv 2509.04419, table 1, rows LUFFY and SRFT.
    """
    grouped = torch.cat([rewards.view(-1, num_generations), demonstration_rewards.unsqueeze(1)], dim=1)
    is_offline = torch.zeros_like(grouped, dtype=torch.bool)
    is_offline[:, -1] = True
    advantages = group_advantages(
        grouped.view(-1), num_generations + 1, config=config, is_offline=is_offline.view(-1)
    ).view_as(grouped)
    return advantages[:, :-1].reshape(-1), advantages[:, -1]
