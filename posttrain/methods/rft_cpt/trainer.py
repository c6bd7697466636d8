"""Reinforcement fine-tuning as in continual post-training (arXiv 2507.05386): the policy variants and rejection
sampling.

The sequence of tasks is no part of a trainer: `stages: {preset: continual}` makes one stage of each task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from posttrain.errors import ConfigError
from posttrain.losses.reductions import LossOutput
from posttrain.losses.upge import UPGE_PRESETS
from posttrain.seam.arguments import option
from posttrain.seam.policy.batches import PolicyBatch, RolloutBatch
from posttrain.seam.policy.config import PolicyConfig
from posttrain.seam.policy.trainer import PolicyTrainer


@dataclass
class RFTCPTConfig(PolicyConfig):
    """Clipped policy gradient with GRPO, RLOO or ReMax advantages, or likelihood of the model's own right answers.

    Paper: arXiv 2507.05386: clip .2 low, .3 high, dual clip 3, mean over the tokens of the step, 8 rollouts a prompt.
    Deviation: the paper's divergence term (.01) is off until trainer.beta is set, since it needs a reference model,
    which a plan of stages names; the log-ratio in it is bounded at 40, not at 10.
    """

    takes_greedy_baseline: ClassVar[bool] = True

    update: Literal["policy_gradient", "rejection"] = option(
        "policy_gradient",
        help="What rollouts do: a policy gradient, or (rejection) the right ones are learnt like demonstrations.",
    )
    preset: str = option(
        "grpo", help="Row of the estimator's table that the loss starts from.", choices=tuple(UPGE_PRESETS)
    )
    stabilization_mask: Literal["none", "ppo_clip", "sequence_clip", "dual_clip"] | None = option(
        "dual_clip", help="Rule that stops the gradient of tokens too far from the rollout policy."
    )
    epsilon_dual: float | None = option(3.0, help="Upper ratio bound for negative advantages (dual_clip).", gt=1.0)
    loss_aggregation: (
        Literal["token_mean", "seq_mean_token_mean", "seq_mean_token_sum_norm", "seq_mean_token_sum"] | None
    ) = option("token_mean", help="How token losses become one number.")
    epsilon: float | None = option(0.2, help="Lower clip range.", ge=0.0, block="trainer")
    # trl 1.16 writes `float`, though None is its default.
    epsilon_high: float = option(0.3, help="Upper clip range.", ge=0.0, block="trainer")

    def _refuse_unused_parts(self) -> None:
        super()._refuse_unused_parts()
        if self.update == "rejection" and self.advantage_estimator is not None:
            raise ConfigError(
                "rejection sampling compares no rewards: a right rollout is learnt, any other is not",
                where="method.advantage_estimator",
                got=self.advantage_estimator,
                fix="Remove it, or set method.update to policy_gradient",
            )


class RFTCPTTrainer(PolicyTrainer):
    """As the parent; with `update: rejection` rollouts that the verifier accepts are learnt by likelihood.

    `prepare_rollouts` (once per generation batch, every rank; no collectives) takes every other rollout out of the
    loss and its counts. A checkpoint holds nothing of its own.
    """

    config_class = RFTCPTConfig
    args: RFTCPTConfig
    name = "RFT-CPT"

    def prepare_rollouts(self, rollouts: RolloutBatch) -> RolloutBatch:
        """Advantage 1 for a right rollout; the others, and those without a verdict, have no trained token."""
        if self.args.update == "policy_gradient":
            return rollouts
        accepted = rollouts.local(self.verdicts(rollouts)) == 1
        tensors = rollouts.tensors
        tensors["advantages"] = accepted.to(tensors["advantages"].dtype)
        tensors["trainable_mask"] = tensors["trainable_mask"] * accepted.unsqueeze(1)
        return rollouts

    def policy_loss(self, batch: PolicyBatch) -> LossOutput:
        """The estimator's, or minus log pi of accepted rollouts."""
        if self.args.update == "policy_gradient":
            return super().policy_loss(batch)
        values = -batch.advantages.unsqueeze(1) * batch.logps
        return LossOutput(values, self.args.upge.loss_aggregation, {})
