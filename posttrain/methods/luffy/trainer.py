"""LUFFY (arXiv 2504.14945): each prompt's demonstration is compared with its rollouts and learnt off-policy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from posttrain.losses.reductions import LossCounts, token_weights
from posttrain.losses.upge import UPGE_PRESETS, upge_loss
from posttrain.seam.arguments import option
from posttrain.seam.policy.batches import PolicyBatch, trainable_mask
from posttrain.seam.policy.demonstrations import DemonstrationConfig, GroupedDemonstrationTrainer


@dataclass
class LUFFYConfig(DemonstrationConfig):
    """GRPO on the union of a prompt's rollouts and its demonstration; the demonstration's tokens are weighted by
    f'(p) * p of f(p) = p / (p + gamma), so that tokens the model finds unlikely still count.

    Paper: arXiv 2504.14945, as arXiv 2509.04419 compares with it: 7 rollouts and 1 demonstration a prompt, learning
    rate 1e-6, gamma 0.1. Deviation: one mean over all tokens, rollouts and demonstrations alike, is our choice; the
    specification only says that they are grouped.
    """

    preset: str = option(
        "grpo",
        help="Row of the estimator's preset table that the rollouts' loss starts from.",
        choices=tuple(UPGE_PRESETS),
    )
    advantage_group: Literal["on_policy", "all"] | None = option(
        "all", help="Whether the demonstration enters the mean and deviation that the rollouts are compared with."
    )
    loss_aggregation: (
        Literal["token_mean", "seq_mean_token_mean", "seq_mean_token_sum_norm", "seq_mean_token_sum"] | None
    ) = option("token_mean", help="How token losses of rollouts and demonstrations become one number.")
    demonstration_shaping_gamma: float = option(0.1, help="Gamma of the demonstrations' weight.", gt=0.0)

    def _refuse_unused_parts(self) -> None:
        """Both values of `advantage_group` mean something here."""


class LUFFYTrainer(GroupedDemonstrationTrainer):
    """Rollouts keep the configured estimator; demonstrations have reference policy one and the shaped weight.

    `loss_weights` (once per optimizer step): one normaliser over the rows of both kinds; one all-reduce. A checkpoint
    holds nothing of its own.
    """

    config_class = LUFFYConfig
    args: LUFFYConfig
    name = "LUFFY"

    def loss_weights(self, window: list[dict[str, Any]]) -> list[Tensor]:
        rollouts, demos, _ = self.count_rows(window)
        union = LossCounts(rollouts.rows + demos.rows, rollouts.tokens + demos.tokens, rollouts.max_completion_length)
        found, reduction = [], self.args.upge.loss_aggregation
        for tensors in window:
            weights = token_weights(trainable_mask(tensors), reduction=reduction, counts=union)
            found.append(tensors["row_weight"].unsqueeze(1) * weights)
        return found

    def demonstration_loss(self, batch: PolicyBatch) -> Tensor:
        config = replace(UPGE_PRESETS["luffy_offline"], shaping_gamma=self.args.demonstration_shaping_gamma)
        return upge_loss(batch.logps, batch.logps.detach(), batch.advantages, batch.mask, config=config).values
