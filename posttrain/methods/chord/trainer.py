"""CHORD (arXiv 2508.11408): a policy loss and a supervised loss in every step, the share of the second decaying.

Axes: B rows of a micro-batch, T completion tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.losses.reductions import token_weights
from posttrain.losses.supervised import uncertainty_weighted_loss
from posttrain.losses.upge import UPGE_PRESETS
from posttrain.seam.arguments import option
from posttrain.seam.policy.batches import PolicyBatch, RolloutBatch, trainable_mask
from posttrain.seam.policy.demonstrations import DemonstrationConfig, DemonstrationTrainer


@dataclass
class CHORDConfig(DemonstrationConfig):
    """L = (1 - mu) L_policy + mu L_SFT in every step, with mu decaying on a schedule.

    L_policy: the configured estimator on a prompt's rollouts. L_SFT: token mean over the demonstrations of the same
    prompts, each token weighted by p (1 - p) if asked for.

    Paper: arXiv 2508.11408. Deviation: its full text was not at hand; the schedule's shape and numbers, the token mean
    and the demonstrations of the step's own prompts (the paper has a data set of its own) are our choice.
    """

    preset: str = option(
        "grpo",
        help="Row of the estimator's preset table that the policy part starts from.",
        choices=tuple(UPGE_PRESETS),
    )
    mu_start: float = option(0.9, help="Share of the supervised loss in the first step.", ge=0.0, le=1.0)
    mu_end: float = option(0.05, help="Share of the supervised loss after the decay.", ge=0.0, le=1.0)
    mu_schedule: Literal["linear", "cosine"] = option("cosine", help="Way from mu_start to mu_end.")
    mu_decay_steps: int | None = option(None, help="Optimizer steps of the decay. None = the whole run.", ge=1)
    demonstration_weight: Literal["none", "p_times_one_minus_p"] = option(
        "none", help="Weight of a demonstration token; p (1 - p) spares what is known and what is far off."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mu_end > self.mu_start:
            raise ConfigError(
                "the supervised share would grow",
                where="method.mu_end",
                got=self.mu_end,
                allowed=f"at most method.mu_start ({self.mu_start})",
            )

    @property
    def uses_demonstrations(self) -> bool:
        """Whether the supervised part ever counts."""
        return self.mu_start > 0


def supervised_share(step: int, *, start: float, end: float, decay_steps: int, schedule: str) -> float:
    """mu of an optimizer step: `start` in step 0, `end` from step `decay_steps` on.

    Raises:
        ValueError: an unknown schedule.

    Source: our choice, see `CHORDConfig`.
    """
    progress = min(1.0, step / decay_steps)
    if schedule == "linear":
        return start + (end - start) * progress
    if schedule == "cosine":
        return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
    raise ValueError(f"schedule is {schedule!r}; allowed: linear, cosine")


class CHORDTrainer(DemonstrationTrainer):
    """Each prompt's demonstration is a row beside its rollouts; rollouts are compared among themselves.

    `loss_weights` (once per optimizer step): (1 - mu) times the estimator's aggregation on rollouts, mu times the
    token mean on demonstrations, both with global counts; one all-reduce. mu follows from the step alone, so a
    checkpoint holds nothing of its own.
    """

    config_class = CHORDConfig
    args: CHORDConfig
    name = "CHORD"

    def prepare_rollouts(self, rollouts: RolloutBatch) -> RolloutBatch:
        self.prepare_evaluation(rollouts.tensors)
        prompts = len(rollouts.rewards) // rollouts.num_generations
        wanted = torch.full((prompts,), self.args.uses_demonstrations, device=rollouts.rewards.device)
        found, missing = self.find_demonstrations(rollouts, wanted)
        self.log_metric("gate/sft_fraction", (wanted & ~missing).float().mean().item())
        self.add_rows(rollouts)
        for group, ids in found.items():
            self.write_demonstration(rollouts, group, ids, weight=1.0, advantage=1.0)
        return rollouts

    def supervised_share(self) -> float:
        """mu of the coming optimizer step."""
        args = self.args
        return supervised_share(
            self.state.global_step,
            start=args.mu_start,
            end=args.mu_end,
            decay_steps=args.mu_decay_steps or max(1, self.state.max_steps),
            schedule=args.mu_schedule,
        )

    def entropy_scale(self) -> float:
        """1 - mu: the bonus is part of the policy loss."""
        return 1.0 - self.supervised_share()

    def loss_weights(self, window: list[dict[str, Any]]) -> list[Tensor]:
        rollouts, demos, _ = self.count_rows(window)
        share = self.supervised_share()
        self.log_metric("chord/supervised_share", share)
        found = []
        for tensors in window:
            mask = trainable_mask(tensors) * (tensors["row_weight"] > 0).unsqueeze(1)
            is_demo = tensors["is_demonstration"].unsqueeze(1)
            policy = token_weights(mask * ~is_demo, reduction=self.args.upge.loss_aggregation, counts=rollouts)
            supervised = token_weights(mask * is_demo, reduction="token_mean", counts=demos)
            found.append((1 - share) * policy + share * supervised)
        return found

    def demonstration_loss(self, batch: PolicyBatch) -> Tensor:
        if self.args.demonstration_weight == "none":
            return super().demonstration_loss(batch)
        return uncertainty_weighted_loss(batch.logps, batch.mask).values
