"""SRFT (arXiv 2506.19767): supervised and policy losses in every step, weighted by the policy's entropy.

Axes: B rows of a micro-batch, T completion tokens, G rollouts per prompt, Q prompts of the optimizer step.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from posttrain.errors import SupportError
from posttrain.losses.reductions import LossCounts, LossOutput, token_weights
from posttrain.losses.upge import UPGE_PRESETS, upge_loss
from posttrain.seam.arguments import option
from posttrain.seam.policy.batches import PolicyBatch, RolloutBatch, trainable_mask
from posttrain.seam.policy.demonstrations import DemonstrationConfig, GroupedDemonstrationTrainer

# arXiv 2506.19767 as the code of arXiv 2509.04419 has it.
DEMONSTRATION_COEF, RIGHT_COEF, WRONG_COEF = 0.5, 0.1, -1.0
_FIXED = (
    "advantage_estimator advantage_group epsilon_dual is_truncation loss_aggregation reference_policy shaping "
    "shaping_gamma stabilization_mask epsilon epsilon_high"
).split()


@dataclass
class SRFTConfig(DemonstrationConfig):
    """A prompt's demonstration is learnt by likelihood and off-policy, its rollouts by the sign of their verdicts.

    Per row, H = mean entropy of its tokens in nats, held constant: demonstrations 0.5 exp(-H) NLL plus the off-policy
    loss of weight advantage * pi; right rollouts - 0.1 exp(H) log pi; wrong ones + log pi.

    Paper: arXiv 2506.19767; with 7 rollouts and 1 demonstration a prompt and learning rate 1e-6 in arXiv 2509.04419.
    Deviation: the parts' shares are our choice, since the specification gives none: L = (1/Q) sum over prompts of the
    likelihood part + (1/(G+1)) (off-policy part + sum over rollouts), each row a mean over its tokens.
    """

    preset: str = option(
        "srft_offline", help="The estimator of the off-policy part; SRFT has no other.", choices=("srft_offline",)
    )

    def _refuse_unused_parts(self) -> None:
        preset = UPGE_PRESETS[self.preset]
        settled = {"epsilon": preset.epsilon_low, "epsilon_high": preset.epsilon_high}  # survives a copy
        for name in _FIXED:
            value = getattr(self, name)
            default = next(item.default for item in fields(self) if item.name == name)
            if value not in (default, settled.get(name, default)):
                raise SupportError(
                    "SRFT fixes every part of its loss",
                    where=f"{'trainer' if name in settled else 'method'}.{name}",
                    got=value,
                    fix="Remove it, or train with luffy or hpt, whose loss has such parts",
                )


class SRFTTrainer(GroupedDemonstrationTrainer):
    """Rollouts lose the ratio and the baseline: their verdict decides the sign, their entropy the size.

    `loss_weights` (once per optimizer step): row means with global counts; one all-reduce. A checkpoint holds nothing
    of its own.
    """

    config_class = SRFTConfig
    args: SRFTConfig
    name = "SRFT"

    def prepare_rollouts(self, rollouts: RolloutBatch) -> RolloutBatch:
        """As in the parent; a rollout's advantage becomes its verdict's coefficient, 0 if it could not be verified."""
        rollouts = super().prepare_rollouts(rollouts)
        verdicts = rollouts.local(self.verdicts(rollouts)).to(rollouts.tensors["advantages"])
        coefficients = torch.where(verdicts == 1, RIGHT_COEF, WRONG_COEF).masked_fill(verdicts.isnan(), 0.0)
        rollouts.tensors["advantages"][: rollouts.num_rows] = coefficients
        return rollouts

    def loss_weights(self, window: list[dict[str, Any]]) -> list[Tensor]:
        args, found = self.args, []
        rollouts, _, _ = self.count_rows(window)
        rows = float(args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size)
        prompts = rows / self.num_generations
        for tensors in window:
            is_demo, mask = tensors["is_demonstration"].unsqueeze(1), trainable_mask(tensors)
            shares = ((prompts, mask * is_demo), (prompts + rollouts.rows, mask * ~is_demo))
            weights = [
                token_weights(part, reduction="seq_mean_token_mean", counts=LossCounts(count, 0.0, 1))
                for count, part in shares
            ]
            found.append(tensors["row_weight"].unsqueeze(1) * torch.stack(weights).sum(dim=0))
        return found

    def rollout_loss(self, batch: PolicyBatch) -> LossOutput:
        """- c log pi with c = 0.1 exp(H) for right rollouts, -1 for wrong ones; no gradient through H."""
        growth = torch.where(batch.advantages > 0, row_entropy(batch).exp(), 1.0)
        values = -(batch.advantages * growth).unsqueeze(1) * batch.logps
        return LossOutput(values, "seq_mean_token_mean", {})

    def demonstration_loss(self, batch: PolicyBatch) -> Tensor:
        """0.5 exp(-H) NLL plus the off-policy part's share of its group, 1 / (G + 1)."""
        off_policy = upge_loss(
            batch.logps, batch.logps.detach(), batch.advantages, batch.mask, config=UPGE_PRESETS["srft_offline"]
        ).values
        likelihood = -DEMONSTRATION_COEF * (-row_entropy(batch)).exp().unsqueeze(1) * batch.logps
        return likelihood + off_policy / (self.num_generations + 1)


def row_entropy(batch: PolicyBatch) -> Tensor:
    """(B,) mean entropy of a row's trained tokens under the current policy, in nats, detached; 0 for an empty row."""
    if batch.entropies is None:
        raise ValueError("the batch has no entropies, which SRFT weights its rows with")
    entropies = torch.where(batch.mask > 0, batch.entropies.detach(), 0.0)
    return entropies.sum(dim=1) / batch.mask.sum(dim=1).clamp(min=1)
