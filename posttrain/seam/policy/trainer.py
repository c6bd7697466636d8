"""`PolicyTrainer`: TRL's GRPO trainer as a base that methods extend through a few public hooks.

TRL generates, scores and buffers; this class takes over the loss, its normaliser, the data order and the checkpoint.
Per optimizer step the rows of all accumulation micro-batches are known before the first backward, so every token gets
its final weight from global counts, rows without a gradient leave before the forward, and padding is cut per
micro-batch. Left out on purpose: TRL's entropy-quantile and off-policy masks and its adaptive entropy controller
(refused by name).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sized
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.errors import ConfigError, SupportError
from posttrain.losses.kl import k3_kl
from posttrain.losses.reductions import LossCounts, LossOutput, token_weights
from posttrain.losses.upge import group_advantages, upge_loss
from posttrain.seam.engine.link import EngineLink, engine_settings
from posttrain.seam.groups.log import GroupStats, group_column
from posttrain.seam.groups.sampler import prompt_order
from posttrain.seam.head import add_selective_scoring
from posttrain.seam.inputs import check_inputs
from posttrain.seam.isolation import score_as_sampled
from posttrain.seam.policy.batches import (
    VISION_KEYS,
    PolicyBatch,
    RolloutBatch,
    is_left_out,
    select_rows,
    trainable_mask,
    trim_padding,
)
from posttrain.seam.policy.checkpoint import PolicyCheckpoint
from posttrain.seam.policy.config import PolicyConfig, verifier_index
from posttrain.seam.policy.metrics import log_lengths, log_rollouts, log_update
from posttrain.seam.policy.remax_baseline import greedy_baseline, refuse_greedy
from posttrain.seam.policy.rendered_rollouts import RenderedRollouts
from posttrain.seam.policy.rewards import RewardRecorder, leave_out, refuse_out_of_range
from posttrain.seam.sampling import EpochRepeatSampler, in_order
from posttrain.seam.weights import materialised, refuse_prompt_learning

__all__ = ["PolicyBatch", "PolicyConfig", "PolicyTrainer", "RolloutBatch"]


class PolicyTrainer(PolicyCheckpoint, RenderedRollouts):
    """GRPO training with the unified policy gradient estimator; base of every method that learns from rollouts.

    Differs from `trl.GRPOTrainer` in the loss (any `UPGEConfig`), in normalisers that count the whole optimizer step
    over ranks and micro-batches, in exact resume, and in the savings named in the module header.

    Hooks for methods: `train_order` once per `train()`; `prepare_prompts` and `prepare_rollouts` once per generation
    batch on every rank; `loss_weights` once per step on every rank (contains collectives); `policy_loss` once per
    micro-batch; `completion_budget` before each generation batch; `on_grad_norm` once per step.

    Checkpoints hold the rollouts in flight, so that a run may stop at any optimizer step.

    Args:
        model: path, Hub id or a model. reward_funcs: one or more functions of (prompts, completions, columns…).
        args: a `PolicyConfig`. train_dataset: column `prompt` and whatever the rewards need.
        processing_class, peft_config, callbacks, optimizers: as in TRL.
        optimizer_cls_and_kwargs: (optimizer class or factory, keyword arguments), as in transformers' Trainer.
    """

    config_class: type[PolicyConfig] = PolicyConfig
    gives_advantages = False  # whether `prepare_rollouts` sets advantages itself, as `external` needs
    args: PolicyConfig

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Callable | list[Callable] | None = None,
        args: PolicyConfig | None = None,
        train_dataset: Any = None,
        *,
        peft_config: Any = None,
        optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None,
        **kwargs: Any,
    ):
        args = self._checked_args(args, train_dataset, kwargs.get("processing_class"))
        refuse_prompt_learning(model, peft_config)
        reference: AbstractContextManager[None] = nullcontext()
        needs_reference = args.beta != 0.0 and peft_config is None and not isinstance(model, PeftModel)
        if not isinstance(model, str) and (needs_reference or args.use_vllm):
            reference = materialised(
                model,
                Path(args.output_dir) / "reference",
                tokenizer=kwargs.get("processing_class"),
                is_main=args.process_index == 0,
                barrier=args.distributed_state.wait_for_everyone,
            )
        self.reward_recorder = RewardRecorder(reward_funcs, max_failed_fraction=args.max_failed_fraction)
        with reference, engine_settings(args, model):
            super().__init__(
                model=model,
                reward_funcs=self.reward_recorder.functions,
                args=args,
                train_dataset=train_dataset,
                peft_config=peft_config,
                **kwargs,
            )
        self.group_stats = GroupStats.of(train_dataset, group_column(train_dataset, args.prompt_groups))
        self.engine = EngineLink(self) if self.use_vllm else None
        self.optimizer_cls_and_kwargs = self._only_optimizer(optimizer_cls_and_kwargs)
        if args.upge.advantage_estimator == "remax":
            refuse_greedy(self)
        score_as_sampled(self.accelerator.unwrap_model(self.model), args)
        self.verifier_index = verifier_index(list(self.reward_func_names), args.verifier)
        self._window: list[dict[str, Any]] = []
        self._rollout_rows: list[dict[str, Any]] = []
        self._window_loss: list[Tensor] = []
        has_bonus = args.entropy_coef != 0.0
        for scored in (self.model, self.ref_model):
            if scored is not None:
                base = self.accelerator.unwrap_model(scored)
                base = base.get_base_model() if isinstance(base, PeftModel) else base
                add_selective_scoring(base, logits_budget_bytes=args.logits_budget_bytes, entropy_gradient=has_bonus)

    # ---- hooks for methods ----

    def train_order(self, data: Sized, **layout: Any) -> EpochRepeatSampler:
        """Which prompts are drawn when; made once per `train()`, equal on all ranks. Default: a new permutation every
        epoch, or by group. Each draw must follow from seed, epoch and place, so that a run resumes."""
        return prompt_order(data, self.group_stats, self.args, mixing=self.prompt_mixing, **layout)

    def prepare_prompts(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """This rank's rows of a generation batch as they are to be completed, a prompt's row G times; every rank,
        right before generation, also in upstream's evaluation. Default: unchanged."""
        return rows

    def prepare_rollouts(self, rollouts: RolloutBatch) -> RolloutBatch:
        """Change rollouts after scoring and before they are shuffled; every rank, once per generation batch.

        Overwrite rows, set `trainable_mask`, add row-aligned keys. The number of rows may grow by whole multiples of
        `steps_per_generation` and must stay equal on all ranks. Default: unchanged.
        """
        return rollouts

    def prepare_evaluation(self, tensors: dict[str, Any]) -> None:
        """Add the row-aligned keys that the method's loss reads to a batch of upstream's evaluation loop."""

    def policy_loss(self, batch: PolicyBatch) -> LossOutput:
        """Per-token loss of one micro-batch, not reduced. Default: the configured unified estimator.

        A method may replace `old_logps` and `ref_logps` in the batch; the KL term added afterwards reads them.
        """
        return upge_loss(batch.logps, batch.old_logps, batch.advantages, batch.mask, config=self.args.upge)

    def loss_weights(self, window: list[dict[str, Any]]) -> list[Tensor]:
        """(B, T) weight of every token of the optimizer step, one tensor per micro-batch; collectives allowed.

        The loss is the sum of per-token losses times these weights over micro-batches and ranks. Default: the
        configured aggregation with counts over the whole step.
        """
        masks = [trainable_mask(tensors) for tensors in window]
        counts = self.count_window(masks, left_out=[is_left_out(tensors) for tensors in window])
        return [token_weights(mask, reduction=self.args.upge.loss_aggregation, counts=counts) for mask in masks]

    def contributes(self, tensors: Mapping[str, Any]) -> Tensor:
        """(B,) False where a row's gradient is exactly zero whatever the model computes; such rows leave the update.

        Default: zero weight, or zero advantage with neither a KL term nor an entropy bonus.
        """
        weights = tensors["loss_weights"].abs()
        if self.beta == 0.0:
            advantages = tensors["advantages"].abs()
            weights = weights * (advantages if advantages.dim() == 2 else advantages.unsqueeze(1))
        if "entropy_weights" in tensors:
            weights = weights + tensors["entropy_weights"]
        return weights.sum(dim=1) > 0

    def entropy_mask(self, tensors: Mapping[str, Any]) -> Tensor:
        """(B, T) 1 where the entropy bonus acts. Default: every trained token."""
        return trainable_mask(tensors)

    def entropy_scale(self) -> float:
        """Factor of the entropy bonus in the coming optimizer step, the same on all ranks. Default: 1."""
        return 1.0

    def completion_budget(self, global_step: int) -> int:
        """Most tokens a completion may have in the generation batch about to be made. Default: the configured
        length.
        """
        return self.args.max_completion_length

    def count_window(self, masks: list[Tensor], *, left_out: Iterable[Tensor] = ()) -> LossCounts:
        """Rows, without those marked in `left_out`, and trained tokens of a step over all ranks; one all-reduce."""
        without = sum(int(rows.sum()) for rows in left_out)
        rows = masks[0].new_tensor(sum(mask.size(0) for mask in masks) - without, dtype=torch.float64)
        local = torch.stack([rows, torch.stack([mask.double().sum() for mask in masks]).sum()])
        rows, tokens = self.accelerator.reduce(local, reduction="sum").tolist()
        return LossCounts(rows=rows, tokens=tokens, max_completion_length=self.args.max_completion_length)

    # ---- construction ----

    def _checked_args(self, args: PolicyConfig | None, train_dataset: Any, processing_class: Any) -> PolicyConfig:
        check_inputs(train_dataset, processing_class)
        if args is None:
            args = self.config_class(output_dir=self.config_class.__name__.removesuffix("Config"))
        if not isinstance(args, self.config_class):
            raise ConfigError(
                "wrong class of arguments", where="args", got=type(args).__name__, allowed=self.config_class.__name__
            )
        if args.upge.advantage_estimator == "external" and not self.gives_advantages:
            raise SupportError(
                "advantages come from the caller, and this trainer has none to give",
                where="method.advantage_estimator",
                got="external",
                fix="Choose another estimator, or write a subclass with gives_advantages = True",
            )
        prompts = args.generation_batch_size // args.num_generations
        if hasattr(train_dataset, "__len__") and len(train_dataset) < prompts:
            raise ConfigError(
                "fewer prompts than one generation batch needs",
                where="data.train",
                got=len(train_dataset),
                allowed=f"at least {prompts} ({args.generation_batch_size} rows / {args.num_generations} generations)",
                fix="Add prompts, or lower trainer.per_device_train_batch_size or trainer.gradient_accumulation_steps",
            )
        return args

    def _only_optimizer(self, made_by: tuple[Any, dict[str, Any]] | None) -> tuple[Any, dict[str, Any]] | None:
        if made_by is not None and self.optimizer is not None:
            raise ConfigError("two optimizers", where="optimizers", fix="Pass one of it and optimizer_cls_and_kwargs")
        return made_by

    # ---- rollouts ----

    def _get_train_sampler(self, dataset: Any = None) -> EpochRepeatSampler:
        args = self.args
        self._epoch_sampler = self.train_order(
            self.train_dataset if dataset is None else dataset,
            seed=args.seed if args.data_seed is None else args.data_seed,
            num_generations=self.num_generations,
            prompts_per_batch=args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * args.steps_per_generation,
            shuffle=self.shuffle_dataset,
        )
        return in_order(self._epoch_sampler, self.row_order)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        metrics = self._metrics["train" if self.model.training else "eval"]
        scored = self.scored(inputs, prompts, completions, completion_ids_list, metrics=metrics)
        rewards, self._last_failed = scored
        self._last_verdicts = rewards[:, self.verifier_index]
        self._last_rewards = rewards.masked_fill(self._last_failed.unsqueeze(1), torch.nan)
        return self._last_rewards

    def scored(
        self, inputs: Any, prompts: Any, completions: Any, ids: Any, *, metrics: dict[str, list[float]]
    ) -> tuple[Tensor, Tensor]:
        """((W*B, F) rewards, NaN for None; (W*B,) bool: a reward failed) of completions, gathered over ranks."""
        with self.reward_recorder.own_words():
            rewards = super()._calculate_rewards(inputs, prompts, completions, ids)
        is_failed = self.reward_recorder.settle(metrics, num_rows=len(prompts), device=rewards.device)
        refuse_out_of_range(rewards, names=self.reward_func_names, verifier=self.verifier_index)
        return rewards, is_failed

    def _generate(self, prompts: Any) -> Any:
        training = self.model.training
        self._set_budget(
            self.completion_budget(self.state.global_step) if training else self.args.max_completion_length
        )
        result = super()._generate(prompts)
        if training:
            tokens = torch.tensor(sum(map(len, result[1])), device=self.accelerator.device)
            self.add_cost("generated_tokens", int(self.accelerator.reduce(tokens, reduction="sum")))
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        flags = [not ids or ids[-1] not in ends for ids in result[1]]
        self._last_truncated = self.accelerator.gather(torch.tensor(flags, device=self.accelerator.device))
        return result

    def _set_budget(self, tokens: int) -> None:
        # trl 1.16 reads the limit from these places at each generation; the loss normaliser keeps `args`.
        self.max_completion_length = tokens
        if self.use_vllm:
            self.vllm_generation.max_completion_length = tokens
        else:
            self.generation_config.max_new_tokens = tokens
            self.generation_kwargs["max_new_tokens"] = tokens

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        inputs = self.prepare_prompts(inputs)
        tensors = super()._generate_and_score_completions(inputs)
        tensors["trainable_mask"] = torch.ones_like(tensors["completion_mask"])
        first = self.args.process_index * len(inputs)
        is_failed = self._last_failed[first : first + len(inputs)]
        if not self.model.training:
            leave_out(tensors, is_failed)
            self.prepare_evaluation(tensors)
            return tensors
        rollouts = RolloutBatch(
            tensors=tensors,
            rows=inputs,
            rewards=self._last_rewards,
            verdict_values=self._last_verdicts,
            is_truncated=self._last_truncated,
            row_offset=first,
            num_generations=self.num_generations,
        )
        if self.args.upge.advantage_estimator != "external":
            greedy = greedy_baseline(self, inputs, tensors) if self.args.upge.advantage_estimator == "remax" else None
            tensors["advantages"] = rollouts.local(self._group_advantages(rollouts.rewards, greedy))
        tensors["row_index"] = torch.arange(len(inputs), device=tensors["completion_mask"].device)
        self._rollout_rows = inputs
        log_rollouts(self._metrics["train"], rollouts, self.verdicts(rollouts))
        log_lengths(self._metrics["train"], tensors, self.accelerator)
        leave_out(tensors, is_failed)
        self.add_cost("prompts", len(rollouts.rewards) / self.num_generations)
        if self.group_stats is not None:
            self.group_stats.count_rollouts(self, inputs, tensors["completion_mask"].sum(dim=1).tolist())
        return self.prepare_rollouts(rollouts).tensors

    def verdicts(self, rollouts: RolloutBatch) -> Tensor:
        """(W*B,) 1 = solved, 0 = not, NaN = not verified. A truncated rollout is never solved."""
        value = rollouts.verdict_values
        solved = (value >= self.args.success_threshold) & ~rollouts.is_truncated
        return torch.where(value.isnan(), value, solved.to(value.dtype))

    def total_rewards(self, rewards: Tensor) -> Tensor:
        """(W*B,) weighted sum over the reward functions that scored a row; NaN where none did."""
        weighted = rewards * self.reward_weights.to(rewards.device)
        return torch.where(rewards.isnan().all(dim=1), torch.nan, weighted.nansum(dim=1))

    def _group_advantages(self, rewards: Tensor, greedy: Tensor | None = None) -> Tensor:
        """(W*B,) advantages of the weighted reward sum; rows no function scored get 0 and leave the baseline alone."""
        totals = self.total_rewards(rewards)
        return group_advantages(totals, self.num_generations, config=self.args.upge, greedy_rewards=greedy)

    # ---- one optimizer step ----

    def train(self, *args: Any, **kwargs: Any) -> Any:
        # trl 1.16 keeps the rollouts of a first `train()` and would train the second on them.
        self._step, self._buffered_inputs, self._last_loaded_step = 0, None, -1
        self._window = []
        return super().train(*args, **kwargs)

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training:
            return inputs
        position = self._step % self.args.gradient_accumulation_steps
        if position == 0:
            self._window, self._window_loss = self._open_window(), []
        return self._window[position]

    def _open_window(self) -> list[dict[str, Any]]:
        """Micro-batches of the optimizer step that begins: weighted, without rows that cannot contribute, trimmed."""
        start = self._step % self.args.steps_per_generation
        rollouts: list[dict[str, Any]] = self._buffered_inputs or []
        stored = rollouts[start : start + self.args.gradient_accumulation_steps]
        window = [dict(tensors) for tensors in stored]
        for tensors, weights in zip(window, self.loss_weights(window), strict=True):
            tensors["loss_weights"] = weights
        if self.args.entropy_coef != 0.0:
            masks = [self.entropy_mask(tensors) for tensors in window]
            scale, counts = self.entropy_scale(), self.count_window(masks)
            for tensors, mask in zip(window, masks, strict=True):
                tensors["entropy_weights"] = scale * token_weights(mask, reduction="token_mean", counts=counts)
        contributing = [self.contributes(tensors) for tensors in window]
        log_update(self._metrics["train"], contributing, self.accelerator)
        # A mixture of experts balances its load over every row it sees.
        can_drop = not self.aux_loss_enabled and "pixel_values" not in window[0]  # patches are not row-aligned
        if self.args.drop_zero_advantage_rows and can_drop:
            window = [
                select_rows(tensors, rows.nonzero().squeeze(1) if rows.any() else torch.zeros(1, dtype=torch.long))
                for tensors, rows in zip(window, contributing, strict=True)
            ]
        return [trim_padding(tensors) for tensors in window]

    def _policy_batch(self, model: Any, inputs: Mapping[str, Any]) -> tuple[PolicyBatch, Tensor | None]:
        mask = trainable_mask(inputs)
        width = inputs["completion_ids"].size(1)
        trained = torch.cat([torch.zeros_like(inputs["prompt_ids"], dtype=torch.bool), mask.bool()], dim=1)

        def score_trained(*, labels: Tensor, **model_inputs: Any) -> Any:
            return model(**model_inputs, labels=labels.masked_fill(~trained, -100))

        logps, entropies, auxiliary = self._get_per_token_logps_and_entropies(
            score_trained,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            width,
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
            **{key: inputs[key] for key in VISION_KEYS if key in inputs},
        )
        old = inputs.get("old_per_token_logps")
        batch = PolicyBatch(
            logps=logps,
            old_logps=logps.detach() if old is None else old,
            mask=mask,
            advantages=inputs["advantages"],
            entropies=entropies,
            ref_logps=inputs.get("ref_per_token_logps"),
            is_ratio=inputs.get("importance_sampling_ratio"),
            extras=inputs,
        )
        return batch, auxiliary

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        mode = "train" if self.model.training else "eval"
        if "loss_weights" not in inputs:  # evaluation: the batch is its own optimizer step
            inputs = {**inputs, "loss_weights": self.loss_weights([inputs])[0]}
        batch, auxiliary = self._policy_batch(model, inputs)
        output = self.policy_loss(batch)
        values = output.values if batch.is_ratio is None else output.values * batch.is_ratio
        if self.beta != 0.0:
            corrected = batch.old_logps if self.args.use_bias_correction_kl else None
            divergence = k3_kl(batch.logps, batch.ref_logps, old_logps=corrected)
            values = values + self.beta * divergence
            output.metrics["kl"] = (divergence.detach() * batch.mask).sum() / batch.mask.sum()
        loss = torch.where(inputs["loss_weights"] > 0, values * inputs["loss_weights"], 0.0).sum()
        if "entropy_weights" in inputs:
            loss = loss - self.args.entropy_coef * (batch.entropies * inputs["entropy_weights"]).sum()
        # The weights count all ranks and DDP averages gradients over them.
        loss = loss * self.accelerator.num_processes
        if auxiliary is not None:
            steps = self.args.gradient_accumulation_steps if mode == "train" else 1
            loss = loss + self.router_aux_loss_coef * auxiliary / steps
        if batch.entropies is not None:
            output.metrics["entropy"] = (batch.entropies.detach() * batch.mask).sum() / batch.mask.sum()
        self._log_metrics(mode, output.metrics, batch.mask.sum())
        self._window_loss.append(loss.detach())
        return loss

    def _log_metrics(self, mode: str, metrics: Mapping[str, float | Tensor], tokens: Tensor) -> None:
        """Record a loss's metrics. A tensor is a mean over this micro-batch's tokens, averaged over ranks by their
        tokens; a float already speaks for all ranks. NaN where no rank has a token: the log leaves that out."""
        means = {name: value for name, value in metrics.items() if isinstance(value, Tensor)}
        local = torch.stack([*(value.double().nan_to_num() * tokens for value in means.values()), tokens.double()])
        *sums, count = self.accelerator.reduce(local, reduction="sum").tolist()
        averaged = {name: total / count if count else float("nan") for name, total in zip(means, sums, strict=True)}
        for name, value in {**metrics, **averaged}.items():
            self._metrics[mode][name].append(float(value))

    def describe_window(self) -> str:
        """The prompts of this rank's micro-batches whose loss is not finite."""
        bad = [i for i, loss in enumerate(self._window_loss) if not torch.isfinite(loss)]
        # After a resume inside a rollout block the prompts of the rows in flight are not at hand.
        rows = [int(r) for i in bad for r in self._window[i]["row_index"] if r < len(self._rollout_rows)]
        shown = "; ".join(str(self._rollout_rows[r].get("prompt"))[:80] for r in rows[:3])
        return f"Non-finite loss in micro-batches {bad} with rollouts {rows[:16]} of prompts: {shown}" if bad else ""
