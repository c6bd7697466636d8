"""Hybrid Post-Training (arXiv 2509.04419): prompt by prompt, RL where the model sometimes succeeds, SFT where it does
not.

A prompt whose rollouts succeed too rarely hands its first rollout row to a demonstration of the answer; its other rows
leave the loss. Everything else is the policy trainer with the unified estimator.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from posttrain.errors import ConfigError, SupportError
from posttrain.losses.gates import switch_to_demonstration
from posttrain.losses.reductions import token_weights
from posttrain.losses.upge import UPGE_PRESETS, upge_loss
from posttrain.seam.arguments import option
from posttrain.seam.policy.batches import PolicyBatch, RolloutBatch, trainable_mask
from posttrain.seam.policy.demonstrations import DemonstrationConfig, DemonstrationTrainer, union_advantages
from posttrain.seam.policy.metrics import group_counts

# Weights of the two demonstration losses of `offline_loss: mix`; arXiv 2509.04419, table 5 (supervised, off-policy).
MIX_WEIGHTS = (0.1, 1.0)


@dataclass
class HPTConfig(DemonstrationConfig):
    """Hybrid post-training: a gate on each prompt's success rate chooses between RL and SFT on a demonstration.

    Paper: arXiv 2509.04419, section 4. Deviation: advantages are not divided by the deviation and the clip is on
    (preset dr_grpo); the paper prints the division, its code has neither. Deviation: the loss is averaged over the
    prompts of the optimizer step, so it does not depend on micro-batches; the official code's SFT : RL ratio does.
    """

    switch_gate: float = option(
        0.0,
        help="Gamma: a prompt is trained on its demonstration iff its success rate is at most this. -1 = never.",
        ge=-1.0,
        lt=1.0,
    )
    sft_loss_coef: float = option(1.0, help="Weight of the demonstration loss.", ge=0.0)
    feedback_mode: Literal["switch", "soft"] = option(
        "switch",
        help="switch: RL or SFT per prompt; soft: weights soft_alpha[k] and soft_beta[k] for k solved rollouts.",
    )
    soft_alpha: list[float] | None = option(
        None, help="RL weight of a prompt with k of n rollouts solved, n+1 numbers for k = 0..n.", ge=0.0
    )
    soft_beta: list[float] | None = option(
        None, help="Demonstration weight of a prompt with k of n rollouts solved, n+1 numbers for k = 0..n.", ge=0.0
    )
    offline_loss: Literal["sft", "off_policy", "mix"] = option(
        "sft", help="Loss of demonstration rows: log-likelihood, LUFFY's off-policy loss, or 0.1 and 1.0 of the two."
    )
    offline_aggregation: Literal["seq_mean", "token_mean"] = option(
        "seq_mean", help="Demonstrations count the same each (paper, eq. 12) or by their tokens (official code)."
    )
    skip_update_grad_norm: float | None = option(
        None, help="Leave the weights alone in a step whose gradient norm before clipping exceeds this.", gt=0.0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if -1.0 < self.switch_gate < 0.0:
            raise ConfigError(
                "not a success rate",
                where="method.switch_gate",
                got=self.switch_gate,
                allowed="0 <= gate < 1, or -1 = off",
            )
        if self.switch_gate == -1.0 and self.feedback_mode == "switch":
            warnings.warn("method.switch_gate is -1: demonstrations are never used", UserWarning, stacklevel=2)
        self._check_soft_tables()

    @property
    def uses_demonstrations(self) -> bool:
        """Whether any prompt can be trained on its demonstration."""
        return self.feedback_mode == "soft" or self.switch_gate >= 0

    def _check_soft_tables(self) -> None:
        size = self.num_generations + 1
        for name in ("soft_alpha", "soft_beta"):
            table = getattr(self, name)
            if (table is not None) != (self.feedback_mode == "soft"):
                raise ConfigError(
                    "the table belongs to feedback_mode soft, and soft needs it",
                    where=f"method.{name}",
                    got=table,
                    fix=f"Give {size} numbers with feedback_mode: soft, or none",
                )
            if table is None:
                continue
            if len(table) != size:
                raise ConfigError(
                    "one number for each count of solved rollouts is needed",
                    where=f"method.{name}",
                    got=f"{len(table)} numbers",
                    allowed=f"num_generations + 1 = {size} numbers",
                )
            rising = name == "soft_alpha"
            if table != sorted(table, reverse=not rising):
                warnings.warn(
                    f"method.{name} does not {'rise' if rising else 'fall'} with the solved rollouts: {table}",
                    UserWarning,
                    stacklevel=2,
                )


class HPTTrainer(DemonstrationTrainer):
    """Policy trainer in which prompts the model cannot solve are trained on their demonstration, in the same forward.

    `prepare_rollouts` (every rank, once per generation batch): gate on gathered verdicts, then overwrite rows (mode
    switch) or append them (mode soft). `loss_weights` (once per optimizer step, one all-reduce): global denominators.
    `demonstration_loss` (per micro-batch): `offline_loss`; rollout rows keep the estimator.

    The gate has no memory; a checkpoint holds nothing of its own.
    """

    config_class = HPTConfig
    args: HPTConfig
    name = "HPT"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.args.skip_update_grad_norm is not None and (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            raise SupportError(
                "skipping an update by its gradient norm needs gradients that this engine keeps to itself",
                where="method.skip_update_grad_norm",
                got=self.args.skip_update_grad_norm,
                fix="Remove it, or train with DDP",
            )

    # ---- once per generation batch ----

    def prepare_rollouts(self, rollouts: RolloutBatch) -> RolloutBatch:
        tensors, n = rollouts.tensors, rollouts.num_generations
        solved, verified = group_counts(self.verdicts(rollouts), n)
        rl_weight, demo_weight = self._group_weights(solved, verified)
        demonstrations, missing = self.find_demonstrations(rollouts, demo_weight > 0)
        rl_weight = torch.where(missing, torch.ones_like(rl_weight), rl_weight)
        demo_weight = torch.where(missing, torch.zeros_like(demo_weight), demo_weight)
        groups = torch.tensor([rollouts.group_of(i) for i in range(rollouts.num_rows)], device=solved.device)
        tensors["row_weight"] = rl_weight[groups]
        tensors["is_demonstration"] = torch.zeros(rollouts.num_rows, dtype=torch.bool, device=solved.device)
        tensors["trainable_mask"] = tensors["trainable_mask"] * (rl_weight[groups] > 0).unsqueeze(1)
        self.log_metric("gate/sft_fraction", (demo_weight > 0).float().mean().item())
        self.log_metric("gate/rl_fraction", (rl_weight > 0).float().mean().item())
        if self.args.feedback_mode == "soft":
            self.add_rows(rollouts)
        for group, ids in demonstrations.items():
            advantage = self._demonstration_advantage(rollouts, group)
            self.write_demonstration(rollouts, group, ids, weight=demo_weight[group], advantage=advantage)
        return rollouts

    def _group_weights(self, solved: Tensor, verified: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, beta) of each prompt, float32. A prompt none of whose rollouts could be verified stays with RL; of
        one of which some could, the share solved counts (soft tables: rounded to the nearest row)."""
        if self.args.feedback_mode == "soft":
            table = torch.tensor([self.args.soft_alpha, self.args.soft_beta], device=solved.device)
            known = verified > 0
            rows = (self.num_generations * solved / verified.clamp(min=1)).round().long()
            return torch.where(known, table[0][rows], 1.0), torch.where(known, table[1][rows], 0.0)
        switched = switch_to_demonstration(solved, verified, self.args.switch_gate)
        return (~switched).float(), switched.float()

    def _demonstration_advantage(self, rollouts: RolloutBatch, group: int) -> float:
        """1 for the likelihood loss; for the off-policy loss the demonstration's standing among the group's rollouts,
        with reward 1 for itself (LUFFY's union of on- and off-policy rows)."""
        if self.args.offline_loss == "sft":
            return 1.0
        n = rollouts.num_generations
        rewards = rollouts.rewards[group * n : (group + 1) * n, self.verifier_index]
        config = UPGE_PRESETS["luffy_offline"]
        return float(union_advantages(rewards, rewards.new_ones(1), config=config, num_generations=n)[1])

    # ---- once per optimizer step ----

    def loss_weights(self, window: list[dict[str, Any]]) -> list[Tensor]:
        """L = (1/Q) sum over prompts of alpha * L_RL + beta * lambda * L_SFT, Q = prompts of the optimizer step."""
        args = self.args
        rollouts, demos, num_failed = self.count_rows(window)
        rows = float(args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size)
        prompts = rows / self.num_generations
        # The mean is over the kept rollouts that were scored; their share of the loss is that of their prompts.
        rl_scale = (rollouts.rows + num_failed) / rows
        # token_mean shares the demonstrations' part of the loss, num_demos / Q, out by tokens instead of by rows.
        by_token = args.offline_aggregation == "token_mean"
        sft_scale = args.sft_loss_coef * (demos.rows / prompts if by_token else 1.0)
        sft_reduction = "token_mean" if by_token else "seq_mean_token_mean"
        found = []
        for tensors in window:
            mask, is_demo = trainable_mask(tensors), tensors["is_demonstration"].float().unsqueeze(1)
            rl = token_weights(mask * (1 - is_demo), reduction=args.upge.loss_aggregation, counts=rollouts)
            sft = token_weights(mask * is_demo, reduction=sft_reduction, counts=replace(demos, rows=prompts))
            found.append(tensors["row_weight"].unsqueeze(1) * (rl_scale * rl + sft_scale * sft))
        return found

    # ---- once per micro-batch ----

    def demonstration_loss(self, batch: PolicyBatch) -> Tensor:
        likelihood = -batch.logps
        if self.args.offline_loss == "sft":
            return likelihood
        off_policy = upge_loss(
            batch.logps, batch.logps.detach(), batch.advantages, batch.mask, config=UPGE_PRESETS["luffy_offline"]
        ).values
        if self.args.offline_loss == "off_policy":
            return off_policy
        return MIX_WEIGHTS[0] * likelihood + MIX_WEIGHTS[1] * off_policy

    def on_grad_norm(self, norm: float) -> None:
        limit = self.args.skip_update_grad_norm
        if limit is None:
            return
        skipped = norm > limit
        self.log_metric("update/skipped", float(skipped))
        if skipped:  # parameters without a gradient are passed over by the optimizer, moments and decay included
            for parameter in self.model.parameters():
                parameter.grad = None
