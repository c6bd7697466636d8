"""Policy methods that train on demonstrations in the same forward pass as on rollouts.

How such rows travel in the batch is `likelihood_rows.py`; here is where they come from.

Axes: B rows of a rank's generation batch or of a micro-batch, N prompts of a generation batch, G rollouts per prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from datasets import Dataset
from torch import Tensor

from posttrain.data.answers import message_of
from posttrain.data.demonstrations import encode_demonstration, encode_pair, not_text
from posttrain.data.rendering import template_inputs
from posttrain.errors import DataError, SupportError
from posttrain.losses.upge import group_advantages
from posttrain.losses.upge_config import UPGEConfig
from posttrain.seam.arguments import option
from posttrain.seam.known_tokens import refuse_unknown_token
from posttrain.seam.policy.batches import RolloutBatch
from posttrain.seam.policy.likelihood_rows import LikelihoodRowsTrainer, first_rows
from posttrain.seam.policy.trainer import PolicyConfig


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


class DemonstrationTrainer(LikelihoodRowsTrainer):
    """Policy trainer whose batches may hold demonstrations; base of HPT, LUFFY and SRFT.

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
        texts = self.train_dataset[column][:]
        if others := [row for row, text in enumerate(texts) if text is not None and not isinstance(text, str)]:
            raise not_text(texts[others[0]], f"train row {others[0]}, column {column!r}")
        empty = sum(not (text or "").strip() for text in texts)
        if empty > len(self.train_dataset) / 2:
            raise DataError(
                "more than half of the rows have no demonstration",
                where=f"train dataset, column {column!r}",
                got=f"{empty} of {len(self.train_dataset)} empty",
                fix="Name the right column as method.demonstration_column, or train with method grpo",
            )

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
            if not wanted[group]:
                continue
            prompt = rollouts.tensors["prompt_ids"][row][rollouts.tensors["prompt_mask"][row].bool()].tolist()
            if ids := self.encoded_demonstration(rollouts.rows[row], prompt_ids=prompt):
                found[group] = ids
        present = torch.zeros(len(wanted), device=self.accelerator.device)
        present[list(found)] = 1.0
        missing = wanted & (self.accelerator.reduce(present, reduction="sum") == 0).to(wanted.device)
        self.log_metric("gate/missing_demonstration_fraction", missing.float().mean().item())
        return found, missing

    def encoded_demonstration(self, row: Mapping[str, Any], *, prompt_ids: list[int]) -> list[int] | None:
        """Token ids of a dataset row's demonstration; None if it is empty, or too long and `drop` is set.

        Raises:
            DataError: it is too long and `overlong_demonstration` is error, or has a token that the model lacks.
        """
        text = row.get(self.args.demonstration_column)
        if not isinstance(text, str) or not text.strip():
            return None
        inputs = template_inputs(row, self.chat_template_kwargs)
        given, ids = encode_pair(self.tokenizer, row["prompt"], text, **inputs)
        # The prompt was rendered elsewhere, as with tools that are functions.
        if given != prompt_ids and message_of(text, inputs) is None:
            ids = encode_demonstration(self.tokenizer, text, prompt_ids=prompt_ids, **inputs)
        refuse_unknown_token(max(ids), self._token_rows, where=f"demonstration {text[:80]!r}")
        limit = self.args.max_completion_length
        if len(ids) <= limit:
            return ids
        if self.args.overlong_demonstration == "error":
            raise DataError(
                "the demonstration is longer than a completion may be",
                where=f"prompt {str(row['prompt'])[-80:]!r}",
                got=f"{len(ids)} tokens",
                allowed=f"at most {limit} (rollout.max_completion_length)",
                fix="Raise the limit, drop the row, or set method.overlong_demonstration",
            )
        return None if self.args.overlong_demonstration == "drop" else ids[:limit]


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
        self.log_metric("gate/sft_fraction", 1.0 - missing.float().mean().item())
        self.add_rows(rollouts)
        for group, ids in demonstrations.items():
            self.write_demonstration(rollouts, group, ids, weight=1.0, advantage=of_demonstrations[group])
        return rollouts


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
